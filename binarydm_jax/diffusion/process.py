"""The forward process and what a network may predict. x0, noise, x_t are [batch, ...]; timesteps int [batch]."""

import jax.numpy as jnp

TARGETS = ("eps", "x0", "v")


def _coefficients(schedule, timesteps, x):
  """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at the timesteps, [batch, 1, ...] for x [batch, ...].

  float32; float64 where x is (under jax_enable_x64).
  """
  dtype = jnp.result_type(x, jnp.float32)
  signal = jnp.asarray(schedule.alphas_cumprod**0.5, dtype)[timesteps]
  noise = jnp.asarray((1 - schedule.alphas_cumprod) ** 0.5, dtype)[timesteps]
  shape = (-1,) + (1,) * (x.ndim - 1)
  return signal.reshape(shape), noise.reshape(shape)


def q_sample(schedule, x0, noise, timesteps):
  """x_t = sqrt(abar) x0 + sqrt(1 - abar) noise (Ho et al. 2020, Eq. 4)."""
  a, s = _coefficients(schedule, timesteps, x0)
  return a * x0 + s * noise


def training_target(schedule, target, x0, noise, timesteps):
  """What the network is to predict: "eps" the noise, "x0", or "v" = sqrt(abar) eps - sqrt(1 - abar) x0
  (Salimans & Ho 2022)."""
  if target == "eps":
    return noise
  if target == "x0":
    return x0
  if target == "v":
    a, s = _coefficients(schedule, timesteps, x0)
    return a * noise - s * x0
  raise ValueError(f"diffusion.target {target!r} is not one of {', '.join(TARGETS)}")


def predict_x0(schedule, target, output, x_t, timesteps):
  """x0 from the network's output for `target`."""
  a, s = _coefficients(schedule, timesteps, x_t)
  return {"eps": lambda: (x_t - s * output) / a, "x0": lambda: output, "v": lambda: a * x_t - s * output}[target]()


def predict_eps(schedule, x0, x_t, timesteps):
  """The noise that leads from x0 to x_t."""
  a, s = _coefficients(schedule, timesteps, x_t)
  return (x_t - a * x0) / s
