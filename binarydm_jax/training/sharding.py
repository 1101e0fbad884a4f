"""How training is shared out over the device mesh: the batch by rows, large parameters over `fsdp` by a rule on shapes.

The rule knows nothing of models. It is applied to everything that has the parameters' shapes: latent weights, scales,
averages, both moments of AdamW, and the frozen teacher.
"""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from binarydm_jax.mesh import gather, make_mesh, over_batch, put, put_replicated, replicated

__all__ = [
  "check_batch", "config_mesh", "gather", "make_mesh", "over_batch", "parameter_spec", "put", "put_batch",
  "put_replicated", "replicated", "shardings_of",
]  # fmt: skip


def config_mesh(fields):
  """The mesh of `config.mesh` over all devices.

  Raises:
    ValueError: there are more or fewer devices than it says, or they cannot be shared out so.
  """
  count = jax.device_count()
  if fields.data and fields.data * fields.fsdp != count:
    raise ValueError(
        f"mesh.data {fields.data} x mesh.fsdp {fields.fsdp} are {fields.data * fields.fsdp} devices, and there are"
        f" {count}: set mesh.data to 0 for all, or look for the missing device"
    )
  return make_mesh(fsdp=fields.fsdp)


def check_batch(name, batch_size, mesh, accumulate=1):
  """Raises ValueError if the global batch cannot be split over the mesh, in `accumulate` parts on each device."""
  parts = mesh.size * accumulate
  if batch_size % parts:
    by = f" x compute.accumulate {accumulate}" if accumulate > 1 else ""
    raise ValueError(f"{name} {batch_size} cannot be split over {mesh.size} devices{by}; use a multiple of {parts}")


def put_batch(batch, mesh):
  """This process's part of a batch (tree of numpy [local, ...]) -> global arrays split over the mesh."""
  sharding = over_batch(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def parameter_spec(shape, parts, min_size):
  """PartitionSpec of a parameter: its longest axis that `parts` divides, the last of equals, over "fsdp".

  Replicated if there is no such axis or it has fewer than `min_size` elements: a small one costs more to gather than
  it saves.
  """
  axes = [axis for axis, length in enumerate(shape) if length % parts == 0]
  if parts == 1 or not axes or np.prod(shape) < min_size:
    return PartitionSpec()
  axis = max(axes, key=lambda axis: (shape[axis], axis))
  return PartitionSpec(*[None] * axis, "fsdp")


def shardings_of(tree, mesh, min_size):
  """The rule for a tree of arrays or abstract ones: a tree of NamedSharding."""
  parts = mesh.shape["fsdp"]
  return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(x.shape, parts, min_size)), tree)
