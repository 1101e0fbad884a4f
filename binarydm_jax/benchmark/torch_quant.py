"""The same quantizers in PyTorch, straight-through by detached differences, as PyTorch code has it."""

import math

import torch
from torch import nn
from torch.nn import functional

FLOOR = 1e-8


def scale_gradient(x, factor):
  """x, its gradient times `factor`."""
  return (x - x * factor).detach() + x * factor


def round_pass(x):
  """round(x), the gradient passing unchanged."""
  return (x.round() - x).detach() + x


class Sign(torch.autograd.Function):
  """+1 where x >= 0, else -1; the gradient passes where |x| <= 1."""

  @staticmethod
  def forward(ctx, x):
    ctx.save_for_backward(x)
    return torch.where(x >= 0, 1.0, -1.0)

  @staticmethod
  def backward(ctx, gradient):
    (x,) = ctx.saved_tensors
    return gradient * (x.abs() <= 1)


class Activation(nn.Module):
  """LSQ of a layer's input with one learned step."""

  def __init__(self, bits):
    super().__init__()
    self.step = nn.Parameter(torch.ones(()))
    self.qn, self.qp = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

  def forward(self, x):
    step = self.step.clamp(min=FLOOR)
    step = scale_gradient(step, 1 / math.sqrt(math.prod(x.shape[1:]) * self.qp))
    return round_pass((x / step).clamp(self.qn, self.qp)) * step


class Quantized(nn.Module):
  """What convolution and linear share: latent weights, scales for `bases` bases, the quantizer of the input."""

  def __init__(self, weight_shape, bias, bases, bits):
    super().__init__()
    self.weight = nn.Parameter(torch.empty(weight_shape))
    self.bias = nn.Parameter(torch.empty(weight_shape[0])) if bias else None
    self.act = Activation(bits) if bits != 32 else nn.Identity()
    self.bases = bases
    scale_shape = (weight_shape[0],) + (1,) * (len(weight_shape) - 1)
    for i in range(bases):
      self.register_parameter(f"scale{i + 1}", nn.Parameter(torch.empty(scale_shape)))

  def binarized(self):
    if not self.bases:
      return self.weight
    first = self.scale1.clamp(min=FLOOR) * Sign.apply(self.weight)
    if self.bases == 1:
      return first
    return first + self.scale2.clamp(min=FLOOR) * Sign.apply(self.weight - first)


class Conv(Quantized):
  """2-d convolution, NCHW."""

  def __init__(self, cin, cout, size=3, stride=1, bases=0, bits=32):
    super().__init__((cout, cin, size, size), True, bases, bits)
    self.stride, self.padding = stride, size // 2

  def forward(self, x):
    return functional.conv2d(self.act(x), self.binarized(), self.bias, self.stride, self.padding)


class Linear(Quantized):
  def __init__(self, cin, cout, bases=0, bits=32):
    super().__init__((cout, cin), True, bases, bits)

  def forward(self, x):
    return functional.linear(self.act(x), self.binarized(), self.bias)
