"""Parity with diffusers on random weights: prediction and the features of every block, in float32."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from binarydm_jax.importers import load_autoencoder, load_unet
from binarydm_jax.models import Autoencoder, UNet

TOLERANCE = 1e-5
DDPM = dict(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6, attention_head_dim=None)
LDM = dict(flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, norm_eps=1e-5, attention_head_dim=8)
COMMON = dict(in_channels=3, out_channels=3, layers_per_block=2, norm_num_groups=8, block_out_channels=(16, 32, 32))


def randomized(module, seed=0):
  """Every parameter from a normal distribution: norms that are not one, biases that are not zero."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in module.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      fan_in = value[0].numel() if value.ndim > 1 else 1
      value.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise * 0.7 / fan_in**0.5)
  return module.eval()


def relative_error(ours, theirs):
  """Largest difference over the largest magnitude; `theirs` is a torch tensor in NCHW."""
  theirs = theirs.detach().numpy()
  theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
  return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def block_outputs(net):
  """Hooks that collect the outputs of the blocks that LRM aligns, in our order; call after the forward pass."""
  found = {}

  def keep(name):
    return lambda module, args, output: found.__setitem__(name, output[0] if isinstance(output, tuple) else output)

  order = []

  def watch(name, module):
    order.append(name)
    module.register_forward_hook(keep(name))

  watch("input_0", net.conv_in)
  for level in net.down_blocks:
    for i, resnet in enumerate(level.resnets):
      watch(f"{id(level)}_{i}", level.attentions[i] if getattr(level, "attentions", None) else resnet)
    for sampler in level.downsamplers or ():
      watch(f"{id(level)}_down", sampler)
  watch("middle", net.mid_block)
  for level in net.up_blocks:
    last = len(level.resnets) - 1
    for i, resnet in enumerate(level.resnets):
      module = level.attentions[i] if getattr(level, "attentions", None) else resnet
      watch(f"{id(level)}_{i}", level.upsamplers[0] if i == last and level.upsamplers else module)
  return lambda: [found[name] for name in order]


def compare_unet(net, model, tmp_path, context=None, size=16):
  net = randomized(net)
  net.save_pretrained(tmp_path)
  x, timesteps = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32), np.array([3, 977])
  inputs = [jnp.asarray(x), jnp.asarray(timesteps)]
  kwargs = {} if context is None else {"context": jnp.asarray(context)}
  features = block_outputs(net)
  with torch.no_grad():
    args = [torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(timesteps)]
    theirs = net(*args, *([] if context is None else [torch.tensor(context)])).sample
  params = load_unet(tmp_path, model)
  prediction, ours = jax.jit(model.apply)({"params": params}, *inputs, **kwargs)
  assert relative_error(prediction, theirs) <= TOLERANCE
  assert len(ours) == len(features())
  for name, a, b in zip(model.block_names, ours, features()):
    assert relative_error(a, b) <= TOLERANCE, name


def test_ddpm_unet(tmp_path):
  """The CIFAR-10 layout: one head at half resolution, sines first, padding on one side."""
  net = diffusers.UNet2DModel(
      sample_size=16, down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), **COMMON, **DDPM,
  )
  compare_unet(net, UNet(3, 16, (1, 2, 2), 2, (2,), layout="ddpm", norm_groups=8), tmp_path)


def test_ldm_unet(tmp_path):
  """The layout of latent diffusion: several heads, attention at several resolutions."""
  net = diffusers.UNet2DModel(
      sample_size=16, down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
      up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), **COMMON, **LDM,
  )
  compare_unet(net, UNet(3, 16, (1, 2, 2), 2, (2, 4), num_head_channels=8, norm_groups=8), tmp_path)


def test_scale_shift_and_resampling_blocks(tmp_path):
  """What the Churches LDM-8 has: embeddings that scale and shift, residual blocks that change the resolution."""
  net = diffusers.UNet2DModel(
      sample_size=16, down_block_types=("ResnetDownsampleBlock2D",) * 3,
      up_block_types=("ResnetUpsampleBlock2D",) * 3, resnet_time_scale_shift="scale_shift",
      attn_norm_num_groups=8, **COMMON, **LDM,
  )
  model = UNet(
      3, 16, (1, 2, 2), 2, (), num_head_channels=8, norm_groups=8, scale_shift=True, resblock_updown=True
  )
  compare_unet(net, model, tmp_path)


@pytest.mark.slow
def test_ldm4_at_full_size(tmp_path):
  """The 274,056,163 parameters of LDM-4 on LSUN-Bedrooms; about 7 GiB of memory."""
  levels = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
  net = diffusers.UNet2DModel(
      sample_size=64, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(224, 448, 672, 896),
      down_block_types=levels, up_block_types=tuple(name.replace("Down", "Up") for name in levels[::-1]),
      **{**LDM, "attention_head_dim": 32},
  )
  assert sum(value.numel() for value in net.parameters()) == 274_056_163
  compare_unet(net, UNet(3, 224, (1, 2, 3, 4), 2, (8, 4, 2), num_head_channels=32), tmp_path, size=64)


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cross_attention(tmp_path, depth):
  """SpatialTransformers with a context of several tokens."""
  net = diffusers.UNet2DConditionModel(
      sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=8,
      block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
      up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=12, attention_head_dim=2,
      transformer_layers_per_block=depth,
  )
  context = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32)
  model = UNet(3, 16, (1, 2), 1, (2,), num_heads=2, context_dim=12, transformer_depth=depth, norm_groups=8)
  compare_unet(net, model, tmp_path, context)


BLOCKS = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4)


def images(size=16):
  return np.random.default_rng(2).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def nchw(x):
  return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def test_vq_autoencoder(tmp_path):
  """Encoder, codebook and decoder; attention at one level as in VQ-f8."""
  net = randomized(diffusers.VQModel(
      down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
      up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), num_vq_embeddings=32, vq_embed_dim=4, **BLOCKS,
  ))
  net.save_pretrained(tmp_path)
  model = Autoencoder("vq", 3, 16, (1, 2), 1, (2,), 4, 32, 8)
  params, _ = load_autoencoder(tmp_path, model)
  x = images()
  with torch.no_grad():
    latents = net.encode(nchw(x)).latents
    entries, _, (_, _, indices) = net.quantize(latents)
    decoded = net.decode(latents).sample
  ours = model.apply({"params": params}, x, method="encode")
  assert relative_error(ours, latents) <= TOLERANCE
  quantized, numbers = model.apply({"params": params}, np.moveaxis(latents.numpy(), 1, -1), method="quantize")
  np.testing.assert_array_equal(np.asarray(numbers).ravel(), indices.numpy().ravel())
  # Theirs is latents + (entries - latents), the straight-through estimator, which rounds.
  np.testing.assert_allclose(np.moveaxis(np.asarray(quantized), -1, 1), entries.numpy(), atol=1e-6)
  result = model.apply({"params": params}, np.moveaxis(latents.numpy(), 1, -1), method="decode")
  assert relative_error(result, decoded) <= TOLERANCE


def test_kl_autoencoder(tmp_path):
  """Mean, log variance, decoder; the scale factor comes from the file's configuration."""
  net = randomized(diffusers.AutoencoderKL(
      down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.25,
      **BLOCKS,
  ))
  net.save_pretrained(tmp_path)
  model = Autoencoder("kl", 3, 16, (1, 2), 1, (), 4, 0, 8)
  params, factor = load_autoencoder(tmp_path, model)
  assert factor == 0.25
  x = images()
  with torch.no_grad():
    posterior = net.encode(nchw(x)).latent_dist
    decoded = net.decode(posterior.mean).sample
  moments = model.apply({"params": params}, x, method="encode")
  assert relative_error(moments[..., :4], posterior.mean) <= TOLERANCE
  assert relative_error(np.clip(moments[..., 4:], -30, 20), posterior.logvar) <= TOLERANCE
  assert relative_error(model.apply({"params": params}, x), decoded) <= TOLERANCE
