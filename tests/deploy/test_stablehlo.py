"""The exported sampling step: it runs where this package is not, and gives what the package's sampler gives."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from binarydm_jax.deploy import load
from binarydm_jax.deploy.stablehlo import sampling_step, write_step
from tests.deploy.test_packed import MODELS, SHAPE, student, write

# Only jax and numpy, in a folder without the package: the whole of a DDIM chain.
SCRIPT = """
import sys
import jax, numpy as np
file = np.load("inputs.npz")
step = jax.export.deserialize(open("model.stablehlo", "rb").read()).call
x = file["x"]
labels = [file["labels"]] if "labels" in file else []
for t, t_next in zip(file["timesteps"], file["timesteps"][1:]):
  x = step(x, t, t_next, *labels)
np.save("out.npy", x)
assert not [name for name in sys.modules if name.startswith(("binarydm", "flax"))]
"""


@pytest.mark.parametrize("name, options", [
  ("lmb a4", dict(dynamic_threshold=0.9)), pytest.param("lmb a4", {}, marks=pytest.mark.slow),
  pytest.param("lmb a4 asymmetric", {}, marks=pytest.mark.slow),
  pytest.param("cross-attention", dict(guidance=2.0), marks=pytest.mark.slow),
])  # fmt: skip
def test_runs_without_the_package(name, options, tmp_path):
  """Three steps in another process equal `Model.sample`, from the same noise; the weights inside are bits."""
  made = student(**MODELS[name])
  payload, _ = write(tmp_path / "m", made)
  model = load(tmp_path / "m", "xla")
  size = write_step(model, tmp_path / "model.stablehlo", **options)
  assert size == (tmp_path / "model.stablehlo").stat().st_size
  assert size < payload + 200_000
  key = jax.random.key(3)
  wanted = model.sample(key, 5, steps=3, **options)
  noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), 0), SHAPE))(np.arange(5))
  inputs = {"x": np.asarray(noise), "timesteps": np.array([133, 67, 1, 0], np.int32)}  # "ldm" spacing of 200 timesteps
  if model.model.num_classes:
    inputs["labels"] = np.arange(5, dtype=np.int32) % 3
  np.savez(tmp_path / "inputs.npz", **inputs)
  done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-4)


def test_a_step_by_hand(tmp_path):
  """t_next -1 gives the predicted x0; another t_next the mixture of it and the noise that belongs to it."""
  write(tmp_path / "m", student("baseline", act_bits=4))
  model = load(tmp_path / "m", "xla")
  x = np.asarray(jax.random.normal(jax.random.key(0), (2, *SHAPE)))
  step = jax.jit(sampling_step(model, clip=False))
  abar = np.cumprod(1 - np.linspace(1e-4, 0.04, 200))
  output = np.asarray(model(x, 50))
  x0 = (x - (1 - abar[50]) ** 0.5 * output) / abar[50] ** 0.5
  np.testing.assert_allclose(step(x, np.int32(50), np.int32(-1)), x0, rtol=1e-4, atol=1e-4)
  wanted = abar[20] ** 0.5 * x0 + (1 - abar[20]) ** 0.5 * output
  np.testing.assert_allclose(step(x, np.int32(50), np.int32(20)), wanted, rtol=1e-4, atol=1e-4)


def test_only_portable_programs_are_written(tmp_path):
  write(tmp_path / "m", student("baseline"))
  with pytest.raises(ValueError, match="back end 'float' cannot leave this package: load it with 'xla'"):
    write_step(load(tmp_path / "m", "float"), tmp_path / "x")
