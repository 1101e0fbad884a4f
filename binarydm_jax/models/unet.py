"""The U-Net of ADM (Dhariwal & Nichol 2021), latent diffusion (Rombach et al. 2022) and DDPM (Ho et al. 2020).

Blocks are the timestep-embedding modules of the released code: each encoder block (the first convolution and the
down-samplers are blocks of their own), the middle, each decoder block with its up-sampler; 25 for LDM-4.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.models.blocks import LAYOUTS, ONE_PIXEL, Block
from binarydm_jax.models.embedding import timestep_embedding
from binarydm_jax.quant import PRODUCT, LayerGate, QuantConv, QuantDense, needs_timesteps

# The layers next to input and output and the time embedding, which are never binarized.
EDGES = ("input_0/conv", "out_conv", "time_embed_*")

# What is computed again in the backward pass. "products": norms, activations and quantizers, which hold most of the
# memory and cost little; results of convolutions and matrix products are kept. "blocks": all but the blocks' inputs.
REMAT = {
  "none": None,
  "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
  "blocks": jax.checkpoint_policies.nothing_saveable,
}


class UNet(nn.Module):
  """Predicts the target from noisy images and timesteps.

  Attributes:
    out_channels: of the prediction.
    model_channels: width of the first level; the time embedding has four times as many.
    channel_mult: width of each level over `model_channels`.
    num_res_blocks: residual blocks a level, 0 or more (the decoder has one more).
    attention_resolutions: down-sampling factors at which blocks have attention, such as (8, 4, 2).
    num_heads: attention heads, if `num_head_channels` is 0.
    num_head_channels: channels a head; 0 takes `num_heads`.
    scale_shift: the embedding scales and shifts the second norm (ADM) instead of being added.
    dropout: rate in the residual blocks.
    resblock_updown: residual blocks change the resolution, instead of convolutions.
    num_classes: labels of a class-conditional model; 0 for an unconditional one.
    null_class: one label more, number `num_classes`, stands for "no class" (classifier-free guidance).
    context_dim: 0, or width of the context to which SpatialTransformers attend; labels are then embedded as a context
      of one token (latent diffusion's class embedder) instead of being added to the time embedding.
    transformer_depth: blocks of a SpatialTransformer.
    norm_groups: of every group norm.
    layout: "ldm" or "ddpm", see `blocks.LAYOUTS`.
    rules: None (full precision: the teacher) or the table of `quant.resolve` (the student).
    dtype: compute type; parameters, norms' statistics and scales stay float32.
    remat: a name of REMAT: what of each block is computed again for its gradient instead of being kept.
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
  resblock_updown: bool = False
  num_classes: int = 0
  null_class: bool = False
  context_dim: int = 0
  transformer_depth: int = 1
  norm_groups: int = 32
  layout: str = "ldm"
  rules: Any = None
  dtype: Any = None
  remat: str = "none"

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

  def abstract_inputs(self, shape, batch=1):
    """(x, timesteps, labels or None) without values, for images of `shape` (h, w, c)."""
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32) if self.num_classes else None
    return jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32), labels

  def heads(self, channels):
    """Attention heads at a width."""
    return channels // self.num_head_channels if self.num_head_channels else self.num_heads

  def _embed(self, timesteps, labels, context, gate):
    """(time embedding [batch, 4 model_channels], context [batch, m, context_dim] or None)."""
    common = dict(rules=self.rules, dtype=self.dtype)
    width = 4 * self.model_channels
    embedding = timestep_embedding(timesteps, self.model_channels, LAYOUTS[self.layout].sines_first)
    embedding = QuantDense(width, name="time_embed_0", **common)(embedding, gate)
    embedding = QuantDense(width, name="time_embed_1", **common)(jax.nn.silu(embedding), gate)
    if self.num_classes:
      if labels is None:
        raise ValueError("a class-conditional UNet (num_classes > 0) needs labels [batch]")
      rows = self.num_classes + self.null_class
      label = nn.Embed(rows, self.context_dim or width, name="label_embed")(labels)
      if self.context_dim:
        context = label[:, None].astype(embedding.dtype)  # a packed file may hold it in bfloat16
      else:
        embedding = embedding + label
    if self.context_dim and context is None:
      raise ValueError("a UNet with context_dim > 0 and without classes needs a context [batch, m, context_dim]")
    return embedding, context

  @nn.compact
  def __call__(self, x, timesteps, labels=None, gates=None, dropout_keys=None, context=None):
    """Prediction and block features.

    Args:
      x: float [batch, h, w, c]; h and w divisible by 2 ** (levels - 1).
      timesteps: integer or float [batch], in 0 .. num_timesteps - 1.
      labels: int [batch] if `num_classes`, else None; `num_classes` itself is the null class, if there is one.
      gates: `quant.Gates`, or None: everything quantized, second bases alive.
      dropout_keys: key array [batch] from `models.dropout.example_keys`, or None: no dropout.
      context: float [batch, m, context_dim], if there is a context_dim and no classes.
    Returns:
      prediction [batch, h, w, out_channels], float32; features, the tuple of block outputs named by `block_names`.
    """
    common = dict(norm_groups=self.norm_groups, layout=self.layout, rules=self.rules, dtype=self.dtype)
    # No array at all where no layer asks for it: the graph of a student without such rules stays as it is.
    told = timesteps if needs_timesteps(self.rules) else None
    # Layers outside the blocks never wait; a second basis of theirs goes with all others.
    second = None if gates is None else gates.second
    always = None if told is None and second is None else LayerGate(second=second, timesteps=told)
    embedding, context = self._embed(timesteps, labels, context, always)
    block_class = Block if self.remat == "none" else nn.remat(Block, policy=REMAT[self.remat])

    h = x if self.dtype is None else x.astype(self.dtype)
    features, skips = [], []
    for i, (name, spec) in enumerate(self.block_specs()):
      block = block_class(
          **spec,
          resblock_updown=self.resblock_updown,
          num_heads=self.heads(spec["channels"]),
          context_dim=self.context_dim,
          transformer_depth=self.transformer_depth,
          scale_shift=self.scale_shift,
          dropout=self.dropout,
          name=name,
          **common,
      )
      if name.startswith("output"):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
      h = block(h, embedding, context, always if gates is None else gates.layer(i, told), dropout_keys)
      if name.startswith("input"):
        skips.append(h)
      features.append(h)
    epsilon = LAYOUTS[self.layout].norm_epsilon
    h = jax.nn.silu(nn.GroupNorm(self.norm_groups, epsilon=epsilon, dtype=self.dtype, name="out_norm")(h))
    h = QuantConv(
        self.out_channels,
        padding=ONE_PIXEL,
        rules=self.rules,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros_init(),
        name="out_conv",
    )(h, always)
    return h.astype(jnp.float32), tuple(features)
