"""Size and operations of a list of layers, counted by hand; test_ldm4 has a whole U-Net."""

import jax
import jax.numpy as jnp
import pytest

from binarydm_jax import quant
from binarydm_jax.deploy import model_cost
from binarydm_jax.deploy.cost import nominal_bits, weight_bits
from binarydm_jax.quant import LayerInfo, LayerRule


def layer(path, kind, kernel_shape, macs):
  return LayerInfo(path, kind, path.split("/")[0], kernel_shape, True, (), (), 1.0, macs)


LAYERS = [
    layer("a/first", "conv", (3, 3, 1, 4), 2304),  # 36 weights
    layer("a/conv", "conv", (3, 3, 4, 5), 11520),  # 180 weights
    layer("b/conv", "conv", (1, 1, 5, 3), 960),  # 15 weights
    layer("b/dense", "dense", (3, 5), 15),  # 15 weights
    layer("b/qk", "matmul", (), 1000),
]
TABLE = {
    "a/first": LayerRule(),
    "a/conv": LayerRule("one_basis", act_bits=4),
    "b/conv": LayerRule("multi_basis", act_bits=8),
    "b/dense": LayerRule("lsq", 3, 4),
    "b/qk": LayerRule(act_bits=4),
}
PARAMS = {"kernels": [jax.ShapeDtypeStruct(info.kernel_shape, jnp.float32) for info in LAYERS if info.kernel_shape],
          "rest": jax.ShapeDtypeStruct((17,), jnp.float32)}


def test_by_hand():
  """Bits fill whole bytes a layer and basis; a float32 scale an output channel and basis, a step an input."""
  cost = model_cost(LAYERS, TABLE, PARAMS)
  assert cost.params == 36 + 180 + 15 + 15 + 17 and cost.fp32_bytes == 4 * 263
  assert [row["packed_bytes"] for row in cost.layers] == [
      4 * 36,
      23 + 4 * 5 + 4,  # 180 bits, 5 scales, 1 step
      2 * (2 + 4 * 3) + 4,  # 15 bits and 3 scales for each of two bases, 1 step
      6 + 4 * 5 + 4,  # 45 bits, 5 scales, 1 step
      8,  # a step for each of the two factors
  ]
  assert cost.packed_bytes == 144 + 47 + 32 + 30 + 8 + 4 * 17
  assert cost.macs == 2304 + 11520 + 960 + 15 and cost.attention_macs == 1000
  assert cost.ops == pytest.approx(2304 + 11520 * 4 / 64 + 960 * 2 * 8 / 64 + 15 * 3 * 4 / 64)
  assert cost.true_weight_bits == pytest.approx((180 + 2 * 15 + 3 * 15) / 210)
  assert cost.binarized == 195 and cost.two_bases == 15
  assert [row["weight_bits"] for row in cost.layers] == [32, 1, 2, 3, None]
  assert cost.as_dict()["layers"][1]["rule"] == "one_basis"


def test_nothing_quantized_costs_the_float_network():
  cost = model_cost(LAYERS, {info.path: LayerRule() for info in LAYERS}, PARAMS)
  assert cost.packed_bytes == cost.fp32_bytes and cost.true_weight_bits == 32.0
  assert cost.ops == cost.macs and cost.binarized == 0


def test_deployed_table_drops_the_evolving_basis():
  """EBB that has finished is one basis, with its activation bits; the table that it trains with counts two."""
  table = {"a": LayerRule("evolving", act_bits=4), "b": LayerRule("multi_basis"), "c": LayerRule("lsq", 5)}
  assert quant.deployed_table(table) == {**table, "a": LayerRule("one_basis", act_bits=4)}
  assert [weight_bits(rule) for rule in table.values()] == [2, 2, 5]


@pytest.mark.parametrize("table, bits", [
    ({"a": LayerRule(), "b": LayerRule("one_basis"), "c": LayerRule("lsq", 8)}, 1),
    ({"a": LayerRule("lsq", 3)}, 3), ({"a": LayerRule("multi_basis")}, 1), ({"a": LayerRule(act_bits=4)}, 32),
])
def test_nominal_bits_is_the_least(table, bits):
  assert nominal_bits(table) == bits
