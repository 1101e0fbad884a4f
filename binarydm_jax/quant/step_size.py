"""LSQ, learned step size quantization (Esser et al. 2019, arXiv 1902.08153): the arithmetic."""

import math

import jax
import jax.numpy as jnp

from binarydm_jax.quant.ste import SCALE_FLOOR


def levels(bits, zero_point=None):
  """(qn, qp), the smallest and largest integer of a `bits`-bit code.

  Args:
    zero_point: how many of the 2^b levels lie below zero; None: 2^(b-1), so -2^(b-1), 2^(b-1) - 1.
  """
  below = 2 ** (bits - 1) if zero_point is None else zero_point
  return -below, 2**bits - 1 - below


def lsq(x, step, bits, gradient_scale=1.0, zero_point=None):
  """Quantizes x to `bits`-bit multiples of a learned step.

  Forward: round(clip(x / step, qn, qp)) * step, the step floored at 1e-8; (qn, qp) = levels(bits, zero_point).
  Gradient of x: passes where qn <= x / step <= qp, else 0.
  Gradient of step: gradient_scale * sum of g * (round(v) - v inside; qn below, qp above), v = x / step; a step under
  the floor receives only gradients that raise it. The zero point has none.

  Args:
    x: float [..., c].
    step: float32, a scalar or [c] (one step per last-axis channel).
    bits: 2 to 8.
    gradient_scale: float, 1 / sqrt(N qp) in the paper.
    zero_point: None (signed codes), or a whole number from 0 to 2^(b-1), as float32.
  Returns:
    x quantized, shape and dtype of x.
  """
  constants = (jnp.asarray(value, jnp.float32) for value in (*levels(bits, zero_point), gradient_scale))
  return _lsq(x, step, *constants)


def _in_steps(x, step):
  """x / step as x times the float32 reciprocal, the step floored.

  XLA makes this of a division whenever it can; written out, whoever computes the codes rounds ties alike.
  """
  return x.astype(jnp.float32) * (1 / jnp.maximum(step, SCALE_FLOOR))


def codes(x, step, bits, zero_point=None):
  """The integers of `lsq`: round(clip(x * (1 / step), qn, qp)), half to even, as float32 whatever the dtype of x."""
  return _codes(x, step, *levels(bits, zero_point))


def _codes(x, step, qn, qp):
  return jnp.round(jnp.clip(_in_steps(x, step), qn, qp))


@jax.custom_vjp
def _lsq(x, step, qn, qp, gradient_scale):
  return _forward(x, step, qn, qp, gradient_scale)[0]


def _forward(x, step, qn, qp, gradient_scale):
  quantized = _codes(x, step, qn, qp) * jnp.maximum(step, SCALE_FLOOR)
  return quantized.astype(x.dtype), (x, step, qn, qp, gradient_scale)


def _backward(residuals, gradient):
  x, step, qn, qp, gradient_scale = residuals
  # In float32 whatever the compute type: the step's gradient is a sum over many values.
  v = _in_steps(x, step)
  inside = (v >= qn) & (v <= qp)
  gradient_x = jnp.where(inside, gradient, 0).astype(x.dtype)
  per_value = jnp.where(inside, jnp.round(v) - v, jnp.clip(v, qn, qp)) * gradient.astype(jnp.float32)
  # Sum over the axes along which the step was broadcast.
  per_value = per_value.reshape((-1,) + jnp.shape(step)) if jnp.ndim(step) else per_value.reshape(-1)
  gradient_step = gradient_scale * per_value.sum(0)
  gradient_step = jnp.where((step > SCALE_FLOOR) | (gradient_step < 0), gradient_step, 0)
  nothing = tuple(map(jnp.zeros_like, (qn, qp, gradient_scale)))
  return gradient_x, gradient_step.astype(jnp.asarray(step).dtype), *nothing


_lsq.defvjp(_forward, _backward)


def initial_step(x, bits, axis=None):
  """2 mean|x| / sqrt(qp) over `axis` (all by default), float32: the paper's start of a step."""
  _, qp = levels(bits)
  return 2 * jnp.mean(jnp.abs(x.astype(jnp.float32)), axis=axis) / math.sqrt(qp)
