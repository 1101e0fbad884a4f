"""LSQ activation quantizer: one learned step per layer input."""

import math

from binarydm_jax.quant import step_size


def lsq_activation(x, step, bits):
  """round(clip(x / step, qn, qp)) step, signed, with one scalar step.

  The step's gradient is multiplied by 1 / sqrt(N qp), N the features of one example (the LSQ paper: not the batch,
  so that it does not depend on batch size or device count).

  Args:
    x: float [batch, ...].
    step: float32 scalar.
    bits: 2 to 8.
  Returns:
    x quantized, same shape and dtype.
  """
  _, qp = step_size.levels(bits)
  return step_size.lsq(x, step, bits, 1 / math.sqrt(math.prod(x.shape[1:]) * qp))


def initial_activation_step(x, bits):
  """2 mean|x| / sqrt(qp) over the calibration batch: a float32 scalar."""
  return step_size.initial_step(x, bits)
