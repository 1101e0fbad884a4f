"""Layers by rules of compared methods: against PyTorch's autograd, the start, gates, timesteps, one's own module."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from binarydm_jax import quant
from binarydm_jax.quant import LayerGate, LayerRule, QuantConv, QuantDense, QuantMatmul, rivals
from binarydm_jax.quant.rivals import bi_diffsr, tdq

BITS, T = 3, 1000
TIMES = np.array([10, 450, 990])
X = np.random.default_rng(0).standard_normal((3, 2, 3, 4)).astype(np.float32)  # [batch, h, w, c]


def rule_of(activation="lsq", response="none", weights="float"):
  return LayerRule(weights, act_bits=BITS, activation=activation, response=response, num_timesteps=T)


def filled(shapes, seed=1):
  """name -> values of a size that moves codes and bends, none of them where a method starts."""
  rng = np.random.default_rng(seed)
  return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


# --- an independent implementation, with PyTorch's gradients ----------------------------------------------------------


def torch_lsq(x, step, features):
  """LSQ as its paper's appendix has it: scaled gradient of the step, straight-through rounding."""
  qn, qp = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
  part = 1 / math.sqrt(features * qp)
  step = step * part + (step - step * part).detach()
  v = torch.clamp(x / step, qn, qp)
  return (v + (v.round() - v).detach()) * step


def torch_quantize(activation, x, p):
  per_example = (-1,) + (1,) * (x.ndim - 1)
  features = x[0].numel()
  if activation == "normalised":
    flat = x.reshape(len(x), -1)
    mean, deviation = flat.mean(1), (flat.var(1, unbiased=False) + 1e-6).sqrt()
    mean, deviation = mean.reshape(per_example), deviation.reshape(per_example)
    return torch_lsq((x - mean) / deviation, p["step"], features) * deviation + mean
  if activation == "dynamic":
    t = torch.from_numpy(TIMES).float()[:, None] / 10_000 ** (torch.arange(8) / 8)
    h = torch.cat([t.sin(), t.cos()], 1)
    for i, name in enumerate(("step_time0", "step_time1", "step_time2")):
      h = torch.nn.functional.linear(h, p[name][:-1].T, p[name][-1])
      h = h.relu() if i < 2 else h
    factor = torch.nn.functional.softplus(h[:, 0] + math.log(math.e - 1))
    return torch_lsq(x, (p["step"] * factor).reshape(per_example), features)
  if activation == "redistributed":
    shift = torch.stack([p["shift"][int(5 * t / T)] for t in TIMES]).reshape(len(x), 1, 1, -1)
  else:
    shift = p["shift"]
  if activation == "instance":
    flat = x.reshape(len(x), -1)
    z = (x - flat.mean(1).reshape(per_example)) / (flat.var(1, unbiased=False) + 1e-6).sqrt().reshape(per_example)
    shift = shift + p["moment"] * (z**3).mean((1, 2), keepdim=True)
  return torch_lsq(x - shift, p["step"], features)


def torch_respond(response, y, p):
  names = ("response_slope", "response_gamma", "response_zeta")
  if response == "timed_rprelu":
    slope, gamma, zeta = (torch.stack([p[n][int(5 * t / T)] for t in TIMES])[:, None, None] for n in names)
  else:
    slope, gamma, zeta = (p[n] for n in names)
  moved = y - gamma
  return torch.maximum(moved, torch.zeros(())) + slope * torch.minimum(moved, torch.zeros(())) + zeta


def compare(ours, theirs, x, values):
  """Values, and gradients with respect to x and all variables, for one random cotangent."""
  value, pullback = jax.vjp(lambda x, p: ours(x, p), jnp.asarray(x), {n: jnp.asarray(v) for n, v in values.items()})
  cotangent = np.random.default_rng(2).standard_normal(value.shape).astype(np.float32)
  gradient_x, gradients = pullback(jnp.asarray(cotangent))
  tx = torch.tensor(x, requires_grad=True)
  tp = {name: torch.tensor(v, requires_grad=True) for name, v in values.items()}
  wanted = theirs(tx, tp)
  wanted.backward(torch.from_numpy(cotangent))
  np.testing.assert_allclose(value, wanted.detach(), atol=2e-5)
  np.testing.assert_allclose(gradient_x, tx.grad, atol=2e-4)
  for name in values:
    assert np.abs(gradients[name]).sum() > 0, name
    np.testing.assert_allclose(gradients[name], tp[name].grad, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("activation", ["normalised", "dynamic", "shifted", "instance", "redistributed"])
def test_activations_against_torch(activation):
  """Forward, and the gradients of the input, the step and every variable of the method."""
  rule = rule_of(activation)
  values = {**filled(rivals.activation_shapes(rule, X.shape[1:])), "step": np.float32(0.4)}

  def ours(x, p):
    return rivals.quantize(x, rule, lambda name, _: p[name], "layer", "step", jnp.asarray(TIMES))

  compare(ours, lambda x, p: torch_quantize(activation, x, p), X, values)


@pytest.mark.parametrize("response", ["rprelu", "timed_rprelu"])
def test_responses_against_torch(response):
  rule = rule_of(response=response)
  values = filled(rivals.response_shapes(rule, X.shape[-1]))

  def ours(y, p):
    return rivals.respond(y, rule, lambda name, _: p[name], "layer", jnp.asarray(TIMES))

  compare(ours, lambda y, p: torch_respond(response, y, p), X, values)


# --- inside layers ----------------------------------------------------------------------------------------------------

GATE = LayerGate(timesteps=jnp.asarray(TIMES))
PARAMS = filled({"kernel": (4, 5), "bias": (5,)}, seed=3)


def dense(rule, variables, x=X, gate=GATE, residual=None):
  return QuantDense(5, rules=rule).apply({"params": PARAMS, "quant": variables}, jnp.asarray(x), gate, residual)


def calibrated(rule, x=X, gate=GATE):
  return quant.calibrate(QuantDense(5, rules=rule), PARAMS, jnp.asarray(x), gate)


@pytest.mark.parametrize("name", quant.RIVALS)
def test_the_start_is_the_baselines(name):
  """At calibration a rival's layer computes what the baseline's does, bit for bit; Q-DM normalises, and does not."""
  activation, response = quant.RIVALS[name]
  plain, rule = (rule_of(*how, "one_basis") for how in (("lsq", "none"), (activation, response)))
  wanted, got = (dense(r, calibrated(r)) for r in (plain, rule))
  if name != "q_dm":
    np.testing.assert_array_equal(got, wanted)
  else:
    assert float(jnp.abs(got - wanted).max()) > 1e-3


@pytest.mark.parametrize("name", ["bi_diffsr", "tdq"])
def test_the_timestep_matters_once_the_variables_have_moved(name):
  """Another timestep changes nothing at the start and everything of that example, no other, afterwards."""
  rule = rule_of(*quant.RIVALS[name], "one_basis")
  start = calibrated(rule)
  other = LayerGate(timesteps=jnp.array([10, 450, 30]))
  np.testing.assert_array_equal(dense(rule, start), dense(rule, start, gate=other))
  moved = {**start, **filled({n: v.shape for n, v in start.items() if n in rivals.NAMES})}
  a, b = dense(rule, moved), dense(rule, moved, gate=other)
  np.testing.assert_array_equal(a[:2], b[:2])
  assert float(jnp.abs(a[2] - b[2]).max()) > 1e-2


@pytest.mark.parametrize("activation", ["normalised", "instance"])
def test_statistics_are_of_the_example_alone(activation):
  """An example's output does not depend on what else is in the batch; it does on its own other pixels."""
  rule = rule_of(activation, weights="one_basis")
  variables = {**calibrated(rule), **filled(rivals.activation_shapes(rule, X.shape[1:]))}
  whole = dense(rule, variables)
  np.testing.assert_allclose(dense(rule, variables, X[1:2]), whole[1:2], atol=1e-5)
  changed = X.copy()
  changed[1, 0, 0] += 3
  assert float(jnp.abs(dense(rule, variables, changed)[1, 1:] - whole[1, 1:]).max()) > 1e-2


def test_response_stands_between_bias_and_residual():
  """rprelu(x w + b) + residual, of a layer in float with no quantized input."""
  rule = LayerRule(response="rprelu")
  values = filled(rivals.response_shapes(rule, 5))
  residual = np.ones((3, 2, 3, 5), np.float32)
  y = X @ PARAMS["kernel"] + PARAMS["bias"]
  wanted = torch_respond("rprelu", torch.from_numpy(y), {n: torch.from_numpy(v) for n, v in values.items()}) + 1
  np.testing.assert_allclose(dense(rule, values, residual=residual), wanted, atol=1e-5)


@pytest.mark.parametrize("name", quant.RIVALS)
def test_a_gate_that_is_off_leaves_the_float_layer(name):
  """Before its ring a layer neither quantizes nor responds; the same variables act once the gate is 1."""
  rule = rule_of(*quant.RIVALS[name], "one_basis")
  start = calibrated(rule)
  variables = {**start, **filled({n: v.shape for n, v in start.items() if n in rivals.NAMES})}
  one = jnp.float32(1)
  off, on = (LayerGate(jnp.float32(value), one, one, jnp.asarray(TIMES)) for value in (0, 1))
  wanted = QuantDense(5).apply({"params": PARAMS}, jnp.asarray(X))
  np.testing.assert_array_equal(dense(rule, variables, gate=off), wanted)
  np.testing.assert_array_equal(dense(rule, variables, gate=on), dense(rule, variables))


def test_a_layer_without_pixels_has_no_moment():
  """INSTA-BNN on [batch, c]: a learned constant alone."""
  rule = rule_of("instance")
  assert set(calibrated(rule, X[:, 0, 0])) == {"step", "shift"}
  assert set(calibrated(rule)) == {"step", "shift", "moment"}


@pytest.mark.parametrize("activation, names", [
  ("shifted", {"step_a", "step_b"}), ("instance", {"step_a", "step_b"}), ("redistributed", {"step_a", "step_b"}),
  ("normalised", {"step_a", "step_b"}),
  ("dynamic", {f"step_{x}{y}" for x in "ab" for y in ("", "_time0", "_time1", "_time2")}),
])  # fmt: skip
def test_products_have_no_channels(activation, names):
  """Shifts per channel do not reach attention's products, whose operands have none; steps by time and norms do."""
  rule = rule_of(activation).of_product()
  product = QuantMatmul("bhwc,bkwc->bhwk", rules=rule)
  learned = quant.calibrate(product, {}, jnp.asarray(X), jnp.asarray(X), GATE)
  assert set(learned) == names
  value = product.apply({"quant": learned}, jnp.asarray(X), jnp.asarray(X), GATE)
  plain = QuantMatmul("bhwc,bkwc->bhwk", rules=LayerRule(act_bits=BITS))
  same = {name: learned[name] for name in ("step_a", "step_b")}
  equal = np.array_equal(value, plain.apply({"quant": same}, jnp.asarray(X), jnp.asarray(X)))
  assert equal == (activation != "normalised")


def test_convolutions_shift_before_the_padding():
  """What lies outside of the map stays 0, as in training and in the packed file's definition."""
  rule = rule_of("shifted", weights="float")
  conv = QuantConv(1, use_bias=False, rules=rule)
  kernel = {"kernel": np.ones((3, 3, 4, 1), np.float32)}
  x = jnp.zeros((1, 2, 2, 4))
  variables = {"step": jnp.float32(1), "shift": -jnp.ones(4)}
  np.testing.assert_array_equal(conv.apply({"params": kernel, "quant": variables}, x).ravel(), [16] * 4)


def test_missing_or_misshapen_timesteps():
  """One line that names the layer and the mend."""
  rule = rule_of("dynamic")
  for gate in (None, LayerGate()):
    with pytest.raises(ValueError, match=r"'' depends on the timestep \(dynamic, none\): call .*LayerGate\(timesteps"):
      calibrated(rule, gate=gate)
  with pytest.raises(ValueError, match=r"timesteps of shape \(2,\) for an input \(3, 2, 3, 4\)"):
    calibrated(rule, gate=LayerGate(timesteps=jnp.zeros(2)))


def test_bfloat16_stays_near():
  """In bfloat16 inputs and outputs keep their type; variables stay float32."""
  for activation, response in quant.RIVALS.values():
    rule = rule_of(activation, response)
    layer = QuantDense(5, rules=rule, dtype=jnp.bfloat16)
    variables = quant.calibrate(layer, PARAMS, jnp.asarray(X), GATE)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y = layer.apply({"params": PARAMS, "quant": variables}, jnp.asarray(X), GATE)
    assert y.dtype == jnp.bfloat16


class Own(nn.Module):
  """A user's module that hands the timesteps on."""

  rules: Any = None

  @nn.compact
  def __call__(self, x, timesteps):
    gate = LayerGate(timesteps=timesteps)
    h = nn.relu(QuantDense(6, rules=self.rules, name="a")(x, gate))
    return QuantDense(2, rules=self.rules, name="b")(h, gate)


@pytest.mark.parametrize("name", quant.RIVALS)
def test_binarize_pack_and_unpack_your_own_module(name):
  """The presets by name; what is trained and packed comes back and predicts the same."""
  x, times = jnp.asarray(X[:, 0]), jnp.asarray(TIMES)
  params = Own().init(jax.random.key(0), x, times)["params"]
  rules = quant.preset(name, act_bits=4, num_timesteps=T)
  student, variables = quant.binarize(Own(), params, rules, x, times)
  flat = flax.traverse_util.flatten_dict(variables["quant"], sep="/")
  extras = {n: v.shape for n, v in flat.items() if n.rpartition("/")[2] in rivals.NAMES}
  assert bool(extras) == (name != "q_dm")
  flat |= filled(extras)
  flat["a/step"] = jnp.float32(-1)  # under the floor: packed at the floor
  variables["quant"] = flax.traverse_util.unflatten_dict(flat, sep="/")
  tensors = quant.pack(variables, student.rules)
  shapes = {layer.path: layer.kernel_shape for layer in quant.inspect_layers(Own(), x, times)}
  back = quant.unpack(tensors, student.rules, shapes)
  got = Own(quant.dequantized(student.rules)).apply(back, x, times)
  np.testing.assert_allclose(got, student.apply(variables, x, times), atol=1e-5)


def test_packing_by_a_table_without_the_method_is_refused():
  """A variable that the rules do not know is named."""
  rule = rule_of("shifted", weights="one_basis")
  variables = {"params": {"layer": PARAMS}, "quant": {"layer": calibrated(rule)}}
  plain = dataclasses.replace(rule, activation="lsq")
  with pytest.raises(ValueError, match="no place for quant/layer/shift: pack with the table"):
    quant.pack(variables, {"layer": plain})


def test_first_values_of_tdq_are_hes_and_repeat():
  """Hidden layers: variance 2 / fan-in, no bias, the same for a path every time; the last layer 0."""
  values = quant.calibrate(QuantDense(5, rules=rule_of("dynamic")), PARAMS, jnp.asarray(X), GATE)
  again = calibrated(rule_of("dynamic"))
  first = np.asarray(values["step_time0"])
  np.testing.assert_array_equal(first, again["step_time0"])
  assert first.shape == tdq.SHAPES[0] and np.all(first[-1] == 0) and not np.any(values["step_time2"])
  assert 0.8 < first[:-1].var() * 16 / 2 < 1.25
  assert not np.array_equal(first, values["step_time1"])


def test_rules():
  """What cannot be is refused when the rule is made."""
  for fields, match in (
    (dict(activation="clipped"), "activation 'clipped' is not one of lsq, asymmetric"),
    (dict(response="relu"), "response 'relu' is not one of none, rprelu"),
    (dict(activation="shifted"), "activation 'shifted' needs act_bits below 32"),
    (dict(activation="redistributed", act_bits=4), "'redistributed', 'none' need num_timesteps"),
    (dict(response="timed_rprelu"), "'lsq', 'timed_rprelu' need num_timesteps"),
  ):
    with pytest.raises(ValueError, match=match):
      LayerRule(**fields)
  with pytest.raises(ValueError, match="'bidm' is not one of .*lsq, reactnet, insta_bnn, bi_diffsr, q_dm, tdq"):
    quant.preset("bidm")
  asymmetric = LayerRule("one_basis", act_bits=4, activation="asymmetric")
  assert asymmetric.plain and asymmetric.of_product().activation == "asymmetric" and not asymmetric.timed
  assert LayerRule().plain and not LayerRule().timed
  assert not quant.needs_timesteps(None) and not quant.needs_timesteps({"a": rule_of("shifted", "rprelu")})
  assert quant.needs_timesteps({"a": LayerRule(), "b": rule_of("dynamic")})
  assert bi_diffsr.RANGES == 5
