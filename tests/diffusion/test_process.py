"""The forward process: closed forms in numpy, and that predictions invert their targets."""

import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import Schedule, make_schedule, predict_eps, predict_x0, q_sample, training_target

TINY = Schedule(np.array([0.36, 0.75]))  # abar = 0.64, 0.16: signal 0.8, 0.4; noise 0.6, sqrt(0.84)


def draws(shape=(6, 3, 3, 2), total=1000, seed=0):
  rng = np.random.default_rng(seed)
  x0, noise = rng.uniform(-1, 1, shape), rng.standard_normal(shape)
  timesteps = np.linspace(0, total - 1, shape[0]).astype(np.int32)
  return jnp.asarray(x0, jnp.float32), jnp.asarray(noise, jnp.float32), timesteps


def test_q_sample_by_hand():
  """Each example takes the coefficients of its own timestep."""
  x_t = q_sample(TINY, jnp.array([[1.0, 0.5], [1.0, 0.5]]), jnp.array([[2.0, -1.0], [2.0, -1.0]]), np.array([0, 1]))
  root = 0.84**0.5
  np.testing.assert_allclose(x_t, [[0.8 + 1.2, 0.4 - 0.6], [0.4 + 2 * root, 0.2 - root]], rtol=1e-6, atol=1e-7)


def test_targets_by_hand():
  x0, noise, t = jnp.array([[0.5]]), jnp.array([[2.0]]), np.array([0])
  assert float(training_target(TINY, "eps", x0, noise, t)[0, 0]) == 2.0
  assert float(training_target(TINY, "x0", x0, noise, t)[0, 0]) == 0.5
  assert float(training_target(TINY, "v", x0, noise, t)[0, 0]) == pytest.approx(0.8 * 2.0 - 0.6 * 0.5, rel=1e-6)


@pytest.mark.parametrize("target, tolerance", [("eps", 2e-4), ("x0", 0), ("v", 2e-6)])
def test_predict_x0_inverts_the_target(target, tolerance):
  """Round trip over all noise levels; eps divides by a small signal at the end, so it may lose digits there."""
  schedule = make_schedule("linear", 1000)
  x0, noise, timesteps = draws()
  x_t = q_sample(schedule, x0, noise, timesteps)
  output = training_target(schedule, target, x0, noise, timesteps)
  np.testing.assert_allclose(predict_x0(schedule, target, output, x_t, timesteps), x0, atol=tolerance)


def test_predict_eps_inverts_q_sample():
  schedule = make_schedule("cosine", 1000)
  x0, noise, timesteps = draws()
  recovered = predict_eps(schedule, x0, q_sample(schedule, x0, noise, timesteps), timesteps)
  np.testing.assert_allclose(recovered, noise, atol=3e-5)


def test_first_step_keeps_its_small_noise():
  """1 - abar[0] = 1e-4 is computed in float64: a float32 cumulative product would lose three digits of it."""
  schedule = make_schedule("linear", 1000)
  x_t = q_sample(schedule, jnp.zeros((1, 1)), jnp.ones((1, 1)), np.array([0]))
  assert float(x_t[0, 0]) == pytest.approx(1e-2, rel=1e-6)


def test_unknown_target_names_the_field():
  x0, noise, timesteps = draws()
  with pytest.raises(ValueError, match="diffusion.target 'score' is not one of eps, x0, v"):
    training_target(TINY, "score", x0, noise, timesteps)
