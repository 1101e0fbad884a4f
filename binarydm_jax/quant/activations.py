"""Activation quantizers, one learned step a layer input: signed levels (LSQ, BinaryDM's), or those that fit the input.

What most layers of a U-Net see is SiLU's output, which is above -0.28: half of the signed levels are hardly ever used.
With a zero point z the levels are -z .. 2^b - 1 - z instead (Jacob et al. 2018, arXiv 1712.05877: a whole number, so
that 0, and with it a convolution's padding, stays exact; LSQ+, Bhalgat et al. 2020, arXiv 2004.09576: why Swish needs
it, and a start by least squares; their offset is a learned float, ours is chosen once).
"""

import math

import jax
import jax.numpy as jnp

from binarydm_jax.quant import step_size

# What `fit_levels` tries: zero points; steps, as parts of the one with which the levels reach all values. And of how
# many values it takes the error.
_ZERO_POINTS, _STEPS, _SMALLEST, _SAMPLE = 16, 32, 1 / 16, 2**16


def lsq_activation(x, step, bits, zero_point=None):
  """round(clip(x / step, qn, qp)) step with one scalar step; (qn, qp) = (-2^(b-1), 2^(b-1) - 1) or (-z, 2^b - 1 - z).

  The step's gradient is multiplied by 1 / sqrt(N qp), N the features of one example (the LSQ paper: not the batch,
  so that it does not depend on batch size or device count). The zero point has no gradient.

  Args:
    x: float [batch, ...].
    step: float32 scalar.
    bits: 2 to 8.
    zero_point: z, a float32 scalar (rounded to a whole number), or None for signed levels.
  Returns:
    x quantized, same shape and dtype.
  """
  if zero_point is not None:
    # An average of weights may have moved it by a last place.
    zero_point = jnp.round(zero_point)
  _, qp = step_size.levels(bits, zero_point)
  features = math.prod(x.shape[1:])
  scale = 1 / (math.sqrt(features * qp) if zero_point is None else jnp.sqrt(features * qp))
  return step_size.lsq(x, step, bits, scale, zero_point)


def zero_point_name(step_name):
  """Of the variable beside a step: "zero_point", "zero_point_a", "zero_point_b"."""
  return step_name.replace("step", "zero_point")


def initial_activation_step(x, bits):
  """2 mean|x| / sqrt(qp) over the calibration batch: a float32 scalar."""
  return step_size.initial_step(x, bits)


def fit_levels(x, bits):
  """(step, zero point) whose levels have the least squared error on the calibration batch, float32 scalars.

  Zero points of 0 to 2^(b-1), at most 17 of them, and 32 steps each are tried, on about 65,536 of the values. Signed
  levels where nothing is better.

  Args:
    x: float [batch, ..., c].
    bits: 2 to 8.
  """
  stride = max(1, x.size // _SAMPLE)
  while math.gcd(stride, x.shape[-1]) > 1:  # else some channels would be left out
    stride += 1
  x = x.reshape(-1)[::stride].astype(jnp.float32)
  most = 2 ** (bits - 1)
  zero_points = jnp.float32(sorted({round(most * i / _ZERO_POINTS) for i in range(_ZERO_POINTS + 1)}, reverse=True))
  _, qp = step_size.levels(bits, zero_points)
  reach = jnp.maximum(jnp.max(x) / qp, jnp.where(zero_points > 0, jnp.max(-x) / jnp.maximum(zero_points, 1), 0))
  steps = jnp.maximum(reach[:, None], 0) * jnp.geomspace(1, _SMALLEST, _STEPS)
  candidates = (steps.ravel(), jnp.repeat(zero_points, _STEPS))

  def error(candidate):
    return jnp.mean(jnp.square(step_size.lsq(x, candidate[0], bits, 1.0, candidate[1]) - x))

  best = jnp.argmin(jax.lax.map(error, candidates))
  return candidates[0][best], candidates[1][best]
