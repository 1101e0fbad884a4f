"""The gradient over all devices, written out: weights travel, activations never, gradients are reduced once.

Each device gathers the parameters that are split over `fsdp`, computes the gradient of its own rows of the batch, in
parts if asked for, and the sums meet at the end: one reduction a step, whatever the number of parts.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from binarydm_jax.mesh import AXES


def _axis(spec):
  """The axis that a PartitionSpec splits over "fsdp", or None."""
  return next((axis for axis, name in enumerate(spec) if name == "fsdp"), None)


def _gather(tree, specs):
  def one(x, spec):
    axis = _axis(spec)
    return x if axis is None else jax.lax.all_gather(x, "fsdp", axis=axis, tiled=True)

  return jax.tree.map(one, tree, specs)


def _mean_gradient(tree, specs, count):
  """The mean over devices, each keeping its own part of what is split."""
  leaves, structure = jax.tree.flatten(tree)
  axes = [_axis(spec) for spec in structure.flatten_up_to(specs)]
  leaves = [leaf / count for leaf in leaves]
  for i, axis in enumerate(axes):
    if axis is not None:
      leaves[i] = jax.lax.psum_scatter(leaves[i], "fsdp", scatter_dimension=axis, tiled=True)
  split = [i for i, axis in enumerate(axes) if axis is not None]
  whole = [i for i, axis in enumerate(axes) if axis is None]
  for group, names in ((split, "data"), (whole, AXES)):
    # One operation for the whole group.
    for i, leaf in zip(group, jax.lax.psum([leaves[i] for i in group], names)):
      leaves[i] = leaf
  return jax.tree.unflatten(structure, leaves)


def _in_parts(function, examples, parts):
  """Mean of `function` over `parts` equal parts of the rows of `examples`, one after the other."""
  if parts == 1:
    return function(examples)
  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), examples)
  zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, jax.tree.map(lambda x: x[0], split)))
  total, _ = jax.lax.scan(lambda carry, part: (jax.tree.map(jnp.add, carry, function(part)), None), zero, split)
  return jax.tree.map(lambda x: x / parts, total)


def make_gradient(loss_fn, mesh, variable_specs, frozen_specs, accumulate=1):
  """A function (variables, frozen, examples, step) -> (gradients, metrics): means over the global batch.

  Args:
    loss_fn: (variables, frozen, examples, step) -> (loss, metrics), both means over the rows of `examples`; it sees
      whole parameters and a part of the rows.
    mesh: of axes AXES.
    variable_specs, frozen_specs: trees of PartitionSpec, as from `sharding.parameter_spec`.
    accumulate: parts of a device's rows that are computed one after the other; the gradient is the same but for
      rounding (and at the floor of a scale, 1e-8, where each part decides what passes), the memory of activations
      smaller.
  """

  def local(variables, frozen, examples, step):
    whole, fixed = _gather(variables, variable_specs), _gather(frozen, frozen_specs)

    def of_rows(rows):
      return jax.grad(loss_fn, has_aux=True)(whole, fixed, rows, step)

    gradients, metrics = _in_parts(of_rows, examples, accumulate)
    return _mean_gradient(gradients, variable_specs, mesh.size), jax.lax.pmean(metrics, AXES)

  return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(variable_specs, frozen_specs, PartitionSpec(AXES), PartitionSpec()),
      out_specs=(variable_specs, PartitionSpec()),
      check_vma=False,  # the reductions are written out above
  )
