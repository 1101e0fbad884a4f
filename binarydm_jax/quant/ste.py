"""Straight-through estimators: sign, round and the floor that keeps scales positive."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def sign_ste(x):
  """Sign with a straight-through gradient.

  Forward: +1 where x >= 0, else -1 (sign(0) = +1, so that one bit holds it). Shape and dtype of x.
  Gradient: passes where |x| <= 1, else 0 (Hubara et al. 2016, arXiv 1602.02830).
  """
  return jnp.where(x >= 0, 1, -1).astype(x.dtype)


def _sign_forward(x):
  return sign_ste(x), jnp.abs(x) <= 1


def _sign_backward(passes, gradient):
  return (jnp.where(passes, gradient, 0),)


sign_ste.defvjp(_sign_forward, _sign_backward)


@jax.custom_vjp
def round_ste(x):
  """Round half to even; the gradient passes unchanged (Bengio et al. 2013, arXiv 1308.3432)."""
  return jnp.round(x)


round_ste.defvjp(lambda x: (jnp.round(x), None), lambda _, gradient: (gradient,))


# Far below any scale that training reaches, and its reciprocal is still finite in bfloat16.
SCALE_FLOOR = 1e-8


@jax.custom_vjp
def positive(scale):
  """max(scale, 1e-8): a quantizer never divides by zero and never changes sign.

  Gradient: passes above the floor; at or below it only a gradient that raises the scale passes, so a scale that
  was pushed under the floor can come back and is not pushed further.
  """
  return jnp.maximum(scale, SCALE_FLOOR)


def _positive_forward(scale):
  return positive(scale), scale > SCALE_FLOOR


def _positive_backward(above, gradient):
  # Descent subtracts the gradient: a negative one raises the scale.
  return (jnp.where(above | (gradient < 0), gradient, 0),)


positive.defvjp(_positive_forward, _positive_backward)
