"""The first stages of latent diffusion: images <-> latents, by a codebook (VQ) or a Gaussian posterior (KL).

They are frozen, stay in float32 and are never quantized. Sources: Esser et al. 2021 (VQGAN), Rombach et al. 2022.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from binarydm_jax.models.attention import SelfAttention
from binarydm_jax.models.blocks import LAYOUTS, ONE_PIXEL, ResBlock, upsample
from binarydm_jax.quant import QuantConv

KINDS = ("vq", "kl")
_LAYOUT = "ddpm"


class _Half(nn.Module):
  """What encoder and decoder share.

  Attributes:
    channels, channel_mult: width of the first level, and of each level over it.
    num_res_blocks: residual blocks a level (the decoder has one more).
    attention_resolutions: down-sampling factors at which residual blocks are followed by attention.
    out_channels: of the last convolution.
    norm_groups: of every group norm.
  """

  channels: int
  channel_mult: tuple[int, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  out_channels: int
  norm_groups: int = 32

  def _res(self, x, channels, name):
    return ResBlock(channels, norm_groups=self.norm_groups, layout=_LAYOUT, name=name)(x)

  def _attend(self, x, name):
    return SelfAttention(1, self.norm_groups, LAYOUTS[_LAYOUT].norm_epsilon, name=name)(x)

  def _level(self, x, level, count):
    """`count` residual blocks of one level, each with attention where the level has it."""
    for i in range(count):
      x = self._res(x, self.channels * self.channel_mult[level], f"level_{level}_res_{i}")
      if 2**level in self.attention_resolutions:
        x = self._attend(x, f"level_{level}_attn_{i}")
    return x

  def _middle(self, x):
    x = self._attend(self._res(x, x.shape[-1], "mid_res_0"), "mid_attn_0")
    return self._res(x, x.shape[-1], "mid_res_1")

  def _finish(self, x):
    norm = nn.GroupNorm(self.norm_groups, epsilon=LAYOUTS[_LAYOUT].norm_epsilon, name="norm_out")
    return QuantConv(self.out_channels, padding=ONE_PIXEL, name="conv_out")(jax.nn.silu(norm(x)))


class Encoder(_Half):
  """Images [batch, h, w, c] -> [batch, h / f, w / f, out_channels], f = 2 ** (levels - 1)."""

  @nn.compact
  def __call__(self, x):
    x = QuantConv(self.channels, padding=ONE_PIXEL, name="conv_in")(x)
    for level in range(len(self.channel_mult)):
      x = self._level(x, level, self.num_res_blocks)
      if level < len(self.channel_mult) - 1:
        padding = LAYOUTS[_LAYOUT].down_padding
        x = QuantConv(x.shape[-1], strides=2, padding=padding, name=f"level_{level}_down")(x)
    return self._finish(self._middle(x))


class Decoder(_Half):
  """The way back: [batch, h, w, latent] -> [batch, h f, w f, out_channels]."""

  @nn.compact
  def __call__(self, x):
    x = QuantConv(self.channels * self.channel_mult[-1], padding=ONE_PIXEL, name="conv_in")(x)
    x = self._middle(x)
    for level in reversed(range(len(self.channel_mult))):
      x = self._level(x, level, self.num_res_blocks + 1)
      if level:
        x = QuantConv(x.shape[-1], padding=ONE_PIXEL, name=f"level_{level}_up")(upsample(x))
    return self._finish(x)


class Autoencoder(nn.Module):
  """A first stage; call its methods by `model.apply(variables, x, method="encode")`.

  Attributes:
    kind: "vq" (latents are quantized to a codebook before decoding) or "kl" (the encoder gives a Gaussian posterior).
    latent_channels: of the latents.
    codebook_size: entries, for "vq".
    image_channels, channels, channel_mult, num_res_blocks, attention_resolutions, norm_groups: see `Encoder`.
  """

  kind: str = "vq"
  image_channels: int = 3
  channels: int = 128
  channel_mult: tuple[int, ...] = (1, 2, 4)
  num_res_blocks: int = 2
  attention_resolutions: tuple[int, ...] = ()
  latent_channels: int = 3
  codebook_size: int = 8192
  norm_groups: int = 32

  @property
  def factor(self):
    """How many pixels, in height and in width, a latent stands for."""
    return 2 ** (len(self.channel_mult) - 1)

  @property
  def moment_channels(self):
    """Channels that `encode` gives: the latents', or twice as many (mean and log variance)."""
    return self.latent_channels * (2 if self.kind == "kl" else 1)

  def setup(self):
    if self.kind not in KINDS:
      raise ValueError(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")
    common = (self.channels, self.channel_mult, self.num_res_blocks, self.attention_resolutions)
    self.encoder = Encoder(*common, self.moment_channels, self.norm_groups)
    self.decoder = Decoder(*common, self.image_channels, self.norm_groups)
    self.quant_conv = QuantConv(self.moment_channels, (1, 1))
    self.post_quant_conv = QuantConv(self.latent_channels, (1, 1))
    if self.kind == "vq":
      self.codebook = nn.Embed(self.codebook_size, self.latent_channels)

  def encode(self, images):
    """Images float32 [batch, h, w, c] in [-1, 1] -> moments float32 [batch, h / f, w / f, moment_channels].

    "vq": the latents themselves, before quantization (what latent diffusion trains on); "kl": mean, then log variance.
    """
    return self.quant_conv(self.encoder(images))

  def quantize(self, latents):
    """Latents [batch, h, w, c] -> (nearest codebook entries, the same shape; their numbers int32 [batch, h, w])."""
    table = self.codebook.embedding

    def nearest(x):
      products = jnp.einsum("hwc,nc->hwn", x, table, precision="highest")
      squares = jnp.sum(x**2, axis=-1, keepdims=True) + jnp.sum(table**2, axis=-1)
      return jnp.argmin(squares - 2 * products, axis=-1)

    # Image by image: all distances of one (128 MiB for VQ-f4 at 256 x 256) are enough to hold at a time.
    indices = jax.lax.map(nearest, latents)
    return table[indices], indices

  def decode(self, latents):
    """Latents float32 [batch, h, w, latent_channels], not scaled -> images [batch, h f, w f, c], about [-1, 1]."""
    if self.kind == "vq":
      latents, _ = self.quantize(latents)
    return self.decoder(self.post_quant_conv(latents))

  def __call__(self, images):
    """decode(encode(images)), by the posterior's mean."""
    return self.decode(posterior_sample(self.encode(images), self.kind))


def posterior_sample(moments, kind, noise=0.0):
  """Latents from `encode`'s moments.

  Args:
    moments: [..., moment_channels].
    kind: "vq" or "kl".
    noise: standard normal [..., latent_channels], or 0 for the mean.
  """
  if kind == "vq":
    return moments
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  return mean + jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0)) * noise
