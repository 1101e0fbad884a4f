"""Weight binarizers of BinaryDM (arXiv 2404.05662) as array functions. Kernels are [..., cin, cout], scales [cout].

Scales are learned, start at the mean magnitude of what they stand for, and are kept positive by `positive`.
"""

import math

import jax
import jax.numpy as jnp

from binarydm_jax.quant import step_size
from binarydm_jax.quant.ste import positive, sign_ste


def one_basis(kernel, scale1):
  """scale1 sign(w): the one-basis "baseline".

  Gradients: w receives scale1 g where |w| <= 1; scale1 receives sum of g sign(w) over all axes but the last.
  """
  return _one_basis(kernel, positive(scale1))


def multi_basis(kernel, scale1, scale2, second=None):
  """scale1 sign(w) + scale2 sign(w - scale1 sign(w)): LMB (v1, Eq. 5-7) and stage 1 of EBB (v5, Eq. 6-8).

  Gradients by the chain rule through both signs: d/dscale2 = sign(w - scale1 sign(w));
  d/dscale1 = sign(w) (1 - scale2) where |w - scale1 sign(w)| <= 1, else sign(w).

  Args:
    kernel: float [..., cin, cout].
    scale1, scale2: float32 [cout].
    second: None, or a scalar array that multiplies the second basis: 1 keeps it, 0 removes it (stage 2 of EBB)
      with all its gradients.
  Returns:
    [..., cin, cout].
  """
  scale1, scale2 = positive(scale1), positive(scale2)
  if second is not None:
    scale2 = scale2 * second
  return _two_bases(kernel, scale1, scale2)


@jax.custom_vjp
def not_yet_binarized(kernel, scale1):
  """w, for a layer that progressive initialisation has not reached yet.

  Gradients: w receives scale1 g, what `one_basis` will give it; the scale none. With g itself, some tens of times as
  large, a few steps fill Adam's second moment for a thousand, and the binarized weights move less after them.
  """
  return kernel


not_yet_binarized.defvjp(
    lambda kernel, scale1: (kernel, scale1),
    lambda scale1, gradient: ((positive(scale1) * gradient).astype(gradient.dtype), jnp.zeros_like(scale1)),
)


# For positive scales. The gradients are what the chain rule gives, in one pass over the kernel; by `jax.grad` of the
# formulas signs and masks would be kept from the forward pass, five bytes a weight and basis.


@jax.custom_vjp
def _one_basis(kernel, scale1):
  return scale1 * sign_ste(kernel)


def _one_basis_backward(residuals, gradient):
  # The barrier: what the forward pass made of the same kernel would else be kept instead of made again.
  kernel, scale1 = jax.lax.optimization_barrier(residuals)
  gradient_kernel = jnp.where(jnp.abs(kernel) <= 1, scale1 * gradient, 0)
  gradient1 = _channel_sum(jnp.where(kernel >= 0, gradient, -gradient))
  return gradient_kernel.astype(kernel.dtype), gradient1.astype(scale1.dtype)


_one_basis.defvjp(lambda *args: (_one_basis(*args), args), _one_basis_backward)


@jax.custom_vjp
def _two_bases(kernel, scale1, scale2):
  first = scale1 * sign_ste(kernel)
  return first + scale2 * sign_ste(kernel - first)


def _two_bases_backward(residuals, gradient):
  kernel, scale1, scale2 = jax.lax.optimization_barrier(residuals)
  rest = kernel - jnp.where(kernel >= 0, scale1, -scale1)
  through2 = jnp.where(jnp.abs(rest) <= 1, scale2 * gradient, 0)
  to_first = gradient - through2
  gradient_kernel = through2 + jnp.where(jnp.abs(kernel) <= 1, scale1 * to_first, 0)
  gradient1 = _channel_sum(jnp.where(kernel >= 0, to_first, -to_first))
  gradient2 = _channel_sum(jnp.where(rest >= 0, gradient, -gradient))
  return gradient_kernel.astype(kernel.dtype), gradient1.astype(scale1.dtype), gradient2.astype(scale2.dtype)


_two_bases.defvjp(lambda *args: (_two_bases(*args), args), _two_bases_backward)


def _channel_sum(x):
  return jnp.sum(x, axis=tuple(range(x.ndim - 1)))


def lsq_weight(kernel, step, bits):
  """round(clip(w / step, qn, qp)) step with one learned step per output channel (LSQ, `bits` 2 to 8).

  The step's gradient is multiplied by 1 / sqrt(numel(w) qp).
  """
  _, qp = step_size.levels(bits)
  return step_size.lsq(kernel, step, bits, 1 / math.sqrt(kernel.size * qp))


def initial_scale1(kernel):
  """mean|w| over all axes but the last: float32 [cout]."""
  return _channel_mean(jnp.abs(kernel))


def initial_scale2(kernel):
  """mean|w - scale1 sign(w)| over all axes but the last, at the initial scale1: float32 [cout]."""
  return _channel_mean(jnp.abs(kernel - one_basis(kernel, initial_scale1(kernel))))


def initial_weight_step(kernel, bits):
  """2 mean|w| / sqrt(qp) over all axes but the last: float32 [cout]."""
  return step_size.initial_step(kernel, bits, axis=tuple(range(kernel.ndim - 1)))


def _channel_mean(x):
  return jnp.mean(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
