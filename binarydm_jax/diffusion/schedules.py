"""Noise schedules, in float64; index t runs from 0 (least noise) to num_timesteps - 1."""

import dataclasses
import math

import numpy as np

SCHEDULES = ("linear", "scaled_linear", "cosine")


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """betas float64 [T] and what follows from them."""

  betas: np.ndarray

  @property
  def num_timesteps(self):
    return len(self.betas)

  @property
  def alphas_cumprod(self):
    """prod of (1 - beta) up to t, float64 [T]."""
    return np.cumprod(1 - self.betas)


def make_schedule(name, num_timesteps=1000, start=1e-4, end=2e-2):
  """A schedule by name.

  Args:
    name: "linear" in beta (Ho et al. 2020); "scaled_linear", linear in sqrt(beta) (latent diffusion, which calls it
      "linear"); "cosine" (Nichol & Dhariwal 2021; takes no start and end).
    num_timesteps: T.
    start, end: first and last beta.
  Raises:
    ValueError: unknown name, or not 0 < start <= end < 1.
  """
  if name not in SCHEDULES:
    raise ValueError(f"diffusion.schedule {name!r} is not one of {', '.join(SCHEDULES)}")
  if name == "cosine":

    def alpha_bar(t):
      return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [i / num_timesteps for i in range(num_timesteps + 1)]
    return Schedule(np.array([min(1 - alpha_bar(b) / alpha_bar(a), 0.999) for a, b in zip(steps, steps[1:])]))
  if not 0 < start <= end < 1:
    raise ValueError(f"diffusion.beta_start {start} and beta_end {end} must satisfy 0 < start <= end < 1")
  if name == "linear":
    return Schedule(np.linspace(start, end, num_timesteps, dtype=np.float64))
  return Schedule(np.linspace(start**0.5, end**0.5, num_timesteps, dtype=np.float64) ** 2)
