"""A forced export packs the student as it computes at its step: blocks in float, attention, the second basis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.deploy import export, load, model_cost
from binarydm_jax.deploy.unfinished import unfinished
from binarydm_jax.models.unet import EDGES
from tests.deploy.test_packed import DIFFUSION, SHAPE, unet

X, T = jax.random.normal(jax.random.key(0), (2, *SHAPE)), jnp.array([3, 150])


def random_params(model):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, T)["params"]
  return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


@functools.cache
def trained():
  """(teacher, layers, table, variables of an EBB student, its predictions by gates, its prediction without any)."""
  teacher = unet()
  layers = quant.inspect_layers(teacher, X, T)
  table = quant.preset("ebb", 4, 2, EDGES, 8).resolve(layers)
  student, params = teacher.clone(rules=table), random_params(teacher)
  variables = {"params": params, "quant": jax.jit(lambda p: quant.calibrate(student, p, X, T))(params)}
  predict = jax.jit(lambda v, gates: student.apply(v, X, T, gates=gates)[0])  # gates are data: compiled once
  return teacher, layers, table, variables, predict, jax.jit(lambda v: student.apply(v, X, T)[0])(variables)


@pytest.mark.parametrize("on, attention, second", [
  ((0, 1, 0), 0, 1), ((1, 1, 0), 0, 0.25), ((1, 1, 1), 1, 0),
  *(pytest.param((1, 1, 1), attention, 1, marks=pytest.mark.slow) for attention in (0, 1)),
], ids=str)  # fmt: skip
def test_equals_the_gated_student(on, attention, second, tmp_path):
  """The packed file predicts what the student does under the gates of the step, and has the bytes that are counted."""
  teacher, layers, table, variables, predict, others = trained()
  assert teacher.block_names == ("input_0", "middle", "output_0")
  gates = quant.Gates(jnp.array(on, jnp.float32), jnp.float32(attention), jnp.float32(second))
  rules, kept, waiting = unfinished(table, variables, gates, teacher.block_names, layers)
  assert waiting == tuple(name for name, gate in zip(teacher.block_names, on) if not gate)
  assert (rules["middle/attn/qk"].act_bits == 4) == bool(attention)
  assert rules["middle/res/conv1"].weights == ("multi_basis" if second else "one_basis")
  payload, _ = export(tmp_path / "m", kept, teacher, rules, layers, DIFFUSION, SHAPE)
  assert payload == model_cost(layers, rules, variables["params"]).packed_bytes
  wanted = predict(variables, gates)
  np.testing.assert_allclose(load(tmp_path / "m", "xla")(X, T), wanted, atol=2e-5)
  assert (float(jnp.abs(others - wanted).max()) < 1e-3) == (all(on) and attention == second == 1)


def test_nothing_changes_over_time():
  """Without gates: the rules and variables of the finished student."""
  table, variables = {"a": quant.LayerRule("evolving")}, {"params": {}, "quant": {}}
  assert unfinished(table, variables, None, (), []) == (quant.deployed_table(table), variables, ())


def test_nothing_is_quantized():
  """Gates of a method whose weights and activations are float: there are no scales at all."""
  gates = quant.Gates(jnp.ones(1), jnp.float32(1), jnp.float32(1))
  rules, variables, waiting = unfinished({"a": quant.LayerRule()}, {"params": {}}, gates, ("a",), [])
  assert rules == {"a": quant.LayerRule()} and not variables["quant"] and waiting == ()


def test_evolving_bases_outside_the_blocks():
  """In the time embedding and the last convolution, too, a second basis is scaled by the gates, down to nothing."""
  teacher = unet()
  evolving = "time_embed_0", "time_embed_1", "out_conv"
  paths = [layer.path for layer in quant.inspect_layers(teacher, X, T)]
  assert set(evolving) <= set(paths)
  student = teacher.clone(rules={path: quant.LayerRule("evolving" if path in evolving else "float")
                                 for path in paths})  # fmt: skip
  params = random_params(teacher)
  scales = jax.jit(lambda p: quant.calibrate(student, p, X, T))(params)

  @jax.jit
  def predict(second, factor):
    gates = quant.Gates(jnp.ones(len(teacher.block_names)), jnp.float32(1), second)
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: factor * leaf if path[-1].key == "scale2" else leaf, scales
    )
    return student.apply({"params": params, "quant": changed}, X, T, gates=gates)[0]

  for second in (0.0, 0.25):
    np.testing.assert_allclose(predict(second, 1.0), predict(1.0, second), atol=1e-5)
  assert float(jnp.abs(predict(0.0, 1.0) - predict(1.0, 1.0)).max()) > 1e-2
