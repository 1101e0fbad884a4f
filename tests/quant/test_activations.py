"""LSQ: its arithmetic at the clip bounds, both gradients by hand, and what holds for any input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binarydm_jax.quant import fit_levels, initial_activation_step, lsq, lsq_activation

# 3 bits (-4..3), step 1/2: v = 0.6, 1.2 inside; 4 and -6 clipped.
X = np.float32([[0.3, 0.6, 2.0, -3.0]])
COTANGENT = np.float32([[1, 2, 3, 4]])
# (1 - 0.6) + 2 (1 - 1.2) + 3 * 3 + 4 * -4, over sqrt(4 features * 3).
STEP_GRADIENT = -7 / 12**0.5


@pytest.mark.parametrize("bits, low, high", [(2, -1.0, 0.5), (3, -2.0, 1.5), (4, -4.0, 3.5), (8, -64.0, 63.5)])
def test_values_at_and_beyond_the_clip_bounds(bits, low, high):
  x = jnp.array([low - 100, low - 0.1, low, low + 0.5, high - 0.5, high, high + 0.1, high + 100])
  expected = [low, low, low, low + 0.5, high - 0.5, high, high, high]
  np.testing.assert_array_equal(lsq(x, jnp.float32(0.5), bits), expected)


@pytest.mark.parametrize("bits, low, high", [(2, -2, 1), (3, -4, 3), (4, -8, 7), (8, -128, 127)])
def test_gradients_at_and_beyond_the_clip_bounds(bits, low, high):
  """At a bound x still passes and the step receives round(v) - v = 0; beyond it x stops and the step receives it."""
  x = jnp.float32([low - 1, low, high, high + 1])
  for i, (expected_x, expected_step) in enumerate([(0, low), (1, 0), (1, 0), (0, high)]):
    gradient_x, gradient_step = jax.grad(lambda x, s, i=i: lsq(x, s, bits)[i], (0, 1))(x, jnp.float32(1))
    np.testing.assert_array_equal(gradient_x, expected_x * np.eye(4)[i])
    assert gradient_step == expected_step


def test_activation_value_and_gradients_by_hand():
  value, pullback = jax.vjp(lambda x, s: lsq_activation(x, s, 3), jnp.asarray(X), jnp.float32(0.5))
  gradient_x, gradient_step = pullback(jnp.asarray(COTANGENT))
  np.testing.assert_array_equal(value, [[0.5, 0.5, 1.5, -2.0]])
  np.testing.assert_array_equal(gradient_x, [[1, 2, 0, 0]])
  np.testing.assert_allclose(gradient_step, STEP_GRADIENT, rtol=1e-5)
  assert gradient_step.shape == ()


@pytest.mark.parametrize("repeats", [2, 5])
def test_step_gradient_scale_does_not_depend_on_the_batch(repeats):
  x, cotangent = np.repeat(X, repeats, 0), np.repeat(COTANGENT, repeats, 0)
  _, pullback = jax.vjp(lambda s: lsq_activation(jnp.asarray(x), s, 3), jnp.float32(0.5))
  np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], repeats * STEP_GRADIENT, rtol=1e-5)


def test_step_gradient_scale_counts_every_axis_of_an_example():
  # All 24 features clipped at qp = 7: each gives 7, over sqrt(24 * 7).
  gradient = jax.grad(lambda s: lsq_activation(jnp.full((1, 2, 3, 4), 99.0), s, 4).sum())(jnp.float32(1))
  np.testing.assert_allclose(gradient, 24 * 7 / (24 * 7) ** 0.5, rtol=1e-6)


def test_gradient_scale_multiplies_the_step_only():
  x = jnp.float32([0.7, 5.0])
  gradients = jax.grad(lambda x, s: lsq(x, s, 2, 0.25).sum(), (0, 1))(x, jnp.float32(1))
  np.testing.assert_array_equal(gradients[0], [1, 0])
  np.testing.assert_allclose(gradients[1], 0.25 * (0.3 + 1), rtol=1e-6)


def test_step_at_the_floor_stays_finite_and_receives_only_rising_gradients():
  # 2 bits: x = 0, 1, -1 become the codes 0, 1, -2 of the floored step 1e-8.
  value, pullback = jax.vjp(lambda x, s: lsq(x, s, 2), jnp.float32([0, 1, -1]), jnp.float32(0))
  np.testing.assert_allclose(value, [0, 1e-8, -2e-8])
  gradient_x, gradient_step = pullback(jnp.float32([1, 1, 1]))
  np.testing.assert_array_equal(gradient_x, [1, 0, 0])
  assert gradient_step == 1 - 2
  assert pullback(jnp.float32([1, 1, 0]))[1] == 0  # would be +1: descent would lower the step further


def test_step_recovers_from_below_the_floor():
  """Fitting x = 1 from a negative step: the gradients raise it until the code 1 lands on 1."""
  step = jnp.float32(-0.5)
  for _ in range(40):
    step = step - 0.2 * jax.grad(lambda s: (lsq(jnp.float32(1), s, 2) - 1) ** 2)(step)
  np.testing.assert_allclose(step, 1, atol=1e-3)


def test_initial_step_by_hand():
  step = initial_activation_step(jnp.asarray(X), 3)
  np.testing.assert_allclose(step, 2 * 1.475 / 3**0.5, rtol=1e-6)
  assert step.shape == () and step.dtype == jnp.float32
  np.testing.assert_allclose(initial_activation_step(jnp.asarray(X), 2), 2 * 1.475, rtol=1e-6)  # qp = 1


def test_bfloat16_input_keeps_its_type_and_the_step_gradient_is_float32():
  x = jnp.asarray(X, jnp.bfloat16)
  value, pullback = jax.vjp(lambda x, s: lsq_activation(x, s, 3), x, jnp.float32(0.5))
  gradient_x, gradient_step = pullback(jnp.asarray(COTANGENT, jnp.bfloat16))
  assert value.dtype == gradient_x.dtype == jnp.bfloat16
  assert gradient_step.dtype == jnp.float32
  np.testing.assert_allclose(gradient_step, STEP_GRADIENT, rtol=0.01)


@pytest.mark.parametrize("bits, zero_point, low, high", [(2, 0, 0, 3), (3, 1, -1, 6), (4, 8, -8, 7), (8, 20, -20, 235)])
def test_zero_point_moves_the_levels(bits, zero_point, low, high):
  x = jnp.array([low - 100, low - 0.6, low, 0, 0.4, high, high + 0.6, high + 100])
  np.testing.assert_array_equal(
    lsq(x / 2, jnp.float32(0.5), bits, zero_point=jnp.float32(zero_point)) * 2, [low, low, low, 0, 0, high, high, high])


def test_asymmetric_value_and_gradients_by_hand():
  """3 bits, one level below zero (-1 .. 6): v = 0.6, 1.2, 4 inside, -6 clipped to -1; 2^-24 off is still one."""
  value, pullback = jax.vjp(
    lambda x, s, z: lsq_activation(x, s, 3, z), jnp.asarray(X), jnp.float32(0.5), jnp.float32(1 - 2**-24))
  gradients = pullback(jnp.asarray(COTANGENT))
  np.testing.assert_array_equal(value, [[0.5, 0.5, 2.0, -0.5]])
  np.testing.assert_array_equal(gradients[0], [[1, 2, 3, 0]])
  np.testing.assert_allclose(gradients[1], (0.4 - 2 * 0.2 + 3 * 0 + 4 * -1) / (4 * 6) ** 0.5, rtol=1e-5)
  assert gradients[2] == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_half_of_the_levels_below_zero_is_lsq(bits):
  x, step = 3 * jax.random.normal(jax.random.key(0), (4, 50)), jnp.float32(0.3)
  zero_points = (None, jnp.float32(2 ** (bits - 1)))
  outs = [jax.vjp(lambda x, s, z=z: lsq_activation(x, s, bits, z), x, step) for z in zero_points]
  np.testing.assert_array_equal(outs[0][0], outs[1][0])
  for one, other in zip(*(pullback(x) for _, pullback in outs)):
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fitted_levels_are_the_best_of_all(bits):
  """SiLU of normal values, 4 bits: one or two levels below zero. No other pair has an error smaller by a tenth."""
  x = jax.nn.silu(jax.random.normal(jax.random.key(1), (8, 500)))
  step, zero_point = fit_levels(x, bits)
  assert step.dtype == zero_point.dtype == jnp.float32 and step.shape == zero_point.shape == ()
  quantize = lambda step, z: lsq(x, step, bits, zero_point=z)
  error = jax.jit(jax.vmap(lambda step, z: jnp.mean((quantize(step, z) - x) ** 2)))
  steps, zeros = np.geomspace(0.1, 2, 80) * float(step), np.arange(2 ** (bits - 1) + 1)[:40]
  grid = error(*(axis.ravel().astype(np.float32) for axis in np.meshgrid(steps, zeros)))
  found = float(error(step[None], zero_point[None])[0])
  assert grid.shape == (80 * len(zeros),) and found < 1.1 * float(grid.min())
  assert bits != 4 or zero_point in (1, 2)
  signed = error(steps.astype(np.float32), np.full(80, 2.0 ** (bits - 1), np.float32))
  assert found < 0.7 * float(signed.min())


def test_fitted_levels_of_other_inputs():
  """Signed ones for what is symmetric and for zeros; none below zero for a softmax; every channel is looked at."""
  normal = jax.random.normal(jax.random.key(2), (4, 999))
  assert fit_levels(normal, 4)[1] in (7, 8)
  assert fit_levels(jax.nn.softmax(normal), 4)[1] == fit_levels(jax.nn.softmax(normal), 8)[1] == 0
  assert fit_levels(jnp.zeros((2, 3)), 4)[1] == 8
  only_last = jnp.zeros((2, 2**13, 32)).at[..., -1].set(1.5)
  np.testing.assert_allclose(lsq_activation(only_last, fit_levels(only_last, 4)[0], 4, fit_levels(only_last, 4)[1]),
                             only_last, atol=1e-6)


ARRAYS = st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6)
STEPS = st.floats(2**-10, 16, width=32)


@settings(max_examples=60, deadline=None)
@given(ARRAYS, STEPS, st.sampled_from([2, 3, 4, 8]))
def test_quantizing_twice_changes_nothing(values, step, bits):
  once = lsq(jnp.float32(values), jnp.float32(step), bits)
  np.testing.assert_allclose(lsq(once, jnp.float32(step), bits), once, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(ARRAYS, STEPS, st.sampled_from([2, 3, 4, 8]))
def test_outputs_are_the_nearest_integer_multiples_of_the_step_within_range(values, step, bits):
  value = np.asarray(lsq(jnp.float32(values), jnp.float32(step), bits), np.float64)
  codes = value / np.float64(np.float32(step))
  np.testing.assert_allclose(codes, codes.round(), atol=1e-4)
  assert codes.round().min() >= -(2 ** (bits - 1)) and codes.round().max() <= 2 ** (bits - 1) - 1
  reachable = np.clip(values, -(2 ** (bits - 1)) * step, (2 ** (bits - 1) - 1) * step)
  assert np.all(np.abs(value - reachable) <= step * (0.5 + 1e-4))
