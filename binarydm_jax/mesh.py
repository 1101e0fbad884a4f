"""The device mesh: the batch is split over both of its axes; what is trained may be split over `fsdp`."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(devices=None, fsdp=1):
  """A mesh of axes "data" and "fsdp" over all devices, of all hosts.

  Devices stand in the order of their processes, so that each process holds consecutive rows of a batch, and the devices
  that share one copy of the parameters are neighbours.

  Args:
    devices: None takes all.
    fsdp: devices that share one copy of the parameters.
  Raises:
    ValueError: the devices cannot be shared out so.
  """
  devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
  if len(devices) % fsdp:
    raise ValueError(f"mesh.fsdp {fsdp} does not divide {len(devices)} devices")
  grid = np.array(devices).reshape(-1, fsdp)
  # Auto axes: with explicit ones a reduction over a sharded batch raises a sharding type error.
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh):
  """Sharding of the first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def put(tree, shardings):
  """A tree of arrays, equal in every process -> global arrays with a tree of shardings (or one for all)."""
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)

  def put_one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put_one, tree, shardings)


def gather(tree, mesh):
  """A tree of global arrays, however they are split -> the same on every device."""
  return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(x):  # one function, so that it is compiled once
  return x


def wait_for_all(what):
  """Until all processes are here; `what` names the place in errors."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def copy_to(tree, mesh):
  """A tree of arrays -> the same on every device of a mesh of this process, not copied where they are already."""
  here = all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree))
  return jax.device_put(tree, replicated(mesh)) if here else put_replicated(tree, mesh)


def put_replicated(tree, mesh):
  """A tree of arrays, equal in every process -> global arrays on every device."""
  return put(tree, replicated(mesh))
