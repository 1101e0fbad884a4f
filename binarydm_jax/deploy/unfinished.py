"""A student in the middle of its training, as it computes at that step: what a forced export packs."""

import dataclasses

import flax.traverse_util

from binarydm_jax.quant import LayerRule, deployed_table


def unfinished(table, variables, gates, block_names, layers):
  """(rules as deployed, variables for `packed.export`, names of the blocks that are still in float).

  Blocks that progressive initialisation has not reached are float layers, attention's products too as long as it
  waits; an evolving second basis stays while it lives, at the strength that it has. What such layers do not use is left
  out of "quant".

  Args:
    table: path -> LayerRule that the student trains with.
    variables: {"params", "quant"}.
    gates: `quant.Gates` of the step, or None where nothing changes over time.
    block_names: in the order of `gates.blocks`.
    layers: from `quant.inspect_layers`.
  """
  deployed = deployed_table(table)
  if gates is None:
    return deployed, variables, ()
  if gates.second:
    deployed = {path: dataclasses.replace(rule, weights="multi_basis") if table[path].weights == "evolving" else rule
                for path, rule in deployed.items()}
  waiting = tuple(name for name, on in zip(block_names, gates.blocks, strict=True) if not on)
  off = {layer.path for layer in layers
         if layer.block in waiting or (layer.kind == "matmul" and not gates.attention)}
  deployed = {path: LayerRule() if path in off else rule for path, rule in deployed.items()}
  learned = {}
  for name, value in flax.traverse_util.flatten_dict(variables.get("quant", {}), sep="/").items():
    path, _, leaf = name.rpartition("/")
    if path not in off:
      learned[name] = value * gates.second if leaf == "scale2" and table[path].weights == "evolving" else value
  return deployed, {**variables, "quant": flax.traverse_util.unflatten_dict(learned, sep="/")}, waiting
