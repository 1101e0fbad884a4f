"""A small cache of latents that the tests write and know."""

import numpy as np

from binarydm_jax.data import LatentWriter

SHAPE = (2, 3, 4)
ABOUT = {"source": "digits", "image_size": 8, "first_stage": {"sha256": "ab", "factors": (1, 2)}}


def moments_of(count, mirrored=False):
  """Random float32 [count, h, w, c], the same in every call, others for the mirror images."""
  return np.random.default_rng([count, mirrored]).normal(size=(count, *SHAPE)).astype(np.float32)


def labels_of(count):
  return np.arange(count, dtype=np.int32) % 7


def write(path, count=10, mirrored=True, about=None, **arguments):
  """Writes a complete cache of shards of 4 examples, in batches of 3."""
  arguments = {"examples_per_shard": 4, "num_classes": 7, **arguments}
  writer = LatentWriter(
    str(path), shape=SHAPE, num_examples=count, mirrored=mirrored, about=ABOUT if about is None else about, **arguments
  )
  for examples in writer.remaining():
    with writer.shard(examples) as add:
      for start in range(examples.start, examples.stop, 3):
        part = slice(start, min(start + 3, examples.stop))
        add(moments_of(count)[part], labels_of(count)[part], moments_of(count, True)[part] if mirrored else None)
  writer.finish()
  return str(path)
