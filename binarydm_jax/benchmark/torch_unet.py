"""The same U-Net in PyTorch, NCHW: modules and parameters by the names of `models.unet`.

It is the rival whose time is measured, and an independent witness of what our training step computes.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from binarydm_jax.benchmark.torch_quant import Activation, Conv, Linear


class Builder:
  """Makes the layers of one network: quantized by the rules, or in full precision without.

  Args:
    network: as in `torch_problem.describe`.
    rules: path -> (bases, activation bits), or None.
  """

  def __init__(self, network, rules):
    self.network, self.rules = network, rules

  def rule(self, path):
    return (0, 32) if self.rules is None else self.rules[path]

  def conv(self, path, cin, cout, size=3, stride=1):
    return Conv(cin, cout, size, stride, *self.rule(path))

  def linear(self, path, cin, cout):
    return Linear(cin, cout, *self.rule(path))

  def activation(self, path):
    _, bits = self.rule(path)
    return Activation(bits) if bits != 32 else nn.Identity()

  def norm(self, channels):
    return nn.GroupNorm(self.network["norm_groups"], channels, eps=1e-5)


class Product(nn.Module):
  """Product of two matrices of activations, each quantized with a step of its own."""

  def __init__(self, make, path):
    super().__init__()
    self.act_a, self.act_b = make.activation(path), make.activation(path)

  def forward(self, a, b):
    return self.act_a(a) @ self.act_b(b)


class Attention(nn.Module):
  """Self-attention over pixels."""

  def __init__(self, make, path, channels):
    super().__init__()
    self.heads = make.network["heads"][channels]
    self.norm = make.norm(channels)
    self.qkv = make.conv(f"{path}/qkv", channels, 3 * channels, 1)
    self.qk, self.av = Product(make, f"{path}/qk"), Product(make, f"{path}/av")
    self.proj = make.conv(f"{path}/proj", channels, channels, 1)

  def forward(self, x):
    batch, channels, height, width = x.shape
    qkv = self.qkv(self.norm(x)).reshape(batch, self.heads, 3, channels // self.heads, height * width)
    q, k, v = qkv.unbind(2)
    scale = q.shape[2] ** -0.25
    weights = self.qk((q * scale).transpose(2, 3), k * scale).softmax(-1)
    h = self.av(weights, v.transpose(2, 3)).transpose(2, 3)
    return x + self.proj(h.reshape(x.shape))


class ResBlock(nn.Module):
  def __init__(self, make, path, cin, cout):
    super().__init__()
    self.norm1, self.conv1 = make.norm(cin), make.conv(f"{path}/conv1", cin, cout)
    self.emb = make.linear(f"{path}/emb", 4 * make.network["model_channels"], cout)
    self.norm2, self.conv2 = make.norm(cout), make.conv(f"{path}/conv2", cout, cout)
    self.skip = make.conv(f"{path}/skip", cin, cout, 1) if cin != cout else nn.Identity()

  def forward(self, x, embedding):
    h = self.conv1(functional.silu(self.norm1(x)))
    h = h + self.emb(functional.silu(embedding))[:, :, None, None]
    h = self.conv2(functional.silu(self.norm2(h)))
    return self.skip(x) + h


class Block(nn.Module):
  """What of first convolution, residual blocks, attention, down- and up-sampler `models.blocks.Block` has."""

  def __init__(self, make, path, cin, channels, conv=False, res=0, attention=False, down=False, up=False):
    super().__init__()
    if conv:
      self.conv, cin = make.conv(f"{path}/conv", cin, channels), channels
    self.order = []
    for i in range(res):
      name = f"res{i or ''}"
      self.add_module(name, ResBlock(make, f"{path}/{name}", cin, channels))
      self.order.append(name)
      cin = channels
      if attention and i == 0:
        self.attn = Attention(make, f"{path}/attn", channels)
        self.order.append("attn")
    self.down = make.conv(f"{path}/down", cin, channels, stride=2) if down else None
    self.up = make.conv(f"{path}/up", cin, channels) if up else None

  def forward(self, x, embedding):
    if hasattr(self, "conv"):
      x = self.conv(x)
    for name in self.order:
      module = getattr(self, name)
      x = module(x) if name == "attn" else module(x, embedding)
    if self.down is not None:
      x = self.down(x)
    if self.up is not None:
      x = self.up(functional.interpolate(x, scale_factor=2, mode="nearest"))
    return x


class TorchUNet(nn.Module):
  """(prediction, features) of x [batch, c, h, w] at timesteps [batch].

  Args:
    network: as in `torch_problem.describe`.
    rules: path -> (bases, activation bits) of the student, None for the teacher.
  """

  def __init__(self, network, rules):
    super().__init__()
    make = Builder(network, rules)
    self.width, channels = network["model_channels"], network["in_channels"]
    self.time_embed_0 = make.linear("time_embed_0", self.width, 4 * self.width)
    self.time_embed_1 = make.linear("time_embed_1", 4 * self.width, 4 * self.width)
    self.names, skips = [], []
    for name, spec in network["blocks"]:
      channels += skips.pop() if name.startswith("output") else 0
      self.add_module(name, Block(make, name, channels, **spec))
      channels = spec["channels"]
      self.names.append(name)
      if name.startswith("input"):
        skips.append(channels)
    self.out_norm = make.norm(channels)
    self.out_conv = make.conv("out_conv", channels, network["out_channels"])

  def embed(self, timesteps):
    half = self.width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32))
    angles = timesteps[:, None].float() * frequencies
    h = torch.cat([angles.cos(), angles.sin()], 1)
    return self.time_embed_1(functional.silu(self.time_embed_0(h)))

  def forward(self, x, timesteps):
    embedding = self.embed(timesteps)
    features, skips = [], []
    for name in self.names:
      if name.startswith("output"):
        x = torch.cat([x, skips.pop()], 1)
      x = getattr(self, name)(x, embedding)
      if name.startswith("input"):
        skips.append(x)
      features.append(x)
    return self.out_conv(functional.silu(self.out_norm(x))), features


@torch.no_grad()
def load(network, parameters):
  """Fills a TorchUNet with {name: numpy array}, all of them.

  Raises:
    ValueError: the two do not have the same parameters.
  """
  own = dict(network.named_parameters())
  for name in sorted(own.keys() ^ parameters.keys()):
    raise ValueError(f"parameter {name} is on one side alone")
  for name, parameter in own.items():
    parameter.copy_(torch.from_numpy(parameters[name]).reshape(parameter.shape))
