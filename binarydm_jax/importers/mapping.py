"""Tensors of a published checkpoint <-> our parameter tree, entry by entry; every tensor is used exactly once."""

from typing import NamedTuple

import flax.traverse_util
import numpy as np


class CheckpointError(ValueError):
  """A checkpoint that cannot be imported; the message names the file and says why."""


class Entry(NamedTuple):
  """Where one of our parameters comes from.

  Attributes:
    ours: its path in the tree, joined by "/".
    theirs: names in the checkpoint; several (queries, keys, values) are joined along the output channels.
    heads: how joined tensors are interleaved: our order is [head, part, channel].
    ones: trailing dimensions of size 1 that their linear layers have (1x1 convolutions).
  """

  ours: str
  theirs: tuple
  heads: int = 1
  ones: int = 0


def _to_ours(tensors, entry, shape):
  """Their arrays -> our array, or None where the shapes do not allow it."""
  joined = tensors[0]
  if len({t.shape for t in tensors}) != 1 or not joined.ndim:
    return None
  if len(tensors) > 1:
    if len(joined) % entry.heads:
      return None
    parts = [t.reshape(entry.heads, -1, *t.shape[1:]) for t in tensors]
    joined = np.stack(parts, axis=1).reshape(-1, *joined.shape[1:])
  if entry.ours.endswith("kernel"):
    if len(shape) == 4:  # OIHW -> HWIO
      joined = joined.transpose(2, 3, 1, 0) if joined.ndim == 4 else joined
    elif joined.ndim >= 2 and set(joined.shape[2:]) <= {1}:  # OI, or OI1, or OI11
      joined = joined.reshape(joined.shape[:2]).T
  return joined if joined.shape == tuple(shape) else None


def _to_theirs(array, entry):
  """The inverse of `_to_ours`."""
  if entry.ours.endswith("kernel"):
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T.reshape(*array.T.shape, *[1] * entry.ones)
  if len(entry.theirs) == 1:
    return [array]
  parts = array.reshape(entry.heads, len(entry.theirs), -1, *array.shape[1:])
  return [parts[:, i].reshape(-1, *array.shape[1:]) for i in range(len(entry.theirs))]


def _listed(what, names, most=8):
  names = sorted(names)
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return f"{len(names)} {what}: {', '.join(names[:most])}{more}"


def as_arrays(tensors, source):
  """name -> numpy array or torch tensor -> name -> numpy array.

  Raises:
    CheckpointError: a tensor that is not as large as it says, sparse, nested, or without data: what a file may claim.
  """
  arrays = {}
  for name, tensor in tensors.items():
    if isinstance(tensor, np.ndarray):
      arrays[name] = tensor
      continue
    try:
      if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("it repeats its values")
      arrays[name] = tensor.detach().float().numpy()
    except Exception as error:  # torch has an exception of its own for each kind of tensor
      reason = " ".join(str(error).split())[:120]
      raise CheckpointError(f"{source}: tensor {name} is not an array of numbers ({reason})") from None
  return arrays


def convert(tensors, entries, shapes, source):
  """Their tensors -> our parameter tree.

  Args:
    tensors: name -> numpy array.
    entries: one Entry for each of our parameters.
    shapes: our path -> shape.
    source: the file, for messages.
  Returns:
    Nested dict of float32 arrays.
  Raises:
    CheckpointError: tensors are missing, left over, of another shape or not finite; all are named in one message.
  """
  params, missing, wrong, broken, used = {}, [], [], [], set()
  for entry in entries:
    absent = [name for name in entry.theirs if name not in tensors]
    missing += absent
    used.update(entry.theirs)
    if absent:
      continue
    arrays = [np.asarray(tensors[name], np.float32) for name in entry.theirs]
    array = _to_ours(arrays, entry, shapes[entry.ours])
    if array is None:
      wrong.append(f"{entry.theirs[0]} {list(arrays[0].shape)} (for {entry.ours} {list(shapes[entry.ours])})")
    elif not np.isfinite(array).all():
      broken += entry.theirs
    else:
      params[entry.ours] = np.ascontiguousarray(array)
  left = set(tensors) - used
  problems = [(missing, "missing"), (left, "left over"), (wrong, "of another shape"), (broken, "not finite")]
  found = [_listed(what, names) for names, what in problems if names]
  if found:
    raise CheckpointError(f"{source} does not fit the configured network; tensors {'; '.join(found)}")
  return flax.traverse_util.unflatten_dict(params, sep="/")


def restore(params, entries):
  """Our parameter tree -> their tensors (name -> numpy array): the inverse of `convert`."""
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  tensors = {}
  for entry in entries:
    # Contiguous: safetensors writes the memory as it lies.
    arrays = map(np.ascontiguousarray, _to_theirs(np.asarray(flat[entry.ours]), entry))
    tensors.update(zip(entry.theirs, arrays))
  return tensors
