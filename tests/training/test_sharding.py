"""Two devices and four train as one; what their programs send to each other; the rules of what is split."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec

from binarydm_jax.training import sharding

ROOT = Path(__file__).parents[2]

SCRIPT = """
import re
import jax, numpy as np
from tests import tiny
from tests.training.test_step import teacher_params
from binarydm_jax.training import feed, sharding, stages
from binarydm_jax.training.problem import build

assert len(jax.devices()) == 4
BATCH = 32
COLLECTIVE = re.compile(r"= (\\(?[a-z0-9]+\\[.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
                        r"|collective-broadcast)(?:-start)?\\(")

def elements(shapes):
  return [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\\[([0-9,]*)\\]", shapes)]

def check_program(text, state, count, fsdp):
  # Of each computation its collectives, as (kind, elements of each result).
  computations, name = {}, None
  for line in text.splitlines():
    if line.endswith("{") and "->" in line:
      name = line.split()[1 if line.startswith("ENTRY") else 0].lstrip("%")
    if match := COLLECTIVE.search(line):
      computations.setdefault(name, []).append((match[2], elements(match[1])))
  bodies = re.findall(r"body=%?([\\w.-]+)", text)
  assert not set(bodies) & set(computations), "a collective inside a loop"
  found = [item for items in computations.values() for item in items]
  assert {kind for kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}, found
  leaves = jax.tree.leaves(state.variables)
  total, largest = sum(leaf.size for leaf in leaves), max(leaf.size for leaf in leaves)
  # The first feature maps alone are larger than any parameter: nothing of their size travels.
  activation = BATCH // count * 8 * 8 * 8
  assert largest < activation, (largest, activation)
  assert max(n for _, sizes in found for n in sizes) <= largest
  reduced = sum(sum(sizes) * (fsdp if kind == "reduce-scatter" else 1) for kind, sizes in found if kind != "all-gather")
  # A gradient that is zero by construction is not sent. Over `fsdp` a split gradient is scattered, then its part is
  # reduced over `data`.
  split = sum(leaf.size for leaf in leaves if not leaf.sharding.is_fully_replicated)
  assert 0.99 * total <= reduced <= total + split // fsdp * (fsdp > 1) + 64, (total, split, reduced)
  for word in ("infeed", "outfeed", " send(", " recv(", "callback"):
    assert word not in text, word
  return split

# With 4-bit activations ten steps: a code that rounding decides moves a loss by up to 2e-3, and one did at the eleventh
# step of five blocks.
for act_bits, steps in ((32, 20), (4, 10)):
  results = []
  for count, fsdp, accumulate in ((1, 1, 1), SHARED):
    changes = {"student.steps": 40, "student.batch_size": BATCH, "model.channel_mult": (1,), "model.num_res_blocks": 0,
               "model.dropout": 0.1, "mesh.min_size": 256, "student.learning_rate": 2e-5, "data.flip": True,
               "compute.accumulate": accumulate, "quant.act_bits": act_bits}
    problem = build(tiny.get_config(**changes))
    params = teacher_params(problem)
    mesh = sharding.make_mesh(jax.devices()[:count], fsdp)
    teacher = sharding.put_replicated(params, mesh)
    state, frozen = stages.prepare_student(problem, teacher, mesh)
    stream, losses = feed.network_batches(problem, "student", mesh, 0), []
    batch = next(stream)
    compiled = stages.student_train_step(problem, state, frozen).lower(state, frozen, batch).compile()
    if count > 1:
      split = check_program(compiled.as_text(), state, count, fsdp)
      assert (split > 0) == (fsdp > 1)
    for _ in range(steps):
      assert len(batch["image"].sharding.device_set) == count
      state, metrics = compiled(state, frozen, batch)
      losses.append(float(metrics["loss"]))
      batch = next(stream)
    kernel = state.opt_state[1][0].mu["params"]["middle"]["res"]["conv1"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (fsdp == 1)
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    results.append((losses, jax.device_get(state.ema), jax.device_get(frozen["projections"])))
  losses, averages, projections = zip(*results)
  # With the paper's rate. At 1e-3 they part at the sixth step: Adam divides by the gradient's size, so where it is
  # zero but for rounding (a bias of attention's keys) a step of the whole rate goes either way.
  np.testing.assert_allclose(*losses, rtol=1e-4, err_msg=str(act_bits))
  # The subspaces, not their bases: the sign of an eigenvector is free.
  for x, y in zip(*projections):
    np.testing.assert_allclose(x @ x.T, y @ y.T, atol=1e-3)
  a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in averages)
  assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(a)
print("equal")
"""


@pytest.mark.parametrize("shared", [
  (4, 2, 2), *(pytest.param(shared, marks=pytest.mark.slow) for shared in ((4, 1, 1), (2, 1, 1), (2, 2, 1))),
])  # fmt: skip
def test_devices_equal_one(shared):
  """(devices, parts of the parameters, parts of a batch) against one device, with dropout and mirrored images, with and
  without quantized activations: losses, averages, scales, activation steps and projections agree. In the compiled
  program of several devices nothing as large as an activation travels, gradients are reduced once, outside of loops;
  nothing reaches the host."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
  script = f"SHARED = {shared}\n{SCRIPT}"
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


@pytest.mark.parametrize("shape, parts, spec", [
  ((3, 3, 64, 128), 4, PartitionSpec(None, None, None, "fsdp")),  # the longest axis
  ((3, 3, 128, 128), 4, PartitionSpec(None, None, None, "fsdp")),  # of equal ones the last
  ((3, 3, 256, 130), 4, PartitionSpec(None, None, "fsdp")),  # that the devices divide
  ((3, 3, 30, 50), 4, PartitionSpec()),  # none
  ((128,), 4, PartitionSpec()),  # too small
  ((3, 3, 64, 128), 1, PartitionSpec()),
])  # fmt: skip
def test_parameter_rule(shape, parts, spec):
  """What is split, and along which axis, by hand."""
  assert sharding.parameter_spec(shape, parts, min_size=1000) == spec


def test_indivisible_batch_is_named():
  """A batch that the devices cannot share, or not in so many parts."""

  class Mesh:
    size = 4

  with pytest.raises(ValueError, match="student.batch_size 6 cannot be split over 4 devices; use a multiple of 4"):
    sharding.check_batch("student.batch_size", 6, Mesh)
  with pytest.raises(ValueError, match="8 cannot be split over 4 devices x compute.accumulate 3; use a multiple of 12"):
    sharding.check_batch("student.batch_size", 8, Mesh, 3)
  sharding.check_batch("student.batch_size", 8, sharding.make_mesh(jax.devices()[:1]), 8)
