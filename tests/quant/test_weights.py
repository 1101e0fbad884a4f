"""Weight binarizers and LSQ weights: values and gradients by hand, then against a derivation in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.quant import (
  initial_scale1,
  initial_scale2,
  initial_weight_step,
  lsq_weight,
  multi_basis,
  one_basis,
)
from binarydm_jax.quant.weights import not_yet_binarized

# Columns are output channels. Residuals w - s1 sign(w): 0 and 0.25 | -1 (passes) and 1.5 (does not).
KERNEL = np.float32([[0.5, -1.5], [-0.25, 2.0]])
SCALE1 = np.float32([0.5, 0.5])
SCALE2 = np.float32([0.25, 0.25])
COTANGENT = np.float32([[1, 2], [3, 4]])

ONE_VALUE = [[0.5, -0.5], [-0.5, 0.5]]
ONE_KERNEL = [[0.5, 0], [1.5, 0]]  # g s1 where |w| <= 1
ONE_SCALE1 = [1 - 3, -2 + 4]  # sum g sign(w)

MULTI_VALUE = [[0.75, -0.75], [-0.25, 0.75]]
# g (s1 + s2 (1 - s1)) in channel 0; in channel 1 only the second sign passes, and only for w = -1.5: g s2.
MULTI_KERNEL = [[0.625, 0.5], [1.875, 0]]
# Channel 0: (1 - 3)(1 - s2). Channel 1: -2 (1 - s2) for w = -1.5, 4 for w = 2, whose residual is beyond 1.
MULTI_SCALE1 = [-1.5, 2.5]
MULTI_SCALE2 = [1 + 3, -2 + 4]


def _value_and_gradients(function, *arguments, cotangent=COTANGENT):
  value, pullback = jax.vjp(function, *map(jnp.asarray, arguments))
  return value, *pullback(jnp.asarray(cotangent))


def _assert_close(results, expected):
  for result, number in zip(results, expected, strict=True):
    np.testing.assert_allclose(result, number, rtol=1e-6, atol=1e-6)


def test_one_basis_by_hand():
  _assert_close(_value_and_gradients(one_basis, KERNEL, SCALE1), (ONE_VALUE, ONE_KERNEL, ONE_SCALE1))


def test_not_yet_binarized_by_hand():
  """The weights as they are, with g s1, also of a scale below its floor."""
  _assert_close(_value_and_gradients(not_yet_binarized, KERNEL, SCALE1), (KERNEL, COTANGENT / 2, [0, 0]))
  _assert_close(_value_and_gradients(not_yet_binarized, KERNEL, 0 * SCALE1), (KERNEL, 1e-8 * COTANGENT, [0, 0]))


@pytest.mark.parametrize("second", [None, 1.0])
def test_multi_basis_by_hand(second):
  results = _value_and_gradients(lambda w, s1, s2: multi_basis(w, s1, s2, second), KERNEL, SCALE1, SCALE2)
  _assert_close(results, (MULTI_VALUE, MULTI_KERNEL, MULTI_SCALE1, MULTI_SCALE2))


def test_second_zero_is_one_basis_in_value_and_every_gradient():
  second = jnp.float32(0)
  results = _value_and_gradients(lambda w, s1, s2: multi_basis(w, s1, s2, second), KERNEL, SCALE1, SCALE2)
  for result, number in zip(results, (ONE_VALUE, ONE_KERNEL, ONE_SCALE1, [0, 0]), strict=True):
    np.testing.assert_array_equal(result, number)


def test_zero_weights_count_as_positive_in_both_bases():
  # w = 0: sign +1, residual -s1: sign -1. w = s1: residual 0: sign +1.
  np.testing.assert_allclose(multi_basis(jnp.array([[0.0], [0.5]]), SCALE1[:1], SCALE2[:1]), [[0.25], [0.75]])


def test_multi_basis_takes_four_levels_per_output_channel():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 2)).astype(np.float32)
  value = np.asarray(multi_basis(jnp.asarray(kernel), jnp.array([0.8, 0.4]), jnp.array([0.3, 0.1])))
  np.testing.assert_allclose(np.unique(value[..., 0].round(5)), [-1.1, -0.5, 0.5, 1.1], atol=1e-5)
  np.testing.assert_allclose(np.unique(value[..., 1].round(5)), [-0.5, -0.3, 0.3, 0.5], atol=1e-5)


@pytest.mark.parametrize("second", [0.0, 0.5, 1.0])
def test_multi_basis_against_numpy_derivation(second):
  rng = np.random.default_rng(1)
  w = rng.normal(scale=1.2, size=(3, 3, 4, 5))
  s1, s2 = rng.uniform(0.1, 1.5, (2, 5))
  g = rng.normal(size=w.shape)

  sign = np.where(w >= 0, 1.0, -1.0)
  residual = w - s1 * sign
  sign2 = np.where(residual >= 0, 1.0, -1.0)
  through, through2 = np.abs(w) <= 1, np.abs(residual) <= 1
  b = second * s2
  expected = (
    s1 * sign + b * sign2,
    g * (s1 * through + b * through2 * (1 - s1 * through)),
    (g * sign * np.where(through2, 1 - b, 1)).sum((0, 1, 2)),
    (g * second * sign2).sum((0, 1, 2)),
  )
  arrays = (a.astype(np.float32) for a in (w, s1, s2))
  results = _value_and_gradients(
    lambda *a: multi_basis(*a, jnp.float32(second)), *arrays, cotangent=g.astype(np.float32)
  )
  for result, number in zip(results, expected, strict=True):
    np.testing.assert_allclose(result, number, rtol=1e-4, atol=1e-4)


def test_initial_scales_by_hand():
  kernel = jnp.asarray(KERNEL)
  np.testing.assert_allclose(initial_scale1(kernel), [0.375, 1.75])
  np.testing.assert_allclose(initial_scale2(kernel), [0.125, 0.25])
  np.testing.assert_allclose(initial_weight_step(kernel, 3), [0.75 / 3**0.5, 3.5 / 3**0.5], rtol=1e-6)


def test_initial_scales_are_one_per_output_channel_of_a_convolution():
  kernel = jnp.asarray(KERNEL).reshape(2, 1, 1, 2)
  np.testing.assert_allclose(initial_scale1(kernel), [0.375, 1.75])
  np.testing.assert_allclose(initial_scale2(kernel), [0.125, 0.25])
  np.testing.assert_allclose(initial_weight_step(kernel, 2), [0.75, 3.5])


def test_initial_scales_stay_float32_for_bfloat16_kernels():
  kernel = jnp.asarray(KERNEL, jnp.bfloat16)
  for scale in (initial_scale1(kernel), initial_scale2(kernel), initial_weight_step(kernel, 4)):
    assert scale.dtype == jnp.float32


def test_lsq_weight_by_hand():
  # 2 bits (-2..1). v: 0.8 -> 1, 1.8 clipped to 1 | -1.5 -> -2 (half to even), 0.2 -> 0. Step gradient over sqrt(4 * 1).
  kernel, step = np.float32([[0.4, -1.5], [0.9, 0.2]]), np.float32([0.5, 1.0])
  expected = (
    [[0.5, -2.0], [0.5, 0.0]],
    [[1, 2], [0, 4]],
    [(1 * 0.2 + 3 * 1) / 2, (2 * -0.5 + 4 * -0.2) / 2],
  )
  _assert_close(_value_and_gradients(lambda w, s: lsq_weight(w, s, 2), kernel, step), expected)


def test_lsq_weight_gradient_scale_counts_the_whole_kernel():
  # 3 bits, one weight far above the clip: its step gradient is qp = 3, over sqrt(18 * 3).
  kernel = jnp.zeros((3, 3, 1, 2)).at[0, 0, 0, 1].set(100.0)
  gradient = jax.grad(lambda s: lsq_weight(kernel, s, 3).sum())(jnp.ones(2))
  np.testing.assert_allclose(gradient, [0, 3 / 54**0.5], rtol=1e-6)


def test_lsq_weight_has_a_step_per_output_channel():
  kernel = jnp.full((2, 3), 0.7)
  np.testing.assert_allclose(lsq_weight(kernel, jnp.array([0.5, 0.3, 2.0]), 4), [[0.5, 0.6, 0.0]] * 2, rtol=1e-6)
