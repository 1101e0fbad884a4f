"""A layer's input and output by the rule's `activation` and `response`."""

import math

import jax

from binarydm_jax.quant import activations, step_size
from binarydm_jax.quant.rivals import bi_diffsr, insta_bnn, q_dm, reactnet, tdq
from binarydm_jax.quant.rivals.learned import activation_shapes, initial, response_shapes


def quantize(x, rule, learned, path, step_name, timesteps):
  """x quantized by a rule whose `activation` is not "lsq": shape and dtype of x.

  Args:
    x: float [batch, ..., c].
    rule: LayerRule.
    learned: (name, () -> first value) -> the variable's value, made if there is none.
    path: of the layer.
    step_name: of the variable that holds this input's step.
    timesteps: [batch], or None where the rule needs none.
  """
  bits = rule.act_bits
  values = _values(activation_shapes(rule, x.shape[1:], step_name), learned, path)
  if rule.activation == "normalised":
    z, mean, deviation = q_dm.normalise(x)
    return (_lsq(z, bits, learned, step_name) * deviation + mean).astype(x.dtype)
  if rule.activation == "dynamic":
    step = learned(step_name, lambda: activations.initial_activation_step(x, bits))
    steps = step * tdq.step_factor(timesteps, list(values.values()))
    scale = 1 / math.sqrt(math.prod(x.shape[1:]) * step_size.levels(bits)[1])
    return jax.vmap(lambda x, step: step_size.lsq(x, step, bits, scale))(x, steps)
  shift = values["shift"]
  if rule.activation == "redistributed":
    shift = bi_diffsr.select(shift, timesteps, rule.num_timesteps, x.ndim)
  elif "moment" in values:
    shift = insta_bnn.threshold(x, shift, values["moment"])
  return _lsq(reactnet.shift(x, shift), bits, learned, step_name)


def respond(y, rule, learned, path, timesteps):
  """y [batch, ..., c] after `rule.response`: shape and dtype of y. Arguments as in `quantize`."""
  values = _values(response_shapes(rule, y.shape[-1]), learned, path).values()
  if rule.response == "timed_rprelu":
    values = [bi_diffsr.select(table, timesteps, rule.num_timesteps, y.ndim) for table in values]
  return reactnet.rprelu(y, *values)


def _lsq(x, bits, learned, step_name):
  step = learned(step_name, lambda: activations.initial_activation_step(x, bits))
  return activations.lsq_activation(x, step, bits)


def _values(shapes, learned, path):
  return {name: learned(name, lambda name=name, shape=shape: initial(name, shape, path))
          for name, shape in shapes.items()}
