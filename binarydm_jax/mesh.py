"""The device mesh: the batch is split over `data`, everything else is replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh(devices=None):
  """A one-axis mesh "data" over all devices, of all hosts."""
  devices = jax.devices() if devices is None else devices
  # Auto axes: with explicit ones a reduction over a sharded batch raises a sharding type error.
  return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh):
  """Sharding of the first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put_replicated(tree, mesh):
  """A tree of arrays, equal in every process -> global arrays on every device."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(x)), tree)
