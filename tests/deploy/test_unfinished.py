"""A forced export packs the student as it computes at its step: blocks in float, attention, the second basis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.deploy import export, load, model_cost
from binarydm_jax.deploy.unfinished import unfinished
from binarydm_jax.models.unet import EDGES
from tests.deploy.test_packed import DIFFUSION, SHAPE, unet


@pytest.mark.parametrize("on, attention, second", [
  ((0, 1, 0), 0, 1), ((1, 1, 0), 0, 0.25), ((1, 1, 1), 1, 0),
  *(pytest.param((1, 1, 1), attention, 1, marks=pytest.mark.slow) for attention in (0, 1)),
], ids=str)  # fmt: skip
def test_equals_the_gated_student(on, attention, second, tmp_path):
  """The packed file predicts what the student does under the gates of the step, and has the bytes that are counted."""
  teacher = unet()
  x, t = jax.random.normal(jax.random.key(0), (2, *SHAPE)), jnp.array([3, 150])
  layers = quant.inspect_layers(teacher, x, t)
  table = quant.preset("ebb", 4, 2, EDGES, 8).resolve(layers)
  params = jax.tree.map(lambda leaf: 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
                        teacher.init(jax.random.key(0), x, t)["params"])
  student = teacher.clone(rules=table)
  variables = {"params": params, "quant": quant.calibrate(student, params, x, t)}
  assert teacher.block_names == ("input_0", "middle", "output_0")
  gates = quant.Gates(jnp.array(on, jnp.float32), jnp.float32(attention), jnp.float32(second))
  rules, kept, waiting = unfinished(table, variables, gates, teacher.block_names, layers)
  assert waiting == tuple(name for name, gate in zip(teacher.block_names, on) if not gate)
  assert (rules["middle/attn/qk"].act_bits == 4) == bool(attention)
  assert rules["middle/res/conv1"].weights == ("multi_basis" if second else "one_basis")
  payload, _ = export(tmp_path / "m", kept, teacher, rules, layers, DIFFUSION, SHAPE)
  assert payload == model_cost(layers, rules, params).packed_bytes
  wanted = jax.jit(lambda v: student.apply(v, x, t, gates=gates)[0])(variables)
  np.testing.assert_allclose(load(tmp_path / "m", "xla")(x, t), wanted, atol=2e-5)
  others = jax.jit(lambda v: student.apply(v, x, t)[0])(variables)
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
  x, t = jax.random.normal(jax.random.key(0), (2, *SHAPE)), jnp.array([3, 150])
  evolving = "time_embed_0", "time_embed_1", "out_conv"
  paths = [layer.path for layer in quant.inspect_layers(teacher, x, t)]
  assert set(evolving) <= set(paths)
  student = teacher.clone(rules={path: quant.LayerRule("evolving" if path in evolving else "float")
                                 for path in paths})  # fmt: skip
  params = jax.tree.map(lambda leaf: 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
                        teacher.init(jax.random.key(0), x, t)["params"])
  scales = quant.calibrate(student, params, x, t)

  def predict(second, factor):
    gates = quant.Gates(jnp.ones(len(teacher.block_names)), jnp.float32(1), jnp.float32(second))
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: factor * leaf if path[-1].key == "scale2" else leaf, scales
    )
    return student.apply({"params": params, "quant": changed}, x, t, gates=gates)[0]

  for second in (0.0, 0.25):
    np.testing.assert_allclose(predict(second, 1.0), predict(1.0, second), atol=1e-5)
  assert float(jnp.abs(predict(0.0, 1.0) - predict(1.0, 1.0)).max()) > 1e-2
