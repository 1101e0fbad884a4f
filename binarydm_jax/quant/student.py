"""From a full-precision flax module of your own to a quantized student and one tree of all that is trained."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.quant.inspection import inspect_layers
from binarydm_jax.quant.layers import calibrate
from binarydm_jax.quant.packed_variables import ZERO_POINTS
from binarydm_jax.quant.rules import Rules


def binarize(model, params, rules, *inputs, **kwargs):
  """(student, variables): `model` with the rules, and all that is to be trained, calibrated on `inputs`.

  `variables` is one tree, {"params": latent weights, "quant": scales and activation steps}, and is trained as one:
  `jax.grad` of a loss of `student.apply(variables, ...)`, `optimizer.init(variables)`, `TrainState.create(
  params=variables, ...)`. To train variables["params"] alone runs without complaint where "quant" is closed over, and
  leaves every scale and step where calibration put it: `untrained` tells. Mask weight decay off "quant".

  Not supported: collections beside `params` (batch statistics), and calls that draw random numbers (switch dropout off
  by an argument). Layers inside `nn.scan` or `nn.vmap` need "quant" among their `variable_axes`; they train, but
  `inspect_layers` counts them once and `pack` refuses their stacked kernels.

  Args:
    model: a flax.linen module with an attribute `rules`, None here, that it hands to its QuantDense, QuantConv and
      QuantMatmul (and to the modules that hold them). `student.rules` is the table that `pack` needs.
    params: its full-precision parameters, trained or fresh; copied, so that training may donate `variables`.
    rules: `Rules`, such as `preset("lmb", act_bits=4)`.
    *inputs, **kwargs: of the call; the inputs are arrays, batch first, a typical batch of data.
  Raises:
    TypeError: the module has no attribute `rules`; `rules` is not a `Rules`.
    ValueError: the module already has rules, or no quantized layer, or one that is not given them; `params` holds
      collections; a rule matches no layer, or has no effect; a layer has no rule.
  """
  name = type(model).__name__
  if not isinstance(rules, Rules):
    raise TypeError(f"rules is a {type(rules).__name__}: give `quant.preset(...)` or `quant.Rules(...)`")
  if "rules" not in {field.name for field in dataclasses.fields(model)}:
    raise TypeError(f"{name} has no attribute `rules`: add `rules: Any = None` and give its layers `rules=self.rules`")
  if model.rules is not None:
    raise ValueError(f"{name} already has rules: binarize the full-precision module, rules=None")
  if "params" in params:
    raise ValueError("params holds collections: give variables['params']; other collections are not supported")
  layers = inspect_layers(model, *inputs, **kwargs)
  if not layers:
    raise ValueError(f"{name} has no quantizable layer: use quant.QuantDense in place of nn.Dense, and the like")
  table = rules.resolve(layers)
  student = model.clone(rules=table)
  learned = jax.jit(lambda params, *inputs: calibrate(student, params, *inputs, **kwargs))(params, *inputs)
  quantized = {path for path, rule in table.items() if rule.weights != "float" or rule.act_bits != 32}
  # A layer that was never given the table would stay in full precision without a word.
  missed = quantized - {path.rpartition("/")[0] for path in _flat(learned)}
  if missed:
    raise ValueError(f"layer {min(missed)!r} stayed in full precision: give it `rules=self.rules` where it is made")
  return student, {"params": jax.tree.map(jnp.copy, params), "quant": learned}


def untrained(before, after):
  """Paths of the leaves that training left exactly as they were, such as ["quant/qkv/step"]; [] if all moved.

  A check for after some steps. All of "quant" in the list means that the optimizer was given `params` alone. A single
  leaf may be there with reason: no gradient reaches it yet, as behind a gate that starts at zero. Zero points are left
  out: they are not trained.

  Args:
    before: {"params", "quant"} as `binarize` gave it, not donated (`jax.device_get` keeps it).
    after: the same tree later; what it lacks counts as untrained.
  """
  after = _flat(jax.device_get(after))
  return [name for name, leaf in _flat(jax.device_get(before)).items()
          if name.rpartition("/")[2] not in ZERO_POINTS
          and (name not in after or np.array_equal(leaf, after[name]))]


def _flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")
