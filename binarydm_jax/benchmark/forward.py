"""One prediction of the full-precision network, batch 1."""

from binarydm_jax.benchmark.common import measure, peak_bytes, random_params


def run(problem, repeats):
  """One row: seconds of one prediction."""
  import jax
  import jax.numpy as jnp

  params = random_params(problem.teacher, problem.input_shape)
  inputs = [jnp.ones(x.shape, x.dtype) for x in problem.inputs() if x is not None]
  predict = jax.jit(lambda p, *x: problem.teacher.apply({"params": p}, *x)[0])
  first, again = measure(lambda: predict(params, *inputs), repeats)
  return [dict(batch_size=1, first_seconds=first, seconds=again, peak_bytes=peak_bytes())]
