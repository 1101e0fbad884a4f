"""Training's batches on the device mesh; the mesh itself is in `binarydm_jax.mesh`, also for those who only sample."""

import jax
import numpy as np

from binarydm_jax.mesh import make_mesh, over_batch, put_replicated, replicated

__all__ = ["check_batch", "make_mesh", "over_batch", "put_batch", "put_replicated", "replicated"]


def check_batch(name, batch_size, mesh):
  """Raises ValueError if the global batch cannot be split over the mesh."""
  if batch_size % mesh.size:
    raise ValueError(f"{name} {batch_size} cannot be split over {mesh.size} devices; use a multiple of {mesh.size}")


def put_batch(batch, mesh):
  """This process's part of a batch (tree of numpy [local, ...]) -> global arrays split over the mesh."""
  sharding = over_batch(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
