"""Quantized layers for flax.linen. `rules=None` is the full-precision layer with the same parameters.

Latent weights live in the collection `params`, scales and activation steps in `quant`. Both are trained: pass
`{"params": ..., "quant": ...}` to `apply` and differentiate with respect to both. `calibrate` makes `quant`
(`binarize` calls it).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from binarydm_jax.quant import activations, rivals, weights
from binarydm_jax.quant.convolution import convolve
from binarydm_jax.quant.gates import LayerGate
from binarydm_jax.quant.packed_entries import PackedAttention, PackedLayer
from binarydm_jax.quant.rules import FULL_PRECISION, LayerRule

# The name of every layer's product for `jax.checkpoint_policies`: what is dear to compute again.
PRODUCT = "binarydm_product"
# Everything quantized, second bases alive, no timesteps.
ALL_ON = LayerGate()


class _Quantized(nn.Module):
  """Shared by the layers: looks the rule up and owns the variables of the collection `quant`."""

  def _rule(self):
    rules = self.rules
    if rules is None or isinstance(rules, LayerRule | PackedLayer):
      return rules or FULL_PRECISION
    path = "/".join(self.path)
    if not isinstance(rules, Mapping):
      raise TypeError(f"rules of {path!r} is a {type(rules).__name__}: resolve it, `quant.resolve(rules, model, x)`")
    if path not in rules:
      raise ValueError(f"layer {path!r} is not in the rule table: resolve the rules with the module that you apply")
    return rules[path]

  def _learned(self, name, initial):
    """A variable of `quant`, made by `initial()` while the collection is mutable (init and calibrate)."""
    if not self.has_variable("quant", name) and not self.is_mutable_collection("quant"):
      path = "/".join(self.path)
      if self.scope.root.variables().get("quant"):
        raise ValueError(f"{path}: the collection 'quant' has no {name!r} for it, so it was made by other rules")
      raise ValueError(
          f"{path}/{name}: no collection 'quant' was given; apply the model with"
          " {'params': ..., 'quant': ...} and train both; `quant.binarize` or `quant.calibrate` makes the second"
      )
    return self.variable("quant", name, initial).value

  def _compute_dtype(self, x):
    """The layer's `dtype`, else the input's; float32 for integers, in which a kernel would be cut to zero."""
    return self.dtype or (x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)

  def _timesteps(self, rule, x, gate):
    """The timesteps [batch] of a rule that depends on them, else None."""
    if not rule.timed:
      return None
    path = "/".join(self.path)
    if gate.timesteps is None:
      raise ValueError(
          f"layer {path!r} depends on the timestep ({rule.activation}, {rule.response}): call it with"
          " quant.LayerGate(timesteps=...)"
      )
    if gate.timesteps.shape != x.shape[:1]:
      raise ValueError(f"layer {path!r} has timesteps of shape {gate.timesteps.shape} for an input {x.shape}")
    return gate.timesteps

  def _activation(self, x, name, rule, gate, on):
    if rule.act_bits == 32:
      return x
    if rule.activation == "lsq":
      step = self._learned(name, lambda: activations.initial_activation_step(x, rule.act_bits))
      quantized = activations.lsq_activation(x, step, rule.act_bits)
    elif rule.activation == "asymmetric":
      fitted = functools.cache(lambda: activations.fit_levels(x, rule.act_bits))
      step = self._learned(name, lambda: fitted()[0])
      zero_point = self._learned(activations.zero_point_name(name), lambda: fitted()[1])
      quantized = activations.lsq_activation(x, step, rule.act_bits, zero_point)
    else:
      timesteps = self._timesteps(rule, x, gate)
      quantized = rivals.quantize(x, rule, self._learned, "/".join(self.path), name, timesteps)
    return quantized if on is None else jnp.where(on > 0, quantized, x)

  def _kernel(self, kernel, rule, gate):
    """The kernel as the rule has it, in float32 (scales stay float32: bfloat16 drops late-training updates)."""
    if rule.weights == "float":
      return kernel
    if rule.weights == "lsq":
      step = self._learned("weight_step", lambda: weights.initial_weight_step(kernel, rule.weight_bits))
      quantized, waiting = weights.lsq_weight(kernel, step, rule.weight_bits), kernel
    else:
      scale1 = self._learned("scale1", lambda: weights.initial_scale1(kernel))
      if rule.bases == 1:
        quantized = weights.one_basis(kernel, scale1)
      else:
        scale2 = self._learned("scale2", lambda: weights.initial_scale2(kernel))
        second = gate.second if rule.weights == "evolving" else None
        quantized = weights.multi_basis(kernel, scale1, scale2, second)
      waiting = weights.not_yet_binarized(kernel, scale1)
    return quantized if gate.on is None else jnp.where(gate.on > 0, quantized, waiting)

  def _operands(self, x, kernel_shape, rule, gate):
    """(x, kernel) quantized by the rule and cast to the compute type."""
    kernel = self.param("kernel", self.kernel_init, kernel_shape, jnp.float32)
    dtype = self._compute_dtype(x)
    x = self._activation(x.astype(dtype), "step", rule, gate, gate.on)
    return x, self._kernel(kernel, rule, gate).astype(dtype)

  def _finish(self, y, residual, rule, gate):
    """response(y + bias) + residual."""
    if self.use_bias:
      y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(y.dtype)
    if rule.response != "none":
      answer = rivals.respond(y, rule, self._learned, "/".join(self.path), self._timesteps(rule, y, gate))
      y = answer if gate.on is None else jnp.where(gate.on > 0, answer, y)
    return y if residual is None else residual + y

  def _packed(self, entry, x, residual, gate, **geometry):
    """The layer by `entry.run`: see PackedLayer."""
    path = "/".join(self.path)
    if gate.on is not None:
      raise ValueError(f"layer {path!r} is packed: what a gate could switch is gone")
    if "packed" not in self.variables:
      raise ValueError(f"layer {path!r} is packed, and no collection 'packed' was given")
    dtype = self._compute_dtype(x)
    return entry.run(entry.rule, self.variables["packed"], x.astype(dtype), residual, **geometry).astype(dtype)


class QuantDense(_Quantized):
  """Linear layer [..., cin] -> [..., features].

  Attributes:
    features: output channels.
    use_bias: adds a float bias.
    rules: None (full precision), a LayerRule, or the table from `quant.resolve`.
    dtype: compute type; None takes the input's, float32 where that is of integers.
    kernel_init: initializer of the latent weights.
  """

  features: int
  use_bias: bool = True
  rules: LayerRule | Mapping[str, LayerRule] | None = None
  dtype: Any = None
  kernel_init: Any = nn.initializers.lecun_normal()

  def kernel_shape(self, channels):
    return (channels, self.features)

  @nn.compact
  def __call__(self, x, gate: LayerGate | None = None, residual=None):
    """residual: None, or an array that is added to the output; gate None: everything quantized."""
    gate = ALL_ON if gate is None else gate
    entry, shape = self._rule(), self.kernel_shape(x.shape[-1])
    if isinstance(entry, PackedLayer):
      rows = x.reshape(1, 1, -1, x.shape[-1])
      added = None if residual is None else residual.reshape(1, 1, -1, self.features)
      y = self._packed(entry, rows, added, gate, kernel_shape=(1, 1, *shape), stride=1, padding=((0, 0), (0, 0)))
      return y.reshape(*x.shape[:-1], self.features)
    x, kernel = self._operands(x, shape, entry, gate)
    return self._finish(checkpoint_name(x @ kernel, PRODUCT), residual, entry, gate)


class QuantConv(_Quantized):
  """2-d convolution, NHWC and HWIO: [batch, h, w, cin] -> [batch, h', w', features].

  Attributes:
    features: output channels.
    kernel_size: (height, width).
    strides: one number for both axes, or two that are equal.
    padding: "SAME", "VALID", ((top, bottom), (left, right)), one number for all sides, or (rows, columns).
    use_bias, rules, dtype, kernel_init: as in `QuantDense`.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: int | tuple[int, int] = 1
  padding: Any = "SAME"
  use_bias: bool = True
  rules: LayerRule | Mapping[str, LayerRule] | None = None
  dtype: Any = None
  kernel_init: Any = nn.initializers.lecun_normal()

  def kernel_shape(self, channels):
    return (*self.kernel_size, channels, self.features)

  def _geometry(self):
    """(stride, padding) as `convolve` has them, from the spellings of flax.linen.Conv."""
    strides = set(np.atleast_1d(1 if self.strides is None else self.strides).tolist())
    if len(strides) > 1:
      raise ValueError(f"{'/'.join(self.path)}: strides {self.strides} differ by axis, which is not supported")
    padding = self.padding
    if not isinstance(padding, str):
      sides = (padding, padding) if isinstance(padding, int) else padding
      padding = tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
    return strides.pop(), padding

  @nn.compact
  def __call__(self, x, gate: LayerGate | None = None, residual=None):
    """residual: None, or an array that is added to the output; gate None: everything quantized."""
    gate = ALL_ON if gate is None else gate
    entry, shape, (stride, padding) = self._rule(), self.kernel_shape(x.shape[-1]), self._geometry()
    if isinstance(entry, PackedLayer):
      if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], self.kernel_size, (stride, stride), padding)
      return self._packed(entry, x, residual, gate, kernel_shape=shape, stride=stride, padding=tuple(padding))
    x, kernel = self._operands(x, shape, entry, gate)
    y = checkpoint_name(convolve(x, kernel, stride, padding), PRODUCT)
    return self._finish(y, residual, entry, gate)


class QuantMatmul(_Quantized):
  """Product of two activations, as in attention: einsum of both after each is quantized with a step of its own.

  Attributes:
    equation: of `jnp.einsum`, batch first, such as "bqhd,bkhd->bhqk".
    rules: as in `QuantDense`; only `act_bits` and `activation` matter.
  """

  equation: str
  rules: LayerRule | Mapping[str, LayerRule] | None = None

  def macs(self, a_shape, b_shape):
    """Multiply-accumulates of one example."""
    operands, arrow, _ = self.equation.replace(" ", "").partition("->")
    if not arrow or "." in operands:
      raise ValueError(f"QuantMatmul needs a letter for each axis, as in 'bqhd,bkhd->bhqk', not {self.equation!r}")
    sizes = {}
    for names, shape in zip(operands.split(","), (a_shape, b_shape), strict=True):
      sizes.update(zip(names, shape, strict=True))
    sizes.pop(operands[0])  # the batch
    return math.prod(sizes.values())

  @property
  def entry(self):
    """Its entry in the rule table, a LayerRule or a PackedAttention."""
    return self._rule()

  @property
  def bits(self):
    """Of both operands."""
    return self._own_rule().act_bits

  def _own_rule(self):
    return self.entry.rule if isinstance(self.entry, PackedAttention) else self.entry.of_product()

  @nn.compact
  def __call__(self, a, b, gate: LayerGate | None = None):
    gate, rule = ALL_ON if gate is None else gate, self._own_rule()
    on = gate.on if gate.on is None or gate.attention is None else gate.on * gate.attention
    a, b = self._activation(a, "step_a", rule, gate, on), self._activation(b, "step_b", rule, gate, on)
    return checkpoint_name(jnp.einsum(self.equation, a, b), PRODUCT)


def calibrate(model, params, *inputs, **kwargs):
  """The collection `quant` for given weights: one forward pass with every layer quantized.

  Weight scales start from the weights, each activation step at 2 mean|x| / sqrt(qp) of what reaches its layer, or
  with its zero point where `activations.fit_levels` has them.

  Args:
    model: a flax module with quantized layers.
    params: its latent weights, such as a trained full-precision network's.
    *inputs, **kwargs: of the call.
  Returns:
    The tree for `{"params": params, "quant": tree}`; {} if no layer is quantized.
  """
  _, variables = model.apply({"params": params}, *inputs, mutable=["quant"], **kwargs)
  return variables.get("quant", {})
