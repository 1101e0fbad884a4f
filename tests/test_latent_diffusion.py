"""Latent diffusion from a published file, through the command line: one checkpoint holds teacher and first stage."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest
import torch

from binarydm_jax import main
from binarydm_jax.data import open_latents
from binarydm_jax.deploy import load
from binarydm_jax.first_stage import open_first_stage
from binarydm_jax.importers import CheckpointError, autoencoder_entries, load_autoencoder, restore, unet_entries
from binarydm_jax.models import Autoencoder
from binarydm_jax.training import feed
from binarydm_jax.training.problem import build
from binarydm_jax.training.sharding import make_mesh
from binarydm_jax.workdir import digest
from tests import tiny

ROOT = Path(__file__).parents[1]
FIELDS = {
  "method": "baseline",
  "model.class_conditional": True,
  "model.null_class": True,
  "model.context_dim": 6,
  "model.channel_mult": (1,),
  "model.num_res_blocks": 0,
  "student.label_dropout": 0.5,
  "student.steps": 2,
  "first_stage.kind": "kl",
  "first_stage.channels": 4,
  "first_stage.channel_mult": (1, 1),
  "first_stage.num_res_blocks": 1,
  "first_stage.latent_channels": 2,
  "first_stage.norm_groups": 2,
  "first_stage.scale_factor": 0.0,
  "first_stage.batch_size": 150,
  "sample.guidance": 2.0,
  "sample.clip": False,
  "sample.steps": 2,
  "evaluation.feature_network": "none",
  "evaluation.num_samples": 6,
  "evaluation.heldout_images": 10,
  "log.diagnostics": False,
}


@functools.cache
def random_state(teacher, inputs, first_stage):
  """name -> array of a latent diffusion .ckpt with random weights."""
  rng = np.random.default_rng(0)

  def random(model, *inputs):
    tree = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), tree)

  def names(model, params, entries):
    return restore(params, entries(model, flax.traverse_util.flatten_dict(params, sep="/"), "compvis"))

  unet = names(teacher, random(teacher, *inputs), unet_entries)
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  stage = names(first_stage, random(first_stage, image), autoencoder_entries)
  state = {"cond_stage_model.embedding.weight": unet.pop("class_embedder.weight")}
  state |= {f"model.diffusion_model.{name}": value for name, value in unet.items()}
  return state | {f"first_stage_model.{name}": value for name, value in stage.items()}


def publish(config, path, scale_factor=None):
  """A latent diffusion .ckpt with random weights for the networks of a config."""
  problem = build(config, with_data=False)
  found = random_state(problem.teacher, problem.inputs(), problem.first_stage)
  state = {name: torch.tensor(value) for name, value in found.items()}
  if scale_factor:
    state["scale_factor"] = torch.tensor(scale_factor)
  torch.save({"state_dict": state}, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(config, workdir) of a finished run that read its latents from disk."""
  folder = tmp_path_factory.mktemp("latents")
  config = tiny.get_config(
      **FIELDS, **{"teacher.checkpoint": str(folder / "ldm.ckpt"), "first_stage.cache": str(folder / "cache")}
  )
  publish(config, folder / "ldm.ckpt")
  for mode in ("encode", "binarize", "export"):
    main.run(config, folder / "run", mode)
  return config, folder / "run"


def kept_factor(workdir):
  return json.loads((workdir / "inputs.json").read_text())["scale_factor"]


def test_scale_factor_of_the_first_batch(run):
  """Without a factor in config or file, the first batch's latents get unit variance, and the run keeps the number."""
  config, workdir = run
  problem = build(config)
  tree, factor = load_autoencoder(config.teacher.checkpoint, problem.first_stage)
  assert factor is None and set(tree) == {"encoder", "decoder", "quant_conv", "post_quant_conv"}
  stage = open_first_stage(config, problem.first_stage, workdir, None)
  assert stage.scale_factor == kept_factor(workdir)
  images = np.stack([problem.train_data[i]["image"] for i in range(300)])
  latents = stage.latents(stage.moments(images, 150), jax.random.key(1))
  assert 0.8 < np.std(latents) < 1.25


def test_where_the_scale_factor_comes_from(run, tmp_path):
  """The config, the teacher's file, the first stage's file; a contradiction is an error; a codebook's latents stay."""
  config, workdir = run
  model = build(config).first_stage
  config = config.copy_and_resolve_references()
  other, teacher = tmp_path / "other.ckpt", tmp_path / "teacher.ckpt"
  publish(config, other, scale_factor=0.25)
  publish(config, teacher, scale_factor=0.5)

  def factor(folder):
    return open_first_stage(config, model, tmp_path / folder, None).scale_factor

  for folder in "abcd":
    (tmp_path / folder).mkdir()
  config.first_stage.checkpoint = str(other)
  assert factor("a") == 0.25
  config.teacher.checkpoint = str(teacher)
  assert factor("b") == 0.5
  config.first_stage.scale_factor = 0.3
  with pytest.raises(ValueError, match="first_stage.scale_factor is 0.3, and the checkpoint has 0.5: set it to 0"):
    factor("c")
  # A run hands its factor on to a student that is trained from its teacher.
  config.first_stage.update(dict(scale_factor=0.0, checkpoint=run[0].teacher.checkpoint))
  config.teacher.checkpoint = str(workdir)
  (workdir / "teacher").mkdir()
  assert factor("d") == kept_factor(workdir)
  config.first_stage.checkpoint = ""
  assert factor("d") == kept_factor(workdir)
  (workdir / "teacher").rmdir()


def test_other_files_in_the_same_workdir(run, tmp_path):
  """Paths may change, what they hold may not."""
  config, workdir = run
  config = config.copy_and_resolve_references()
  publish(config, tmp_path / "other.ckpt")
  other = torch.load(tmp_path / "other.ckpt", weights_only=True)
  for name, value in other["state_dict"].items():
    other["state_dict"][name] = value + 1
  torch.save(other, tmp_path / "other.ckpt")
  config.teacher.checkpoint = str(tmp_path / "other.ckpt")
  with pytest.raises(ValueError, match="was begun with another teacher_sha256"):
    main.run(config, workdir, "pretrain")
  with pytest.raises(ValueError, match="was begun with another first_stage_sha256"):
    open_first_stage(config, build(config).first_stage, workdir, None)
  config.sample.model = str(workdir / "model.safetensors")
  with pytest.raises(ValueError, match="other.ckpt is not the first stage that the packed model was trained with"):
    main.run(config, tmp_path, "sample")


def test_cache_holds_the_moments(run):
  """--mode=encode wrote what the first stage says of each training image."""
  config, workdir = run
  problem = build(config)
  stage = open_first_stage(config, problem.first_stage, workdir, None)
  cache = open_latents(config.first_stage.cache)
  assert len(cache) == len(problem.train_data) == 1500
  rows = [problem.train_data[i] for i in (0, 7, 1499)]
  moments = stage.moments(np.stack([row["image"] for row in rows]), 150)
  for i, row, wanted in zip((0, 7, 1499), rows, moments):
    np.testing.assert_allclose(cache[i]["moments"], wanted, rtol=1e-4, atol=1e-5)
    assert cache[i]["label"] == row["label"]


def test_batches_from_disk_and_on_the_fly(run):
  """Encoding at every step gives the latents that the cache gives, the posterior's noise included."""
  config, workdir = run
  streams = []
  for cache in (config.first_stage.cache, ""):
    config = config.copy_and_resolve_references()
    config.first_stage.cache = cache
    streams.append(feed.network_batches(build(config), "student", make_mesh(), 3, workdir))
  for _ in range(2):
    stored, encoded = (next(stream) for stream in streams)
    assert stored["image"].shape == (8, 4, 4, 2)
    np.testing.assert_allclose(stored["image"], encoded["image"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(stored["label"], encoded["label"])


@pytest.mark.slow
def test_results_are_images(run):
  """Samples of teacher and packed student are decoded; the held-out loss is that of latents."""
  config, workdir = run
  config = config.copy_and_resolve_references()
  config.log.diagnostics = True
  main.run(config, workdir, "evaluate")
  results = json.loads((workdir / "results.json").read_text())
  for row in results["models"]:
    samples = np.load(workdir / "samples" / f"{row['name']}.npz")["arr_0"]
    assert samples.shape == (6, 8, 8, 1) and samples.dtype == np.uint8
    assert row["guidance"] == 2.0 and np.isfinite(row["heldout_loss"])


def test_a_teacher_of_another_schedule(run, tmp_path):
  """A file that states its betas is refused before anything is trained by others."""
  config, _ = run
  content = torch.load(config.teacher.checkpoint, weights_only=True)
  content["state_dict"]["betas"] = torch.linspace(1e-4, 0.0155, 1000)
  torch.save(content, tmp_path / "ldm.ckpt")
  config = tiny.get_config(**FIELDS, **{"teacher.checkpoint": str(tmp_path / "ldm.ckpt")})
  with pytest.raises(CheckpointError, match="1000 timesteps with betas from 0.0001 to 0.0155, and diffusion.schedule"):
    main.run(config, tmp_path / "run", "binarize")


def test_packed_file_knows_its_first_stage(run):
  _, workdir = run
  file = load(workdir / "model.safetensors")
  assert file.input_shape == (4, 4, 2) and file.model.null_class and file.model.context_dim == 6
  assert file.first_stage["kind"] == "kl"
  assert file.first_stage["scale_factor"] == kept_factor(workdir)


def test_latents_of_the_packed_file_become_images(run):
  """As docs/deployment.md has it: the file says which Autoencoder, the checkpoint has its weights."""
  config, workdir = run
  model = load(workdir / "model.safetensors")
  latents = model.sample(jax.random.key(0), 2, sampler="ddim", steps=2, labels=jax.numpy.array([3, 1]), guidance=2.0)
  fields = dict(model.first_stage)
  factor, sha256 = fields.pop("scale_factor"), fields.pop("sha256")
  decoder = Autoencoder(**fields)
  params, _ = load_autoencoder(config.teacher.checkpoint, decoder)
  assert digest(params) == sha256
  images = jax.jit(lambda x: decoder.apply({"params": params}, x, method="decode"))(latents / factor)
  stage = open_first_stage(config, build(config).first_stage, workdir, None)
  assert images.shape == (2, 8, 8, 1)
  np.testing.assert_allclose(images, stage.decode(latents, 2), atol=1e-5)


def test_sampling_without_data(run, tmp_path):
  """The packed file needs the first stage's weights, and neither data nor the run; without them one line says so."""
  config, workdir = run
  config = config.copy_and_resolve_references()
  config.unlock()
  config.data.source = "folder:/nowhere"
  config.sample.model = str(workdir / "model.safetensors")
  main.run(config, tmp_path, "sample")
  assert np.load(tmp_path / "samples" / "packed.npz")["arr_0"].shape == (6, 8, 8, 1)
  config.sample.clip = True
  with pytest.raises(ValueError, match="sample.clip is True: .* latents go beyond"):
    main.run(config, tmp_path, "sample")
  config.sample.clip, config.teacher.checkpoint = False, ""
  with pytest.raises(ValueError, match="first_stage.checkpoint is empty"):
    main.run(config, tmp_path, "sample")
  # What the file's network can do is asked of it, not of the config.
  config.model.update(dict(class_conditional=False, null_class=False, context_dim=0))
  config.student.label_dropout = 0.0
  with pytest.raises(ValueError, match="first_stage.checkpoint is empty"):
    main.run(config, tmp_path, "sample")


def test_wrong_first_stage_and_cache(run, tmp_path):
  """A cache of other latents or none, a first stage of another shape or none: one line, and nothing found is kept."""
  config, _ = run
  config = config.copy_and_resolve_references()
  config.data.holdout = 0.2
  with pytest.raises(ValueError, match=r"holdout.*--mode=encode"):
    main.run(config, tmp_path / "a", "binarize")
  assert "scale_factor" not in json.loads((tmp_path / "a" / "inputs.json").read_text())
  config.first_stage.cache = str(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=r"nowhere.*--mode=encode"):
    main.run(config, tmp_path / "b", "binarize")
  config.first_stage.update(dict(cache="", channels=8))
  with pytest.raises(ValueError, match=r"ldm.ckpt.*of another shape"):
    main.run(config, tmp_path / "c", "binarize")
  config.first_stage.checkpoint = str(tmp_path / "none.ckpt")
  with pytest.raises(ValueError, match=r"first_stage.checkpoint .*none.ckpt' does not exist"):
    main.run(config, tmp_path / "d", "binarize")


@pytest.mark.slow
def test_two_processes_encode_as_one(run, tmp_path):
  """Each writes its shards; the moments and labels of every example are those of one process."""
  config, _ = run
  fields = {**FIELDS, "teacher.checkpoint": config.teacher.checkpoint, "first_stage.cache": str(tmp_path / "cache")}
  flags = [f"--config.{name}={value if isinstance(value, str) else repr(value)}" for name, value in fields.items()]
  command = ["launch/local_cluster.sh", "2", "--config=tests/tiny.py", f"--workdir={tmp_path / 'run'}", "--mode=encode"]
  environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
  done = subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  one, two = (open_latents(cache) for cache in (config.first_stage.cache, fields["first_stage.cache"]))
  assert len(one) == len(two)
  for i in range(0, len(one), 50):
    np.testing.assert_allclose(one[i]["moments"], two[i]["moments"], rtol=1e-4, atol=1e-5)
    assert one[i]["label"] == two[i]["label"]
