"""Time and memory of one step: python -m binarydm_jax.benchmark {forward,train} --config=configs/lsun_bedrooms_ldm4.py

  forward   one prediction of the full-precision network
  train     one step of quantization-aware training: teacher, student, gradients, AdamW, EMA

Random weights and inputs; no data, no checkpoint. Prints a line and appends it as JSON to --output. Fields are set as
for binarydm_jax.main, such as --config.student.batch_size=1 --config.compute.dtype=bfloat16.

Of memory it prints: what the forward pass keeps for the gradient (residual_bytes, before any compiler), what the step
is given (held_bytes: teacher, weights, optimizer, averages) and takes beside it (temporary_bytes, by the compiler's
account), and the peak of the whole process.
"""

import json
import resource
import statistics
import sys
import time

from absl import app, flags

from binarydm_jax.command_line import CONFIG, parse_flags, set_up_jax

_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs after the first; their median counts.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "File that gets a line of JSON.")


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


def measure(run, repeats):
  """(seconds of the first call, median seconds of `repeats` more); `run()` gives arrays."""
  import jax

  def timed():
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start

  return timed(), statistics.median(timed() for _ in range(repeats))


def forward(problem, repeats):
  """Seconds of one prediction, batch 1."""
  import jax
  import jax.numpy as jnp

  params = random_params(problem.teacher, problem.input_shape)
  inputs = [jnp.ones(x.shape, x.dtype) for x in problem.inputs() if x is not None]
  predict = jax.jit(lambda p, *x: problem.teacher.apply({"params": p}, *x)[0])
  first, again = measure(lambda: predict(params, *inputs), repeats)
  return dict(batch_size=1, first_seconds=first, seconds=again)


def train(problem, repeats):
  """Seconds of one training step of the student, and the compiler's account of its memory."""
  import jax
  import numpy as np

  from binarydm_jax.training import sharding, stages

  mesh = sharding.make_mesh()
  batch_size = problem.config.student.batch_size
  rng = np.random.default_rng(0)
  classes = max(problem.teacher.num_classes, 1)
  batch = sharding.put_batch(
      {"image": rng.standard_normal((batch_size, *problem.input_shape), np.float32),
       "label": rng.integers(0, classes, batch_size).astype(np.int32)}, mesh,
  )  # fmt: skip
  params = sharding.put_replicated(random_params(problem.teacher, problem.input_shape), mesh)
  start = time.perf_counter()
  state, frozen = stages.initial_student(problem, params, [batch], mesh)
  del params
  prepared = time.perf_counter() - start
  step = stages.student_train_step(problem)
  inputs = problem.teacher.abstract_inputs(problem.input_shape, batch_size)
  kept = residual_bytes(problem.student, state.variables, *(x for x in inputs if x is not None))
  start = time.perf_counter()
  compiled = step.lower(state, frozen, batch).compile()
  seconds = time.perf_counter() - start

  def run():
    nonlocal state
    state, metrics = compiled(state, frozen, batch)
    return metrics

  first, again = measure(run, repeats)
  memory = compiled.memory_analysis()
  sizes = {}
  if memory is not None:
    # The donated state comes back in its own memory.
    held = memory.argument_size_in_bytes
    sizes = dict(held_bytes=held, temporary_bytes=memory.temp_size_in_bytes)
  return dict(
      batch_size=batch_size, prepare_seconds=prepared, compile_seconds=seconds, first_seconds=first, seconds=again,
      finite=bool(jax.device_get(state.ok)), residual_bytes=kept, **sizes,
  )  # fmt: skip


def main(argv):
  modes = {"forward": forward, "train": train}
  if len(argv) != 2 or argv[1] not in modes:
    sys.exit(f"error: say what to measure: {' or '.join(modes)}")
  set_up_jax()
  import jax

  from binarydm_jax.training.problem import build

  config = CONFIG.value
  try:
    problem = build(config, with_data=False)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  row = dict(
      what=argv[1], method=config.method, bits=f"{config.quant.act_bits}", dtype=config.compute.dtype,
      remat=config.compute.remat, devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      **modes[argv[1]](problem, _REPEATS.value),
      # Linux counts kilobytes, macOS bytes.
      peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
  )  # fmt: skip
  print(", ".join(f"{name} {_readable(name, value)}" for name, value in row.items()), flush=True)
  if _OUTPUT.value:
    with open(_OUTPUT.value, "a") as file:
      file.write(json.dumps(row) + "\n")


def _readable(name, value):
  if name.endswith("bytes"):
    return f"{value / 2**30:.2f} GiB"
  return f"{value:.2f}" if isinstance(value, float) else value


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  app.run(main, flags_parser=parse_flags)
