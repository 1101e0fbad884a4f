"""Wrong input gets one line that names the field and the mend, before anything is compiled."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from binarydm_jax import main
from binarydm_jax.quant import inspection
from binarydm_jax.training import problem
from binarydm_jax.training.problem import build, count_classes
from tests import tiny

ROOT = Path(__file__).parents[1]

CASES = {
  "attention heads": ({"model.num_heads": 3}, r"model.num_heads 3 does not divide 16 channels"),
  "head channels": ({"model.num_head_channels": 5}, r"model.num_head_channels 5 does not divide 16 channels"),
  "norm groups": ({"model.norm_groups": 3}, r"model.norm_groups 3 does not divide 8 channels"),
  "down-sampling": ({"model.channel_mult": (1, 1, 1, 1, 1)}, r"data.image_size 8 is not divisible by 16"),
  "attention factor": ({"model.attention_resolutions": (3,)}, r"model.attention_resolutions holds 3; .*\[1, 2\]"),
  "activation bits": ({"quant.act_bits": 5}, r"act_bits 5 is not supported: use one of 32, 8, 4, 3, 2"),
  "weight bits": ({"method": "lsq", "quant.weight_bits": 9}, r"weight_bits 9 is not supported"),
  "one-bit lsq": ({"method": "lsq", "quant.weight_bits": 1}, r"weight_bits 1 is .*: use 2 to 8, or one_basis"),
  "method": ({"method": "binarydm"}, r"method 'binarydm' is not one of binarydm_v1"),
  "weights": ({"quant.weights": "ternary"}, r"quant.weights 'ternary' is not one of"),
  "unmatched rule": ({"quant.overrides": ("midle/*=float/32",)}, r"rule 'midle/\*' matched no layer; `--mode=info`"),
  "malformed rule": ({"quant.overrides": ("middle/*",)}, r"rule 'middle/\*' is not PATTERN=WEIGHTS/ACT_BITS"),
  "image size": ({"data.image_size": 16}, r"data.image_size.*8"),
  "channels": ({"data.channels": 3}, r"data.channels.*1"),
  "source": ({"data.source": "cifar"}, r"data.source.*'folder:PATH'"),
  "missing folder": ({"data.source": "folder:/no/such/place"}, r"/no/such/place"),
  "projection": ({"distill.projection": "svd"}, r"distill.projection 'svd' is not one of"),
  "target": ({"diffusion.target": "score"}, r"diffusion.target 'score' is not one of eps, x0, v"),
  "schedule": ({"diffusion.schedule": "quadratic"}, r"diffusion.schedule 'quadratic' is not one of"),
  "betas": ({"diffusion.beta_start": 0.5}, r"diffusion.beta_start 0.5 and beta_end 0.02"),
  "log steps": ({"checkpoint.every": 3}, r"checkpoint.every 3 is not a multiple of log.every 2"),
  "workers": ({"data.workers": -1}, r"data.workers is -1; it must be at least 0"),
  "batch size": ({"student.batch_size": 0}, r"student.batch_size is 0; it must be at least 1"),
  "transition": ({"quant.transition": 1.5}, r"quant.transition is 1.5; it must lie between 0 and 1"),
  "fade": ({"method": "ebb", "quant.fade": 0.6}, r"quant.fade 0.6 begins before the first step"),
  "transition at the end": ({"method": "ebb", "quant.transition": 1.0}, r"quant.transition 1.0 keeps the second basis"),
  "rings beyond the end": ({"quant.interval": 2}, r"quant.interval 2 lets the last ring begin at step 10, .* is 6"),
  "rings after the transition": (
    {"method": "ebb", "quant.progressive": "blocks", "quant.transition": 0.1, "quant.interval": 3, "student.steps": 30,
     "model.channel_mult": (1, 2, 2)}, r"quant.interval 3 .* from step 9 on, and quant.transition drops .* at step 3"
  ),
  "steps that begin too low": ({"sample.steps": 600}, r"sample.steps 600 in 'ldm' spacing begins at timestep 600"),
  "reference of another network": (
    {"evaluation.reference": str(ROOT / "README.md")}, r"README.md belongs to InceptionV3, but .* 'digits_classifier'"
  ),
  "missing devices": ({"mesh.data": 4}, r"mesh.data 4 x mesh.fsdp 1 are 4 devices, and there are 1: set mesh.data"),
  "parts for the devices": ({"mesh.fsdp": 2}, r"mesh.fsdp 2 does not divide 1 devices"),
  "batch for the devices": ({"student.batch_size": 9, "compute.accumulate": 8}, r"batch_size 9 cannot be split over 1"),
  "residual blocks": ({"model.num_res_blocks": -1}, r"model.num_res_blocks is -1; it must be at least 0"),
  "seed": ({"seed": -1}, r"seed is -1; it must lie in 0"),
  "few real images": ({"data.source": "FOLDER"}, r"data.source has 3 training images; .* needs more than 64"),
  "no teacher": ({"teacher.steps": 0}, r"teacher.steps is 0 and no teacher.checkpoint is given"),
  "classes of the data": (
    {"model.class_conditional": True, "model.num_classes": 4}, r"model.num_classes is 4, and .* has 10 classes"
  ),
  "transformer without context": ({"model.transformer_depth": 2}, r"model.transformer_depth is 2; .* it must be 1"),
  "null class without labels": ({"model.null_class": True}, r"model.null_class is True, and model.class_conditional"),
  "guidance": ({"sample.guidance": 2.0}, r"sample.guidance is 2.0; it needs model.null_class"),
  "a null class that is never trained": (
    {"model.class_conditional": True, "model.null_class": True, "sample.guidance": 2.0},
    r"teacher.label_dropout 0: the null class is not trained"
  ),
  "a null class that the student never sees": (
    {"model.class_conditional": True, "model.null_class": True, "sample.guidance": 2.0, "teacher.label_dropout": 0.1},
    r"student.label_dropout 0: the null class is not trained"
  ),
  "a reference for nothing": (
    {"evaluation.feature_network": "none", "evaluation.reference": "x.npz"}, r"evaluation.reference has no use, since"
  ),
  "label dropout": ({"student.label_dropout": 0.1}, r"student.label_dropout needs model.null_class"),
  "clipped latents": (
    {"first_stage.kind": "kl", "first_stage.channel_mult": (1,)}, r"sample.clip is True: .* set it to False"
  ),
  "threshold of latents": (
    {"first_stage.kind": "kl", "first_stage.channel_mult": (1,), "sample.clip": False, "sample.dynamic_threshold": 0.9},
    r"sample.dynamic_threshold is 0.9: .* set it to 0.0"
  ),
  "no first stage at the teacher's path": (
    {"first_stage.kind": "kl", "first_stage.channel_mult": (1,), "sample.clip": False,
     "teacher.checkpoint": "nowhere.ckpt"}, r"teacher.checkpoint 'nowhere.ckpt' does not exist"
  ),
  "one step that begins at the end": ({"sample.steps": 1}, r"sample.steps 1 in 'ldm' spacing begins at timestep 1 of"),
  "first stage": ({"first_stage.kind": "ae"}, r"first_stage.kind 'ae' is not one of none, vq, kl"),
  "first stage without kind": ({"first_stage.cache": "x"}, r"first_stage.kind is 'none', so its checkpoint and cache"),
  "size for the first stage": (
    {"first_stage.kind": "vq", "first_stage.channel_mult": (1,) * 5}, r"data.image_size 8 is not divisible by 16"
  ),
  "size of the latents": (
    {"first_stage.kind": "kl", "first_stage.channel_mult": (1,) * 4}, r"the size of the latents 1 is not divisible by 2"
  ),
  "first stage's attention": (
    {"first_stage.kind": "vq", "first_stage.attention_resolutions": (3,)}, r"first_stage.attention_resolutions holds 3"
  ),
  "first stage's norm": ({"first_stage.kind": "vq", "first_stage.channels": 48}, r"first_stage.norm_groups 32 does"),
  "no Inception weights": (
    {"evaluation.feature_network": "inception"}, r"'inception' needs evaluation.inception_weights, .* nothing is down"
  ),
  "reference": ({"evaluation.reference": "/no/such.npz"}, r"evaluation.reference '/no/such.npz' is not a file"),
  "layout": ({"model.layout": "adm"}, r"model.layout 'adm' is not one of ldm, ddpm"),
  "compute type": ({"compute.dtype": "float16"}, r"compute.dtype 'float16' is not one of float32, bfloat16"),
  "missing teacher": ({"teacher.checkpoint": "/no/such.ckpt"}, r"/no/such.ckpt does not exist"),
  "labels": ({"data.source": "FOLDER", "model.class_conditional": True}, r"model.class_conditional needs labels"),
  "sampler": ({"sample.sampler": "heun"}, r"sample.sampler 'heun' is not one of ddim, ddpm, plms, dpm_solver\+\+_2m"),
  "all timesteps": ({"sample.sampler": "plms", "sample.steps": 0}, r"sample.steps is 0: plms needs a number of steps"),
  "eta of a solver": ({"sample.sampler": "dpm_solver++_2m", "sample.eta": 0.5}, r"sample.eta is 0.5, and .* has none"),
  "one step of a solver": ({"sample.sampler": "plms", "sample.steps": 1}, r"sample.steps is 1; plms needs at least 2"),
  "repeated timesteps": (
    {"sample.sampler": "dpm_solver++_2s", "sample.spacing": "quadratic", "sample.steps": 50},
    r"sample.steps 50 repeats timesteps in 'quadratic' spacing, which dpm_solver\+\+_2s cannot use",
  ),
  "one quadratic step": ({"sample.steps": 1, "sample.spacing": "quadratic"}, r"sample.steps 1 is not in 2 .. 1000"),
  "percentile": ({"sample.dynamic_threshold": 99.5}, r"sample.dynamic_threshold is 99.5; it must lie between 0 and 1"),
  "too many sampling steps": ({"sample.steps": 1000}, r"sample.steps 1000 is not in 1 .. 999"),
  "too few samples": ({"evaluation.num_samples": 64}, r"evaluation.num_samples 64 must be more than 64"),
  "feature network of other images": ({"data.source": "FOLDER", "data.channels": 3}, r"evaluation.feature_network"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_before_compilation(name, tmp_path, monkeypatch):
  changes, message = CASES[name]
  changes = dict(changes)
  if changes.get("data.source") == "FOLDER":
    for i in range(4):
      Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    changes["data.source"] = f"folder:{tmp_path}"

  def no_compilation(*args, **kwargs):
    raise AssertionError("something was compiled before the check")

  if name == "unmatched rule":  # nor by a first walk through the network, which conftest remembers
    monkeypatch.setattr(problem.quant, "inspect_layers", inspection.inspect_layers)
  monkeypatch.setattr(jax._src.compiler, "backend_compile_and_load", no_compilation)
  with pytest.raises(ValueError, match=message) as error:
    main.run(tiny.get_config(**changes), str(tmp_path / "run"), "all")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run" / "teacher").exists()


def test_empty_folder_and_unreadable_image(tmp_path):
  """Both are named; an unreadable image is skipped only if asked."""
  config = tiny.get_config(**{"data.source": f"folder:{tmp_path}", "evaluation.feature_network": "none"})
  with pytest.raises(ValueError, match=str(tmp_path)):
    build(config)
  for i in range(4):
    Image.fromarray(np.full((9, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
  (tmp_path / "broken.png").write_bytes(b"not an image")
  with pytest.raises(ValueError, match=r"broken.png.*data.skip_unreadable"):
    build(config)
  config.data.skip_unreadable = True
  assert len(build(config).train_data) == 4  # Nothing is left out: the next image takes its place.


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config.student.step=3"], "student.step"),
    (["--mode=train"], "--mode"),
    (["--config.student.steps=many"], "student.steps"),
    (["--config.model.num_heads=3"], "error: model.num_heads 3 does not divide"),
    (["extra"], "unknown argument 'extra'"),
    (["--workdirs=x"], "error: Unknown command line flag 'workdirs'"),
    (["--config=configs/digit.py"], "error: --config=configs/digit.py: there is no such file; configs/ has"),
    (["--config", "configs/digit.py"], "error: --config=configs/digit.py: there is no such file; configs/ has"),
    (["--config=README.md"], " (README.md, line "),
  ],
)
def test_command_line(arguments, message, tmp_path):
  """Through the real command: status 1, the field named in the last line, no traceback."""
  command = [sys.executable, "-m", "binarydm_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
  done = subprocess.run(command + arguments, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1
  assert message in done.stderr.splitlines()[-1]
  assert "Traceback" not in done.stderr


def test_what_is_required():
  """Asked for by name where it is missing."""
  command = [sys.executable, "-m", "binarydm_jax.main", "--config=configs/digits.py"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and done.stderr == "error: --workdir is missing (--help lists the flags)\n"


def test_fewer_folders_than_classes():
  """Labels of a folder are positions among its folders: of 999 of 1,000 all after the gap would be wrong."""
  source = SimpleNamespace(num_classes=3)
  conditional = tiny.get_config(**{"model.class_conditional": True, "model.num_classes": 4}).model
  with pytest.raises(ValueError, match="num_classes is 4, and data.source 'folder:x' has 3 folders of images"):
    count_classes(conditional, "folder:x", source)
  assert count_classes(conditional, "npz:x", source) == 4  # states its labels
  assert count_classes(conditional, "folder:x", None) == 4
  conditional.num_classes = 0
  assert count_classes(conditional, "folder:x", source) == 3


def test_guidance_of_a_teacher_alone():
  """Where no student is trained its labels are nobody's business: a teacher can be sampled."""
  fields = {"model.class_conditional": True, "model.null_class": True, "teacher.label_dropout": 0.1}
  build(tiny.get_config(**fields, **{"sample.guidance": 2.0}), with_data=False, trains=())
