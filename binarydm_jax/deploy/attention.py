"""Attention of a loaded model: by the native kernel, or by XLA; on CPUs then one head after the other, whose products
and softmax stay in the caches."""

import jax
import jax.numpy as jnp
from jax import lax

from binarydm_jax.deploy import kernels
from binarydm_jax.quant.activations import zero_point_name
from binarydm_jax.quant.step_size import lsq

# Fewer queries times keys are left to one batched product.
BY_HEAD_FROM = 2**14
# Of a head, in the native kernel (kernels/src/attention.cc): sums of products of 8-bit codes stay inside 32 bits.
MOST_KEYS, MOST_CHANNELS = 2**15, 2**12


def _quantize(x, steps, name, bits):
  return x if bits == 32 else lsq(x, steps[name], bits, zero_point=steps.get(zero_point_name(name)))


def _one_head(q, k, v, qk, av, qk_bits, av_bits):
  """q [n, d], k and v [m, d] of one head -> [n, d]: the computation of `models.attention.attend`."""
  logits = _quantize(q, qk, "step_a", qk_bits) @ _quantize(k, qk, "step_b", qk_bits).T
  weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(logits.dtype)
  return _quantize(weights, av, "step_a", av_bits) @ _quantize(v, av, "step_b", av_bits)


def run(q, k, v, qk, av, qk_bits, av_bits):
  """`quant.PackedAttention.run`: see there. Activations are quantized, and their products are float32.

  Products of their codes in int8 were measured, and took half as long again (32 x 32 pixels, 14 heads of 32).
  """
  batch, n, heads, d = q.shape

  def one(q, k, v):
    return _one_head(q, k, v, qk, av, qk_bits, av_bits)

  def by_head(*operands):
    flat = [jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], d) for x in operands]
    return lax.map(lambda head: one(*head), tuple(flat))

  def at_once(*operands):
    flat = [jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], d) for x in operands]
    return jax.vmap(one)(*flat)

  if n * k.shape[1] < BY_HEAD_FROM:
    out = at_once(q, k, v)
  else:
    out = lax.platform_dependent(q, k, v, cpu=by_head, default=at_once)
  return jnp.moveaxis(out.reshape(batch, heads, n, d), 1, 2)


def run_native(q, k, v, qk, av, qk_bits, av_bits):
  """`run` by the native kernel, where both products are of codes, and not too many."""
  if max(qk_bits, av_bits) > 8 or k.shape[1] > MOST_KEYS or q.shape[-1] > MOST_CHANNELS:
    return run(q, k, v, qk, av, qk_bits, av_bits)
  operands = [(part, name, bits) for part, bits in ((qk, qk_bits), (av, av_bits)) for name in ("step_a", "step_b")]
  steps = jnp.stack([part[name] for part, name, _ in operands])
  # Signed codes are those of which half lie below zero.
  zero_points = [part.get(zero_point_name(name), 2 ** (bits - 1)) for part, name, bits in operands]
  return kernels.attend(q, k, v, steps, jnp.stack(zero_points), qk_bits=qk_bits, av_bits=av_bits).astype(q.dtype)
