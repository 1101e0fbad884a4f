"""The device mesh: the batch is split over `data`, everything else is replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh(devices=None):
  """A one-axis mesh "data" over all devices."""
  devices = jax.devices() if devices is None else devices
  # Auto axes: with explicit ones a reduction over a sharded batch raises a sharding type error.
  return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh):
  """Sharding of the first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(name, batch_size, mesh):
  """Raises ValueError if the global batch cannot be split over the mesh."""
  if batch_size % mesh.size:
    raise ValueError(f"{name} {batch_size} cannot be split over {mesh.size} devices; use a multiple of {mesh.size}")


def put_batch(batch, mesh):
  """This process's part of a batch (tree of numpy [local, ...]) -> global arrays split over the mesh."""
  sharding = over_batch(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_replicated(tree, mesh):
  """A tree of arrays, equal in every process -> global arrays on every device."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(x)), tree)
