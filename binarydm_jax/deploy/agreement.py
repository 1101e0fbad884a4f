"""How far two computations of one packed network agree: the integers that they round activations to, the prediction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax import quant
from binarydm_jax.quant.step_size import codes

LAYERS = (quant.QuantDense, quant.QuantConv, quant.QuantMatmul)


def _bits_and_steps(module):
  """(bits, [step of each operand]) of a quantized layer inside a call; ([], 32 bits) where activations are float."""
  rule = module._rule()
  rule = rule.rule if isinstance(rule, quant.PackedLayer | quant.PackedAttention) else rule
  if rule.act_bits == 32:
    return 32, []
  learned = {**module.variables.get("quant", {}), **module.variables.get("packed", {})}
  names = ("step_a", "step_b") if isinstance(module, quant.QuantMatmul) else ("step",)
  return rule.act_bits, [learned[name] for name in names]


def activation_codes(model, variables, *inputs):
  """(prediction, path -> list of int8 codes that the operands of each quantized layer round to)."""

  def call(variables, *inputs):
    found = {}

    def intercept(next_method, args, kwargs, context):
      module = context.module
      if context.method_name == "__call__" and isinstance(module, LAYERS):
        bits, steps = _bits_and_steps(module)
        found["/".join(module.path)] = [codes(x, step, bits).astype(jnp.int8) for x, step in zip(args, steps)]
      return next_method(*args, **kwargs)

    with nn.intercept_methods(intercept):
      return model.apply(variables, *inputs)[0], found

  return jax.jit(call)(variables, *inputs)


def agreement(a, b, x, *inputs, nudge=0.0):
  """How far `a` agrees with `b`, both (model, variables) of one network.

  Args:
    x, *inputs: of the call: timesteps, labels or None.
    nudge: x is multiplied by 1 + nudge for `a` alone. With a = b it tells what the network itself makes of a
      difference in the last place: rounding to few levels turns an error e of a layer's input into one of about
      sqrt(e) of its output, so a deep network need not agree with itself.
  Returns:
    dict of "flipped", the share of activation codes that differ; "codes", how many there are; "relative_error", the
    prediction's ||a - b|| / ||b||.
  """
  first, ours = activation_codes(*a, x * (1 + nudge), *inputs)
  second, theirs = activation_codes(*b, x, *inputs)
  # Attention as one function does not show its products.
  pairs = [(x, y) for path in theirs if path in ours for x, y in zip(ours[path], theirs[path], strict=True)]
  flipped = sum(int((np.asarray(x) != np.asarray(y)).sum()) for x, y in pairs)
  count = sum(x.size for x, _ in pairs)
  error = np.linalg.norm(np.asarray(first) - np.asarray(second)) / np.linalg.norm(np.asarray(second))
  return dict(flipped=flipped / count if count else 0.0, codes=count, relative_error=float(error))
