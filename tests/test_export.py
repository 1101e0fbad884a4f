"""--mode=export and sampling from the file: what is written, by which options, and of which students."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from binarydm_jax import main, modes
from binarydm_jax.deploy import load
from binarydm_jax.deploy.packed import file_sizes
from binarydm_jax.networks import trained_network
from binarydm_jax.training.loop import TrainingError
from binarydm_jax.training.problem import build
from tests import finished


def get_config(**flat):
  return finished.get_config(**{"sample.num_images": 3, "sample.batch_size": 3, **flat})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Teacher and student are trained; the packed file that they came with stands aside."""
  folder = finished.copy(tmp_path_factory)[1]
  (folder / "model.safetensors").rename(folder / "default")
  return folder


def put_default(workdir):
  """The file of the default options, which `test_defaults` makes anew: making it takes seconds."""
  shutil.copy(workdir / "default", workdir / "model.safetensors")
  return load_file(workdir / "model.safetensors")


def export(workdir, **flat):
  main.run(get_config(**{f"export.{name}": value for name, value in flat.items()}), str(workdir), "export")
  return load_file(workdir / "model.safetensors")


def test_defaults(workdir, capsys):
  """Averaged weights, float32, no program beside the file; what mode "all" has written."""
  tensors = export(workdir)
  jax.tree.map(np.testing.assert_array_equal, tensors, load_file(workdir / "default"))
  assert {tensor.dtype.name for tensor in tensors.values()} == {"uint8", "float32"}
  assert "middle/res/conv1/signs1" in tensors and "out_conv/codes" in tensors
  assert not (workdir / "model.stablehlo").exists() and "unfinished" not in capsys.readouterr().out


def test_weights_of_the_last_step(workdir):
  """export.averaged=False reaches the packed file and the student that is sampled from its checkpoints."""
  averaged, last = put_default(workdir), export(workdir, averaged=False)
  assert set(averaged) == set(last) and not np.array_equal(averaged["out_norm/bias"], last["out_norm/bias"])
  for choice, tensors in ((True, averaged), (False, last)):
    problem = build(get_config(**{"export.averaged": choice}))
    student = trained_network(problem, workdir, "student").variables["params"]
    np.testing.assert_array_equal(student["out_norm"]["bias"], tensors["out_norm/bias"])


def test_bfloat16_remainder(workdir):
  """Half the bytes for what is not quantized, as `cost` counts them."""
  whole, half = put_default(workdir), export(workdir, remainder="bfloat16")
  assert half["out_norm/bias"].dtype.name == "bfloat16" and half["out_conv/weight_step"].dtype == np.float32
  remainder = sum(tensor.nbytes for tensor in half.values() if tensor.dtype.name == "bfloat16")
  total = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in (whole, half)]
  assert total[0] - total[1] == remainder > 0
  problem = build(get_config(**{"export.remainder": "bfloat16"}), with_data=False)
  assert modes.student_cost(problem).packed_bytes == total[1]


def test_sampling_by_back_end(workdir):
  """sample.backend reaches the program: integers and floats draw nearly the same images, and each its own file."""
  put_default(workdir)
  images = {}
  for backend in ("float", "xla", "auto"):
    main.run(get_config(**{"sample.backend": backend}), str(workdir), "sample")
    images[backend] = np.load(workdir / "samples" / "packed.npz")["arr_0"].astype(int)
    protocol = (workdir / "samples" / "packed.json").read_text()
    images[backend + " protocol"] = protocol
  assert images["float"].std() > 10
  assert images["float protocol"] != images["xla protocol"]
  for backend in ("xla", "auto"):
    assert np.abs(images[backend] - images["float"]).mean() < 1
  with pytest.raises(ValueError, match="sample.backend 'gpu' is not one of auto, xla, cpu, float"):
    main.run(get_config(**{"sample.backend": "gpu"}), str(workdir), "sample")


def test_stablehlo_option(workdir):
  """The program stands beside the file, with the clipping of `sample`."""
  export(workdir, stablehlo=True)
  step = jax.export.deserialize((workdir / "model.stablehlo").read_bytes()).call
  x = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
  x0 = np.asarray(step(x, np.int32(900), np.int32(-1)))
  assert x0.shape == x.shape and np.abs(x0).max() == 1  # far from the data, so that most of it is clipped
  export(workdir)
  assert (workdir / "model.stablehlo").exists()  # the file is the same
  export(workdir, averaged=False)  # another one: the program of before is not left beside it
  assert not (workdir / "model.stablehlo").exists()


def test_a_program_of_another_file_goes_first(workdir, monkeypatch):
  """Broken off before the new one is there, no program is left rather than that of other weights."""
  export(workdir)
  (workdir / "model.stablehlo").write_bytes(b"of the averages")

  def broken(*arguments, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(modes.stablehlo, "write_step", broken)
  with pytest.raises(KeyboardInterrupt):
    export(workdir, stablehlo=True)
  assert (workdir / "model.stablehlo").exists()  # the same file
  with pytest.raises(KeyboardInterrupt):
    export(workdir, stablehlo=True, averaged=False)
  assert not (workdir / "model.stablehlo").exists()


def test_unfinished_student(workdir, tmp_path, capsys, monkeypatch):
  """Refused in one line; export.force writes what the step computes, and says so: the outer blocks and attention's
  activations in float. Its evaluation counts that file."""
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  (tmp_path / "model.safetensors").unlink(missing_ok=True)
  for step in (2 * finished.SAVED, finished.STEPS):
    shutil.rmtree(tmp_path / "student" / str(step))
  with pytest.raises(TrainingError, match=r"no finished student \(step 8 of 20\); run --mode=binarize first"):
    export(tmp_path)
  assert not (tmp_path / "model.safetensors").exists()
  tensors = export(tmp_path, force=True)
  said = "of an unfinished student, step 8 of 20, 2 of its 3 blocks not binarized yet: export.force"
  assert said in capsys.readouterr().out
  assert "middle/res/conv1/signs2" in tensors and "output_0/res/conv1/signs2" not in tensors
  model = load(tmp_path / "model.safetensors", "xla")
  assert model.model.rules["middle/res/conv1"].rule.weights == "multi_basis"
  whole = put_default(workdir)
  assert "output_0/res/conv1/signs2" in whole
  assert "middle/attn/qk/step_a" not in tensors and "middle/attn/qk/step_a" in whole
  told = []
  monkeypatch.setattr(modes.evaluate, "evaluate", lambda *arguments: told.extend(arguments))
  monkeypatch.setattr(modes, "_print_results", lambda *arguments: None)
  main.run(get_config(**{"export.force": True}), str(tmp_path), "evaluate")
  (_, student), table, step = told[3:]
  assert student.packed_bytes == file_sizes(tmp_path / "model.safetensors")[0] and step == finished.SAVED
  assert table["middle/res/conv1"].bases == 2 and not table["output_0/res/conv1"].bases
  shutil.rmtree(tmp_path / "student")
  with pytest.raises(TrainingError, match="no finished student"):
    export(tmp_path, force=True)


@pytest.mark.slow
def test_second_basis_of_ebb(tmp_path):
  """In the file before the transition, and gone after it."""
  fields = {"method": "ebb", "quant.transition": 0.75, "quant.progressive": "blocks", "quant.interval": 1,
            "teacher.steps": 2, "student.steps": 4, "checkpoint.every": 2}  # fmt: skip
  for mode in ("pretrain", "binarize", "export"):
    main.run(get_config(**fields), str(tmp_path), mode)
  tensors = load_file(tmp_path / "model.safetensors")
  assert not [name for name in tensors if name.endswith(("signs2", "scale2"))]
  shutil.rmtree(tmp_path / "student" / "4")
  main.run(get_config(**fields, **{"export.force": True}), str(tmp_path), "export")
  assert "middle/res/conv1/signs2" in load_file(tmp_path / "model.safetensors")
