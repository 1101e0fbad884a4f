"""The portable back end: packed layers in plain XLA, on any device.

Weights stay bits in memory; inside the program they are expanded to int8, multiplied with the int8 codes of the
activations and summed in int32, which is exact. One scale per output channel follows.
"""

import math

import jax.numpy as jnp
from jax import lax

from binarydm_jax.quant.step_size import codes, levels

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _unpack_bits(packed, count, bits):
  """uint8 bytes -> uint8 [count, bits] of 0 and 1, in the order of `quant.pack_codes`."""
  planes = (packed[:, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
  return planes.reshape(-1)[: count * bits].reshape(count, bits)


def expand_signs(packed, shape):
  """`quant.unpack_signs` on the device: uint8 bytes -> int8 +1 and -1 of `shape`."""
  return (2 * _unpack_bits(packed, math.prod(shape), 1).astype(jnp.int8) - 1).reshape(shape)


def expand_codes(packed, bits, shape):
  """The integers of LSQ weights: uint8 bytes of `quant.pack_codes` -> int8 of `shape`, from -2^(bits-1) on."""
  if bits == 8:
    unsigned = packed
  else:
    weights = jnp.asarray([2**i for i in range(bits)], jnp.uint8)
    unsigned = (_unpack_bits(packed, math.prod(shape), bits) * weights).sum(1, dtype=jnp.uint8)
  return (unsigned.astype(jnp.int16) + levels(bits)[0]).astype(jnp.int8).reshape(shape)


def expand_kernels(rule, tensors, shape):
  """[(int8 kernel of `shape`, float32 scale [cout])] whose products' sum is the layer's kernel."""
  if rule.weights == "lsq":
    return [(expand_codes(tensors["codes"], rule.weight_bits, shape), tensors["weight_step"])]
  return [(expand_signs(tensors[f"signs{i}"], shape), tensors[f"scale{i}"]) for i in range(1, rule.bases + 1)]


def _direct(x, kernel, stride, padding):
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS, preferred_element_type=jnp.int32
  )


def _as_product(x, kernel, stride, padding):
  """The convolution as one matrix product of patches."""
  height, width, channels, features = kernel.shape
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  rows, columns = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], (height, width)))
  patches = [
      x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
      for i in range(height)
      for j in range(width)
  ]
  kernel = kernel.reshape(height * width * channels, features)
  return jnp.matmul(jnp.concatenate(patches, -1), kernel, preferred_element_type=jnp.int32)


def integer_conv(x, kernel, stride=1, padding=((0, 0), (0, 0))):
  """Exact convolution of int8 x [batch, h, w, cin] and int8 kernel HWIO: int32 [batch, h', w', cout].

  Args:
    stride: of both axes.
    padding: ((top, bottom), (left, right)), zeros.
  """
  if kernel.shape[:2] == (1, 1) and stride == 1 and not any(map(sum, padding)):
    return jnp.matmul(x, kernel[0, 0], preferred_element_type=jnp.int32)

  def direct(x, kernel):
    return _direct(x, kernel, stride, padding)

  def as_product(x, kernel):
    return _as_product(x, kernel, stride, padding)

  # Of integers, GPUs' libraries have the product for all shapes, the convolution for some.
  return lax.platform_dependent(x, kernel, cuda=as_product, rocm=as_product, default=direct)


def lowered_by(zero_point, bits):
  """What takes codes -z .. 2^b - 1 - z to -2^(b-1) .. 2^(b-1) - 1: 2^(b-1) - z, 0 where they are there already."""
  return 2 ** (bits - 1) - zero_point


def run(rule, tensors, x, residual, *, kernel_shape, stride, padding):
  """`quant.PackedLayer.run` by XLA, for every rule with quantized weights.

  With activations of 2 to 8 bits: y = sum over bases of (step scale) conv(codes of x, signs) + bias + residual, the
  convolutions in integers. With float activations the kernel is dequantized inside the program. Asymmetric codes are
  lowered to the range of signed ones, padding with them, which `lowered_by` times the sum of the kernel puts right.
  """
  # Else a compiler that sees the bits as constants (an exported program) would expand them beforehand.
  tensors = lax.optimization_barrier(dict(tensors))
  kernels = expand_kernels(rule, tensors, kernel_shape)
  if rule.act_bits == 32:
    kernel = sum(scale * signs.astype(jnp.float32) for signs, scale in kernels).astype(x.dtype)
    y = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS)
  else:
    step, zero_point = tensors["step"], tensors.get("zero_point")
    integers = codes(x, step, rule.act_bits, zero_point)
    if zero_point is None:
      sums = [integer_conv(integers.astype(jnp.int8), kernel, stride, padding) for kernel, _ in kernels]
    else:
      lower = lowered_by(zero_point, rule.act_bits)
      integers = jnp.pad(integers, ((0, 0), *padding, (0, 0))) - lower
      sums = [integer_conv(integers.astype(jnp.int8), kernel, stride)
              + lower.astype(jnp.int32) * jnp.sum(kernel, (0, 1, 2), jnp.int32) for kernel, _ in kernels]
    y = sum((step * scale) * total.astype(jnp.float32) for total, (_, scale) in zip(sums, kernels))
  if "bias" in tensors:
    y = y + tensors["bias"].astype(y.dtype)
  return y if residual is None else residual + y

