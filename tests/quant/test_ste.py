"""Straight-through estimators: values, pseudo-gradients, and the floor that keeps scales positive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.quant import lsq, multi_basis, one_basis, positive, round_ste, sign_ste


def _pullback(function, x, gradient):
  return jax.vjp(function, jnp.asarray(x, jnp.float32))[1](jnp.asarray(gradient, jnp.float32))[0]


def test_sign_values_with_zero_positive():
  x = jnp.array([-2.0, -1e-30, -0.0, 0.0, 1e-30, 2.0])
  np.testing.assert_array_equal(sign_ste(x), [-1, -1, 1, 1, 1, 1])


def test_sign_gradient_passes_up_to_one_inclusive():
  gradient = _pullback(sign_ste, [-1.001, -1.0, 0.0, 0.5, 1.0, 1.001], [1, 2, 3, 4, 5, 6])
  np.testing.assert_array_equal(gradient, [0, 2, 3, 4, 5, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sign_keeps_dtype_in_both_directions(dtype):
  y, pullback = jax.vjp(sign_ste, jnp.ones(2, dtype))
  assert y.dtype == dtype
  assert pullback(y)[0].dtype == dtype


def test_round_is_half_to_even():
  np.testing.assert_array_equal(round_ste(jnp.array([-1.5, -0.5, 0.4, 0.5, 1.5, 2.5])), [-2, 0, 0, 0, 2, 2])


def test_round_gradient_passes_unchanged():
  np.testing.assert_array_equal(_pullback(round_ste, [-1.5, 0.3, 100.5], [1, -2, 3]), [1, -2, 3])


def test_positive_floors_at_1e_8():
  x = jnp.array([-3.0, 0.0, 1e-9, 1e-7, 2.0])
  np.testing.assert_array_equal(positive(x), np.array([1e-8, 1e-8, 1e-8, 1e-7, 2.0], np.float32))


def test_positive_gradient_passes_both_ways_above_the_floor_and_only_upwards_below():
  scale = [-1.0, 0.0, 1e-8, 0.5]
  np.testing.assert_array_equal(_pullback(positive, scale, [-2, -3, -4, -5]), [-2, -3, -4, -5])
  np.testing.assert_array_equal(_pullback(positive, scale, [2, 3, 4, 5]), [0, 0, 0, 5])


def test_scale_below_the_floor_comes_back_by_gradient_descent():
  # Loss (positive(s) - 1)^2, rate 1/4: gradients -2 and -2 while floored, then -1 at s = 1/2.
  scale, path = jnp.float32(-0.5), []
  for _ in range(3):
    scale = scale - 0.25 * jax.grad(lambda s: (positive(s) - 1) ** 2)(scale)
    path.append(float(scale))
  np.testing.assert_allclose(path, [0.0, 0.5, 0.75], atol=1e-6)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-12])
def test_floored_scale_neither_flips_signs_nor_makes_nan(scale):
  kernel = jnp.array([[-0.5], [0.0], [2.0]])
  scale = jnp.array([scale])
  np.testing.assert_array_equal(one_basis(kernel, scale), np.float32([[-1e-8], [1e-8], [1e-8]]))
  for function in (one_basis, lambda w, s: multi_basis(w, s, s), lambda w, s: lsq(w, s, 4)):
    value, pullback = jax.vjp(function, kernel, scale)
    assert np.all(value[0] < 0) and np.all(value[2] > 0)
    for gradient in pullback(jnp.ones_like(kernel)) + pullback(-jnp.ones_like(kernel)):
      assert np.all(np.isfinite(gradient))
