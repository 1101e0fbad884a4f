"""pack and unpack: bit-exact weights for every rule, the layout by hand, and what is refused."""

import jax
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.quant import LayerRule

RULES = [LayerRule("one_basis"), LayerRule("multi_basis"), LayerRule("evolving")]
RULES += [LayerRule("lsq", bits) for bits in range(2, 9)]


@pytest.mark.parametrize("shape", [(3, 3, 3, 5), (7, 3)], ids=["conv", "dense"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.weights}{rule.weight_bits}")
def test_dequantized_kernels_are_what_the_quantizers_compute(rule, shape):
  """Bit for bit, for sizes that do not fill their last byte, with zeros and a scale under the floor."""
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal(shape).astype(np.float32)
  kernel.reshape(-1)[:4] = (0.0, -0.0, 1.0, -1.0)
  scales = [rng.uniform(0.05, 1, shape[-1]).astype(np.float32) for _ in range(2)]
  scales[0][0] = scales[1][1] = -0.1  # gone below zero: the quantizers floor it
  scales[0][2] = 1.0  # |w| = scale1: a residual of exactly zero
  if rule.weights == "lsq":
    learned = {"weight_step": scales[0]}
    wanted = jax.jit(quant.lsq_weight, static_argnums=2)(kernel, scales[0], rule.weight_bits)
  elif rule.bases == 2:
    learned = {"scale1": scales[0], "scale2": scales[1]}
    wanted = jax.jit(quant.multi_basis)(kernel, *scales)
  else:
    learned = {"scale1": scales[0], "scale2": scales[1]}  # a second scale left over from stage 1 is dropped
    wanted = jax.jit(quant.one_basis)(kernel, scales[0])
  variables = {"params": {"a": {"b": {"kernel": kernel, "bias": scales[1]}}}, "quant": {"a": {"b": learned}}}
  tensors = quant.pack(variables, {"a/b": rule})
  names = {"lsq": {"codes", "weight_step"}}.get(rule.weights, {f"{n}{i + 1}" for n in ("signs", "scale")
                                                               for i in range(rule.bases)})
  assert set(tensors) == {f"a/b/{name}" for name in names | {"bias"}}
  back = quant.unpack(tensors, {"a/b": rule}, {"a/b": shape})
  np.testing.assert_array_equal(back["params"]["a"]["b"]["kernel"], wanted)
  np.testing.assert_array_equal(back["params"]["a"]["b"]["bias"], scales[1])
  assert back["quant"] == {}


def test_sign_bits_by_hand():
  """C order, little-endian in a byte, 1 for +1: (+ - + + - - - -) is 0b00001101, then (+) is 1."""
  kernel = np.array([1, -1, 2, 0, -3, -1, -1, -1, 1], np.float32).reshape(9, 1)
  variables = {"params": {"a": {"kernel": kernel}}, "quant": {"a": {"scale1": np.ones(1, np.float32)}}}
  assert quant.pack(variables, {"a": LayerRule("one_basis")})["a/signs1"].tolist() == [13, 1]


ONES = np.ones(2, np.float32)
ONE_BASIS = {"a": LayerRule("one_basis", act_bits=4)}
DENSE = {"params": {"a": {"kernel": np.ones((3, 2), np.float32)}}, "quant": {"a": {"scale1": ONES, "step": ONES[0]}}}


def test_steps_are_those_of_layers_and_other_parameters_of_that_name_are_not():
  """A parameter "step" of the user's own module stays in `params`."""
  variables = {"params": {**DENSE["params"], "mine": {"step": ONES}}, "quant": DENSE["quant"]}
  back = quant.unpack(quant.pack(variables, ONE_BASIS), ONE_BASIS, {"a": (3, 2)})
  assert set(back["params"]) == {"a", "mine"} and set(back["quant"]) == {"a"}
  assert quant.dequantized(ONE_BASIS) == {"a": LayerRule("float", act_bits=4)}


@pytest.mark.parametrize("variables, rule, match", [
    ({"params": DENSE["params"]}, "one_basis", "quant/a/scale1 is missing: pack {'params', 'quant'}"),
    (DENSE, "multi_basis", "quant/a/scale2 is missing"),
    (DENSE, "float", "no place for quant/a/scale1: pack with the table of the trained module"),
    ({**DENSE, "batch_stats": {}}, "one_basis", "collection 'batch_stats' cannot be packed"),
    ({"params": {"a": {"kernel": np.ones((5, 3, 2), np.float32)}}, "quant": {"a": {"scale1": np.ones((5, 2))}}},
     "one_basis", r"quant/a/scale1 has shape \(5, 2\) for a kernel \(5, 3, 2\): .* nn.scan"),
], ids=["no quant", "other rules", "float rule", "another collection", "stacked"])
def test_what_pack_refuses(variables, rule, match):
  with pytest.raises(ValueError, match=match):
    quant.pack(variables, {"a": LayerRule(rule, act_bits=4)})


@pytest.mark.parametrize("rule, match", [
    ("multi_basis", "no tensor a/scale2: it was packed by other rules"),
    ("lsq", "no tensor a/codes"),
    ("float", "tensor a/signs1 is left over: it was packed by other rules"),
])
def test_tensors_of_other_rules_are_refused(rule, match):
  with pytest.raises(ValueError, match=match):
    quant.unpack(quant.pack(DENSE, ONE_BASIS), {"a": LayerRule(rule, act_bits=4)}, {"a": (3, 2)})
