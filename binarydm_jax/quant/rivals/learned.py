"""The variables of the collection `quant` that activation and response of a rule own: names, shapes, starts."""

import math
import zlib

import jax.numpy as jnp
import numpy as np

from binarydm_jax.quant.rivals import bi_diffsr, tdq

_TIME = tuple(f"time{i}" for i in range(len(tdq.SHAPES)))
_RESPONSE = ("response_slope", "response_gamma", "response_zeta")
# Of all methods; beside them stand the steps of LSQ. A product's operands have a network of the timestep each.
NAMES = ("shift", "moment", *(f"{step}_{time}" for step in ("step", "step_a", "step_b") for time in _TIME), *_RESPONSE)


def operands(is_product):
  """Names of the steps of a layer's inputs."""
  return ("step_a", "step_b") if is_product else ("step",)


def activation_shapes(rule, input_shape, step="step"):
  """name -> shape of what `rule.activation` owns beside the step, for one input.

  Args:
    rule: LayerRule.
    input_shape: of the input without the batch, (..., c).
    step: name of the input's step.
  """
  if rule.activation == "dynamic":
    return {f"{step}_{time}": shape for time, shape in zip(_TIME, tdq.SHAPES)}
  if rule.activation in ("lsq", "asymmetric", "normalised"):
    return {}
  channels = input_shape[-1]
  if rule.activation == "redistributed":
    return {"shift": (bi_diffsr.RANGES, channels)}
  if rule.activation == "instance" and len(input_shape) > 1:
    return {"shift": (channels,), "moment": (channels,)}
  return {"shift": (channels,)}


def response_shapes(rule, features):
  """name -> shape of what `rule.response` owns, for so many output channels."""
  if rule.response == "none":
    return {}
  shape = (features,) if rule.response == "rprelu" else (bi_diffsr.RANGES, features)
  return dict.fromkeys(_RESPONSE, shape)


def initial(name, shape, path):
  """The first value, float32: 1 for slopes, He's for the hidden layers of TDQ's network, else 0.

  Args:
    path: of the layer; with the name it decides what is drawn, whatever the run's seed.
  """
  if name == "response_slope":
    return jnp.ones(shape, jnp.float32)
  if not name.endswith(_TIME[:-1]):
    return jnp.zeros(shape, jnp.float32)
  rng = np.random.default_rng(zlib.crc32(f"{path}/{name}".encode()))
  layer = rng.standard_normal(shape) * math.sqrt(2 / (shape[0] - 1))
  layer[-1] = 0
  return jnp.asarray(layer, jnp.float32)
