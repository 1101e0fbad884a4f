"""`convolve` is XLA's convolution in value and gradients, whichever way it computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binarydm_jax.quant import convolution
from binarydm_jax.quant.convolution import convolve

ONE_PIXEL = ((1, 1), (1, 1))


def _reference(x, kernel, stride, padding):
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
  # Padded apart: where the padding is as wide as the kernel, the input's gradient by XLA's CPU convolution is wrong.
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def compare(size, taps, padding, stride, channels=(3, 4), dtype=jnp.float32, tolerance=1e-4):
  """Value and both gradients of `convolve` and XLA's."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *size, channels[0])), dtype)
  kernel = jnp.asarray(rng.normal(size=(*taps, *channels)), dtype)

  def run(function):
    y, backward = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding), x, kernel)
    # Every output has a weight of its own, so that no permutation of pixels goes unnoticed.
    return y, *backward(jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape)).astype(dtype))

  for ours, expected in zip(jax.jit(run, static_argnums=0)(convolve), jax.jit(run, static_argnums=0)(_reference)):
    assert ours.shape == expected.shape and ours.dtype == expected.dtype == dtype
    ours, expected = np.float64(ours), np.float64(expected)
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.fixture
def own_gradient_everywhere(monkeypatch):
  """Lets `_with_own_gradient` take small maps of few channels, which it leaves to XLA otherwise."""
  monkeypatch.setattr(convolution, "PATCHES_UP_TO", 0)
  monkeypatch.setattr(convolution, "KERNEL_GRADIENT_FROM", 1)
  monkeypatch.setattr(convolution, "FEW_CHANNELS", 1)


def test_by_hand():
  # 2 x 2 taps over 2 x 3 pixels, one product of patches: 1 + 20 + 300 + 5000 and one column on.
  x = jnp.float32([[1, 2, 4], [3, 5, 6]]).reshape(1, 2, 3, 1)
  kernel = jnp.float32([[1, 10], [100, 1000]]).reshape(2, 2, 1, 1)
  np.testing.assert_array_equal(convolve(x, kernel, 1, "VALID").reshape(-1), [5321, 6542])


def test_kernel_gradient_by_hand(own_gradient_everywhere):
  # Two outputs, weighted 1 and 10: each tap gets its pixel and ten times the next.
  x = jnp.float32([[1, 2, 4], [3, 5, 6]]).reshape(1, 2, 3, 1)
  _, backward = jax.vjp(lambda kernel: convolve(x, kernel, 1, "VALID"), jnp.ones((2, 2, 1, 1)))
  (gradient,) = backward(jnp.float32([1, 10]).reshape(1, 1, 2, 1))
  np.testing.assert_array_equal(gradient[:, :, 0, 0], [[21, 42], [53, 65]])


@pytest.mark.parametrize(
  "size, taps, padding, stride, channels",
  [
    ((4, 4), (3, 3), "SAME", 1, (3, 4)),
    ((4, 4), (3, 3), "VALID", 2, (3, 4)),
    ((8, 8), (3, 3), ONE_PIXEL, 2, (3, 4)),
    ((5, 3), (3, 3), "SAME", 2, (3, 4)),
    ((4, 5), (2, 3), ((0, 2), (1, 0)), 2, (3, 4)),
    ((4, 4), (1, 1), "SAME", 1, (3, 4)),
    ((7, 5), (1, 1), "VALID", 2, (3, 4)),
    ((5, 5), (1, 1), ONE_PIXEL, 1, (3, 4)),
    ((11, 9), (3, 3), "SAME", 1, (3, 4)),
    ((11, 9), (3, 3), ONE_PIXEL, 2, (3, 4)),
    ((6, 7), (2, 3), ((0, 2), (1, 0)), 1, (3, 4)),
    ((16, 17), (3, 3), ONE_PIXEL, 1, (16, 5)),
    ((18, 18), (3, 3), "VALID", 1, (16, 5)),
  ],
  ids=str,
)
def test_equals_xla_in_value_and_gradients(size, taps, padding, stride, channels):
  """Each of the ways at the sizes at which it is chosen, even, odd and oblong."""
  compare(size, taps, padding, stride, channels)


@settings(max_examples=15, deadline=None)
@given(
  size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
  taps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  padding=st.one_of(
    st.sampled_from(["SAME", "VALID"]), st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2)
  ),
  stride=st.integers(1, 3),
  patches=st.booleans(),
)
def test_any_shape(size, taps, padding, stride, patches):
  """By patches or with our own gradient, whatever the sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convolution, "PATCHES_UP_TO", 1000 if patches else 0)
    patch.setattr(convolution, "KERNEL_GRADIENT_FROM", 1)
    patch.setattr(convolution, "FEW_CHANNELS", 1)
    compare(size, taps, padding, stride)


@pytest.mark.parametrize("size", [(4, 4), (16, 16)])
@pytest.mark.parametrize("taps", [(1, 1), (3, 3)])
def test_bfloat16(size, taps):
  """Types are kept; values agree within bfloat16's seven bits."""
  compare(size, taps, "SAME", 1, (16, 4), jnp.bfloat16, 2e-2)


def test_torch_padding_at_stride_two_is_not_same():
  """padding=1 at stride 2 looks at (-1, 0, 1), (1, 2, 3); "SAME" would look at (0, 1, 2), (2, 3, 4)."""
  x = jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1)
  kernel = jnp.ones((3, 1, 1, 1))
  np.testing.assert_array_equal(convolve(x, kernel, 2, ((1, 1), (0, 0)))[0, :, 0, 0], [1 + 2, 2 + 3 + 4])
  np.testing.assert_array_equal(convolve(x, kernel, 2, "SAME")[0, :, 0, 0], [1 + 2 + 3, 3 + 4])


@pytest.mark.parametrize(
  "size, taps, channels, convolutions",
  [(4, 3, 16, 0), (5, 3, 16, 3), (16, 3, 16, 2), (16, 3, 3, 3), (16, 1, 16, 0)],
  ids=["patches", "xla", "own gradient", "few channels", "one product"],
)
def test_which_way(size, taps, channels, convolutions, monkeypatch):
  """XLA's convolutions in value and gradients; without the switches the parity tests might compare XLA with itself.

  On other devices than CPUs there are always three.
  """
  x, kernel = jnp.zeros((1, size, size, channels)), jnp.zeros((taps, taps, channels, 2))

  def run(x, kernel, g):
    y, backward = jax.vjp(lambda x, kernel: convolve(x, kernel, 1, "SAME"), x, kernel)
    return y, backward(g)

  def count():
    # A new function each time, so that nothing traced before is taken.
    text = str(jax.make_jaxpr(lambda *args: run(*args))(x, kernel, jnp.zeros((1, size, size, 2))))
    return text.count("= conv_general_dilated[")

  assert count() == convolutions
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert count() == 3
