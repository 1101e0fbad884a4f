"""One step of quantization-aware training: teacher, student, gradients, AdamW, EMA."""

import time

from binarydm_jax.benchmark.common import measure, peak_bytes, random_params, residual_bytes


def run(problem, repeats):
  """One row: seconds of one training step of the student, and the compiler's account of its memory."""
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

  def advance():
    nonlocal state
    state, metrics = compiled(state, frozen, batch)
    return metrics

  first, again = measure(advance, repeats)
  memory = compiled.memory_analysis()
  sizes = {}
  if memory is not None:
    # The donated state comes back in its own memory.
    held = memory.argument_size_in_bytes
    sizes = dict(held_bytes=held, temporary_bytes=memory.temp_size_in_bytes)
  return [dict(
      batch_size=batch_size, prepare_seconds=prepared, compile_seconds=seconds, first_seconds=first, seconds=again,
      finite=bool(jax.device_get(state.ok)), residual_bytes=kept, **sizes, peak_bytes=peak_bytes(),
  )]  # fmt: skip
