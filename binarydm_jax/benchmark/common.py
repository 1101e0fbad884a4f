"""What the measurements share: random weights, the time of a call, accounts of memory."""

import pathlib
import re
import resource
import statistics
import sys
import time


def random_params(model, shape, seed=0):
  """Parameters of a UNet with no zero among them, so that nothing can be left out."""
  import jax
  import numpy as np

  rng = np.random.default_rng(seed)
  tree = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *model.abstract_inputs(shape))["params"]

  def fill(leaf):
    fan_in = max(leaf.size // leaf.shape[-1], 1) if len(leaf.shape) > 1 else 1
    return jax.device_put(rng.standard_normal(leaf.shape, np.float32) / np.float32(fan_in**0.5))

  return jax.tree.map(fill, tree)


def residual_bytes(model, variables, *inputs):
  """What the forward pass of a UNet keeps for its gradient, before any compiler: bytes; nothing is computed.

  Args:
    variables, *inputs: arrays or abstract.
  """
  import jax

  def predict(variables, *inputs):
    return model.apply(variables, *inputs)

  backward = jax.eval_shape(lambda *args: jax.vjp(predict, *args)[1], variables, *inputs)
  held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
  # The variables are there anyway.
  return held - sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))


def timed(run):
  """Seconds of `run()`, which gives arrays."""
  import jax

  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def measure(run, repeats):
  """(seconds of the first call, median seconds of `repeats` more); `run()` gives arrays."""
  return timed(run), statistics.median(timed(run) for _ in range(repeats))


def peak_bytes():
  """Peak memory of this process so far."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():
    # On Linux the other account begins with what the parent process had.
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
  # macOS counts bytes, others kilobytes.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def readable(name, value):
  """A value of a row as text; names say the unit."""
  if name.endswith("bytes"):
    return f"{value / 2**30:.2f} GiB" if value > 2**30 else f"{value / 2**20:.2f} MiB"
  if isinstance(value, float):
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
  return value
