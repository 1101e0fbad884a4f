"""The held-out loss: fixed images, fixed noise, stratified timesteps, so that runs compare."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion import q_sample, training_target

SEED = 20_240_405


def heldout_loss(model, variables, gates, images, labels, schedule, target, repeats=8, batch_size=256):
  """Mean squared error of the prediction on images that training has not seen.

  Every image is used `repeats` times; the timesteps of all n = len(images) * repeats draws are one random order of n
  strata of equal width, each hit once, so that every noise level has its share in every run.

  Args:
    model, variables, gates: of the UNet.
    images: uint8 [m, h, w, c], or latents float32 [m, h, w, c]; labels: int32 [m].
    schedule, target: of the diffusion.
  Returns:
    float.
  """
  count = len(images) * repeats
  rng = np.random.default_rng(SEED)
  strata = (rng.permutation(count) + rng.random(count)) / count
  timesteps = np.minimum((strata * schedule.num_timesteps).astype(np.int32), schedule.num_timesteps - 1)
  # The noise of draw i depends on i alone: the batch size does not matter.
  indices = np.arange(count)

  @jax.jit
  def errors(variables, x0, labels, timesteps, indices):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(indices)
    noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys)
    x_t = q_sample(schedule, x0, noise, timesteps)
    prediction, _ = model.apply(variables, x_t, timesteps, labels if model.num_classes else None, gates)
    wanted = training_target(schedule, target, x0, noise, timesteps)
    return jnp.mean((prediction - wanted) ** 2, axis=(1, 2, 3))

  total = 0.0
  for first in range(0, count, batch_size):
    part = np.arange(first, first + batch_size) % count  # the last batch wraps round and is cut: one compiled shape
    x0 = images[part % len(images)]
    x0 = x0.astype(np.float32) / 127.5 - 1 if x0.dtype == np.uint8 else x0
    result = errors(variables, x0, labels[part % len(images)], timesteps[part], indices[part])
    total += float(np.asarray(result, np.float64)[: count - first].sum())
  return total / count
