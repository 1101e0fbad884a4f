"""Attention: the product of quantized queries, keys and values, and self-attention over the pixels of a feature map."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.quant import PackedAttention, QuantDense, QuantMatmul


def attend(q, k, v, rules, gate):
  """softmax(q k^T / sqrt(d)) v, called inside a module, which then owns the two products "qk" and "av".

  q and k are each multiplied by d^(-1/4) before their product, which is more stable than dividing after it.

  Args:
    q: [batch, n, heads, d]; k, v: [batch, m, heads, d].
    rules, gate: as in `quant.QuantMatmul`.
  Returns:
    [batch, n, heads * d].
  """
  scale = q.shape[-1] ** -0.25
  qk = QuantMatmul("bqhd,bkhd->bhqk", rules=rules, name="qk")
  av = QuantMatmul("bhqk,bkhd->bqhd", rules=rules, name="av")
  if isinstance(qk.entry, PackedAttention):
    steps = (product.variables.get("quant", {}) for product in (qk, av))
    h = qk.entry.run(q * scale, k * scale, v, *steps, qk.bits, av.bits)
    return h.reshape(*h.shape[:2], -1)
  logits = qk(q * scale, k * scale, gate)
  # The softmax in float32 whatever the compute type.
  weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(logits.dtype)
  h = av(weights, v, gate)
  return h.reshape(*h.shape[:2], -1)


class SelfAttention(nn.Module):
  """x + proj(attention(norm(x))), [batch, h, w, c] -> the same.

  The qkv projection's output channels are [head, (q, k, v), channel], the order of the released checkpoints.
  """

  num_heads: int
  norm_groups: int = 32
  norm_epsilon: float = 1e-5
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, gate=None):
    batch, height, width, channels = x.shape
    h = nn.GroupNorm(self.norm_groups, epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")(x)
    h = h.reshape(batch, height * width, channels)
    qkv = QuantDense(3 * channels, rules=self.rules, dtype=self.dtype, name="qkv")(h, gate)
    heads = qkv.reshape(batch, height * width, self.num_heads, 3, channels // self.num_heads)
    h = attend(*jnp.moveaxis(heads, 3, 0), self.rules, gate).reshape(x.shape)
    project = QuantDense(
        channels, rules=self.rules, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="proj"
    )
    return project(h, gate, residual=x)
