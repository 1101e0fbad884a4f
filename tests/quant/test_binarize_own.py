"""A user's own diffusion transformer: binarized, trained as one tree of both collections, packed."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from safetensors.numpy import load_file, save_file

from binarydm_jax import quant


class Block(nn.Module):
  """Tokens [batch, n, c] and condition [batch, c] -> tokens; adaptive layer norm with gates, two heads."""

  rules: Any = None

  @nn.compact
  def __call__(self, x, condition):
    batch, n, channels = x.shape
    dense = functools.partial(quant.QuantDense, rules=self.rules)
    norm = functools.partial(nn.LayerNorm, use_bias=False, use_scale=False)
    modulation = dense(6 * channels, name="modulation")(nn.silu(condition))[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, -1)
    qkv = dense(3 * channels, name="qkv")(norm()(x) * (1 + scale1) + shift1)
    q, k, v = jnp.moveaxis(qkv.reshape(batch, n, 3, 2, channels // 2), 2, 0)
    weights = nn.softmax(quant.QuantMatmul("bqhd,bkhd->bhqk", rules=self.rules, name="qk")(q, k) * q.shape[-1] ** -0.5)
    h = quant.QuantMatmul("bhqk,bkhd->bqhd", rules=self.rules, name="av")(weights, v)
    x = x + gate1 * dense(channels, name="proj")(h.reshape(batch, n, channels))
    h = dense(2 * channels, name="mlp_in")(norm()(x) * (1 + scale2) + shift2)
    return x + gate2 * dense(channels, name="mlp_out")(nn.gelu(h))


class DiT(nn.Module):
  """Images [batch, 8, 8, 2] and timesteps [batch] -> images; 2 x 2 patches, 8 channels, one block."""

  rules: Any = None

  @nn.compact
  def __call__(self, x, t):
    batch, height, width, channels = x.shape
    condition = quant.QuantDense(8, rules=self.rules, name="time")(jnp.stack([jnp.sin(t), jnp.cos(t)], -1))
    tokens = quant.QuantConv(8, (2, 2), 2, "VALID", rules=self.rules, name="patchify")(x).reshape(batch, -1, 8)
    tokens = Block(rules=self.rules, name="block")(tokens, condition)
    patches = quant.QuantDense(4 * channels, rules=self.rules, name="unpatchify")(tokens)
    patches = patches.reshape(batch, height // 2, width // 2, 2, 2, channels)
    return patches.swapaxes(2, 3).reshape(x.shape)


MODEL = DiT()
X, T = jax.random.normal(jax.random.key(0), (4, 8, 8, 2)), jnp.arange(4.0)
TARGET = jnp.roll(X, 1, axis=1) * jnp.cos(T)[:, None, None, None]
FLOAT = quant.LayerRule()
ONE, TWO = quant.LayerRule("one_basis", act_bits=4), quant.LayerRule("multi_basis", act_bits=4)
# W1A4 between 8-bit edges; two bases in one layer.
RULES = quant.preset("baseline", act_bits=4, edges=("patchify", "unpatchify"), edge_bits=8).before(
  quant.Rule("time", FLOAT), quant.Rule("*/modulation", FLOAT), quant.Rule("*/mlp_out", TWO)
)


@pytest.fixture(scope="module")
def params():
  return jax.jit(MODEL.init)(jax.random.key(1), X, T)["params"]


@pytest.fixture(scope="module")
def binarized(params):
  return quant.binarize(MODEL, params, RULES, X, T)


def mse(apply, variables):
  return jnp.mean((apply(variables, X, T) - TARGET) ** 2)


@pytest.fixture(scope="module")
def trained(binarized):
  """(the state after ten steps of Adam, the eleven losses)."""
  student, variables = binarized
  state = TrainState.create(apply_fn=student.apply, params=variables, tx=optax.adam(1e-2))

  @jax.jit
  def step(state):
    loss, gradients = jax.value_and_grad(lambda v: mse(student.apply, v))(state.params)
    return state.apply_gradients(grads=gradients), loss

  losses = []
  for _ in range(10):
    state, loss = step(state)
    losses.append(float(loss))
  return state, [*losses, float(step(state)[1])]


@pytest.fixture(scope="module")
def gradients(binarized):
  student, variables = binarized
  return jax.jit(jax.grad(lambda v: mse(student.apply, v)))(variables)


def names(tree):
  return {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_layers_and_macs():
  """16 tokens of 8 channels; linears of time and modulation run once an image."""
  layers = {layer.path: layer for layer in quant.inspect_layers(MODEL, X, T)}
  assert {path: layer.macs for path, layer in layers.items()} == {
    "time": 2 * 8,
    "patchify": 16 * (2 * 2 * 2) * 8,
    "block/modulation": 8 * 48,
    "block/qkv": 16 * 8 * 24,
    "block/qk": 16 * 16 * 8,
    "block/av": 16 * 16 * 8,
    "block/proj": 16 * 8 * 8,
    "block/mlp_in": 16 * 8 * 16,
    "block/mlp_out": 16 * 16 * 8,
    "unpatchify": 16 * 8 * 8,
  }
  # Only feature maps lower a resolution: tokens count as 1, so that "lmb" gives every layer of a block two bases.
  assert layers["patchify"].resolution == 0.5 and layers["block/qkv"].resolution == 1
  assert quant.preset("lmb").resolve(layers.values())["block/qkv"].bases == 2


def test_binarize_gives_one_tree_of_both_collections(params, binarized):
  student, variables = binarized
  assert isinstance(student, DiT) and MODEL.rules is None
  assert dict(student.rules) == {
    "time": FLOAT,
    "patchify": quant.LayerRule("lsq", 8, 8),
    "block/modulation": FLOAT,
    "block/qkv": ONE,
    "block/qk": quant.LayerRule(act_bits=4),
    "block/av": quant.LayerRule(act_bits=4),
    "block/proj": ONE,
    "block/mlp_in": ONE,
    "block/mlp_out": TWO,
    "unpatchify": quant.LayerRule("lsq", 8, 8),
  }
  assert names(variables["quant"]) == {
    "patchify/weight_step", "patchify/step", "unpatchify/weight_step", "unpatchify/step",
    "block/qkv/scale1", "block/qkv/step", "block/proj/scale1", "block/proj/step",
    "block/mlp_in/scale1", "block/mlp_in/step", "block/mlp_out/scale1", "block/mlp_out/scale2", "block/mlp_out/step",
    "block/qk/step_a", "block/qk/step_b", "block/av/step_a", "block/av/step_b",
  }
  jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
  scale1 = np.abs(params["block"]["qkv"]["kernel"]).mean(0)
  np.testing.assert_allclose(variables["quant"]["block"]["qkv"]["scale1"], scale1, rtol=1e-5)
  np.testing.assert_allclose(variables["quant"]["patchify"]["step"], 2 * np.abs(X).mean() / 127**0.5, rtol=1e-5)


def test_binarize_inside_jit(params, binarized):
  inside = jax.jit(lambda p: quant.binarize(MODEL, p, RULES, X, T)[1])(params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), inside, binarized[1])


def test_gradients_reach_latent_weights_scales_and_steps(binarized, gradients):
  assert names(gradients) == names(binarized[1])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all() and np.any(leaf), path


def test_ten_steps_lower_the_loss_and_move_every_leaf(binarized, trained):
  state, losses = trained
  assert losses[-1] < 0.95 * losses[0]
  assert quant.untrained(binarized[1], state.params) == []


def test_packed_and_unpacked_gives_the_same_output(trained, tmp_path):
  """By a file; the bytes are counted by hand: kernel bits, scales, biases and steps of each layer."""
  variables, table = trained[0].params, trained[0].apply_fn.__self__.rules
  tensors = quant.pack(variables, table)
  assert sum(tensor.nbytes for tensor in tensors.values()) == sum([
    4 * (2 * 8 + 8),  # time
    8 * 8 + 4 * (8 + 8 + 1),  # patchify, 8 bits a weight
    4 * (8 * 48 + 48),  # modulation
    8 * 24 // 8 + 4 * (24 + 24 + 1),  # qkv, 1 bit
    4 * 2 + 4 * 2,  # the steps of qk and av
    8 * 8 // 8 + 4 * (8 + 8 + 1),  # proj
    8 * 16 // 8 + 4 * (16 + 16 + 1),  # mlp_in
    2 * 16 * 8 // 8 + 4 * (8 + 8 + 8 + 1),  # mlp_out, two bases
    8 * 8 + 4 * (8 + 8 + 1),  # unpatchify
  ])
  save_file(tensors, tmp_path / "dit.safetensors")

  table = quant.resolve(RULES, MODEL, X, T)
  shapes = {layer.path: layer.kernel_shape for layer in quant.inspect_layers(MODEL, X, T)}
  back = quant.unpack(load_file(tmp_path / "dit.safetensors"), table, shapes)
  wanted = jax.jit(trained[0].apply_fn)(variables, X, T)
  got = jax.jit(MODEL.clone(rules=quant.dequantized(table)).apply)(back, X, T)
  assert float(jnp.abs(wanted).max()) > 0.1
  np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_params_alone_stop_with_one_line(binarized):
  student, variables = binarized
  with pytest.raises(ValueError, match="no collection 'quant' was given.*train both; `quant.binarize`") as error:
    student.apply({"params": variables["params"]}, X, T)
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match="scale1 is missing: pack {'params', 'quant'}|weight_step is missing"):
    quant.pack({"params": variables["params"]}, student.rules)


def test_untrained_tells_of_params_trained_alone(binarized, gradients):
  """The silent mistake: `quant` closed over."""
  _, variables = binarized
  moved = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients["params"])
  frozen = {f"quant/{name}" for name in names(variables["quant"])}
  assert set(quant.untrained(variables, {**variables, "params": moved})) == frozen
  assert set(quant.untrained(variables, {"params": moved})) == frozen
