"""Images from a network: one compiled program for all steps, run in batches of one shape."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion import ddim, ddpm, sample_keys


def to_uint8(images):
  """Float [-1, 1] -> uint8: clipped, (x + 1) 127.5 rounded."""
  return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def guided(model, guidance):
  """A function (variables, x, timesteps, labels, gates) -> prediction, with classifier-free guidance.

  prediction = unconditional + guidance (conditional - unconditional) (Ho & Salimans 2022, with their 1 + w); at 1 the
  network runs on the labels alone, else on a batch twice as large.

  Raises:
    ValueError: guidance without a null class.
  """
  if guidance != 1 and not (model.num_classes and model.null_class):
    raise ValueError(f"sample.guidance is {guidance}, and the network has no null class; set it to 1")

  def predict(variables, x, timesteps, labels, gates):
    if not model.num_classes:
      return model.apply(variables, x, timesteps, None, gates)[0]
    if guidance == 1:
      return model.apply(variables, x, timesteps, labels, gates)[0]
    both = jnp.concatenate([labels, jnp.full_like(labels, model.num_classes)])
    twice = [jnp.concatenate([a, a]) for a in (x, timesteps)]
    conditional, unconditional = jnp.split(model.apply(variables, *twice, both, gates)[0], 2)
    return unconditional + guidance * (conditional - unconditional)

  return predict


def make_sampler(
  model, schedule, target, shape, sampler="ddim", steps=50, eta=0.0, clip=True, spacing="ldm", guidance=1.0
):
  """A jitted function (variables, keys [n], labels int32 [n], gates) -> float32 [n, *shape].

  Args:
    model: a UNet.
    schedule, target: of the diffusion.
    shape: (h, w, c) of what the model sees.
    sampler, steps, eta, clip, spacing: see `diffusion.ddim` and `diffusion.ddpm` (which has no eta).
    guidance: see `guided`.
  """
  predict = guided(model, guidance)

  def sample(variables, keys, labels, gates):
    def denoise(x, timesteps):
      return predict(variables, x, timesteps, labels, gates)

    if sampler == "ddim":
      return ddim(denoise, keys, shape, schedule, target, steps, eta, clip, spacing)
    return ddpm(denoise, keys, shape, schedule, target, steps or None, clip, spacing)

  return jax.jit(sample)


def generate(sampler, variables, count, seed, batch_size, num_classes=0, gates=None, progress=None):
  """`count` images as float32 [count, h, w, c]; image i depends on (seed, i) alone.

  Args:
    sampler: from `make_sampler`.
    variables, gates: of the model.
    batch_size: images a call; the last batch is drawn whole and cut.
    num_classes: labels are i % num_classes: balanced.
    progress: called with the number of images after each batch.
  """
  batch_size = min(batch_size, count)
  key, parts = jax.random.key(seed), []
  for first in range(0, count, batch_size):
    labels = jnp.arange(first, first + batch_size) % max(num_classes, 1)
    parts.append(np.asarray(sampler(variables, sample_keys(key, first, batch_size), labels, gates)))
    if progress:
      progress(min(batch_size, count - first))
  return np.concatenate(parts)[:count]
