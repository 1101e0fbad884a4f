"""DPM-Solver++ of order 2 (Lu et al. 2022, arXiv 2211.01095), each one `lax.scan`; denoise_fn, keys as in `samplers`.

In the paper's symbols alpha = sqrt(abar), sigma = sqrt(1 - abar), lambda = log(alpha / sigma). Every step is

  x' = (sigma' / sigma) x + alpha' (1 - exp(-h)) D,   h = lambda' - lambda,

with D a mixture of predicted x0. A step to abar' = 1, where lambda' is infinite, takes the newest x0 alone.
"""

import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion.chain import draw_noise, scan_steps, x0_function
from binarydm_jax.diffusion.timesteps import solver_timesteps


def dpm_solver_2m(
  denoise_fn, keys, shape, schedule, target="eps", steps=20, clip=False, spacing="ldm", dynamic_threshold=0.0
):
  """The multistep solver, DPM-Solver++(2M), Algorithm 2: D = x0_i + (x0_i - x0_(i-1)) / (2 r), r = h_(i-1) / h_i.

  The first step, and a last one to abar = 1, are DDIM's. The network runs `steps` times.

  Args:
    clip, dynamic_threshold: applied to every predicted x0, as the paper does.
    others: as in `ddim`.
  Returns:
    float32 [n, *shape] (float64 under jax_enable_x64).
  Raises:
    ValueError: see `solver_timesteps`.
  """
  timesteps, ends = solver_timesteps(schedule, steps, spacing, "dpm_solver++_2m")
  starts = schedule.alphas_cumprod[timesteps]
  h = _log_ratio(ends) - _log_ratio(starts)
  extrapolation = np.concatenate([[0], h[1:] / h[:-1] / 2])
  extrapolation[ends == 1] = 0
  return _integrate(
      x0_function(denoise_fn, schedule, target, clip, dynamic_threshold), draw_noise(keys, 0, shape),
      timesteps, starts, ends, newest=1 + extrapolation, second=np.zeros(steps, bool),
  )


def dpm_solver_2s(
  denoise_fn, keys, shape, schedule, target="eps", steps=20, clip=False, spacing="ldm", dynamic_threshold=0.0
):
  """The singlestep solver, DPM-Solver++(2S), Algorithm 1: from x at t over u at s to t', r = (lambda_s - lambda_t) / h,

    u = DDIM's step from t to s,   D = (1 - 1 / (2 r)) x0(x, t) + 1 / (2 r) x0(u, s).

  The timesteps of the chain are taken in pairs (t, s), so that `steps` is the number of runs of the network, as with
  the other samplers. One that is left over, and the last pair if the chain ends at abar = 1, are steps of DDIM.

  Args, Returns, Raises: as in `dpm_solver_2m`.
  """
  timesteps, ends = solver_timesteps(schedule, steps, spacing, "dpm_solver++_2s")
  second = np.arange(steps) % 2 == 1
  second[-1] &= ends[-1] < 1
  starts = schedule.alphas_cumprod[timesteps]
  before = np.where(second, np.roll(starts, 1), starts)  # where the step begins: t, also for the row of s
  with np.errstate(divide="ignore", invalid="ignore"):
    r = (_log_ratio(starts) - _log_ratio(before)) / (_log_ratio(ends) - _log_ratio(before))
    newest = np.where(second, 1 / (2 * r), 1.0)
  return _integrate(
      x0_function(denoise_fn, schedule, target, clip, dynamic_threshold), draw_noise(keys, 0, shape),
      timesteps, before, ends, newest, second,
  )


def _log_ratio(abar):
  """lambda = log(alpha / sigma), infinite at abar = 1."""
  with np.errstate(divide="ignore"):
    return (np.log(abar) - np.log1p(-abar)) / 2


def _integrate(predict, x, timesteps, starts, ends, newest, second):
  """The scan of both solvers, one row for each run of the network, at `timesteps`.

  Args:
    predict: from `x0_function`.
    x: the start [n, ...].
    timesteps: int32 [rows].
    starts, ends: float64 [rows], alphas_cumprod between which the row's step goes.
    newest: float64 [rows], the weight in D of the row's x0; the x0 of the row before has 1 - newest.
    second: bool [rows], whether the step begins where that of the row before began.
  """
  ratio = np.sqrt((1 - ends) / (1 - starts))
  coefficients = dict(ratio=ratio, gain=np.sqrt(ends) - np.sqrt(starts) * ratio, newest=newest, second=second)

  def step(state, t, c, number):
    x, before, previous = state
    x0 = predict(x, t)
    start = jnp.where(c["second"], before, x)
    return c["ratio"] * start + c["gain"] * (c["newest"] * x0 + (1 - c["newest"]) * previous), start, x0

  return scan_steps(step, (x, x, jnp.zeros_like(x)), timesteps, coefficients)[0]
