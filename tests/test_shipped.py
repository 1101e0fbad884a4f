"""The model that comes with the package: it loads, it is small, its card is true, and it needs no run to be sampled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from binarydm_jax.deploy import load
from binarydm_jax.files import sha256_of
from binarydm_jax.main import with_shipped_model
from binarydm_jax.modes import SHIPPED

ROOT = Path(__file__).parents[1]


def test_card():
  """Its size and digest, and a model that loads by them."""
  card, size = SHIPPED.with_suffix(".md").read_text(), SHIPPED.stat().st_size
  assert size < 400_000 and f"{size:,} bytes" in card and f"`{sha256_of(SHIPPED)}`" in card
  model = load(SHIPPED, "float")
  assert model.input_shape == (8, 8, 1)
  assert any(layer["weights"] in ("one_basis", "multi_basis") for layer in model.description["layers"].values())


@pytest.mark.slow
def test_integers_agree_with_floats():
  """Of 32 predictions nearly all differ by rounding alone; a tie that falls the other way may change a few."""
  rng = np.random.default_rng(0)
  x, t = rng.normal(size=(32, 8, 8, 1)).astype(np.float32), np.arange(32) * 30
  integers, floats = (np.asarray(load(SHIPPED, backend)(x, t)).reshape(32, -1) for backend in ("xla", "float"))
  errors = np.linalg.norm(integers - floats, axis=1) / np.linalg.norm(floats, axis=1)
  assert np.median(errors) < 1e-5 and np.mean(errors > 1e-4) < 0.2


def test_a_first_minute(tmp_path):
  """One command without config, data or training: a grid, and as many images as asked for."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  flags = ["--mode=sample", "--config.sample.num_images=4", "--config.sample.steps=3", "--config.sample.backend=float"]
  command = [sys.executable, "-m", "binarydm_jax.main", *flags]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  (png,) = re.findall(r"(\S+\.png)", done.stdout)
  assert (tmp_path / png).exists()
  samples = np.load((tmp_path / png).with_suffix(".npz"))["arr_0"]
  assert samples.shape == (4, 8, 8, 1) and samples.std() > 30


@pytest.mark.parametrize("argument", ["--config=x", "--workdir=x", "--config.sample.model=x", "--mode=all"])
def test_what_is_named_is_not_replaced(argument):
  argv = ["main", "--mode=sample", argument]
  if argument.startswith("--mode"):
    argv = ["main", argument]
  assert with_shipped_model(argv) == argv
