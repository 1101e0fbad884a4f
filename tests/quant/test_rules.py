"""Rules: which one decides, what is refused, presets, overrides; inspection by hand. test_ldm4 has a whole U-Net."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from binarydm_jax.quant import (
  LayerInfo,
  LayerRule,
  QuantConv,
  QuantDense,
  QuantMatmul,
  Rule,
  Rules,
  inspect_layers,
  parse_override,
  preset,
  resolve,
)

ONE, TWO, LSQ4 = LayerRule("one_basis"), LayerRule("multi_basis"), LayerRule("lsq", 4, 8)


def _layer(path, resolution=1.0, kind="conv"):
  return LayerInfo(path, kind, path.split("/")[0], (1, 1, 2, 3), True, (4, 4, 2), (4, 4, 3), resolution, 96)


LAYERS = [_layer("first/conv"), _layer("deep/conv1", 0.25), _layer("deep/conv2", 0.25), _layer("last")]


class Toy(nn.Module):
  """Down by two inside `down`, pooled to a vector, a product of two vectors."""

  rules: object = None

  @nn.compact
  def __call__(self, x):
    class Down(nn.Module):
      rules: object = None

      @nn.compact
      def __call__(self, x):
        return QuantConv(4, strides=2, use_bias=False, rules=self.rules, name="conv")(x)

    h = Down(self.rules, name="down")(x).mean((1, 2))
    h = QuantDense(6, rules=self.rules, name="dense")(h)
    return QuantMatmul("bi,bj->bij", rules=self.rules, name="outer")(h, h)


TOY_INPUT = jax.ShapeDtypeStruct((1, 8, 6, 3), jnp.float32)


def test_first_matching_rule_decides():
  rules = Rules((Rule("deep/conv1", LSQ4), Rule("deep/*", TWO), Rule("*", ONE)))
  assert rules.resolve(LAYERS) == {"first/conv": ONE, "deep/conv1": LSQ4, "deep/conv2": TWO, "last": ONE}


def test_before_puts_rules_in_front_in_their_order():
  rules = Rules((Rule("*", ONE),)).before(Rule("deep/conv1", LSQ4), Rule("deep/*", TWO))
  assert [rule.pattern for rule in rules.rules] == ["deep/conv1", "deep/*", "*"]


def test_star_crosses_slashes_and_case_counts():
  assert Rule("*conv*", ONE).matches("deep/er/conv1", 1.0)
  assert not Rule("Deep/*", ONE).matches("deep/conv1", 1.0)
  assert not Rule("conv1", ONE).matches("deep/conv1", 1.0)


def test_min_resolution_is_inclusive():
  rule = Rule("*", TWO, min_resolution=0.5)
  assert [rule.matches("a", r) for r in (0.25, 0.5, 1.0)] == [False, True, True]


def test_rule_without_a_layer_is_an_error_that_says_where_to_look():
  with pytest.raises(ValueError, match=r"^rule 'middle/\*' matched no layer; `--mode=info` lists the paths$"):
    Rules((Rule("middle/*", TWO), Rule("*", ONE))).resolve(LAYERS)


def test_shadowed_rule_is_an_error():
  with pytest.raises(ValueError, match=r"^rule 'deep/conv1' has no effect: earlier rules take every layer"):
    Rules((Rule("deep/*", TWO), Rule("deep/conv1", LSQ4), Rule("*", ONE))).resolve(LAYERS)


def test_optional_rules_may_find_nothing_or_be_shadowed():
  rules = Rules((Rule("middle/*", TWO, optional=True), Rule("*", ONE), Rule("deep/*", TWO, optional=True)))
  assert set(rules.resolve(LAYERS).values()) == {ONE}


def test_layer_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match=r"^no rule matches layer 'first/conv'; end the rules with one for '\*'$"):
    Rules((Rule("deep/*", ONE),)).resolve(LAYERS)


def test_matmul_keeps_only_the_activation_bits():
  table = Rules((Rule("*", LayerRule("multi_basis", act_bits=4)),)).resolve([_layer("qk", kind="matmul")])
  assert table == {"qk": LayerRule("float", act_bits=4)}


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(weights="ternary"), "weights 'ternary' is not one of float, one_basis"),
    (dict(weights="lsq", weight_bits=1), "weight_bits 1 is not supported: use 2 to 8, or one_basis for 1 bit"),
    (dict(weights="lsq", weight_bits=9), "weight_bits 9 is not supported"),
    (dict(act_bits=1), "act_bits 1 is not supported: use 2 to 8, or 32 for off"),
    (dict(act_bits=16), "act_bits 16 is not supported"),
  ],
)
def test_unsupported_layer_rules_raise(arguments, message):
  with pytest.raises(ValueError, match=message):
    LayerRule(**arguments)


@pytest.mark.parametrize(
  "weights, bases", [("float", 0), ("one_basis", 1), ("multi_basis", 2), ("evolving", 2), ("lsq", 0)]
)
def test_number_of_bases(weights, bases):
  assert LayerRule(weights).bases == bases


@pytest.mark.parametrize("act_bits", [32, 8, 4, 3, 2])
@pytest.mark.parametrize(
  "name, high, low",
  [
    ("full_precision", "float", "float"),
    ("baseline", "one_basis", "one_basis"),
    ("lmb", "multi_basis", "one_basis"),
    ("ebb", "evolving", "one_basis"),
    ("lsq", "lsq", "lsq"),
  ],
)
def test_presets(name, high, low, act_bits):
  """What each method does at and below half resolution; the edges stay float."""
  table = preset(name, act_bits, edges=("first/*",)).resolve([*LAYERS, _layer("half", 0.5)])
  assert table.pop("first/conv") == LayerRule("float", act_bits=32)
  assert {path: rule.weights for path, rule in table.items()} == {
    "deep/conv1": low, "deep/conv2": low, "last": high, "half": high,
  }  # fmt: skip
  assert {rule.act_bits for rule in table.values()} == {act_bits}


def test_lsq_preset_takes_weight_bits():
  assert set(preset("lsq", 8, weight_bits=4).resolve(LAYERS).values()) == {LayerRule("lsq", 4, 8)}


def test_edges_in_eight_bits():
  table = preset("baseline", 4, edges=("first/*", "last"), edge_bits=8).resolve(LAYERS)
  assert table["first/conv"] == table["last"] == LayerRule("lsq", 8, 8)
  assert table["deep/conv1"] == LayerRule("one_basis", act_bits=4)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(weights="xnor"), "weights 'xnor' is not one of full_precision, baseline, lmb, ebb, lsq"),
    (dict(weights="lmb", act_bits=5), "act_bits 5 is not supported: use one of 32, 8, 4, 3, 2"),
    (dict(weights="lmb", edge_bits=4), "edge_bits 4 is not supported: use 8 or 32"),
    (dict(weights="lsq", weight_bits=1), "weight_bits 1 is not supported"),
    (dict(weights="reactnet", act_bits=4, activation="asymmetric"), "'reactnet' has activation and response of"),
  ],
)
def test_unsupported_presets_raise(arguments, message):
  with pytest.raises(ValueError, match=message):
    preset(**arguments)


@pytest.mark.parametrize(
  "text, rule",
  [
    ("middle/*=lsq4/8", Rule("middle/*", LayerRule("lsq", 4, 8))),
    ("*/up=float/32", Rule("*/up", LayerRule("float", act_bits=32))),
    ("a=one_basis/4", Rule("a", LayerRule("one_basis", act_bits=4))),
    ("a=evolving/2", Rule("a", LayerRule("evolving", act_bits=2))),
  ],
)
def test_override(text, rule):
  assert parse_override(text) == rule


@pytest.mark.parametrize("text", ["a", "a=lsq4", "a=lsq/8", "a=one_basis/four", "a=b=float/8", "a=float/8/8"])
def test_override_that_cannot_be_read(text):
  with pytest.raises(ValueError, match="is not PATTERN=WEIGHTS/ACT_BITS, such as"):
    parse_override(text)


@pytest.mark.parametrize("text, message", [("a=ternary/8", "'ternary'"), ("a=lsq9/8", "9"), ("a=one_basis/1", "1")])
def test_override_with_an_unsupported_quantizer(text, message):
  with pytest.raises(ValueError, match=message):
    parse_override(text)


def test_inspection_by_hand():
  """8 x 6 x 3 -> 4 x 3 x 4 by 3 x 3 taps; 4 -> 6; a 6 x 6 outer product."""
  assert inspect_layers(Toy(), TOY_INPUT) == [
    LayerInfo("down/conv", "conv", "down", (3, 3, 3, 4), False, (8, 6, 3), (4, 3, 4), 0.5, 12 * 108),
    LayerInfo("dense", "dense", "dense", (4, 6), True, (4,), (6,), 1.0, 24),
    LayerInfo("outer", "matmul", "outer", (), False, (6,), (6, 6), 1.0, 36),
  ]
  assert [layer.size for layer in inspect_layers(Toy(), TOY_INPUT)] == [108, 24, 0]


def test_resolve_makes_the_table_of_a_model():
  assert resolve(Rules((Rule("down/*", TWO), Rule("*", LSQ4))), Toy(), TOY_INPUT) == {
    "down/conv": TWO, "dense": LSQ4, "outer": LayerRule("float", 4, 8),
  }  # fmt: skip
