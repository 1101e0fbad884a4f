"""Compute options of the U-Net: bfloat16, rematerialisation; the same network either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.benchmark.common import residual_bytes
from binarydm_jax.models import UNet
from binarydm_jax.models.unet import REMAT
from binarydm_jax.quant import calibrate, inspect_layers, preset

NET = UNet(3, 8, (1,), 0, num_heads=2, norm_groups=4)  # the middle block has attention
X, T = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([3, 900])


@pytest.fixture(scope="module")
def student():
  """(student's rules, variables), W1A8 with two bases, random and calibrated."""
  shapes = jax.eval_shape(NET.init, jax.random.key(0), X, T)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
  table = preset("lmb", act_bits=8).resolve(inspect_layers(NET, X, T))
  learned = jax.jit(lambda p: calibrate(NET.clone(rules=table), p, X, T))(params)
  return table, {"params": params, "quant": learned}


def gradient(model):
  """((loss, (prediction, features)), gradients) of variables, x and t."""

  def loss(variables, x, t):
    prediction, features = model.apply(variables, x, t)
    return jnp.mean(prediction**2) + sum(jnp.mean(f.astype(jnp.float32) ** 2) for f in features), (
      prediction, features)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.slow
def test_remat_gives_the_same_gradient_in_less_memory(student):
  """Values and gradients equal; what the forward pass keeps for the gradient is smaller, also in bfloat16.

  "products" keeps what every convolution and matrix product gives, "blocks" the blocks' inputs alone."""
  table, variables = student
  large = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.int32)
  models = [NET.clone(rules=table, remat=remat) for remat in REMAT]
  values = [gradient(model)(variables, X, T) for model in models]
  for other in values[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), values[0], other)
  plain, products, blocks = (residual_bytes(model, variables, *large) for model in models)
  assert blocks < 0.15 * plain and blocks < products < 0.5 * plain
  assert residual_bytes(models[0].clone(dtype=jnp.bfloat16), variables, *large) < 0.7 * plain


def test_a_bfloat16_embedding_in_a_float32_network():
  """As a packed file may hold it: its values are rounded, and what is computed of them is not."""
  model = NET.clone(num_classes=3, context_dim=6, attention_resolutions=(8,))
  labels = jnp.array([0, 2])
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, T, labels)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
  run = jax.jit(model.apply)
  half = params["label_embed"]["embedding"].astype(jnp.bfloat16)
  outputs = [run({"params": {**params, "label_embed": {"embedding": table}}}, X, T, labels)[0]
             for table in (half, half.astype(jnp.float32))]  # fmt: skip
  np.testing.assert_array_equal(*outputs)


def test_bfloat16_computes_in_bfloat16(student):
  """Features and every product are bfloat16, prediction and gradients float32, and near those of float32."""
  table, variables = student
  model = NET.clone(rules=table, dtype=jnp.bfloat16)
  (_, (prediction, features)), gradients = gradient(model)(variables, X, T)
  assert prediction.dtype == jnp.float32 and {f.dtype for f in features} == {jnp.dtype(jnp.bfloat16)}
  text = str(jax.make_jaxpr(lambda v: model.apply(v, X, T)[0])(variables))
  products = [line for line in text.splitlines() if "dot_general" in line or "conv_general" in line]
  assert products and all(line.split(":")[1].startswith("bf16") for line in products), products
  wanted, _ = jax.jit(NET.clone(rules=table).apply)(variables, X, T)
  assert np.abs(prediction - wanted).max() < 0.1 * np.abs(wanted).max()
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all(), path
