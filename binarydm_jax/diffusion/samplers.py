"""Samplers as functions over a denoising function, each one `lax.scan`; they know nothing of networks.

denoise_fn(x [n, ...], timesteps int32 [n]) -> the network's output for the schedule's target, [n, ...].
Every sample has a key of its own: the same (seed, index) gives the same image whatever the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion.process import predict_eps, predict_x0

SPACINGS = ("ldm", "leading", "linspace", "trailing")


def sample_keys(key, first, count):
  """Keys [count] of the samples number first .. first + count - 1 of a run with this key."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


def sampling_timesteps(schedule, steps, spacing="ldm"):
  """The timesteps of a shortened chain and the alphas_cumprod that each step goes to.

  Args:
    schedule: Schedule of T timesteps.
    steps: their number, at most T.
    spacing: with c = T // steps, "ldm": 1 + c i, ending at alphas_cumprod[0] (latent diffusion); "leading": c i,
      ending at 1; "linspace": evenly from 0 to T - 1, both included, ending at 1 (ADM); "trailing": T - 1, T - 1 -
      T / steps, ..., ending at 1.
  Returns:
    int32 [steps] in descending order; float64 [steps], alphas_cumprod of the step's end.
  Raises:
    ValueError: unknown spacing, or steps out of range.
  """
  total, abar = schedule.num_timesteps, schedule.alphas_cumprod
  if spacing not in SPACINGS:
    raise ValueError(f"sample.spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
  most = total - 1 if spacing == "ldm" else total
  if not 1 <= steps <= most:
    raise ValueError(f"sample.steps {steps} is not in 1 .. {most}, the range of {spacing!r} spacing over {total}")
  i = np.arange(steps)
  if spacing == "ldm":
    timesteps = 1 + total // steps * i
  elif spacing == "leading":
    timesteps = total // steps * i
  elif spacing == "linspace":
    timesteps = np.round(np.linspace(0, total - 1, steps)) if steps > 1 else np.array([total - 1])
  else:
    timesteps = np.round(total - total / steps * i)[::-1] - 1
  timesteps = timesteps.astype(np.int32)
  ends = np.concatenate([[abar[0] if spacing == "ldm" else 1.0], abar[timesteps[:-1]]])
  return timesteps[::-1].copy(), ends[::-1].copy()


def _noise(keys, step, shape):
  """Standard normal [n, *shape], from each sample's key and the number of the step."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def _scan(update, keys, shape, timesteps, coefficients):
  """Runs x <- update(x, t [n], coefficients of the step, noise) from pure noise along the timesteps."""
  x = _noise(keys, 0, shape)

  def body(x, step):
    number, t, coefficient = step
    noise = _noise(keys, number, shape)
    return update(x, jnp.full(len(x), t), coefficient, noise), None

  numbers = jnp.arange(1, len(timesteps) + 1)
  coefficients = {name: jnp.asarray(values, jnp.float32) for name, values in coefficients.items()}
  return jax.lax.scan(body, x, (numbers, jnp.asarray(timesteps), coefficients))[0]


def ddim(denoise_fn, keys, shape, schedule, target="eps", steps=50, eta=0.0, clip=False, spacing="ldm"):
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
  Returns:
    float32 [n, *shape].
  """
  timesteps, ends = sampling_timesteps(schedule, steps, spacing)
  starts = schedule.alphas_cumprod[timesteps]
  sigmas = eta * np.sqrt((1 - ends) / (1 - starts) * (1 - starts / ends))
  coefficients = dict(
      signal=np.sqrt(ends), direction=np.sqrt(np.maximum(1 - ends - sigmas**2, 0)), sigma=sigmas
  )

  def update(x, t, c, noise):
    x0 = predict_x0(schedule, target, denoise_fn(x, t), x, t)
    if clip:
      x0 = jnp.clip(x0, -1, 1)
    eps = predict_eps(schedule, x0, x, t)
    return c["signal"] * x0 + c["direction"] * eps + c["sigma"] * noise

  return _scan(update, keys, shape, timesteps, coefficients)


def ddpm(denoise_fn, keys, shape, schedule, target="eps", steps=None, clip=False, spacing="linspace"):
  """Ancestral sampling (Ho et al. 2020, Eq. 6-7) with the posterior variance, along all or fewer timesteps.

  Args: as in `ddim`; steps None takes all timesteps.
  """
  timesteps, ends = sampling_timesteps(schedule, steps or schedule.num_timesteps, spacing if steps else "leading")
  starts = schedule.alphas_cumprod[timesteps]
  betas = 1 - starts / ends
  coefficients = dict(
      x0=np.sqrt(ends) * betas / (1 - starts),
      x=np.sqrt(1 - betas) * (1 - ends) / (1 - starts),
      sigma=np.sqrt(betas * (1 - ends) / (1 - starts)),
  )

  def update(x, t, c, noise):
    x0 = predict_x0(schedule, target, denoise_fn(x, t), x, t)
    if clip:
      x0 = jnp.clip(x0, -1, 1)
    return c["x0"] * x0 + c["x"] * x + c["sigma"] * noise

  return _scan(update, keys, shape, timesteps, coefficients)
