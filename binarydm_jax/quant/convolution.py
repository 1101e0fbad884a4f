"""2-d convolution, NHWC and HWIO: XLA's, and on CPUs as matrix products where these are faster; values are the same.

Measured on two cores with the step of `benchmark train`: what `convolve` chooses, and where, has no other reason.
"""

import functools

import jax
import jax.numpy as jnp

# Up to 4 x 4 pixels a product of patches takes two thirds of the time of XLA's convolution, forward and backward.
PATCHES_UP_TO = 16
# From 16 x 16 pixels on the kernel's gradient by `_kernel_gradient` takes from 0.95 down to 0.55 of the time of XLA's;
# of smaller maps, and of images with their few channels, it takes more.
KERNEL_GRADIENT_FROM = 256
FEW_CHANNELS = 16


def convolve(x, kernel, stride, padding):
  """x [batch, h, w, cin], kernel [kh, kw, cin, cout] -> [batch, h', w', cout].

  Where the kernel's gradient is our own, forward mode (`jax.jvp`) is not defined.

  Args:
    stride: one number for both axes.
    padding: "SAME", "VALID" or ((top, bottom), (left, right)).
  """
  height, width, channels, _ = kernel.shape
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), padding)
  padding = tuple(map(tuple, padding))
  rows, columns = (
      (size + sum(pads) - k) // stride + 1 for size, pads, k in zip(x.shape[1:3], padding, (height, width))
  )
  if jax.default_backend() != "cpu":
    return _convolve(x, kernel, stride, padding)
  if any(max(pads) >= k for pads, k in zip(padding, (height, width))):
    # The input's gradient would have negative padding, for which XLA's convolution on CPUs is wrong (jax 0.10).
    x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), ((0, 0), (0, 0))
  if height == width == 1 and padding == ((0, 0), (0, 0)):
    return _pointwise(x[:, ::stride, ::stride], kernel)
  if rows * columns <= PATCHES_UP_TO:
    return _by_patches(x, kernel, stride, padding, rows, columns)
  if stride == 1 and rows * columns >= KERNEL_GRADIENT_FROM and channels >= FEW_CHANNELS:
    return _with_own_gradient(x, kernel, padding)
  return _convolve(x, kernel, stride, padding)


def _convolve(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _pointwise(x, kernel):
  """One product with the pixels as rows: the kernel's gradient of XLA's 1 x 1 convolution takes six times as long."""
  channels, features = kernel.shape[2:]
  return (x.reshape(-1, channels) @ kernel[0, 0]).reshape(*x.shape[:3], features)


def _by_patches(x, kernel, stride, padding, rows, columns):
  height, width, channels, features = kernel.shape
  # The barrier keeps whatever made x (a quantizer) from being computed again for every tap.
  x = jnp.pad(jax.lax.optimization_barrier(x), ((0, 0), *padding, (0, 0)))
  patches = [
      x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
      for i in range(height)
      for j in range(width)
  ]
  return jnp.concatenate(patches, axis=-1) @ kernel.reshape(height * width * channels, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_own_gradient(x, kernel, padding):
  """XLA's convolution of stride 1 with `_kernel_gradient`."""
  return _convolve(x, kernel, 1, padding)


def _forward(x, kernel, padding):
  return _convolve(x, kernel, 1, padding), (x, kernel)


def _backward(padding, residuals, gradient):
  x, kernel = residuals
  (gradient_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, 1, padding), x)(gradient)
  return gradient_x, _kernel_gradient(x, gradient, padding, kernel.shape[:2]).astype(kernel.dtype)


_with_own_gradient.defvjp(_forward, _backward)


def _kernel_gradient(x, gradient, padding, size):
  """One product of kh copies of the gradient, each moved by as many rows, and kw of x, each moved by columns.

  All pairs of a row and a column are the taps, so that kh + kw copies are enough, where patches are kh kw.
  """
  height, width = size
  (top, bottom), (left, right) = padding
  rows, columns, features = gradient.shape[1:]
  x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
  moved = [x[:, :, j : j + columns] for j in range(width)]
  shifted = [jnp.pad(gradient, ((0, 0), (i, height - 1 - i), (0, 0), (0, 0))) for i in range(height)]
  moved, shifted = (jnp.concatenate(parts, axis=-1) for parts in (moved, shifted))
  products = jax.lax.dot_general(
      shifted.reshape(-1, height * features), moved.reshape(-1, width * x.shape[-1]), (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
  )  # fmt: skip
  return products.reshape(height, features, width, x.shape[-1]).transpose(0, 2, 3, 1)
