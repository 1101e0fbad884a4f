"""Native convolutions: integers equal a 64-bit reference on every path that runs here; the fused one quantizes as quant
does, and all paths give the same floats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binarydm_jax.deploy import integer, kernels
from binarydm_jax.deploy.kernels import library
from binarydm_jax.quant import LayerRule
from binarydm_jax.quant.step_size import codes as lsq_codes
from binarydm_jax.quant.step_size import levels, lsq

PATHS = kernels.paths()
BITS = (1, 2, 3, 4, 8)


def reference(codes, signs, stride, padding):
  """codes [batch, h, w, cin], signs bool [kh, kw, cin, cout] -> int64 [batch, h', w', cout]."""
  kh, kw = signs.shape[:2]
  x = np.pad(codes.astype(np.int64), ((0, 0), *padding, (0, 0)))
  h, w = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw)))
  return sum(
    x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride] @ np.where(signs[i, j], 1, -1)
    for i in range(kh)
    for j in range(kw)
  )


def draw_codes(rng, bits, shape):
  codes = rng.choice([-1, 1], shape) if bits == 1 else rng.integers(*levels(bits), shape, endpoint=True)
  return codes.astype(np.int8)


def test_the_path_is_native():
  """These tests test something: a compiler is at hand, and the portable path always runs."""
  assert PATHS and PATHS[-1] == "portable"
  assert kernels.status()[0] == PATHS[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
def test_by_hand(path, bits):
  """One pixel, three channels, two outputs: signs +-+ and ---."""
  codes = {1: [1, -1, 1], 2: [1, -2, 0], 3: [3, -4, 1], 4: [7, -8, 2], 8: [127, -128, 5]}[bits]
  a, b, c = codes
  signs = np.array([[[[1, -1], [-1, -1], [1, -1]]]], np.int8)
  packed = kernels.prepack(signs, None, (1, 1, 3, 2), bits, path=path)
  got = kernels.integer_conv(
    np.array(codes, np.int8).reshape(1, 1, 1, 3), packed, kernel_shape=(1, 1, 3, 2), stride=1,
    padding=((0, 0), (0, 0)), act_bits=bits, bases=1, path=path,
  )  # fmt: skip
  assert got.dtype == jnp.int32
  assert got.tolist() == [[[[[a - b + c, -a - b - c]]]]]


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_integers(path, data):
  """Random shapes, odd channels, strides, padding, one and two bases."""
  draw = lambda low, high: data.draw(st.integers(low, high))
  bits, size, stride, bases = data.draw(st.sampled_from(BITS)), draw(1, 3), draw(1, 3), draw(1, 2)
  shape = (size, data.draw(st.sampled_from([size, 1])), draw(1, 70), draw(1, 140))
  padding = ((draw(0, 2), draw(0, 2)), (draw(0, 2), draw(0, 2)))
  rng = np.random.default_rng(draw(0, 2**32))
  codes = draw_codes(rng, bits, (draw(1, 2), draw(3, 9), draw(3, 9), shape[2]))
  signs = rng.random((2, *shape)) < rng.choice([0, 0.5, 1], p=[0.1, 0.8, 0.1])
  packed = kernels.prepack(signs[0], signs[1] if bases == 2 else None, shape, bits, path=path)
  got = kernels.integer_conv(
    codes, packed, kernel_shape=shape, stride=stride, padding=padding, act_bits=bits, bases=bases, path=path
  )
  np.testing.assert_array_equal(got, np.stack([reference(codes, s, stride, padding) for s in signs[:bases]]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("positive", [True, False])
def test_largest_sums(path, bits, positive):
  """16,128 inputs, all codes at one end, all signs alike: sums of 8 and 16 bits would overflow."""
  shape = (3, 3, 1792, 2)
  for code in levels(bits) if bits > 1 else (-1, 1):
    codes = np.full((1, 4, 3, 1792), code, np.int8)
    signs = np.full(shape, positive)
    packed = kernels.prepack(signs, None, shape, bits, path=path)
    padding = ((1, 1), (1, 1))
    got = kernels.integer_conv(
      codes, packed, kernel_shape=shape, stride=1, padding=padding, act_bits=bits, bases=1, path=path
    )
    np.testing.assert_array_equal(got[0], reference(codes, signs, 1, padding))
    assert abs(int(got[0, 0, 1, 1, 0])) == 16128 * abs(code)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [1, 8])
def test_many_pixels(bits, path):
  """Panels and strips are sewn together: more input than one panel holds, several images, rows cut anywhere."""
  rng = np.random.default_rng(0)
  for shape, x_shape, stride in [
    ((3, 3, 64, 8), (1, 150, 130, 64), 1),
    ((3, 3, 16, 40), (9, 33, 31, 16), 2),
    ((1, 1, 48, 33), (1, 1, 5000, 48), 1),
    ((1, 1, 48, 33), (1, 1, 4999, 48), 1),
    ((3, 3, 32, 300), (2, 4, 4, 32), 1),
  ]:
    padding = ((shape[0] // 2,) * 2,) * 2
    codes, signs = draw_codes(rng, bits, x_shape), rng.random(shape) < 0.5
    packed = kernels.prepack(signs, None, shape, bits, path=path)
    got = kernels.integer_conv(
      codes, packed, kernel_shape=shape, stride=stride, padding=padding, act_bits=bits, bases=1, path=path
    )
    np.testing.assert_array_equal(got[0], reference(codes, signs, stride, padding))


@functools.cache
def program(threads, **fields):
  """`kernels.conv` compiled; `threads` is looked up in the environment when it is traced."""
  return jax.jit(functools.partial(kernels.conv, stride=1, **fields))


def fused(path, bits, x, step, signs, scales, bias, residual, bases, padding=((1, 1), (1, 1)), zero_point=None):
  shape, two = signs.shape[1:], bases == 2
  packed = kernels.prepack(signs[0], signs[1] if two else None, shape, bits, path=path)
  fields = dict(kernel_shape=shape, padding=padding, act_bits=bits, bases=bases, path=path)
  call = program(library.threads(), **fields)
  return np.asarray(call(x, step, packed, scales[0], scales[1] if two else None, bias, residual, zero_point))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bases", [1, 2])
@pytest.mark.parametrize("extras", [True, False])
def test_fused(bits, bases, extras):
  """y = step (s1 acc1 + s2 acc2) + bias + residual, rounded product by product, the same bits on every path."""
  rng = np.random.default_rng(bits)
  x = rng.standard_normal((2, 7, 6, 21), np.float32)
  step = np.float32(0.37)
  # Values half-way between two codes, where rounding must go to the even one, and far outside.
  x[0, 0, 0, :9] = step * np.array([0.5, 1.5, -0.5, -1.5, 2.5, 1e6, -1e6, 0, -0.0], np.float32)
  signs = rng.random((2, 3, 3, 21, 37)) < 0.5
  scales = rng.random((2, 37), np.float32)
  bias = rng.standard_normal(37, np.float32) if extras else None
  residual = rng.standard_normal((2, 7, 6, 37), np.float32) if extras else None
  codes = np.where(x >= 0, 1, -1) if bits == 1 else np.asarray(lsq_codes(jnp.asarray(x), step, bits))
  acc = [reference(codes, s, 1, ((1, 1), (1, 1))).astype(np.float32) for s in signs]
  expected = scales[0] * acc[0] + (scales[1] * acc[1] if bases == 2 else 0)
  expected = step * expected + (bias if extras else 0) + (residual if extras else 0)
  for path in PATHS:
    np.testing.assert_array_equal(fused(path, bits, x, step, signs, scales, bias, residual, bases), expected, path)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("bases", [1, 2])
def test_fused_with_a_zero_point(bits, bases):
  """Sums of codes lowered by 2^(b-1) - z, at the borders too: the same bits on every path."""
  rng = np.random.default_rng(bits)
  step = np.float32(0.37)
  x = step * 2**bits * rng.standard_normal((2, 7, 6, 21), np.float32)
  signs, scales = rng.random((2, 3, 3, 21, 37)) < 0.5, rng.random((2, 37), np.float32)
  bias, residual = rng.standard_normal(37, np.float32), rng.standard_normal((2, 7, 6, 37), np.float32)
  for zero_point in {0, 1, 2 ** (bits - 2), 2 ** (bits - 1)}:
    codes, lower = np.asarray(lsq_codes(jnp.asarray(x), step, bits, zero_point)), 2 ** (bits - 1) - zero_point
    assert (codes.min(), codes.max()) == (-zero_point, 2**bits - 1 - zero_point)
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0))) - lower
    acc = [reference(padded, s, 1, ((0, 0), (0, 0))).astype(np.float32) for s in signs]
    expected = scales[0] * acc[0] + (scales[1] * acc[1] if bases == 2 else 0)
    expected = step * expected + bias + residual
    for path in PATHS:
      got = fused(path, bits, x, step, signs, scales, bias, residual, bases, zero_point=np.float32(zero_point))
      np.testing.assert_array_equal(got, expected, path)


def test_zero_points_that_are_refused():
  x, signs, scales = np.ones((1, 3, 3, 4), np.float32), np.ones((1, 3, 3, 4, 2)) > 0, np.ones((2, 2), np.float32)
  for bits, value in ((1, 0), (4, np.nan)):
    with pytest.raises(Exception, match="a zero point is a number, of activations of at least 2 bits"):
      fused(PATHS[0], bits, x, np.float32(1), signs, scales, None, None, 1, zero_point=np.float32(value))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_ties(bits):
  """Half-way between two codes and a float beside it, 300 steps: the kernels, the compiled graph of training, XLA's
  back end and numpy's x * (1 / step) round alike; x / step would not."""
  rng = np.random.default_rng(bits)
  low, high = levels(bits)
  ones = np.ones((2, 1, 1, 1, 1), np.float32)
  packed = {path: kernels.prepack(ones[0] > 0, None, (1, 1, 1, 1), bits, path=path) for path in PATHS}
  geometry = dict(kernel_shape=(1, 1, 1, 1), stride=1, padding=((0, 0), (0, 0)))
  tensors = {"signs1": jnp.ones(1, jnp.uint8), "scale1": jnp.ones(1)}

  def native(path):
    return jax.jit(lambda x, step: kernels.conv(x, step, packed[path], jnp.ones(1), None, None, act_bits=bits, bases=1,
                                                path=path, **geometry) / step)

  programs = {path: native(path) for path in PATHS}
  programs["training"] = jax.jit(lambda x, step: lsq(x, step, bits) / step)
  programs["codes"] = jax.jit(lambda x, step: lsq_codes(x, step, bits))
  programs["xla"] = jax.jit(lambda x, step: integer.run(
    LayerRule("one_basis", act_bits=bits), {**tensors, "step": step}, x, None, **geometry) / step)
  divided = 0
  for step in np.exp(rng.uniform(np.log(1e-4), np.log(10), 300)).astype(np.float32):
    x = ((rng.integers(low - 1, high + 1, 200) + 0.5) * step).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    expected = np.rint(np.clip(x * (np.float32(1) / step), low, high))
    for name, program in programs.items():
      got = np.rint(np.asarray(program(x.reshape(1, 1, -1, 1), step)).reshape(-1))
      np.testing.assert_array_equal(got, expected, name)
    divided += int((np.rint(np.clip(x / step, low, high)) != expected).sum())
  assert divided > 100


@pytest.mark.parametrize("path", PATHS)
def test_step_floor_and_nan(path):
  """A step under 1e-8 counts as 1e-8, as in quant; NaN as the smallest code."""
  signs = np.ones((2, 1, 1, 1, 1), bool)
  x = np.array([1.5e-8, np.nan], np.float32).reshape(1, 1, 2, 1)
  y = fused(path, 4, x, np.float32(0), signs, np.ones((2, 1), np.float32), None, None, 1, ((0, 0), (0, 0)))
  np.testing.assert_array_equal(y.reshape(-1), np.float32(1e-8) * np.array([2, -8], np.float32))


@pytest.mark.parametrize("path", PATHS)
def test_padding_of_one_bit(path):
  """Taps on padding contribute 0, though codes are +-1: a corner of an image of ones sums four of nine taps."""
  codes, signs = np.ones((1, 3, 3, 5), np.int8), np.ones((3, 3, 5, 1), bool)
  packed = kernels.prepack(signs, None, signs.shape, 1, path=path)
  got = kernels.integer_conv(
    codes, packed, kernel_shape=signs.shape, stride=1, padding=((1, 1), (1, 1)), act_bits=1, bases=1, path=path
  )
  assert got[0, 0, :, :, 0].tolist() == [[20, 30, 20], [30, 45, 30], [20, 30, 20]]


def test_threads(monkeypatch):
  """BINARYDM_THREADS changes nothing but the number of threads; nonsense is refused."""
  rng = np.random.default_rng(0)
  x, signs = rng.standard_normal((1, 30, 30, 64), np.float32), rng.random((2, 3, 3, 64, 64)) < 0.5
  results = []
  for count in ("1", "2", "0"):
    monkeypatch.setenv("BINARYDM_THREADS", count)
    assert library.threads() == int(count)
    results.append(fused(None, 4, x, np.float32(0.3), signs, np.ones((2, 64), np.float32), None, None, 2))
  np.testing.assert_array_equal(results[0], results[1])
  np.testing.assert_array_equal(results[0], results[2])
  monkeypatch.setenv("BINARYDM_THREADS", "")
  assert library.threads() == 0
  monkeypatch.setenv("BINARYDM_THREADS", "many")
  with pytest.raises(ValueError, match="BINARYDM_THREADS=many"):
    library.threads()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
def test_weights_stay_bits(path, bits):
  """LDM-4's layers: one bit a weight and basis, a header of 64 bytes, and the padding of a block."""
  for channels in (224, 448, 672, 896):
    shape = (3, 3, channels, channels)
    bits_only = 9 * channels * channels // 8
    padded = 1.15 if path == "avx512vnni" else 1.0
    for bases in (1, 2):
      size = kernels.packed_bytes(shape, bits, bases, path=path)
      assert bases * bits_only + 64 <= size <= padded * bases * bits_only + 64


def test_errors():
  """One line for each thing that cannot be."""
  signs = np.ones((3, 3, 4, 5), bool)
  packed = kernels.prepack(signs, None, signs.shape, 4)
  x, scale = jnp.ones((1, 6, 6, 4)), jnp.ones(5)
  fields = dict(kernel_shape=signs.shape, stride=1, padding=((1, 1), (1, 1)), act_bits=4, bases=1)
  kernels.conv(x, 1.0, packed, scale, None, None, **fields)
  for change, match in [
    (dict(act_bits=5), "act_bits is 5"),
    (dict(kernel_shape=(3, 3, 4)), "four sizes"),
    (dict(kernel_shape=(99, 3, 4, 5)), "not supported"),
    (dict(bases=3), "not supported"),
    (dict(bases=2), "packed is"),
    (dict(stride=0), "stride 0"),
    (dict(padding=((-1, 0), (0, 0))), "not negative"),
  ]:
    with pytest.raises(ValueError, match=match):
      kernels.conv(x, 1.0, packed, scale, None, None, **fields | change)
  for arguments, match in [
    ((x[..., :3], 1.0, packed, scale, None, None), "input has shape"),
    ((x[:, :0], 1.0, packed, scale, None, None), "smaller than the kernel"),
    ((x, 1.0, packed, scale[:4], None, None), "scale1 has shape"),
    ((x, 1.0, packed, scale, scale, None), "scale2 has shape"),
    ((x, 1.0, packed, scale, None, scale[:1]), "bias has shape"),
    ((x, 1.0, packed, scale, None, None, x), "residual has shape"),
  ]:
    padding = dict(padding=((0, 0), (0, 0))) if "smaller" in match else {}
    with pytest.raises(ValueError, match=match):
      kernels.conv(*arguments, **fields | padding)
  with pytest.raises(ValueError, match="signs have shape"):
    kernels.prepack(signs[:1], None, signs.shape, 4)
  with pytest.raises(ValueError, match="signs are float"):
    kernels.prepack(signs.astype(np.float32), None, signs.shape, 4)
  # Of the right size, but of another layer: only the values say so.
  other = np.array(packed)
  other[30] ^= 1
  with pytest.raises(Exception, match="packed for another layer"):
    jax.block_until_ready(kernels.conv(x, 1.0, other, scale, None, None, **fields))


def test_empty_batch():
  """No images: an empty output."""
  signs = np.ones((1, 1, 4, 5), bool)
  packed = kernels.prepack(signs, None, signs.shape, 4)
  y = kernels.conv(
    jnp.ones((0, 6, 6, 4)), 1.0, packed, jnp.ones(5), None, None, kernel_shape=signs.shape, stride=1,
    padding=((0, 0), (0, 0)), act_bits=4, bases=1,
  )  # fmt: skip
  assert y.shape == (0, 6, 6, 5)
