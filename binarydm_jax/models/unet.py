"""The U-Net of ADM (Dhariwal & Nichol 2021) and latent diffusion (Rombach et al. 2022), layer by layer.

Blocks are the timestep-embedding modules of the released code: each encoder block (the first convolution and the
down-samplers are blocks of their own), the middle, each decoder block with its up-sampler; 25 for LDM-4.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.models.attention import SelfAttention
from binarydm_jax.models.embedding import timestep_embedding
from binarydm_jax.quant import QuantConv, QuantDense

ONE_PIXEL = ((1, 1), (1, 1))  # PyTorch's padding=1, also at stride 2, where "SAME" would pad one side only.

# The layers next to input and output and the time embedding, which are never binarized.
EDGES = ("input_0/conv", "out_conv", "time_embed_*")


class ResBlock(nn.Module):
  """norm, SiLU, conv, + embedding (or scale and shift), norm, SiLU, dropout, zero conv; + skip."""

  channels: int
  scale_shift: bool = False
  dropout: float = 0.0
  norm_groups: int = 32
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, embedding, gate=None, train=False):
    def norm(name):
      return nn.GroupNorm(self.norm_groups, epsilon=1e-5, dtype=self.dtype, name=name)

    h = jax.nn.silu(norm("norm1")(x))
    h = QuantConv(self.channels, padding=ONE_PIXEL, rules=self.rules, dtype=self.dtype, name="conv1")(h, gate)
    width = 2 * self.channels if self.scale_shift else self.channels
    e = QuantDense(width, rules=self.rules, dtype=self.dtype, name="emb")(jax.nn.silu(embedding), gate)[:, None, None]
    if self.scale_shift:
      scale, shift = jnp.split(e, 2, axis=-1)
      h = norm("norm2")(h) * (1 + scale) + shift
    else:
      h = norm("norm2")(h + e)
    h = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.silu(h))
    h = QuantConv(
        self.channels,
        padding=ONE_PIXEL,
        rules=self.rules,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros_init(),
        name="conv2",
    )(h, gate)
    if x.shape[-1] != self.channels:
      x = QuantConv(self.channels, (1, 1), rules=self.rules, dtype=self.dtype, name="skip")(x, gate)
    return x + h


class Block(nn.Module):
  """One timestep-embedding module: what of first conv, residual block, attention, down- and up-sampler it has."""

  channels: int
  conv: bool = False
  res: int = 0
  attention: bool = False
  down: bool = False
  up: bool = False
  num_heads: int = 1
  scale_shift: bool = False
  dropout: float = 0.0
  norm_groups: int = 32
  rules: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, embedding, gate=None, train=False):
    common = dict(rules=self.rules, dtype=self.dtype)
    if self.conv:
      x = QuantConv(self.channels, padding=ONE_PIXEL, name="conv", **common)(x, gate)
    for i in range(self.res):
      res = ResBlock(
          self.channels, self.scale_shift, self.dropout, self.norm_groups, name=f"res{i or ''}", **common
      )
      x = res(x, embedding, gate, train)
      if self.attention and i == 0:  # in the middle block: residual, attention, residual
        x = SelfAttention(self.num_heads, self.norm_groups, name="attn", **common)(x, gate)
    if self.down:
      x = QuantConv(self.channels, strides=2, padding=ONE_PIXEL, name="down", **common)(x, gate)
    if self.up:
      x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
      x = QuantConv(self.channels, padding=ONE_PIXEL, name="up", **common)(x, gate)
    return x


class UNet(nn.Module):
  """Predicts the target from noisy images and timesteps.

  Attributes:
    out_channels: of the prediction.
    model_channels: width of the first level; the time embedding has four times as many.
    channel_mult: width of each level over `model_channels`.
    num_res_blocks: residual blocks a level (the decoder has one more).
    attention_resolutions: down-sampling factors at which blocks have attention, such as (8, 4, 2).
    num_heads: attention heads, if `num_head_channels` is 0.
    num_head_channels: channels a head; 0 takes `num_heads`.
    scale_shift: the embedding scales and shifts the second norm (ADM) instead of being added.
    dropout: rate in the residual blocks.
    num_classes: labels of a class-conditional model; 0 for an unconditional one.
    norm_groups: of every group norm.
    rules: None (full precision: the teacher) or the table of `quant.resolve` (the student).
    dtype: compute type; parameters, norms' statistics and scales stay float32.
  """

  out_channels: int
  model_channels: int
  channel_mult: tuple[int, ...] = (1, 2, 4)
  num_res_blocks: int = 2
  attention_resolutions: tuple[int, ...] = ()
  num_heads: int = 1
  num_head_channels: int = 0
  scale_shift: bool = False
  dropout: float = 0.0
  num_classes: int = 0
  norm_groups: int = 32
  rules: Any = None
  dtype: Any = None

  def block_specs(self):
    """[(name, keyword arguments of its Block)], in block order."""
    specs = [("input_0", dict(channels=self.model_channels, conv=True))]

    def body(level, res=1):
      channels = self.channel_mult[level] * self.model_channels
      return dict(channels=channels, res=res, attention=2**level in self.attention_resolutions)

    last = len(self.channel_mult) - 1
    for level in range(last + 1):
      for _ in range(self.num_res_blocks):
        specs.append((f"input_{len(specs)}", body(level)))
      if level != last:
        channels = self.channel_mult[level] * self.model_channels
        specs.append((f"input_{len(specs)}", dict(channels=channels, down=True)))
    specs.append(("middle", {**body(last, res=2), "attention": True}))
    for level in reversed(range(last + 1)):
      for i in range(self.num_res_blocks + 1):
        up = level > 0 and i == self.num_res_blocks
        specs.append((f"output_{i + (last - level) * (self.num_res_blocks + 1)}", {**body(level), "up": up}))
    return specs

  @property
  def block_names(self):
    """Names of the features that the model returns, in order."""
    return tuple(name for name, _ in self.block_specs())

  def _heads(self, channels):
    return channels // self.num_head_channels if self.num_head_channels else self.num_heads

  @nn.compact
  def __call__(self, x, timesteps, labels=None, gates=None, train=False):
    """Prediction and block features.

    Args:
      x: float [batch, h, w, c]; h and w divisible by 2 ** (levels - 1).
      timesteps: integer or float [batch], in 0 .. num_timesteps - 1.
      labels: int [batch] if `num_classes`, else None.
      gates: `quant.Gates`, or None: everything quantized, second bases alive.
      train: turns dropout on (an rng "dropout" is then needed).
    Returns:
      prediction [batch, h, w, out_channels], float32; features, the tuple of block outputs named by `block_names`.
    """
    common = dict(rules=self.rules, dtype=self.dtype)
    embedding = timestep_embedding(timesteps, self.model_channels)
    embedding = QuantDense(4 * self.model_channels, name="time_embed_0", **common)(embedding)
    embedding = QuantDense(4 * self.model_channels, name="time_embed_1", **common)(jax.nn.silu(embedding))
    if self.num_classes:
      if labels is None:
        raise ValueError("a class-conditional UNet (num_classes > 0) needs labels [batch]")
      embedding = embedding + nn.Embed(self.num_classes, 4 * self.model_channels, name="label_embed")(labels)

    h = x if self.dtype is None else x.astype(self.dtype)
    features, skips = [], []
    for i, (name, spec) in enumerate(self.block_specs()):
      block = Block(
          **spec,
          num_heads=self._heads(spec["channels"]),
          scale_shift=self.scale_shift,
          dropout=self.dropout,
          norm_groups=self.norm_groups,
          name=name,
          **common,
      )
      if name.startswith("output"):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
      h = block(h, embedding, None if gates is None else gates.layer(i), train)
      if name.startswith("input"):
        skips.append(h)
      features.append(h)
    h = jax.nn.silu(nn.GroupNorm(self.norm_groups, epsilon=1e-5, dtype=self.dtype, name="out_norm")(h))
    h = QuantConv(
        self.out_channels, padding=ONE_PIXEL, kernel_init=nn.initializers.zeros_init(), name="out_conv", **common
    )(h)
    return h.astype(jnp.float32), tuple(features)
