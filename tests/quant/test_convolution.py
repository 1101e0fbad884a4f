"""`convolve` is XLA's convolution in value and gradients, whichever way it computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.quant.convolution import PATCHES_UP_TO, convolve

ONE_PIXEL = ((1, 1), (1, 1))


def _reference(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def test_by_hand():
  # 2 x 2 taps over 2 x 3 pixels, one product of patches: 1 + 20 + 300 + 5000 and one column on.
  x = jnp.float32([[1, 2, 4], [3, 5, 6]]).reshape(1, 2, 3, 1)
  kernel = jnp.float32([[1, 10], [100, 1000]]).reshape(2, 2, 1, 1)
  np.testing.assert_array_equal(convolve(x, kernel, 1, "VALID").reshape(-1), [5321, 6542])


@pytest.mark.parametrize(
  "size, taps, padding, stride",
  [
    ((4, 4), (3, 3), "SAME", 1),
    ((4, 4), (3, 3), "VALID", 2),
    ((4, 4), (3, 3), ONE_PIXEL, 1),
    ((8, 8), (3, 3), ONE_PIXEL, 2),
    ((5, 3), (3, 3), "SAME", 2),
    ((4, 5), (2, 3), ((0, 2), (1, 0)), 2),
    ((4, 4), (1, 1), "SAME", 1),
    ((7, 5), (1, 1), "VALID", 2),
    ((11, 9), (3, 3), "SAME", 1),
    ((11, 9), (3, 3), "VALID", 2),
    ((11, 9), (3, 3), ONE_PIXEL, 2),
    ((6, 7), (2, 3), ((0, 2), (1, 0)), 1),
  ],
  ids=str,
)
def test_equals_xla_in_value_and_gradients(size, taps, padding, stride):
  """Small maps (one matrix product) and large ones (XLA), even, odd and oblong."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(*taps, 3, 4)), jnp.float32)

  def weighted(function, x, kernel):
    y = function(x, kernel, stride, padding)
    # Every output has a weight of its own, so that no permutation of pixels goes unnoticed.
    return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))).sum(), y

  run = jax.jit(jax.value_and_grad(weighted, (1, 2), has_aux=True), static_argnums=0)
  (_, expected), gradients = run(_reference, x, kernel)
  (_, value), ours = run(convolve, x, kernel)
  assert value.shape == expected.shape
  for a, b in ((value, expected), (ours[0], gradients[0]), (ours[1], gradients[1])):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_torch_padding_at_stride_two_is_not_same():
  """padding=1 at stride 2 looks at (-1, 0, 1), (1, 2, 3); "SAME" would look at (0, 1, 2), (2, 3, 4)."""
  x = jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1)
  kernel = jnp.ones((3, 1, 1, 1))
  np.testing.assert_array_equal(convolve(x, kernel, 2, ((1, 1), (0, 0)))[0, :, 0, 0], [1 + 2, 2 + 3 + 4])
  np.testing.assert_array_equal(convolve(x, kernel, 2, "SAME")[0, :, 0, 0], [1 + 2 + 3, 3 + 4])


@pytest.mark.parametrize("size, by_patches", [(4, True), (5, False)])
def test_only_tiny_maps_go_by_patches(size, by_patches):
  """The switch is at 4 x 4 outputs; without it the parity tests above might compare XLA with itself."""
  assert PATCHES_UP_TO == 16
  x, kernel = jnp.zeros((1, size, size, 2)), jnp.zeros((3, 3, 2, 2))
  jaxpr = str(jax.make_jaxpr(lambda x, k: convolve(x, k, 1, "SAME"))(x, kernel))
  assert ("conv_general_dilated" not in jaxpr) == by_patches
