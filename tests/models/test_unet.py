"""The U-Net: its parts against plain numpy, its shape, and that teacher and student are one definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from binarydm_jax.models import UNet
from binarydm_jax.models.attention import SelfAttention
from binarydm_jax.models.blocks import Block, ResBlock
from binarydm_jax.models.dropout import example_keys
from binarydm_jax.models.embedding import timestep_embedding
from binarydm_jax.models.unet import EDGES
from binarydm_jax.quant import calibrate, gates_at, preset, progressive_rings, resolve

TINY = UNet(3, 8, (1, 2), 1, (2,), num_head_channels=8, norm_groups=4)
SMALL = TINY.clone(num_res_blocks=0)  # for what is not about names and their order: half the time to compile
X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
T = jnp.array([3, 500])


def _jit(function):
  """Compiled without optimization: these networks are tiny, and compiling them is nearly all the time of the tests."""
  options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return jax.jit(function, compiler_options=options)


run_teacher = _jit(lambda params, x, t: TINY.apply({"params": params}, x, t))


def _randomized(params, seed=0):
  """Random values for every leaf: several start at zero."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves])


def _shapes(model, *inputs, **kwargs):
  return jax.eval_shape(lambda *a: model.init(jax.random.key(0), *a, **kwargs), *inputs)


def _program(model):
  """What `model` computes outside training, as text."""
  return str(jax.make_jaxpr(lambda p: model.apply({"params": p}, X, T))(_shapes(model, X, T)["params"]))


def _random_params(model, *inputs, **kwargs):
  return _randomized(_shapes(model, *inputs, **kwargs)["params"])


def _silu(x):
  return x / (1 + np.exp(-x))


def _group_norm(x, params, groups):
  batch, height, width, channels = x.shape
  h = x.reshape(batch, height * width, groups, channels // groups)
  h = (h - h.mean((1, 3), keepdims=True)) / np.sqrt(h.var((1, 3), keepdims=True) + 1e-5)
  return h.reshape(x.shape) * params["scale"] + params["bias"]


def _conv3(x, params):
  """3 x 3 taps, one pixel of zeros around."""
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = params["kernel"]
  taps = [padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
  return sum(taps) + params["bias"]


def test_sinusoidal_embedding_by_hand():
  # Frequencies 10000^(-0/2) = 1 and 10000^(-1/2) = 0.01: cosines, then sines.
  embedding = timestep_embedding(jnp.array([0, 2]), 4)
  np.testing.assert_allclose(embedding, [[1, 1, 0, 0], [-0.4161468, 0.9998, 0.9092974, 0.0199987]], atol=1e-5)
  assert embedding.dtype == jnp.float32


def test_odd_embedding_ends_in_a_zero():
  np.testing.assert_allclose(timestep_embedding(jnp.array([2]), 3), [[-0.4161468, 0.9092974, 0]], atol=1e-6)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_attention_against_numpy(num_heads):
  x = jax.random.normal(jax.random.key(1), (2, 2, 3, 8))
  module = SelfAttention(num_heads, norm_groups=4)
  params = _random_params(module, x)
  p = jax.tree.map(np.asarray, params)
  x = np.asarray(x)

  h = _group_norm(x, p["norm"], 4).reshape(2, 6, 8)
  qkv = h @ p["qkv"]["kernel"] + p["qkv"]["bias"]
  size, heads = 8 // num_heads, []
  for head in range(num_heads):
    # Channels of the projection: head by head its q, k, v.
    q, k, v = (qkv[..., (3 * head + i) * size : (3 * head + i + 1) * size] for i in range(3))
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(size)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    heads.append(weights @ v)
  expected = x + (np.concatenate(heads, -1) @ p["proj"]["kernel"] + p["proj"]["bias"]).reshape(x.shape)
  np.testing.assert_allclose(_jit(module.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale_shift, channels", [(False, 8), (False, 12), (True, 12)])
def test_resblock_against_numpy(scale_shift, channels):
  x = jax.random.normal(jax.random.key(1), (2, 5, 5, 8))
  embedding = jax.random.normal(jax.random.key(2), (2, 6))
  module = ResBlock(channels, scale_shift, norm_groups=4)
  params = _random_params(module, x, embedding)
  assert ("skip" in params) == (channels != 8)
  p = jax.tree.map(np.asarray, params)
  x, embedding = np.asarray(x), np.asarray(embedding)

  h = _conv3(_silu(_group_norm(x, p["norm1"], 4)), p["conv1"])
  e = (_silu(embedding) @ p["emb"]["kernel"] + p["emb"]["bias"])[:, None, None]
  if scale_shift:
    h = _group_norm(h, p["norm2"], 4) * (1 + e[..., :channels]) + e[..., channels:]
  else:
    h = _group_norm(h + e, p["norm2"], 4)
  skip = x if channels == 8 else x @ p["skip"]["kernel"][0, 0] + p["skip"]["bias"]
  expected = skip + _conv3(_silu(h), p["conv2"])
  np.testing.assert_allclose(_jit(module.apply)({"params": params}, x, embedding), expected, rtol=1e-4, atol=1e-4)


def test_down_and_up_samplers_against_numpy():
  """down: every other pixel of the padded convolution, from the first; up: each pixel twice, then a convolution."""
  x = jax.random.normal(jax.random.key(1), (1, 6, 6, 4))
  embedding = jnp.zeros((1, 4))
  down, up = Block(4, down=True), Block(4, up=True)
  params = _random_params(down, x, embedding)
  kernel = jax.tree.map(np.asarray, params["down"])
  x = np.asarray(x)
  np.testing.assert_allclose(
    down.apply({"params": params}, x, embedding), _conv3(x, kernel)[:, ::2, ::2], rtol=1e-4, atol=1e-4
  )
  doubled = x[:, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]][:, :, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
  np.testing.assert_allclose(
    up.apply({"params": {"up": params["down"]}}, x, embedding), _conv3(doubled, kernel), rtol=1e-4, atol=1e-4
  )


@pytest.fixture(scope="module")
def params():
  return _random_params(TINY, X, T)


@pytest.fixture(scope="module")
def student(params):
  """(student, quant): LMB-like two bases at both levels, 4-bit activations, calibrated on X."""
  table = resolve(preset("ebb", 4, edges=EDGES), TINY, X, T)
  student = TINY.clone(rules=table)
  return student, _jit(lambda p: calibrate(student, p, X, T))(params)


@pytest.fixture(scope="module")
def teacher_output(params):
  return run_teacher(params, X, T)


def test_names_order_and_shapes_of_features():
  prediction, features = jax.eval_shape(lambda: TINY.init_with_output(jax.random.key(0), X, T)[0])
  assert prediction.shape == (2, 8, 8, 3)
  assert [(n, f.shape[1], f.shape[3]) for n, f in zip(TINY.block_names, features, strict=True)] == [
    ("input_0", 8, 8),
    ("input_1", 8, 8),
    ("input_2", 4, 8),
    ("input_3", 4, 16),
    ("middle", 4, 16),
    ("output_0", 4, 16),
    ("output_1", 8, 16),
    ("output_2", 8, 8),
    ("output_3", 8, 8),
  ]


def test_levels_without_residual_blocks():
  """The encoder only goes down; the decoder has one block a level, as always, and takes the skips of both."""
  prediction, features = _jit(SMALL.apply)({"params": _random_params(SMALL, X, T)}, X, T)
  assert SMALL.block_names == ("input_0", "input_1", "middle", "output_0", "output_1")
  assert [feature.shape[1] for feature in features] == [8, 4, 4, 8, 8]
  assert prediction.shape == X.shape and np.abs(prediction).min() > 0


def test_skips_are_taken_last_in_first_out():
  """Input channels of the decoder: what comes from below plus the matching encoder block's."""
  shapes = _shapes(TINY, X, T)["params"]
  widths = [shapes[f"output_{i}"]["res"]["conv1"]["kernel"].shape[2] for i in range(4)]
  assert widths == [16 + 16, 16 + 8, 16 + 8, 8 + 8]


def test_attention_where_asked_and_in_the_middle():
  shapes = _shapes(TINY, X, T)["params"]
  assert {name for name in TINY.block_names if "attn" in shapes[name]} == {"input_3", "middle", "output_0", "output_1"}
  shapes = _shapes(TINY.clone(attention_resolutions=()), X, T)["params"]
  assert {name for name in TINY.block_names if "attn" in shapes[name]} == {"middle"}


def test_prediction_is_zero_at_initialisation(params):
  """The last convolution starts at zero, as does the last of every residual block and attention; nothing else does."""
  initial = _jit(lambda key: jax.tree.map(jnp.any, SMALL.init(key, X, T)["params"]))(jax.random.key(0))
  kernels = {p: leaf for p, leaf in flatten_dict(initial, sep="/").items() if p.endswith("kernel")}
  zero = {path for path, leaf in kernels.items() if not leaf}
  assert zero == {path for path in kernels if path.split("/")[-2] in ("conv2", "proj", "out_conv")}
  prediction, _ = run_teacher({**params, "out_conv": jax.tree.map(jnp.zeros_like, params["out_conv"])}, X, T)
  np.testing.assert_array_equal(prediction, np.zeros((2, 8, 8, 3)))


def test_every_example_depends_on_its_own_timestep_only(params, teacher_output):
  prediction, _ = run_teacher(params, X, jnp.array([3, 7]))
  np.testing.assert_allclose(prediction[0], teacher_output[0][0], rtol=1e-5, atol=1e-5)
  assert np.abs(prediction[1] - teacher_output[0][1]).max() > 1e-3


def test_scale_shift_doubles_the_embedding_projection(params):
  shapes = _shapes(TINY.clone(scale_shift=True), X, T)["params"]
  assert params["input_1"]["res"]["emb"]["kernel"].shape == (32, 8)
  assert shapes["input_1"]["res"]["emb"]["kernel"].shape == (32, 16)


def test_number_of_heads_changes_the_result_but_not_the_parameters(params, teacher_output):
  one_head = TINY.clone(num_head_channels=0, num_heads=1)  # 16 channels at the attention blocks: else two heads
  assert _shapes(one_head, X, T) == _shapes(TINY, X, T)
  _, features = _jit(one_head.apply)({"params": params}, X, T)
  np.testing.assert_allclose(features[2], teacher_output[1][2], rtol=1e-5, atol=1e-5)  # no attention yet
  assert np.abs(features[3] - teacher_output[1][3]).max() > 1e-3
  two_heads = TINY.clone(num_head_channels=0, num_heads=2)
  assert _program(two_heads) == _program(TINY) != _program(one_head)


def test_class_conditional_needs_labels_and_uses_them():
  model = SMALL.clone(num_classes=3)
  with pytest.raises(ValueError, match=r"class-conditional UNet \(num_classes > 0\) needs labels"):
    _shapes(model, X, T)
  params = _random_params(model, X, T, labels=jnp.array([0, 1]))
  assert params["label_embed"]["embedding"].shape == (3, 32)
  run = _jit(lambda labels: model.apply({"params": params}, X, T, labels)[0])
  a, b = run(jnp.array([0, 1])), run(jnp.array([0, 2]))
  np.testing.assert_array_equal(a[0], b[0])
  assert np.abs(a[1] - b[1]).max() > 1e-3


def test_dropout_acts_with_keys_alone_and_belongs_to_examples():
  """Without keys the program is that without dropout; an example's masks depend on its key, not on its neighbours."""
  model, params = SMALL.clone(dropout=0.5), _random_params(SMALL, X, T)
  run = _jit(lambda keys: model.apply({"params": params}, X, T, dropout_keys=keys)[0])
  keys = example_keys(jax.random.key(0), 4)
  first, again, other = run(keys[:2]), run(keys[:2]), run(keys[jnp.array([0, 3])])
  np.testing.assert_array_equal(first, again)
  np.testing.assert_allclose(first[0], other[0], atol=1e-6)
  assert np.abs(first[1] - other[1]).max() > 1e-3
  assert _program(model) == _program(SMALL)


@pytest.mark.slow
def test_bfloat16_compute_returns_float32_near_the_float32_result(params, teacher_output):
  model = TINY.clone(dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(_shapes(model, X, T))} == {jnp.dtype("float32")}
  prediction, features = _jit(model.apply)({"params": params}, X, T)
  assert prediction.dtype == jnp.float32
  assert {feature.dtype for feature in features} == {jnp.dtype("bfloat16")}
  error = np.abs(prediction - teacher_output[0]).max() / np.abs(teacher_output[0]).max()
  assert 0 < error < 0.05


def test_teacher_and_student_have_the_same_parameters(student):
  model, _ = student
  assert _shapes(model, X, T)["params"] == _shapes(TINY, X, T)["params"]
  assert "quant" not in _shapes(TINY, X, T)


def test_student_owns_scales_and_steps_of_every_quantized_layer_and_no_others(student):
  _, quant = student
  assert not {"time_embed_0", "time_embed_1", "out_conv", "input_0"} & set(quant)
  assert set(quant["input_1"]["res"]) == {"conv1", "emb", "conv2"}
  assert set(quant["input_2"]["down"]) == {"scale1", "scale2", "step"}
  assert set(quant["output_1"]["up"]) == {"scale1", "scale2", "step"}
  assert {name: set(leaves) for name, leaves in quant["middle"]["attn"].items()} == {
    "qkv": {"scale1", "scale2", "step"},
    "qk": {"step_a", "step_b"},
    "av": {"step_a", "step_b"},
    "proj": {"scale1", "scale2", "step"},
  }


def test_gates_from_all_off_to_all_on_in_one_compilation(params, student, teacher_output):
  """Off is the teacher, on is the ungated student, between them the rings; the step is data, so one trace serves."""
  model, quant = student
  rings = progressive_rings("blocks", [1.0] * len(TINY.block_names))
  assert rings == (4, 3, 2, 1, 0, 1, 2, 3, 4)
  traces = []

  @_jit
  def run(step):
    traces.append(step)
    gates = gates_at(step, rings, transition=9)
    return model.apply({"params": params, "quant": quant}, X, T, gates=gates)

  outputs = {step: run(jnp.int32(step)) for step in (-1, 0, 4, 5, 9)}
  assert len(traces) == 1

  np.testing.assert_allclose(outputs[-1][0], teacher_output[0], rtol=1e-4, atol=1e-4)
  for i, (feature, expected) in enumerate(zip(outputs[0][1], teacher_output[1], strict=True)):
    same = np.allclose(feature, expected, rtol=1e-3, atol=1e-3)
    assert same == (i < TINY.block_names.index("middle")), TINY.block_names[i]
  ungated, _ = _jit(model.apply)({"params": params, "quant": quant}, X, T)
  # A rounding may fall either way in two compilations: the mean, not every value.
  size = np.abs(ungated).mean()
  assert np.abs(outputs[5][0] - ungated).mean() < 0.02 * size
  assert np.abs(outputs[4][0] - ungated).mean() > 0.02 * size  # attention's products are still full precision
  assert np.abs(outputs[9][0] - ungated).mean() > 0.02 * size  # the second basis is gone


def test_gradients_reach_every_parameter_and_scale_of_the_student():
  params = _random_params(SMALL, X, T)
  model = SMALL.clone(rules=resolve(preset("ebb", 4, edges=EDGES), SMALL, X, T))
  scales = jax.eval_shape(lambda p: calibrate(model, p, X, T), params)
  variables = {"params": params, "quant": jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), scales)}
  gradients = _jit(jax.grad(lambda v: (model.apply(v, X, T)[0] ** 2).mean()))(variables)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.all(np.isfinite(leaf)) and np.any(leaf), jax.tree_util.keystr(path)
