"""PLMS: the multistep sampler of latent diffusion, one `lax.scan`; denoise_fn and keys as in `samplers`."""

import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion.chain import draw_noise, scan_steps, x0_function
from binarydm_jax.diffusion.process import predict_eps
from binarydm_jax.diffusion.timesteps import solver_timesteps

# Adams-Bashforth weights of eps, newest first: orders 2, 3 and 4.
ADAMS_BASHFORTH = np.array([[3, -1, 0, 0], [23, -16, 5, 0], [55, -59, 37, -9]]) / [[2], [12], [24]]


def plms(denoise_fn, keys, shape, schedule, target="eps", steps=50, clip=False, spacing="ldm", dynamic_threshold=0.0):
  """Pseudo linear multistep sampling (Liu et al. 2022, arXiv 2202.09778) as latent diffusion has it.

  Every step is DDIM's transfer along a mixture e of predicted noises:

    x' = sqrt(abar' / abar) (x - sqrt(1 - abar) e) + sqrt(1 - abar') e

  From the fourth step on e is Adams-Bashforth's of order 4, (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24, newest
  first. The start is that of latent diffusion, and of diffusers' PNDMScheduler with skip_prk_steps: the first step is
  a pseudo improved Euler, e = (eps(x_0, t_0) + eps(x_1, t_1)) / 2 with x_1 from a step of DDIM, and its second
  prediction is not kept; the second step is of order 2, (3 eps_0 - eps_1) / 2, the third of order 3. So the network
  runs steps + 1 times.

  The mixtures are exact for noise that is a polynomial in the timestep, and the transfer is not linear in it: the
  whole is of order 2. They also are those of equal steps, which "quadratic" and "logsnr" spacing do not have.

  Args:
    clip, dynamic_threshold: applied to the x0 of every prediction; eps is the noise that belongs to it.
    others: as in `ddim`.
  Returns:
    float32 [n, *shape] (float64 under jax_enable_x64).
  Raises:
    ValueError: see `solver_timesteps`.
  """
  timesteps, ends = solver_timesteps(schedule, steps, spacing, "plms")
  # One row for each run of the network: the second corrects the first, and the third is again at timestep t_1.
  visited, rows = timesteps[[0, 1, *range(1, steps)]], np.array([0, 0, *range(1, steps)])
  weights = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], *ADAMS_BASHFORTH[np.minimum(range(steps - 1), 2)]]
  starts, ends = schedule.alphas_cumprod[timesteps][rows], ends[rows]
  coefficients = dict(
      ratio=np.sqrt(ends / starts),
      slope=np.sqrt(1 - ends) - np.sqrt(ends / starts) * np.sqrt(1 - starts),
      weights=np.array(weights),
      correction=np.arange(steps + 1) == 1,
  )
  predict = x0_function(denoise_fn, schedule, target, clip, dynamic_threshold)

  def step(state, t, c, number):
    x, before, history = state
    history = (predict_eps(schedule, predict(x, t), x, t), *history)
    e = sum(c["weights"][k] * eps for k, eps in enumerate(history))
    start = jnp.where(c["correction"], before, x)
    kept = tuple(jnp.where(c["correction"], older, eps) for older, eps in zip(history[1:], history))
    return c["ratio"] * start + c["slope"] * e, start, kept

  x = draw_noise(keys, 0, shape)
  return scan_steps(step, (x, x, (jnp.zeros_like(x),) * 3), visited, coefficients)[0]
