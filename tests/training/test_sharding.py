"""Four devices train as one does (forced host devices, in a process of their own)."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from binarydm_jax.training import sharding

ROOT = Path(__file__).parents[2]

SCRIPT = """
import jax, numpy as np
from tests import tiny
from tests.training.test_step import teacher_params
from binarydm_jax.training import feed, sharding, stages
from binarydm_jax.training.problem import build

assert len(jax.devices()) == 4
problem = build(tiny.get_config(**{"student.steps": 20, "model.channel_mult": (1,)}))
params = teacher_params(problem)
results = []
for count in (1, 4):
  mesh = sharding.make_mesh(jax.devices()[:count])
  teacher = sharding.put_replicated(params, mesh)
  state, frozen = stages.prepare_student(problem, teacher, mesh)
  step, losses = stages.student_train_step(problem, state, frozen), []
  stream = feed.network_batches(problem, "student", mesh, 0)
  for _ in range(8):
    batch = next(stream)
    assert len(batch["image"].sharding.device_set) == count
    state, metrics = step(state, frozen, batch)
    losses.append(float(metrics["loss"]))
  assert state.variables["params"]["out_conv"]["kernel"].sharding.is_fully_replicated
  results.append((losses, jax.device_get(state.ema), jax.device_get(frozen["projections"])))
(a, ema_a, p_a), (b, ema_b, p_b) = results
np.testing.assert_allclose(a, b, rtol=1e-4)
# The subspaces, not their bases: the sign of an eigenvector is free.
for x, y in zip(p_a, p_b):
  np.testing.assert_allclose(x @ x.T, y @ y.T, atol=1e-3)
# Adam divides by the gradient's size: where a gradient is nearly zero its rounding decides the sign of an update, so
# single weights may differ by a few learning rates (1e-3); the tree as a whole may not.
flat_a, flat_b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (ema_a, ema_b))
assert np.linalg.norm(flat_a - flat_b) < 1e-3 * np.linalg.norm(flat_a)
print("equal")
"""


def test_four_devices_equal_one():
  """Losses, averaged weights and scales, and the projections of the global batch."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
  done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_indivisible_batch_is_named():
  """A batch that the devices cannot share."""

  class Mesh:
    size = 4

  with pytest.raises(ValueError, match="student.batch_size 6 cannot be split over 4 devices; use a multiple of 4"):
    sharding.check_batch("student.batch_size", 6, Mesh)
  sharding.check_batch("student.batch_size", 8, sharding.make_mesh(jax.devices()[:1]))
