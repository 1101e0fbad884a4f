"""DDIM and DDPM as functions over a denoising function, each one `lax.scan`; they know nothing of networks.

denoise_fn(x [n, ...], timesteps int32 [n]) -> the network's output for the schedule's target, [n, ...].
Every sample has a key of its own: the same (seed, index) gives the same image whatever the batch.
"""

import numpy as np

from binarydm_jax.diffusion.chain import draw_noise, scan_steps, x0_function
from binarydm_jax.diffusion.process import predict_eps
from binarydm_jax.diffusion.timesteps import sampling_timesteps


def ddim(
  denoise_fn, keys, shape, schedule, target="eps", steps=50, eta=0.0, clip=False, spacing="ldm", dynamic_threshold=0.0
):
  """DDIM (Song et al. 2021, arXiv 2010.02502, Eq. 12 and 16).

  Args:
    denoise_fn: see the module.
    keys: [n], from `sample_keys`.
    shape: of one sample.
    schedule: Schedule.
    target: what denoise_fn predicts: "eps", "x0" or "v".
    steps, spacing: see `sampling_timesteps`.
    eta: 0 deterministic .. 1 as random as DDPM.
    clip: clips the predicted x0 to [-1, 1]; the noise that belongs to the clipped x0 is used.
    dynamic_threshold: above 0, a percentile for `threshold`, which then takes the place of clipping.
  Returns:
    float32 [n, *shape] (float64 under jax_enable_x64).
  Raises:
    ValueError: see `sampling_timesteps`.
  """
  timesteps, ends = sampling_timesteps(schedule, steps, spacing)
  starts = schedule.alphas_cumprod[timesteps]
  sigmas = eta * np.sqrt((1 - ends) / (1 - starts) * (1 - starts / ends))
  coefficients = dict(
      signal=np.sqrt(ends), direction=np.sqrt(np.maximum(1 - ends - sigmas**2, 0)), sigma=sigmas
  )
  predict = x0_function(denoise_fn, schedule, target, clip, dynamic_threshold)

  def step(state, t, c, number):
    (x,) = state
    x0 = predict(x, t)
    eps = predict_eps(schedule, x0, x, t)
    return (c["signal"] * x0 + c["direction"] * eps + c["sigma"] * draw_noise(keys, number, shape),)

  return scan_steps(step, (draw_noise(keys, 0, shape),), timesteps, coefficients)[0]


def ddpm(
  denoise_fn, keys, shape, schedule, target="eps", steps=None, clip=False, spacing="linspace", dynamic_threshold=0.0
):
  """Ancestral sampling (Ho et al. 2020, Eq. 6-7) with the posterior variance, along all or fewer timesteps.

  Args, Returns, Raises: as in `ddim`; steps None takes all timesteps.
  """
  timesteps, ends = sampling_timesteps(schedule, steps or schedule.num_timesteps, spacing if steps else "leading")
  starts = schedule.alphas_cumprod[timesteps]
  betas = 1 - starts / ends
  coefficients = dict(
      x0=np.sqrt(ends) * betas / (1 - starts),
      x=np.sqrt(1 - betas) * (1 - ends) / (1 - starts),
      sigma=np.sqrt(betas * (1 - ends) / (1 - starts)),
  )
  predict = x0_function(denoise_fn, schedule, target, clip, dynamic_threshold)

  def step(state, t, c, number):
    (x,) = state
    return (c["x0"] * predict(x, t) + c["x"] * x + c["sigma"] * draw_noise(keys, number, shape),)

  return scan_steps(step, (draw_noise(keys, 0, shape),), timesteps, coefficients)[0]
