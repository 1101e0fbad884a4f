"""LDM-4 on LSUN-Bedrooms by abstract shapes alone: layers, rules and costs against figures that were counted
independently, those of the papers beside them."""

import jax
import jax.numpy as jnp
import pytest

from binarydm_jax.deploy import model_cost
from binarydm_jax.models.unet import EDGES, UNet
from binarydm_jax.quant import inspect_layers, preset


@pytest.fixture(scope="module")
def ldm4():
  """(model, its layers, parameter shapes)."""
  model = UNet(3, 224, (1, 2, 3, 4), 2, (8, 4, 2), num_head_channels=32)
  inputs = (jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  return model, inspect_layers(model, *inputs), shapes


def lmb(layers):
  """Its table at 4-bit activations."""
  return preset("lmb", 4, edges=EDGES).resolve(layers)


def cost_of(ldm4, weights, act_bits=32, edge_bits=32):
  _, layers, shapes = ldm4
  return model_cost(layers, preset(weights, act_bits, 2, EDGES, edge_bits).resolve(layers), shapes)


def test_parameters(ldm4):
  *_, shapes = ldm4
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 274_056_163


def test_multiply_accumulates(ldm4):
  _, layers, _ = ldm4
  assert sum(layer.macs for layer in layers if layer.kind != "matmul") == 96_017_969_152
  assert sum(layer.macs for layer in layers if layer.kind == "matmul") == 5_182_062_592


def test_binarized_weights_and_scales(ldm4):
  _, layers, _ = ldm4
  table = lmb(layers)
  binarized = [layer for layer in layers if table[layer.path].bases]
  assert sum(layer.size for layer in binarized) == 272_857_088
  assert sum(layer.size for layer in binarized if table[layer.path].bases == 2) == 39_839_744
  assert sum(layer.kernel_shape[-1] for layer in binarized) == 94_976
  floats = {layer.path for layer in layers if layer.kind != "matmul" and not table[layer.path].bases}
  assert floats == {"time_embed_0", "time_embed_1", "input_0/conv", "out_conv"}


def test_location_rule_takes_the_first_and_last_six_of_25_blocks(ldm4):
  model, layers, _ = ldm4
  table = lmb(layers)
  names = model.block_names
  assert len(names) == 25 and names[12] == "middle"
  bases = {name: {table[layer.path].bases for layer in layers if layer.block == name and layer.size} for name in names}
  # The very first holds only the first convolution, which is an edge: its resolution is what the rule goes by.
  assert bases.pop("input_0") == {0}
  assert [layer.resolution for layer in layers if layer.block == "input_0"] == [1.0]
  assert [name for name in names if bases.get(name) == {2}] == [*names[1:6], *names[-6:]]
  assert [name for name in names if bases.get(name) == {1}] == list(names[6:-6])


def test_full_precision(ldm4):
  """274.056 M parameters, 1045.44 MiB; 96.018 G products and 5.182 G in attention (papers: 1045.4, 96.0)."""
  cost = cost_of(ldm4, "full_precision")
  assert cost.params / 1e6 == pytest.approx(274.056, abs=5e-4)
  assert cost.fp32_bytes / 2**20 == pytest.approx(1045.44, abs=5e-3) and cost.packed_bytes == cost.fp32_bytes
  assert cost.macs / 1e9 == pytest.approx(96.018, abs=5e-4)
  assert cost.attention_macs / 1e9 == pytest.approx(5.182, abs=5e-4)


def test_one_basis(ldm4):
  """272.857 M binarized weights, 37.46 MiB with the rest in float32, 34.56 with 8-bit edges (papers: 37.3, 35.8)."""
  cost = cost_of(ldm4, "baseline")
  assert cost.binarized / 1e6 == pytest.approx(272.857, abs=5e-4) and cost.two_bases == 0
  assert cost.true_weight_bits == 1.0
  assert cost.packed_bytes / 2**20 == pytest.approx(37.46, abs=5e-3)
  edges = cost_of(ldm4, "baseline", edge_bits=8)
  scales = 4 * (2 * 896 + 224 + 3 + 4)  # those of the edges and their 4 steps, which the figure leaves out
  assert (edges.packed_bytes - scales) / 2**20 == pytest.approx(34.56, abs=5e-3)


def test_w1a4_operations(ldm4):
  """6.05 G operations, 15.9 times fewer (papers: 6.3 G, 15.2x)."""
  cost = cost_of(ldm4, "baseline", act_bits=4)
  assert cost.ops / 1e9 == pytest.approx(6.05, abs=5e-3)
  assert cost.macs / cost.ops == pytest.approx(15.9, abs=0.05)


@pytest.mark.parametrize("weights", ["lmb", "ebb"])
def test_two_bases(ldm4, weights):
  """39.84 M weights of the head and tail blocks have two bases: 1.146 bits a weight (papers: 1.1)."""
  cost = cost_of(ldm4, weights)
  assert cost.two_bases / 1e6 == pytest.approx(39.84, abs=5e-3)
  assert cost.true_weight_bits == pytest.approx(1 + 39.84 / 272.857, abs=1e-4)
  two = {row["path"].split("/")[0] for row in cost.layers if row["weight_bits"] == 2 and row["packed_bytes"]}
  first, last = {f"input_{i}" for i in range(1, 6)}, {f"output_{i}" for i in range(6, 12)}
  assert two <= first | last | {"input_0", "input_6", "output_5"} and first | last <= two
