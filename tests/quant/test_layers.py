"""Layers: full precision is flax's own layer; quantized ones by hand; calibration, gates, errors, a user's module."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from binarydm_jax.quant import (
  LayerGate,
  LayerRule,
  QuantConv,
  QuantDense,
  QuantMatmul,
  Rule,
  Rules,
  calibrate,
  preset,
  resolve,
)

DENSE_X = np.float32([[1.0, 3.0]])
# Channel 0: values 0.75, -0.25 with two bases of scales 0.5, 0.25 (residuals 0, 0.25); channel 1: -0.75, 0.75.
KERNEL = np.float32([[0.5, -1.5], [-0.25, 2.0]])
DENSE_PARAMS = {"kernel": KERNEL, "bias": np.float32([0.1, 0.2])}
SCALES = {"scale1": np.float32([0.5, 0.5]), "scale2": np.float32([0.25, 0.25])}
FULL = [[1 * 0.5 + 3 * -0.25 + 0.1, 1 * -1.5 + 3 * 2.0 + 0.2]]
ONE_BASIS = [[0.5 - 1.5 + 0.1, -0.5 + 1.5 + 0.2]]
TWO_BASES = [[0.75 - 0.75 + 0.1, -0.75 + 2.25 + 0.2]]


def _gate(on=1.0, attention=1.0, second=1.0):
  return LayerGate(*map(jnp.float32, (on, attention, second)))


def _dense(rule, quant, x=DENSE_X, gate=None):
  variables = {"params": DENSE_PARAMS, "quant": quant}
  return QuantDense(2, rules=rule).apply(variables, jnp.asarray(x), gate)


def _filled(shapes):
  """A tree of these shapes with distinct numbers in it, none of them zero."""
  return jax.tree.map(lambda leaf: np.sin(1 + np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape), shapes)


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_without_rules_is_flax_dense(use_bias):
  x = jax.random.normal(jax.random.key(0), (3, 4, 5))
  reference = nn.Dense(6, use_bias)
  variables = jax.eval_shape(QuantDense(6, use_bias).init, jax.random.key(1), x)
  assert variables == jax.eval_shape(reference.init, jax.random.key(1), x)
  variables = _filled(variables)
  np.testing.assert_allclose(QuantDense(6, use_bias).apply(variables, x), reference.apply(variables, x), rtol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (0, 2))], ids=str)
@pytest.mark.parametrize("size", [4, 7])
def test_conv_without_rules_is_flax_conv(size, padding):
  x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
  layer, reference = QuantConv(4, (3, 3), 2, padding), nn.Conv(4, (3, 3), 2, padding)
  variables = _filled(jax.eval_shape(layer.init, jax.random.key(1), x))
  np.testing.assert_allclose(layer.apply(variables, x), reference.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_matmul_without_rules_is_einsum():
  a, b = jnp.float32([[[1, 2]]]), jnp.float32([[[3, 4], [5, 6]]])
  np.testing.assert_array_equal(QuantMatmul("bqd,bkd->bqk").apply({}, a, b), [[[11, 17]]])


@pytest.mark.parametrize(
  "weights, quant, expected",
  [
    ("one_basis", {"scale1": SCALES["scale1"]}, ONE_BASIS),
    ("multi_basis", SCALES, TWO_BASES),
    ("evolving", SCALES, TWO_BASES),
    # 2-bit codes of steps 0.5 and 1: 1, 0 (half to even) | -2, 1.
    ("lsq", {"weight_step": np.float32([0.5, 1.0])}, [[0.5 + 0.1, -2 + 3 + 0.2]]),
    ("float", {}, FULL),
  ],
)
def test_dense_by_hand(weights, quant, expected):
  np.testing.assert_allclose(_dense(LayerRule(weights), quant), expected, rtol=1e-6)


def test_dense_quantizes_its_input_but_not_its_bias():
  # 2-bit codes of step 2: 0.5 -> 0 (half to even), 1.5 -> clipped to 1: x = 0, 2.
  out = _dense(LayerRule("one_basis", act_bits=2), {"scale1": SCALES["scale1"], "step": np.float32(2)})
  np.testing.assert_allclose(out, [[-1 + 0.1, 1 + 0.2]], rtol=1e-6)


def test_conv_by_hand():
  # Signs + - - + of scale 1/2 over pixels 1 2 3 5; 2-bit codes of step 2 make the pixels 0 2 2 2.
  params = {"kernel": np.float32([0.5, -0.5, -0.25, 2]).reshape(2, 2, 1, 1), "bias": np.float32([0.25])}
  x = jnp.float32([1, 2, 3, 5]).reshape(1, 2, 2, 1)
  quant = {"scale1": np.float32([0.5])}
  layer = QuantConv(1, (2, 2), padding="VALID", rules=LayerRule("one_basis"))
  np.testing.assert_allclose(layer.apply({"params": params, "quant": quant}, x).item(), 0.5 * (1 - 2 - 3 + 5) + 0.25)
  layer, quant = layer.clone(rules=LayerRule("one_basis", act_bits=2)), {**quant, "step": np.float32(2)}
  np.testing.assert_allclose(layer.apply({"params": params, "quant": quant}, x).item(), 0.5 * (0 - 2 - 2 + 2) + 0.25)


MATMUL = QuantMatmul("bqd,bkd->bqk", rules=LayerRule(act_bits=2))
MATMUL_INPUTS = np.float32([[[1, 2]]]), np.float32([[[3, 4]]])
MATMUL_QUANT = {"quant": {"step_a": np.float32(1), "step_b": np.float32(4)}}


def test_matmul_by_hand():
  # a: codes 1, 1 of step 1; b: 0.75 -> 1, 1 of step 4.
  assert MATMUL.apply(MATMUL_QUANT, *MATMUL_INPUTS).item() == 1 * 4 + 1 * 4


@pytest.mark.parametrize("on, attention, expected", [(1, 1, 8), (1, 0, 11), (0, 1, 11), (0, 0, 11)])
def test_matmul_is_quantized_once_its_block_and_attention_are(on, attention, expected):
  assert MATMUL.apply(MATMUL_QUANT, *MATMUL_INPUTS, _gate(on, attention)).item() == expected


@pytest.mark.parametrize("on, expected", [(1, 8), (0, 11)])
def test_a_gate_without_attentions_own_is_that_of_the_block(on, expected):
  assert MATMUL.apply(MATMUL_QUANT, *MATMUL_INPUTS, LayerGate(jnp.float32(on))).item() == expected


def test_a_product_takes_what_it_can_of_a_layers_rule():
  """One rule for all layers: what needs channels (a shift for each) is left out of products."""
  rule = LayerRule("one_basis", act_bits=2, activation="shifted", response="rprelu")
  assert MATMUL.clone(rules=rule).apply(MATMUL_QUANT, *MATMUL_INPUTS).item() == 8


def test_multiply_accumulates_of_an_equation():
  """Spaces count for nothing; an ellipsis or an implicit output is refused in one line."""
  assert QuantMatmul("b q d, b k d -> b q k").macs((5, 2, 3), (5, 4, 3)) == 2 * 4 * 3
  for equation in ("...qd,...kd->...qk", "bqd,bkd"):
    with pytest.raises(ValueError, match="QuantMatmul needs a letter for each axis"):
      QuantMatmul(equation).macs((5, 2, 3), (5, 4, 3))


def test_integers_are_computed_in_float32():
  """As flax's layers do; cast to integers the kernel 0.5, -1.5, ... would be 0, -1, ... and have no gradient."""
  for rule, quant in ((None, {}), (LayerRule("one_basis"), {"scale1": SCALES["scale1"]})):
    integers, floats = (_dense(rule, quant, DENSE_X.astype(dtype)) for dtype in (np.int32, np.float32))
    assert integers.dtype == jnp.float32
    np.testing.assert_array_equal(integers, floats)
  image = jnp.ones((1, 2, 2, 1), jnp.uint8)
  assert QuantConv(1).apply({"params": {"kernel": np.full((3, 3, 1, 1), 0.25), "bias": np.zeros(1)}}, image).sum() == 4


@pytest.mark.parametrize("fields, plain", [
  (dict(strides=(2, 2)), dict(strides=2)),
  (dict(padding=1), dict(padding=((1, 1), (1, 1)))),
  (dict(padding=(1, 0)), dict(padding=((1, 1), (0, 0)))),
  (dict(padding=((0, 1), 2)), dict(padding=((0, 1), (2, 2)))),
], ids=str)  # fmt: skip
def test_conv_takes_flax_spellings(fields, plain):
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  variables = _filled(jax.eval_shape(QuantConv(4).init, jax.random.key(1), x))
  wanted = nn.Conv(4, (3, 3), **fields).apply(variables, x)
  for how in (fields, plain):
    np.testing.assert_allclose(QuantConv(4, **how).apply(variables, x), wanted, atol=1e-5)


def test_strides_that_differ_by_axis():
  with pytest.raises(ValueError, match=r"strides \(1, 2\) differ by axis"):
    QuantConv(4, strides=(1, 2)).init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


def test_quant_of_other_rules_is_named():
  """LMB's layer with one basis's variables; the collection is there, so the mend is another."""
  with pytest.raises(ValueError, match="the collection 'quant' has no 'scale2' for it, so it was made by other rules"):
    _dense(LayerRule("multi_basis"), {"scale1": SCALES["scale1"]})


def test_calibrate_starts_scales_and_steps_as_documented():
  rule = LayerRule("evolving", act_bits=3)
  quant = calibrate(QuantDense(2, rules=rule), DENSE_PARAMS, jnp.asarray(DENSE_X))
  assert set(quant) == {"scale1", "scale2", "step"}
  np.testing.assert_allclose(quant["scale1"], [0.375, 1.75])
  np.testing.assert_allclose(quant["scale2"], [0.125, 0.25])
  np.testing.assert_allclose(quant["step"], 2 * 2 / 3**0.5, rtol=1e-6)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(quant))


def test_calibrate_lsq_weights_and_matmul():
  quant = calibrate(QuantDense(2, rules=LayerRule("lsq", 3)), DENSE_PARAMS, jnp.asarray(DENSE_X))
  assert set(quant) == {"weight_step"}
  np.testing.assert_allclose(quant["weight_step"], [2 * 0.375 / 3**0.5, 2 * 1.75 / 3**0.5], rtol=1e-6)
  quant = calibrate(MATMUL, {}, *MATMUL_INPUTS)
  np.testing.assert_allclose([quant["step_a"], quant["step_b"]], [3.0, 7.0])  # qp = 1: twice the means 1.5, 3.5


def test_calibrate_of_full_precision_is_empty():
  assert calibrate(QuantDense(2), DENSE_PARAMS, jnp.asarray(DENSE_X)) == {}


class _Two(nn.Module):
  rules: object = None

  @nn.compact
  def __call__(self, x):
    return QuantDense(2, rules=self.rules, name="second")(QuantDense(2, rules=self.rules, name="first")(x))


def test_calibrated_steps_are_of_what_reaches_a_layer_with_the_earlier_ones_quantized():
  """The first layer gives 0.1 and 1.5 by its calibrated scales (not 0.2 and 4.7 of full precision)."""
  rule = LayerRule("one_basis", act_bits=8)
  rules = {"first": LayerRule("one_basis"), "second": rule}
  # Signs + - | - + of the scales 0.375, 1.75 on 1, 3: -0.75 and 3.5, then the biases.
  quant = calibrate(_Two(rules), {"first": DENSE_PARAMS, "second": DENSE_PARAMS}, jnp.asarray(DENSE_X))
  np.testing.assert_allclose(quant["second"]["step"], 2 * (0.65 + 3.7) / 2 / 127**0.5, rtol=1e-5)


def test_existing_scales_and_steps_are_never_initialised_again():
  """The defect of the released code: a step made anew at every forward. Also while `quant` is mutable."""
  rule = LayerRule("evolving", act_bits=3)
  layer = QuantDense(2, rules=rule)
  quant = {**SCALES, "step": np.float32(0.7)}
  for x in (DENSE_X, 100 * DENSE_X):
    _, after = layer.apply({"params": DENSE_PARAMS, "quant": quant}, jnp.asarray(x), mutable=["quant"])
    for name, value in quant.items():
      np.testing.assert_array_equal(after["quant"][name], value)


@pytest.mark.parametrize("rule", [LayerRule("one_basis"), LayerRule("lsq"), LayerRule("float", act_bits=4)])
def test_missing_quant_names_the_layer_and_the_mend(rule):
  params = {"first": DENSE_PARAMS, "second": DENSE_PARAMS}
  with pytest.raises(ValueError, match="first/.*no collection 'quant' was given.*quant.calibrate") as error:
    _Two({"first": rule, "second": rule}).apply({"params": params}, jnp.asarray(DENSE_X))
  assert "\n" not in str(error.value)


def test_unresolved_rules_raise():
  with pytest.raises(TypeError, match=r"rules of 'first' is .*Rules: resolve it.*`quant.resolve"):
    _Two(preset("lmb")).init(jax.random.key(0), jnp.asarray(DENSE_X))


def test_layer_missing_from_the_table_raises():
  with pytest.raises(ValueError, match="layer 'second' is not in the rule table"):
    _Two({"first": LayerRule()}).init(jax.random.key(0), jnp.asarray(DENSE_X))


ACT2 = {**SCALES, "step": np.float32(2)}


@pytest.mark.parametrize("weights", ["one_basis", "multi_basis", "evolving", "lsq"])
def test_gate_off_is_full_precision(weights):
  quant = {**ACT2, "weight_step": np.float32([0.5, 1.0])}
  out = _dense(LayerRule(weights, act_bits=2), quant, gate=_gate(on=0))
  np.testing.assert_allclose(out, FULL, rtol=1e-6)


@pytest.mark.parametrize("weights, expected", [("one_basis", ONE_BASIS), ("evolving", TWO_BASES)])
def test_gate_on_is_quantized(weights, expected):
  np.testing.assert_allclose(_dense(LayerRule(weights), SCALES, gate=_gate()), expected, rtol=1e-6)


def test_gate_second_removes_an_evolving_basis_and_leaves_lmb_alone():
  gate = _gate(second=0)
  np.testing.assert_allclose(_dense(LayerRule("evolving"), SCALES, gate=gate), ONE_BASIS, rtol=1e-6)
  np.testing.assert_allclose(_dense(LayerRule("multi_basis"), SCALES, gate=gate), TWO_BASES, rtol=1e-6)


def test_gradients_reach_params_and_quant_while_on_and_only_params_while_off():
  layer = QuantDense(2, rules=LayerRule("evolving", act_bits=2))
  variables = {"params": DENSE_PARAMS, "quant": ACT2}

  def gradients(gate):
    return jax.grad(lambda v: layer.apply(v, jnp.asarray(DENSE_X), gate)[0, 0])(variables)

  # x is quantized to 0, 2 (0.5 rounds to 0, 1.5 is clipped to 1); weights 0.75, -0.25 have residuals 0, 0.25.
  on = gradients(_gate())
  np.testing.assert_allclose(on["params"]["bias"], [1, 0])
  np.testing.assert_allclose(on["params"]["kernel"], [[0, 0], [2 * 0.625, 0]], rtol=1e-6)
  np.testing.assert_allclose(on["quant"]["scale1"], [-2 * 0.75, 0], rtol=1e-6)
  np.testing.assert_allclose(on["quant"]["scale2"], [2, 0], rtol=1e-6)
  # (0 - 0.5) 0.75 + 1 (-0.25), over sqrt(2 features * qp 1).
  np.testing.assert_allclose(on["quant"]["step"], -0.625 / 2**0.5, rtol=1e-6)

  # In float, with gradients of the size that they will have: x times scale1.
  off = gradients(_gate(on=0))
  np.testing.assert_allclose(off["params"]["kernel"], [[0.5, 0], [1.5, 0]])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(off["quant"]))

  assert gradients(_gate(second=0))["quant"]["scale2"].tolist() == [0, 0]


def test_bfloat16_compute_keeps_float32_variables():
  layer = QuantDense(2, rules=LayerRule("multi_basis", act_bits=4), dtype=jnp.bfloat16)
  variables = layer.init(jax.random.key(0), jnp.asarray(DENSE_X))
  assert layer.apply(variables, jnp.asarray(DENSE_X)).dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# Compiling takes longer than running what is this small.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class _TinyTransformer(nn.Module):
  """A transformer block modulated by the timestep, as a user of the library would write it: tokens [batch, n, 8]."""

  rules: object = None

  @nn.compact
  def __call__(self, x, t):
    def dense(features, name):
      return QuantDense(features, rules=self.rules, name=name)

    condition = dense(8, "time")(jnp.stack([jnp.sin(t), jnp.cos(t)], -1))
    shift, scale = jnp.split(dense(16, "modulation")(nn.silu(condition))[:, None], 2, -1)
    h = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale) + shift
    q, k, v = jnp.split(dense(24, "qkv")(h), 3, -1)
    weights = nn.softmax(QuantMatmul("bqd,bkd->bqk", rules=self.rules, name="qk")(q, k) / 8**0.5)
    x = x + dense(8, "proj")(QuantMatmul("bqk,bkd->bqd", rules=self.rules, name="av")(weights, v))
    return x + dense(8, "mlp_out")(nn.gelu(dense(16, "mlp_in")(x)))


def test_a_users_own_transformer_trains_quantized():
  x = jax.random.normal(jax.random.key(0), (8, 4, 8))
  t = jnp.arange(8.0)
  target = jnp.roll(x, 1, axis=1) * jnp.cos(t)[:, None, None]
  teacher = _TinyTransformer()
  params = jax.jit(teacher.init, compiler_options=FAST)(jax.random.key(1), x, t)["params"]
  table = resolve(preset("ebb", 4).before(Rule("time", LayerRule())), teacher, x, t)
  assert table["time"] == LayerRule() and table["qkv"] == LayerRule("evolving", act_bits=4)
  assert table["qk"] == table["av"] == LayerRule("float", act_bits=4)
  student = teacher.clone(rules=table)
  variables = {"params": params, "quant": jax.jit(lambda p: calibrate(student, p, x, t), compiler_options=FAST)(params)}
  assert set(variables["quant"]) == set(table) - {"time"}
  optimizer = optax.adam(1e-2)

  @functools.partial(jax.jit, compiler_options=FAST)
  def step(variables, state):
    loss, gradients = jax.value_and_grad(lambda v: jnp.mean((student.apply(v, x, t) - target) ** 2))(variables)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(variables, updates), state, loss

  start, state, losses = variables, optimizer.init(variables), []
  for _ in range(60):
    variables, state, loss = step(variables, state)
    losses.append(float(loss))
  assert losses[-1] < 0.7 * losses[0]
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start["quant"], variables["quant"])
  assert all(jax.tree.leaves(moved))


def test_rules_of_a_table_reach_each_layer_by_its_path():
  quant = calibrate(
    _Two({"first": LayerRule("one_basis"), "second": LayerRule("lsq", act_bits=8)}),
    {"first": DENSE_PARAMS, "second": DENSE_PARAMS},
    jnp.asarray(DENSE_X),
  )
  assert set(quant["first"]) == {"scale1"}
  assert set(quant["second"]) == {"weight_step", "step"}


def test_resolve_of_rules_that_miss_a_layer():
  with pytest.raises(ValueError, match="no rule matches layer 'second'"):
    resolve(Rules((Rule("first", LayerRule()),)), _Two(), jnp.asarray(DENSE_X))
