"""The held-out loss: fixed images, fixed noise, stratified timesteps, so that runs compare."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion import q_sample, training_target
from binarydm_jax.mesh import copy_to, make_mesh, over_batch

SEED = 20_240_405
BUCKETS = 10


def fixed_noise(indices, shape):
  """Standard normal [n, *shape]; that of draw i depends on i alone: the batch size does not matter.

  Args:
    indices: int [n], numbers of the draws.
    shape: of one draw.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(indices)
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def network_inputs(images):
  """uint8 [n, h, w, c] -> float32 in [-1, 1]; latents stay as they are."""
  return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images


def bucket_starts(num_timesteps, buckets=BUCKETS):
  """First timestep of each bucket of `bucket_means`: int [buckets]."""
  return -(-np.arange(buckets) * num_timesteps // buckets)


def bucket_means(values, timesteps, num_timesteps, buckets=BUCKETS):
  """Means of values [n] over equal ranges of their timesteps int [n]: float64 [buckets], nan where there is no draw."""
  bucket = np.asarray(timesteps, np.int64) * buckets // num_timesteps
  sums = np.bincount(bucket, values, minlength=buckets)
  counts = np.bincount(bucket, minlength=buckets)
  return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def heldout_loss(model, variables, gates, images, labels, schedule, target, repeats=8, batch_size=256):
  """Mean squared error of the prediction on images that training has not seen.

  Every image is used `repeats` times; the timesteps of all n = len(images) * repeats draws are one random order of n
  strata of equal width, each hit once, so that every noise level has its share in every run.

  Args:
    model, variables, gates: of the UNet.
    images: uint8 [m, h, w, c], numpy, or latents float32 [m, h, w, c]; labels: int32 [m].
    schedule, target: of the diffusion.
    batch_size: draws at once, split over the devices of this process; rounded up to a multiple of them.
  Returns:
    (mean over all draws, a float; means over BUCKETS equal ranges of timesteps, float64 [BUCKETS], of the same draws).
  """
  count = len(images) * repeats
  rng = np.random.default_rng(SEED)
  strata = (rng.permutation(count) + rng.random(count)) / count
  timesteps = np.minimum((strata * schedule.num_timesteps).astype(np.int32), schedule.num_timesteps - 1)
  indices = np.arange(count)

  @jax.jit
  def errors(variables, x0, labels, timesteps, indices):
    noise = fixed_noise(indices, x0.shape[1:])
    x_t = q_sample(schedule, x0, noise, timesteps)
    prediction, _ = model.apply(variables, x_t, timesteps, labels if model.num_classes else None, gates)
    wanted = training_target(schedule, target, x0, noise, timesteps)
    return jnp.mean((prediction - wanted) ** 2, axis=(1, 2, 3))

  mesh = make_mesh(jax.local_devices())
  batch_size = -(-batch_size // mesh.size) * mesh.size
  variables = copy_to(variables, mesh)
  total, parts = 0.0, []
  for first in range(0, count, batch_size):
    part = np.arange(first, first + batch_size) % count  # the last batch wraps round and is cut: one compiled shape
    x0 = network_inputs(images[part % len(images)])
    inputs = jax.device_put((x0, labels[part % len(images)], timesteps[part], indices[part]), over_batch(mesh))
    result = errors(variables, *inputs)
    parts.append(np.asarray(result, np.float64)[: count - first])
    total += float(parts[-1].sum())
  return total / count, bucket_means(np.concatenate(parts), timesteps, schedule.num_timesteps)
