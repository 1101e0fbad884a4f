"""How far two computations of one packed network agree: the integers that they round activations to, the prediction."""

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax import quant
from binarydm_jax.quant.activations import zero_point_name
from binarydm_jax.quant.step_size import codes

LAYERS = (quant.QuantDense, quant.QuantConv, quant.QuantMatmul)


def _bits_and_steps(module):
  """(bits, [(step, zero point or None) of each operand]) of a quantized layer inside a call; (32, []) of floats."""
  rule = module._rule()
  rule = rule.rule if isinstance(rule, quant.PackedLayer | quant.PackedAttention) else rule
  if rule.act_bits == 32:
    return 32, []
  learned = {**module.variables.get("quant", {}), **module.variables.get("packed", {})}
  names = ("step_a", "step_b") if isinstance(module, quant.QuantMatmul) else ("step",)
  return rule.act_bits, [(learned[name], learned.get(zero_point_name(name))) for name in names]


def activation_codes(model, variables, *inputs):
  """(prediction, path -> list of int16 codes that the operands of each quantized layer round to)."""

  def call(variables, *inputs):
    found = {}

    def intercept(next_method, args, kwargs, context):
      module = context.module
      if context.method_name == "__call__" and isinstance(module, LAYERS):
        bits, steps = _bits_and_steps(module)
        found["/".join(module.path)] = [codes(x, step, bits, zero_point).astype(jnp.int16)
                                        for x, (step, zero_point) in zip(args, steps)]
      return next_method(*args, **kwargs)

    with nn.intercept_methods(intercept):
      return model.apply(variables, *inputs)[0], found

  return jax.jit(call)(variables, *inputs)


def agreement(a, b, *inputs):
  """How far `a` agrees with `b`, both (model, variables) of one network.

  Rounding to few levels turns an error e of a layer's input into one of about sqrt(e) of its output, so that over many
  layers a difference in the last place can grow until it is as large as the rounding itself. Compare with what
  `nudged` variables make of `b`, and see `layer_errors`.

  Args:
    *inputs: of the call: x, timesteps, labels or None.
  Returns:
    dict of "flipped", the share of activation codes that differ; "codes", how many there are; "relative_error", the
    prediction's ||a - b|| / ||b||.
  """
  (first, ours), (second, theirs) = (activation_codes(*network, *inputs) for network in (a, b))
  # Attention as one function does not show its products.
  pairs = [(x, y) for path in theirs if path in ours for x, y in zip(ours[path], theirs[path], strict=True)]
  flipped = sum(int((np.asarray(x) != np.asarray(y)).sum()) for x, y in pairs)
  count = sum(x.size for x, _ in pairs)
  error = np.linalg.norm(np.asarray(first) - np.asarray(second)) / np.linalg.norm(np.asarray(second))
  return dict(flipped=flipped / count if count else 0.0, codes=count, relative_error=float(error))


def nudged(variables, by=1e-7):
  """The variables with every vector of `params` (biases, norms) multiplied by 1 + by: no sign and no step changes."""
  params = jax.tree.map(lambda leaf: leaf * (1 + by) if leaf.ndim == 1 else leaf, variables["params"])
  return {**variables, "params": params}


def layer_errors(packed, trained, *inputs):
  """path -> ||y - y'|| / ||y'|| of each packed layer, y' of the trained network, y of the same input and residual.

  Args:
    packed, trained: (model, variables) of one network, the first with packed layers.
    *inputs: of the call.
  """
  model, variables = packed
  tensors = {path: {} for path in model.rules}
  for name, tensor in flax.traverse_util.flatten_dict(variables["packed"], sep="/").items():
    path, _, part = name.rpartition("/")
    tensors[path][part] = tensor

  def call(tensors, variables, *inputs):
    found = {}

    def intercept(next_method, args, kwargs, context):
      module, y = context.module, next_method(*args, **kwargs)
      path = "/".join(module.path)  # "" for the clone below
      if context.method_name == "__call__" and isinstance(model.rules.get(path), quant.PackedLayer):
        alone = module.clone(rules=model.rules[path], parent=None, name=None)
        ours = alone.apply({"packed": tensors[path]}, args[0], residual=kwargs.get("residual"))
        difference, y32 = (ours - y).astype(jnp.float32), y.astype(jnp.float32)
        found[path] = jnp.linalg.norm(difference) / jnp.linalg.norm(y32)
      return y

    with nn.intercept_methods(intercept):
      trained[0].apply(variables, *inputs)
    return found

  return {path: float(error) for path, error in jax.jit(call)(tensors, trained[1], *inputs).items()}
