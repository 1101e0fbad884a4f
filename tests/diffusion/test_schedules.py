"""Noise schedules: values by hand, and errors that name the field."""

import math

import numpy as np
import pytest

from binarydm_jax.diffusion import make_schedule


def test_linear_endpoints_and_middle():
  """Ho et al.: beta is linear from 1e-4 to 2e-2 over 1000 steps."""
  betas = make_schedule("linear", 1000).betas
  assert betas.dtype == np.float64 and betas.shape == (1000,)
  assert betas[0] == pytest.approx(1e-4, rel=1e-12) and betas[999] == pytest.approx(2e-2, rel=1e-12)
  assert betas[500] == pytest.approx(1e-4 + (2e-2 - 1e-4) * 500 / 999, rel=1e-12)


def test_scaled_linear_is_linear_in_the_root():
  """Latent diffusion: sqrt(beta) is linear, 0.0015 to 0.0195; the value at 1/3 of the way by hand."""
  betas = make_schedule("scaled_linear", 1000, 0.0015, 0.0195).betas
  assert betas[0] == pytest.approx(0.0015, rel=1e-12) and betas[-1] == pytest.approx(0.0195, rel=1e-12)
  middle = (2 / 3 * math.sqrt(0.0015) + 1 / 3 * math.sqrt(0.0195)) ** 2
  assert betas[333] == pytest.approx(middle, rel=1e-12)


def test_latent_diffusion_ends_in_little_signal():
  """sqrt(abar) and the log SNR of the released LDM-4 settings at the last step, from the sum of logs."""
  abar = make_schedule("scaled_linear", 1000, 0.0015, 0.0195).alphas_cumprod
  roots = [math.sqrt(0.0015) + (math.sqrt(0.0195) - math.sqrt(0.0015)) * i / 999 for i in range(1000)]
  assert abar[0] == pytest.approx(0.9985, rel=1e-12)
  assert abar[-1] == pytest.approx(math.exp(sum(math.log1p(-(r**2)) for r in roots)), rel=1e-9)
  assert np.all(np.diff(abar) < 0)


@pytest.mark.parametrize("total", [10, 1000])
def test_cosine_cumulative_product_is_the_papers_cosine(total):
  """Nichol & Dhariwal, Eq. 17: abar(t) = f(t) / f(0), betas capped at 0.999; index t holds their t + 1."""
  schedule = make_schedule("cosine", total)

  def f(t):
    return math.cos((t / total + 0.008) / 1.008 * math.pi / 2) ** 2

  for i in (0, total // 2, total - 2):
    assert schedule.alphas_cumprod[i] == pytest.approx(f(i + 1) / f(0), rel=1e-9)
  assert schedule.betas[-1] == 0.999


@pytest.mark.parametrize("arguments, message", [
    (("quadratic",), "diffusion.schedule 'quadratic'"),
    (("linear", 10, 0.0, 0.1), "diffusion.beta_start 0.0"),
    (("linear", 10, 0.2, 0.1), "beta_end 0.1"),
    (("scaled_linear", 10, 0.1, 1.0), "beta_end 1.0"),
    (("linear", 10, float("nan"), 0.1), "diffusion.beta_start nan"),
])
def test_errors_name_the_field(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_schedule(*arguments)
