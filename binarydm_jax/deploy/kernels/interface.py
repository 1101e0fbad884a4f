"""Packing of signs, and convolutions with them as JAX operations of the CPU."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.deploy.kernels import library

ACT_BITS = (1, 2, 3, 4, 8)


def _shape(kernel_shape, act_bits, bases):
  """C array of kh, kw, cin, cout, bases, bits."""
  if act_bits not in ACT_BITS:
    raise ValueError(f"act_bits is {act_bits}: the kernels take {', '.join(map(str, ACT_BITS))}")
  if len(kernel_shape) != 4:
    raise ValueError(f"kernel_shape is {tuple(kernel_shape)}: it has four sizes, kh, kw, cin and cout")
  return (ctypes.c_int * 6)(*(int(n) for n in kernel_shape), bases, act_bits)


def packed_bytes(kernel_shape, act_bits, bases, path=None):
  """Bytes of packed weights. Raises ValueError where the kernels do not support the shape."""
  path = library.require(path)
  size = library.loaded()[0].binarydm_packed_bytes(path.encode(), _shape(kernel_shape, act_bits, bases))
  if size == 0:
    raise ValueError(f"kernels of shape {tuple(kernel_shape)} with {bases} bases are not supported")
  return size


def prepack(signs1, signs2, kernel_shape, act_bits, path=None):
  """Signs in the layout of a path: one bit a weight and basis.

  Beside the bits there are a header of 64 bytes and the padding of channels and outputs, which on avx2 is none where
  channels are a multiple of 16 and outputs of 32. Of the other paths avx512vnni has the coarsest blocks, 64 outputs.

  Args:
    signs1: bool (True = +1) or signed integers (positive = +1) [kh, kw, cin, cout].
    signs2: the same for the second basis, or None.
    kernel_shape: (kh, kw, cin, cout).
    act_bits: 8, 4, 3, 2 or 1, the width of the activations that it will meet.
    path: one of `paths()`; by default the one in use.
  Returns:
    uint8 [n], for `conv` and `integer_conv` on the same path.
  """
  kernel_shape = tuple(int(n) for n in kernel_shape)
  bases = 1 if signs2 is None else 2
  packed = np.empty(packed_bytes(kernel_shape, act_bits, bases, path), np.uint8)
  signs = np.empty((bases, *kernel_shape), np.uint8)
  for basis, given in enumerate((signs1, signs2)[:bases]):
    given = np.asarray(given)
    if given.shape != kernel_shape:
      raise ValueError(f"signs have shape {given.shape}, the kernel {kernel_shape}")
    if given.dtype != bool and given.dtype.kind != "i":
      raise ValueError(f"signs are {given.dtype}: they are bool or signed integers")
    np.greater(given, 0, out=signs[basis], casting="unsafe")
  library.loaded()[0].binarydm_pack(
    library.require(path).encode(), _shape(kernel_shape, act_bits, bases), signs.ctypes.data, packed.ctypes.data
  )
  return packed


def conv(
  x, step, packed, scale1, scale2, bias, residual=None, zero_point=None, *, kernel_shape, stride, padding, act_bits,
  bases, path=None,
):
  """y = step * (scale1 * acc1 + scale2 * acc2) + bias + residual, acc the exact integer convolutions of x's codes.

  Codes are those of `quant.step_size.codes`: round(clip(x * (1 / step))), half to even, the step floored at 1e-8. With
  act_bits 1 they are the sign of x, sign(0) = +1; taps on padding contribute 0 at every width. NaN counts as the
  smallest code. With a zero point z the codes, those of padding too, are lowered by 2^(b-1) - z into the range of
  signed ones: step (2^(b-1) - z) (scale1 (sum of signs1) + scale2 (sum of signs2)) added to the bias makes up for it.
  Dense layers are 1 x 1 convolutions of x [1, 1, rows, cin].

  Args:
    x: float32 [batch, h, w, cin].
    step: float32, one number.
    packed: uint8, of `prepack`.
    scale1, scale2, bias: float32 [cout]; scale2 is None with one basis, bias may be None.
    residual: float32 [batch, h', w', cout], or None.
    zero_point: float32, one number, or None: signed codes. Not with act_bits 1.
    kernel_shape: (kh, kw, cin, cout).
    stride: one number for both axes.
    padding: ((top, bottom), (left, right)).
    act_bits: 8, 4, 3, 2 or 1.
    bases: 1 or 2.
    path: the path that packed the weights; by default the one in use.
  Returns:
    float32 [batch, h', w', cout]. All paths give the same bits.
  Raises:
    ValueError: shapes that do not fit. RuntimeError: no kernels here (`status()` says why).
  """
  out, attributes = _attributes(x.shape, packed, kernel_shape, stride, padding, act_bits, bases, path)
  cout = out[-1]
  for name, value in (("scale1", scale1), ("scale2", scale2), ("bias", bias)):
    expected = value is not None if name == "bias" else name == "scale1" or bases == 2
    if (value is not None) != expected or (expected and jnp.shape(value) != (cout,)):
      raise ValueError(f"{name} has shape {None if value is None else jnp.shape(value)}, the layer {cout} outputs")
  if residual is not None and residual.shape != out:
    raise ValueError(f"residual has shape {residual.shape}, the output {out}")
  nothing = jnp.zeros((0,), jnp.float32)
  arguments = (
    x, jnp.reshape(step, ()), nothing if zero_point is None else jnp.reshape(zero_point, ()), scale1,
    nothing if scale2 is None else scale2,
    jnp.zeros((cout,), jnp.float32) if bias is None else bias, nothing if residual is None else residual,
  )  # fmt: skip
  x, step, zero_point, *others = (jnp.asarray(value, jnp.float32) for value in arguments)
  call = jax.ffi.ffi_call("binarydm_fused_conv", jax.ShapeDtypeStruct(out, jnp.float32))
  return call(x, step, zero_point, packed, *others, **attributes)


def integer_conv(codes, packed, *, kernel_shape, stride, padding, act_bits, bases, path=None):
  """The sums of `conv`, exact: codes int8 [batch, h, w, cin] -> int32 [bases, batch, h', w', cout].

  Args:
    codes: in the range of act_bits, -2^(b-1) to 2^(b-1) - 1 (others give wrong sums); +1 and -1 with act_bits 1.
    others: as for `conv`.
  """
  out, attributes = _attributes(codes.shape, packed, kernel_shape, stride, padding, act_bits, bases, path)
  call = jax.ffi.ffi_call("binarydm_integer_conv", jax.ShapeDtypeStruct((bases, *out), jnp.int32))
  return call(jnp.asarray(codes, jnp.int8), packed, **attributes)


def _attributes(shape, packed, kernel_shape, stride, padding, act_bits, bases, path):
  """(shape of the output, attributes of the call), all sizes checked."""
  path = library.require(path)
  kernel_shape = tuple(int(n) for n in kernel_shape)
  size = packed_bytes(kernel_shape, act_bits, bases, path)
  if packed.shape != (size,) or packed.dtype != jnp.uint8:
    raise ValueError(f"packed is {packed.dtype} {packed.shape}: on {path} this layer has uint8 ({size},)")
  if len(shape) != 4 or shape[3] != kernel_shape[2]:
    raise ValueError(f"input has shape {shape}: it must be [batch, h, w, {kernel_shape[2]}]")
  (top, bottom), (left, right) = padding
  sides = np.array([top, bottom, left, right], np.int64)
  if stride < 1 or sides.min() < 0:
    raise ValueError(f"stride {stride} and padding {padding}: at least 1 and not negative")
  rows, columns = (
    (size + before + after - k) // stride + 1
    for size, before, after, k in ((shape[1], top, bottom, kernel_shape[0]), (shape[2], left, right, kernel_shape[1]))
  )
  if rows < 1 or columns < 1:
    raise ValueError(f"input {shape} with padding {padding} is smaller than the kernel {kernel_shape}")
  return (shape[0], rows, columns, kernel_shape[3]), dict(
    path=path, kernel_shape=np.array(kernel_shape, np.int64), stride=np.int64(stride), padding=sides,
    bits=np.int64(act_bits), bases=np.int64(bases), threads=np.int64(library.threads()),
  )  # fmt: skip
