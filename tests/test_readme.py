"""What the README shows is true: its library example runs, the fields, modes and files that it names exist."""

import re
from pathlib import Path

import jax

from binarydm_jax.main import MODES
from binarydm_jax.training.methods import METHODS
from binarydm_jax.training.validation import field
from configs import base

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_library_example_runs():
  """The block of Python gives gradients for both collections, none of them all zero."""
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  names = {}
  exec(code, names)
  gradients = names["gradients"]
  assert set(gradients) == {"params", "quant"}
  for part in gradients.values():
    assert sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(part)) > 0


def test_fields_modes_and_methods_exist():
  """Every --config field, table row, mode and method."""
  config = base.get_config()
  fields = re.findall(r"--config\.([a-z_.]+)=", README) + re.findall(r"^\| `([a-z_.]+)` \|", README, re.MULTILINE)
  assert len(fields) > 8
  for path in fields:
    field(config, path)
  assert set(re.findall(r"--mode=(\w+)", README)) <= set(MODES)
  assert set(re.findall(r"`(binarydm_v\d)`", README)) <= set(METHODS)


def test_files_exist():
  """Scripts, configs and pictures that the README names."""
  names = re.findall(r"(?:launch|configs|docs)/[\w.]+\.(?:sh|py|png)", README)
  assert len(names) >= 4
  for name in names:
    assert (ROOT / name).exists(), name
