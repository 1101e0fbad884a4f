"""Self-attention over the pixels of a feature map, as in ADM and latent diffusion."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.quant import QuantDense, QuantMatmul


class SelfAttention(nn.Module):
  """x + proj(attention(norm(x))), [batch, h, w, c] -> the same.

  The qkv projection's output channels are [head, (q, k, v), channel], the order of the released checkpoints. q and k
  are each multiplied by head_channels^(-1/4) before their product, which is more stable than dividing after it.
  """

  num_heads: int
  norm_groups: int = 32
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, gate=None):
    batch, height, width, channels = x.shape
    head_channels = channels // self.num_heads
    h = nn.GroupNorm(self.norm_groups, epsilon=1e-5, dtype=self.dtype, name="norm")(x)
    h = h.reshape(batch, height * width, channels)
    qkv = QuantDense(3 * channels, rules=self.rules, dtype=self.dtype, name="qkv")(h, gate)
    q, k, v = jnp.moveaxis(qkv.reshape(batch, height * width, self.num_heads, 3, head_channels), 3, 0)
    scale = head_channels**-0.25
    logits = QuantMatmul("bqhd,bkhd->bhqk", rules=self.rules, name="qk")(q * scale, k * scale, gate)
    # The softmax in float32 whatever the compute type.
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(logits.dtype)
    h = QuantMatmul("bhqk,bkhd->bqhd", rules=self.rules, name="av")(weights, v, gate)
    h = h.reshape(batch, height, width, channels)
    project = QuantDense(
        channels, rules=self.rules, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="proj"
    )
    return x + project(h, gate)
