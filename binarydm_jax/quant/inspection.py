"""Walks a flax model abstractly and lists its quantizable layers: paths, shapes, resolution, cost."""

import dataclasses
import math

import flax.linen as nn
import jax

from binarydm_jax.quant.layers import QuantConv, QuantDense, QuantMatmul

KINDS = {"conv": QuantConv, "dense": QuantDense, "matmul": QuantMatmul}


@dataclasses.dataclass(frozen=True)
class LayerInfo:
  """One quantizable layer, at batch size 1.

  Attributes:
    path: flax path joined by "/".
    kind: "conv", "dense" or "matmul".
    block: first component of the path.
    kernel_shape: HWIO, [cin, cout], or () for a matmul.
    use_bias: whether a bias is added.
    input_shape, output_shape: without the batch.
    resolution: of the block, relative to the network input (see rules.py).
    macs: multiply-accumulates for one example.
  """

  path: str
  kind: str
  block: str
  kernel_shape: tuple
  use_bias: bool
  input_shape: tuple
  output_shape: tuple
  resolution: float
  macs: int

  @property
  def size(self):
    """Number of weights."""
    return math.prod(self.kernel_shape) if self.kernel_shape else 0


def _map_size(tree):
  """Height of the first [batch, h, w, c] array in a tree of inputs or outputs, or None."""
  for leaf in jax.tree.leaves(tree):
    if getattr(leaf, "ndim", 0) == 4:
      return leaf.shape[1]
  return None


def inspect_layers(model, *inputs, **kwargs):
  """Every QuantConv, QuantDense and QuantMatmul of `model`, in the order of the calls, as LayerInfo.

  Nothing is computed and no weight is allocated.

  Args:
    model: a flax module that is called as `model(*inputs, **kwargs)`; its `rules` should be None here.
    *inputs: arrays or `jax.ShapeDtypeStruct`, batch first.
  """
  calls, blocks = [], {}

  def intercept(next_method, args, kwargs, context):
    outputs = next_method(*args, **kwargs)
    module = context.module
    if context.method_name != "__call__" or not module.path:
      return outputs
    if len(module.path) == 1:
      sizes = [size for size in (_map_size((args, kwargs)), _map_size(outputs)) if size]
      if sizes:
        blocks[module.path[0]] = min(sizes + [blocks.get(module.path[0], math.inf)])
    if isinstance(module, tuple(KINDS.values())):
      operands = [*args, *(kwargs[name] for name in ("x", "a", "b") if name in kwargs)]
      calls.append((module, operands, outputs.shape[1:]))
    return outputs

  def walk(*arrays):
    with nn.intercept_methods(intercept):
      return model.init(jax.random.key(0), *arrays, **kwargs)

  jax.eval_shape(walk, *inputs)
  network = _map_size(inputs) or _map_size(kwargs)
  layers = {}
  for module, operands, output_shape in calls:
    path = "/".join(module.path)
    input_shape = operands[0].shape[1:]
    size = blocks.get(module.path[0])
    kernel_shape = module.kernel_shape(input_shape[-1]) if not isinstance(module, QuantMatmul) else ()
    if kernel_shape:
      macs = math.prod(output_shape[:-1]) * math.prod(kernel_shape)
    else:
      macs = module.macs(operands[0].shape, operands[1].shape)
    if path in layers:  # one layer called again: its weights count once, its work each time
      layers[path] = dataclasses.replace(layers[path], macs=layers[path].macs + macs)
      continue
    layers[path] = LayerInfo(
        path,
        next(kind for kind, classes in KINDS.items() if isinstance(module, classes)),
        module.path[0],
        kernel_shape,
        getattr(module, "use_bias", False),
        tuple(input_shape),
        tuple(output_shape),
        size / network if size and network else 1.0,
        macs,
    )
  return list(layers.values())


def resolve(rules, model, *inputs, **kwargs):
  """`rules` -> table path -> LayerRule for `model`, to be given back to it: `model.clone(rules=table)`.

  Raises:
    ValueError: a rule matches no layer, or has no effect; a layer has no rule.
  """
  return rules.resolve(inspect_layers(model, *inputs, **kwargs))
