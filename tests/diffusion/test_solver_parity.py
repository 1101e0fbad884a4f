"""DDIM, PLMS and DPM-Solver++ against diffusers' schedulers, with the same start and the same denoiser, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
  DDIMScheduler,
  DPMSolverMultistepScheduler,
  DPMSolverSinglestepScheduler,
  PNDMScheduler,
)

from binarydm_jax.diffusion import (
  ddim,
  dpm_solver_2m,
  dpm_solver_2s,
  make_schedule,
  plms,
  sample_keys,
  sampling_timesteps,
  threshold,
)

BETAS = {"linear": (1e-4, 2e-2), "scaled_linear": (0.0015, 0.0195)}
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (2, 3, 1)


def network(x, t, lib):
  """Not linear in x and smooth in t, of the size of a noise; `lib` is jnp or torch."""
  return lib.tanh(0.8 * x) * (0.5 + t / 2000) + 0.1 * lib.sin(3 * x)


def ours(sampler, schedule, **arguments):
  """(start, samples) as numpy float64."""
  with jax.enable_x64(True):
    keys = sample_keys(jax.random.key(1), 0, 4)
    start = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), SHAPE))(keys)

    def denoise(x, timesteps):
      return network(x, timesteps[:, None, None, None].astype(jnp.float64), jnp)

    samples = jax.jit(lambda keys: sampler(denoise, keys, SHAPE, schedule, **arguments))(keys)
    assert samples.dtype == jnp.float64
    return np.asarray(start), np.asarray(samples)


def theirs(scheduler, schedule, start, *, steps=None, timesteps=None, **arguments):
  """The scheduler's loop on our schedule in float64 (its own cumulative product is in float32)."""
  scheduler.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
  if not scheduler.config.get("set_alpha_to_one", True):
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
  if timesteps is None:
    scheduler.set_timesteps(steps)
  else:
    scheduler.set_timesteps(timesteps=[int(t) for t in timesteps])
  x = torch.tensor(start)
  for t in scheduler.timesteps:
    x = scheduler.step(network(x, int(t), torch), int(t), x, **arguments).prev_sample
  return x.numpy()


def assert_same(a, b, tolerance=1e-5):
  """Relative to the largest value."""
  difference = np.abs(a - b).max() / np.abs(b).max()
  assert difference < tolerance


def betas(name):
  start, end = BETAS[name]
  return dict(beta_schedule=name, beta_start=start, beta_end=end), make_schedule(name, 1000, start, end)


# How diffusers spells the chains for which its DDIM and PNDM agree on the timesteps and on the end.
CHAINS = {
  "ldm": dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False),
  "leading": dict(timestep_spacing="leading", set_alpha_to_one=True),
  "trailing": dict(timestep_spacing="trailing", set_alpha_to_one=True),
}


@pytest.mark.parametrize("name, spacing, steps, target", [
  ("linear", "ldm", 10, "eps"), ("scaled_linear", "ldm", 50, "eps"), ("linear", "leading", 20, "v"),
  ("linear", "trailing", 25, "eps"), ("scaled_linear", "leading", 7, "x0"),
])
def test_ddim(name, spacing, steps, target):
  settings, schedule = betas(name)
  start, samples = ours(ddim, schedule, target=target, steps=steps, spacing=spacing)
  scheduler = DDIMScheduler(**settings, **CHAINS[spacing], prediction_type=PREDICTION[target], clip_sample=False)
  assert_same(samples, theirs(scheduler, schedule, start, steps=steps), 1e-8)


def test_clipped_and_thresholded_ddim():
  """Clipping, and the percentile in its place, in the loop."""
  settings, schedule = betas("scaled_linear")
  for bounds, their_bounds in (
      (dict(clip=True), dict(clip_sample=True)),
      (dict(clip=True, dynamic_threshold=0.9),
       dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)),
  ):
    start, samples = ours(ddim, schedule, steps=20, **bounds)
    scheduler = DDIMScheduler(**settings, **CHAINS["ldm"], **{"clip_sample": False, **their_bounds})
    assert_same(samples, theirs(scheduler, schedule, start, steps=20, use_clipped_model_output=True), 1e-8)


@pytest.mark.parametrize("name, spacing, steps", [
  ("linear", "ldm", 10), ("scaled_linear", "ldm", 50), ("scaled_linear", "leading", 20), ("linear", "trailing", 25),
  ("linear", "leading", 4), ("linear", "ldm", 2),
])
def test_plms(name, spacing, steps):
  """PNDMScheduler without Runge-Kutta steps: the improved Euler at the start, orders 2, 3 and 4 after it.

  Its "linspace" takes the end of a step for T // steps below, not for the next timestep, and its v-prediction mixes v,
  not noise: there the two differ.
  """
  settings, schedule = betas(name)
  start, samples = ours(plms, schedule, steps=steps, spacing=spacing)
  scheduler = PNDMScheduler(**settings, **CHAINS[spacing], skip_prk_steps=True)
  assert_same(samples, theirs(scheduler, schedule, start, steps=steps), 1e-8)


@pytest.mark.parametrize("spacing, steps, target", [
  ("ldm", 10, "eps"), ("ldm", 50, "v"), ("linspace", 20, "eps"), ("leading", 15, "x0"), ("trailing", 20, "eps"),
  ("quadratic", 12, "eps"), ("logsnr", 16, "eps"), ("ldm", 7, "eps"),
])
@pytest.mark.parametrize("kind", ["2m", "2s"])
def test_dpm_solver(kind, spacing, steps, target):
  """On the same timesteps and the same end; "trailing" is diffusers' own for the multistep scheduler."""
  settings, schedule = betas("scaled_linear")
  sampler, scheduler = {"2m": (dpm_solver_2m, DPMSolverMultistepScheduler),
                        "2s": (dpm_solver_2s, DPMSolverSinglestepScheduler)}[kind]
  start, samples = ours(sampler, schedule, target=target, steps=steps, spacing=spacing)
  timesteps, ends = sampling_timesteps(schedule, steps, spacing)
  # An odd number of steps of the singlestep solver leaves one over, which diffusers makes only if asked to.
  scheduler = scheduler(
      **settings, prediction_type=PREDICTION[target], final_sigmas_type="zero" if ends[-1] == 1 else "sigma_min",
      lower_order_final=kind == "2s" and steps % 2 == 1,
  )
  scheduler.order_list = scheduler.get_order_list(steps) if kind == "2s" else None
  assert_same(samples, theirs(scheduler, schedule, start, timesteps=timesteps))
  if spacing == "trailing" and kind == "2m":
    scheduler = DPMSolverMultistepScheduler(**settings, timestep_spacing="trailing", lower_order_final=False)
    assert_same(samples, theirs(scheduler, schedule, start, steps=steps))


def test_thresholded_dpm_solver():
  settings, schedule = betas("linear")
  start, samples = ours(dpm_solver_2m, schedule, steps=20, dynamic_threshold=0.8)
  scheduler = DPMSolverMultistepScheduler(
      **settings, final_sigmas_type="sigma_min", lower_order_final=False, thresholding=True,
      dynamic_thresholding_ratio=0.8, sample_max_value=1e9,
  )
  assert_same(samples, theirs(scheduler, schedule, start, timesteps=sampling_timesteps(schedule, 20, "ldm")[0]))


def test_threshold_by_hand():
  """Median of magnitudes 1, 2, 3 is 2: clipped to it, divided by it; a sample within [-1, 1] is left as it is."""
  out = threshold(jnp.array([[1.0, -2.0, 3.0], [0.5, -0.25, 0.0]]), 0.5)
  np.testing.assert_allclose(out, [[0.5, -1, 1], [0.5, -0.25, 0]], rtol=1e-6)
