"""How fast each sampler converges on Gaussian data, whose probability flow is known in closed form; float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import Schedule, ddim, dpm_solver_2m, dpm_solver_2s, plms, sample_keys, sampling_timesteps

MEAN, VARIANCE = 0.4, 0.25
STEPS = (16, 32, 64, 128)


def smooth_schedule(total=16384):
  """A cosine from abar = 0.98 to 0.02: many timesteps, so that halving a step does not meet the grid, and neither end
  is singular as that of a real schedule is (where few steps do not show the order yet)."""
  abar = np.cos(np.linspace(np.arccos(0.98**0.5), np.arccos(0.02**0.5), total)) ** 2
  return Schedule(1 - abar / np.concatenate([[1.0], abar[:-1]]))


def error(sampler, schedule, target, spacing, steps):
  """Greatest distance from the exact end: the flow keeps (x - a mean) / sqrt(a^2 var + s^2)."""
  abar = schedule.alphas_cumprod
  timesteps, ends = sampling_timesteps(schedule, steps, spacing)

  def deviation(a2):
    return np.sqrt(a2 * VARIANCE + 1 - a2)

  with jax.enable_x64(True):
    keys = sample_keys(jax.random.key(0), 0, 8)

    def denoise(x, t):
      a2 = jnp.asarray(abar)[t][:, None]
      eps = jnp.sqrt(1 - a2) * (x - jnp.sqrt(a2) * MEAN) / (a2 * VARIANCE + 1 - a2)
      x0 = (x - jnp.sqrt(1 - a2) * eps) / jnp.sqrt(a2)
      return {"eps": eps, "x0": x0, "v": jnp.sqrt(a2) * eps - jnp.sqrt(1 - a2) * x0}[target]

    start = np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (1,)))(keys))
    got = np.asarray(sampler(denoise, keys, (1,), schedule, target, steps=steps, spacing=spacing))
  first = abar[timesteps[0]]
  exact = np.sqrt(ends[-1]) * MEAN + deviation(ends[-1]) / deviation(first) * (start - np.sqrt(first) * MEAN)
  return np.abs(got - exact).max()


def slope(sampler, target, spacing):
  schedule = smooth_schedule()
  errors = [error(sampler, schedule, target, spacing, steps) for steps in STEPS]
  return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0], errors


@pytest.mark.parametrize("sampler, target, spacing, least, most", [
  (ddim, "eps", "ldm", 0.9, 1.1),
  (ddim, "v", "logsnr", 0.9, 1.1),
  (dpm_solver_2m, "eps", "ldm", 1.8, 2.3),
  (dpm_solver_2m, "x0", "logsnr", 1.8, 2.3),
  (dpm_solver_2s, "eps", "ldm", 1.8, 2.3),
  (dpm_solver_2s, "v", "logsnr", 1.8, 2.3),
  (plms, "eps", "ldm", 1.8, 2.5),
  (plms, "v", "ldm", 1.8, 2.5),
])
def test_order(sampler, target, spacing, least, most):
  """The slope of log error over log steps."""
  found, errors = slope(sampler, target, spacing)
  assert least < found < most, errors
