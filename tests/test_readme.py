"""What the README shows is true: the library's example runs, the fields, modes and files that it names exist."""

import re
from pathlib import Path

import jax
import numpy as np

from binarydm_jax.main import MODES
from binarydm_jax.training.methods import METHODS
from binarydm_jax.training.validation import field
from configs import base

ROOT = Path(__file__).parents[1]
ALL = (ROOT / "README.md").read_text() + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def test_the_librarys_example_runs(tmp_path, monkeypatch):
  """docs/library.md: gradients for every leaf of both collections; the file that is read back gives the student."""
  text = (ROOT / "docs" / "library.md").read_text()
  train, read, mimic, evolve, functions = re.findall(r"```python test\n(.*?)```", text, re.DOTALL)
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(train, names)
  gradients = names["gradients"]
  assert set(gradients) == {"params", "quant"}
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert abs(leaf).sum() > 0, path
  wanted = names["student"].apply(names["variables"], names["x"], names["condition"])
  setup, expression = read.rstrip().rsplit("\n", 1)
  exec(setup, names)
  np.testing.assert_allclose(eval(expression, names), wanted, atol=1e-5)
  exec(mimic, names)
  assert names["projections"][0].shape == (64, 16) and names["lrm"](names["variables"]) > 0
  changed = jax.tree.map(lambda a, b: abs(a - b).max(), names["gradients"], gradients)
  assert max(jax.tree.leaves(changed)) > 0  # the term has gradients of its own
  exec(evolve, names)
  late = jax.grad(names["ebb_loss"])(names["trained"], 200)["quant"]
  for name, layer in names["gradients"]["quant"].items():
    assert abs(layer["scale2"]).sum() > 0 and abs(late[name]["scale2"]).sum() == 0  # gone after the transition
  packed = names["load_file"]("head.safetensors")
  assert any(name.endswith("signs1") for name in packed) and not any("2" in name.rpartition("/")[2] for name in packed)
  exec(functions, names)


def test_fields_modes_and_methods_exist():
  """Every --config field, table row, mode and method."""
  config = base.get_config()
  fields = re.findall(r"--config\.([a-z_.]+)=", ALL) + re.findall(r"^\| `([a-z_.]+\.[a-z_.]+)` \|", ALL, re.MULTILINE)
  assert len(fields) > 8
  for path in fields:
    field(config, path)
  assert set(re.findall(r"--mode=(\w+)", ALL)) <= set(MODES)
  assert set(re.findall(r"`(binarydm_v\d)`", ALL)) <= set(METHODS)


def test_files_exist():
  """Scripts, configs and pictures that the README names."""
  names = re.findall(r"(?:launch|configs|docs|tests)/[\w./]+\.(?:sh|py|png|md|sbatch)", ALL)
  assert len(names) >= 4
  for name in names:
    assert (ROOT / name).exists(), name
