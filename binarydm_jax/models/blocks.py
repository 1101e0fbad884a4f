"""Residual blocks, up- and down-samplers, and the block that a U-Net is a sequence of."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.models.attention import SelfAttention
from binarydm_jax.models.dropout import drop
from binarydm_jax.models.transformer import SpatialTransformer
from binarydm_jax.quant import QuantConv, QuantDense

ONE_PIXEL = ((1, 1), (1, 1))  # PyTorch's padding=1, also at stride 2, where "SAME" would pad one side only.


class Layout(NamedTuple):
  """Where the two families of networks differ in what their layers compute.

  norm_epsilon: of group norms. down_padding: of the strided convolution. sines_first: order of the timestep embedding,
  whose frequencies then also end at 1 / 10,000 exactly.
  """

  norm_epsilon: float
  down_padding: tuple
  sines_first: bool


LAYOUTS = {
  "ldm": Layout(1e-5, ONE_PIXEL, False),  # ADM and latent diffusion
  "ddpm": Layout(1e-6, ((0, 1), (0, 1)), True),  # Ho et al. 2020, and the first stages of latent diffusion
}


def upsample(x):
  """Nearest neighbour, twice as high and wide."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample(x):
  """Mean over 2 x 2 pixels."""
  return nn.avg_pool(x, (2, 2), (2, 2))


class ResBlock(nn.Module):
  """norm, SiLU, conv, + embedding (or scale and shift), norm, SiLU, dropout, zero conv; + skip.

  `resample` "down" or "up" halves or doubles the map before the first convolution and on the skip (`resblock_updown`
  of ADM). Without an embedding it is the residual block of the first stages.
  """

  channels: int
  scale_shift: bool = False
  dropout: float = 0.0
  resample: str = ""
  norm_groups: int = 32
  layout: str = "ldm"
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, embedding=None, gate=None, dropout_keys=None):
    common = dict(rules=self.rules, dtype=self.dtype)
    epsilon = LAYOUTS[self.layout].norm_epsilon

    def norm(name):
      return nn.GroupNorm(self.norm_groups, epsilon=epsilon, dtype=self.dtype, name=name)

    h = jax.nn.silu(norm("norm1")(x))
    if self.resample:
      change = {"down": downsample, "up": upsample}[self.resample]
      h, x = change(h), change(x)
    h = QuantConv(self.channels, padding=ONE_PIXEL, name="conv1", **common)(h, gate)
    if embedding is None:
      h = norm("norm2")(h)
    else:
      width = 2 * self.channels if self.scale_shift else self.channels
      e = QuantDense(width, name="emb", **common)(jax.nn.silu(embedding), gate)[:, None, None]
      if self.scale_shift:
        scale, shift = jnp.split(e, 2, axis=-1)
        h = norm("norm2")(h) * (1 + scale) + shift
      else:
        h = norm("norm2")(h + e)
    h = drop(jax.nn.silu(h), self.dropout, dropout_keys, self.path)
    zeros = nn.initializers.zeros_init()
    if x.shape[-1] != self.channels:
      x = QuantConv(self.channels, (1, 1), name="skip", **common)(x, gate)
    conv2 = QuantConv(self.channels, padding=ONE_PIXEL, kernel_init=zeros, name="conv2", **common)
    return conv2(h, gate, residual=x)


class Block(nn.Module):
  """One timestep-embedding module: what of first conv, residual block, attention, down- and up-sampler it has.

  Attributes:
    channels: of the output.
    conv: the first convolution.
    res: number of residual blocks (two in the middle block, around the attention).
    attention: after the first residual block.
    down, up: changes the resolution, by a convolution or, with `resblock_updown`, by a residual block.
    context_dim: 0 for self-attention over pixels, else attention is a SpatialTransformer.
  """

  channels: int
  conv: bool = False
  res: int = 0
  attention: bool = False
  down: bool = False
  up: bool = False
  resblock_updown: bool = False
  num_heads: int = 1
  context_dim: int = 0
  transformer_depth: int = 1
  scale_shift: bool = False
  dropout: float = 0.0
  norm_groups: int = 32
  layout: str = "ldm"
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, embedding, context=None, gate=None, dropout_keys=None):
    layout = LAYOUTS[self.layout]
    common = dict(rules=self.rules, dtype=self.dtype)

    def residual(name, resample=""):
      return ResBlock(
          self.channels, self.scale_shift, self.dropout, resample, self.norm_groups, self.layout, name=name, **common
      )

    def attend(x):
      if not self.context_dim:
        attention = SelfAttention(self.num_heads, self.norm_groups, layout.norm_epsilon, name="attn", **common)
        return attention(x, gate)
      transformer = SpatialTransformer(
          self.num_heads, self.transformer_depth, self.norm_groups, name="transformer", **common
      )
      return transformer(x, context, gate)

    if self.conv:
      x = QuantConv(self.channels, padding=ONE_PIXEL, name="conv", **common)(x, gate)
    for i in range(self.res):
      x = residual(f"res{i or ''}")(x, embedding, gate, dropout_keys)
      if self.attention and i == 0:  # in the middle block: residual, attention, residual
        x = attend(x)
    if self.down and self.resblock_updown:
      x = residual("down_res", "down")(x, embedding, gate, dropout_keys)
    elif self.down:
      x = QuantConv(self.channels, strides=2, padding=layout.down_padding, name="down", **common)(x, gate)
    if self.up and self.resblock_updown:
      x = residual("up_res", "up")(x, embedding, gate, dropout_keys)
    elif self.up:
      x = QuantConv(self.channels, padding=ONE_PIXEL, name="up", **common)(upsample(x), gate)
    return x
