"""The portable back end: bits expanded on the device, exact integer convolutions, layers that equal their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binarydm_jax.deploy import integer
from binarydm_jax.quant import LayerRule, pack_codes, pack_signs
from binarydm_jax.quant.step_size import codes


def convolution(x, kernel, stride, padding):
  """In int64, by the definition."""
  x = np.pad(x.astype(np.int64), ((0, 0), *padding, (0, 0)))
  height, width = kernel.shape[:2]
  rows, columns = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], (height, width)))
  out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]), np.int64)
  for i in range(rows):
    for j in range(columns):
      patch = x[:, i * stride : i * stride + height, j * stride : j * stride + width]
      out[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel.astype(np.int64))
  return out


def test_signs_by_hand():
  # 182 = 2 + 4 + 16 + 32 + 128, the lowest bit first; the ninth bit opens a byte.
  np.testing.assert_array_equal(integer.expand_signs(jnp.array([182, 1], jnp.uint8), (3, 3)),
                                [[-1, 1, 1], [-1, 1, 1], [-1, 1, 1]])


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes(bits):
  """Three kernels of every width come back, the smallest and the largest code among them."""
  unsigned = np.random.default_rng(bits).integers(0, 2**bits, (3, 5, 7))
  unsigned[0, 0, :2] = 0, 2**bits - 1
  out = integer.expand_codes(jnp.asarray(pack_codes(unsigned, bits)), bits, unsigned.shape)
  assert out.dtype == jnp.int8
  np.testing.assert_array_equal(out, unsigned - 2 ** (bits - 1))


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from([1, 2]),
       st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (0, 1))]), st.integers(0, 2**32 - 1))
def test_convolutions_are_exact(cin, cout, size, stride, padding, seed):
  """Both ways of computing, for int8 of the full range, equal int64 arithmetic."""
  rng = np.random.default_rng(seed)
  x = rng.integers(-128, 128, (2, 6, 5, cin)).astype(np.int8)
  kernel = rng.integers(-128, 128, (size, size, cin, cout)).astype(np.int8)
  wanted = convolution(x, kernel, stride, padding)
  for function in (integer.integer_conv, integer._as_product):
    out = function(jnp.asarray(x), jnp.asarray(kernel), stride, padding)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, wanted)


def test_many_inputs_at_the_largest_codes():
  """16,128 inputs, as LDM-4's widest layers have: sums that float16 or int16 could not hold, nor int8 saturate."""
  x = jnp.full((1, 1, 2, 16128), -128, jnp.int8)
  kernel = jnp.where(jnp.arange(16128 * 3).reshape(1, 1, 16128, 3) % 3 == 0, -1, 1).astype(jnp.int8)
  np.testing.assert_array_equal(integer.integer_conv(x, kernel)[0, 0], [[128 * 16128, -128 * 16128, -128 * 16128]] * 2)


@pytest.mark.parametrize("rule", [
    LayerRule("one_basis", act_bits=4), LayerRule("multi_basis", act_bits=8), LayerRule("lsq", 3, 2),
    LayerRule("lsq", 8, 8), LayerRule("multi_basis", act_bits=4, activation="asymmetric"),
    LayerRule("lsq", 3, 8, "asymmetric"), LayerRule("multi_basis"), LayerRule("lsq", 5)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_equals_its_formula(rule, dtype):
  """y = step sum of scale conv(codes, signs) + bias + residual, in float64; float activations are left as they are."""
  rng = np.random.default_rng(0)
  shape, padding = (3, 3, 5, 6), ((1, 1), (1, 1))
  x = jnp.asarray(rng.normal(0, 1, (2, 4, 4, 5)), dtype)
  residual = jnp.asarray(rng.normal(0, 1, (2, 4, 4, 6)), dtype)
  tensors = {"bias": jnp.asarray(rng.normal(0, 1, 6), jnp.bfloat16)}
  if rule.weights == "lsq":
    unsigned = rng.integers(0, 2**rule.weight_bits, shape)
    tensors |= {"codes": pack_codes(unsigned, rule.weight_bits), "weight_step": np.float32(rng.uniform(0.1, 1, 6))}
    kernel = tensors["weight_step"].astype(np.float64) * (unsigned - 2 ** (rule.weight_bits - 1))
  else:
    kernel = 0
    for i in range(1, rule.bases + 1):
      signs = rng.choice([-1, 1], shape)
      tensors |= {f"signs{i}": pack_signs(signs), f"scale{i}": np.float32(rng.uniform(0.1, 1, 6))}
      kernel = kernel + tensors[f"scale{i}"].astype(np.float64) * signs
  wanted = np.asarray(x, np.float64)
  if rule.act_bits != 32:
    tensors["step"] = np.float32(0.3)
    # The same integers: compiled, x / step is x (1 / step), which may decide a tie.
    zero_point = None
    if rule.activation == "asymmetric":
      zero_point = tensors["zero_point"] = np.float32(3)
    integers = jax.jit(lambda x, step: codes(x, step, rule.act_bits, zero_point))(x, tensors["step"])
    wanted = np.asarray(integers, np.float64) * tensors["step"]
  out = jax.jit(lambda t, x, r: integer.run(rule, t, x, r, kernel_shape=shape, stride=2, padding=padding))(
      jax.tree.map(jnp.asarray, tensors), x, residual[:, :2, :2])
  padded = np.pad(wanted, ((0, 0), *padding, (0, 0)))
  wanted = np.stack([[np.einsum("bhwc,hwco->bo", padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel)
                      for j in range(2)] for i in range(2)])
  wanted = np.moveaxis(wanted, 2, 0) + np.asarray(tensors["bias"], np.float64)
  wanted = wanted + np.asarray(residual[:, :2, :2], np.float64)
  exact = rule.act_bits != 32 or dtype == jnp.float32
  tolerance = dict(rtol=1e-6, atol=1e-5) if exact else dict(rtol=0.01, atol=0.1)
  np.testing.assert_allclose(np.asarray(out, np.float64), wanted, **tolerance)
