"""What all samplers share: noise from each sample's own key, the denoiser's prediction within bounds, the scan."""

import jax
import jax.numpy as jnp

from binarydm_jax.diffusion.process import predict_x0


def sample_keys(key, first, count):
  """Keys [count] of the samples number first .. first + count - 1 of a run with this key."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


def draw_noise(keys, number, shape):
  """Standard normal [n, *shape], from each sample's key and a number: 0 for the start, then that of the step."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def threshold(x0, percentile):
  """Dynamic thresholding of each sample of x0 [n, ...]: clipped to [-s, s] and divided by s, the greater of 1 and the
  percentile (a part of one, such as 0.995) of its magnitudes (Saharia et al. 2022, arXiv 2205.11487, section 2.3)."""
  # By shape[0], not len: an exported program does not know its batch.
  s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
  s = jnp.maximum(s, 1).reshape((-1,) + (1,) * (x0.ndim - 1))
  return jnp.clip(x0, -s, s) / s


def x0_function(denoise_fn, schedule, target, clip, dynamic_threshold):
  """(x [n, ...], timesteps int32 [n]) -> the predicted x0, clipped to [-1, 1] or thresholded if asked for."""

  def predict(x, timesteps):
    x0 = predict_x0(schedule, target, denoise_fn(x, timesteps), x, timesteps)
    if dynamic_threshold:
      return threshold(x0, dynamic_threshold)
    return jnp.clip(x0, -1, 1) if clip else x0

  return predict


def scan_steps(step, state, timesteps, coefficients):
  """The state after state <- step(state, t [n], c, number), c the coefficients of this step, numbers from 1.

  Args:
    step: see above; the network is traced once.
    state: its first entry is x [n, ...].
    timesteps: int32 [steps].
    coefficients: name -> float64 [steps, ...]; they become float32 (float64 under jax_enable_x64).
  """
  def body(state, row):
    number, t, c = row
    return step(state, jnp.full(len(state[0]), t), c, number), None

  rows = jnp.arange(1, len(timesteps) + 1), jnp.asarray(timesteps), {k: jnp.asarray(v) for k, v in coefficients.items()}
  return jax.lax.scan(body, state, rows)[0]
