"""How far the student's features are from the teacher's, block by block (BinaryDM, Figure 3)."""

import jax.numpy as jnp
import numpy as np

from binarydm_jax.compilation import jit_once
from binarydm_jax.data import spread
from binarydm_jax.diffusion import q_sample
from binarydm_jax.evaluation.heldout import fixed_noise, network_inputs

MOST_IMAGES = 128


def middle_timesteps(num_timesteps, count=5):
  """The middles of `count` equal ranges of all timesteps: int32 [count]."""
  return ((np.arange(count) + 0.5) / count * num_timesteps).astype(np.int32)


def block_distance(teacher, student, images, labels, schedule, timesteps, batch_size=32):
  """Mean L2 distance between the features of two networks that see the same noisy images.

  Args:
    teacher, student: (model, variables, gates) each; the models return (prediction, features).
    images: uint8 [m, h, w, c], or latents float32 [m, h, w, c]; at most MOST_IMAGES of them, evenly spread, are used.
    labels: int32 [m].
    schedule: of the diffusion.
    timesteps: int [k], at each of which every image is used once, with noise of its own that is the same in every run.
    batch_size: small, since the features of both networks are in memory.
  Returns:
    (distance, norm), float64 [blocks] each: means over the m k draws of ||student - teacher|| and of ||teacher||, the
    L2 norm being over all positions and channels of a block's output.
  """
  rows = spread(len(images), min(len(images), MOST_IMAGES))
  images, labels = images[rows], labels[rows]
  count = len(images) * len(timesteps)
  batch_size = min(batch_size, count)

  @jit_once
  def norms(variables, x0, labels, timesteps, indices):
    x_t = q_sample(schedule, x0, fixed_noise(indices, x0.shape[1:]), timesteps)
    (_, wanted), (_, features) = (
        model.apply(values, x_t, timesteps, labels if model.num_classes else None, gates)
        for (model, _, gates), values in zip((teacher, student), variables)
    )
    pairs = [(f.astype(jnp.float32), w.astype(jnp.float32)) for f, w in zip(features, wanted)]
    return jnp.array([[_norm(f - w) for f, w in pairs], [_norm(w) for _, w in pairs]])  # [2, blocks, batch]

  total = 0.0
  for first in range(0, count, batch_size):
    part = np.arange(first, first + batch_size) % count  # the last batch wraps round and is cut: one compiled shape
    image = part % len(images)
    x0 = network_inputs(images[image])
    result = norms((teacher[1], student[1]), x0, labels[image], timesteps[part // len(images)], part)
    total = total + np.asarray(result, np.float64)[..., : count - first].sum(-1)
  distance, norm = total / count
  return distance, norm


def _norm(x):
  """[batch, ...] -> L2 norm of each example, float32 [batch]."""
  return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))
