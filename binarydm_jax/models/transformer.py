"""The SpatialTransformer of latent diffusion: pixels as tokens, self-attention, cross-attention to a context, GEGLU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.models.attention import attend
from binarydm_jax.quant import QuantDense


class CrossAttention(nn.Module):
  """Multi-head attention of x [batch, n, c] to context [batch, m, d] (None: to x itself) -> [batch, n, c]."""

  num_heads: int
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, context=None, gate=None):
    channels = x.shape[-1]
    context = x if context is None else context

    def project(name, y):
      y = QuantDense(channels, use_bias=False, rules=self.rules, dtype=self.dtype, name=name)(y, gate)
      return y.reshape(*y.shape[:2], self.num_heads, channels // self.num_heads)

    h = attend(project("q", x), project("k", context), project("v", context), self.rules, gate)
    return QuantDense(channels, rules=self.rules, dtype=self.dtype, name="out")(h, gate)


class TransformerBlock(nn.Module):
  """x + self-attention, + cross-attention, + feed-forward, each of a layer norm; [batch, n, c] -> the same."""

  num_heads: int
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, context, gate=None):
    channels = x.shape[-1]
    common = dict(rules=self.rules, dtype=self.dtype)

    def norm(name):
      return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

    x = x + CrossAttention(self.num_heads, name="attn1", **common)(norm("norm1")(x), None, gate)
    x = x + CrossAttention(self.num_heads, name="attn2", **common)(norm("norm2")(x), context, gate)
    h = QuantDense(8 * channels, name="ff_in", **common)(norm("norm3")(x), gate)
    value, by = jnp.split(h, 2, axis=-1)
    h = value * jax.nn.gelu(by, approximate=False)  # GEGLU (Shazeer 2020)
    return QuantDense(channels, name="ff_out", **common)(h, gate, residual=x)


class SpatialTransformer(nn.Module):
  """x + proj_out(transformer blocks(proj_in(norm(x)))); x [batch, h, w, c], context [batch, m, d] -> [batch, h, w, c].

  The source is latent diffusion (Rombach et al. 2022, Section 3.3); its projections are 1x1 convolutions, here linears.
  """

  num_heads: int
  depth: int = 1
  norm_groups: int = 32
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, context, gate=None):
    batch, height, width, channels = x.shape
    common = dict(rules=self.rules, dtype=self.dtype)
    h = nn.GroupNorm(self.norm_groups, epsilon=1e-6, dtype=self.dtype, name="norm")(x)
    h = QuantDense(channels, name="proj_in", **common)(h.reshape(batch, height * width, channels), gate)
    for i in range(self.depth):
      h = TransformerBlock(self.num_heads, name=f"block_{i}", **common)(h, context, gate)
    project = QuantDense(channels, kernel_init=nn.initializers.zeros_init(), name="proj_out", **common)
    return project(h, gate, residual=x.reshape(h.shape)).reshape(x.shape)
