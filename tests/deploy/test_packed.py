"""The packed file: the same predictions, exact sizes, and damage that is always a PackedError."""

import dataclasses
import functools
import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from binarydm_jax import quant
from binarydm_jax.deploy import PackedError, export, load, model_cost
from binarydm_jax.models import Autoencoder
from binarydm_jax.models.unet import EDGES, UNet

DIFFUSION = dict(schedule="linear", num_timesteps=200, beta_start=1e-4, beta_end=0.04, target="eps")
SHAPE = (8, 8, 1)


def unet(**fields):
  return UNet(**{**dict(out_channels=1, model_channels=8, channel_mult=(1,), num_res_blocks=0, num_heads=2,
                        norm_groups=4), **fields})


@functools.cache
def shapes(teacher):
  """Of its parameters; many students below are of one network."""
  return jax.eval_shape(teacher.init, jax.random.key(0), *teacher.abstract_inputs(SHAPE))["params"]


@functools.cache
def student(weights, act_bits=32, edge_bits=32, weight_bits=2, seed=0, activation="lsq", **fields):
  """(model with its deployed rules, table, layers, variables); kernels, scales, steps, zero points: all random."""
  teacher = unet(**fields)
  labels = (jnp.arange(2),) if teacher.num_classes else ()
  x, t = jnp.zeros((2, *SHAPE)), jnp.zeros(2, jnp.int32)
  layers = quant.inspect_layers(teacher, *teacher.abstract_inputs(SHAPE))  # which conftest remembers
  trained = quant.preset(weights, act_bits, weight_bits, EDGES, edge_bits, activation).resolve(layers)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes(teacher))
  learned = jax.eval_shape(lambda p: quant.calibrate(teacher.clone(rules=trained), p, x, t, *labels), params)

  def fill(path, leaf):
    if path[-1].key in quant.packed_variables.ZERO_POINTS:
      return jnp.float32(rng.integers(0, 2 ** (act_bits - 1) + 1))
    return jnp.asarray(rng.uniform(0.05, 0.3, leaf.shape), jnp.float32)

  learned = jax.tree_util.tree_map_with_path(fill, learned)
  table = quant.deployed_table(trained)
  return teacher.clone(rules=table), table, layers, {"params": params, "quant": learned}


def write(path, made, **about):
  """`export` of what `student` makes; `about` may hold `first_stage` and `remainder`."""
  model, table, layers, variables = made
  return export(path, variables, model.clone(rules=None), table, layers, DIFFUSION, SHAPE, **about)


# --- whole models -----------------------------------------------------------------------------------------------------

MODELS = {
    "baseline": dict(weights="baseline"),
    "lmb a4": dict(weights="lmb", act_bits=4, channel_mult=(1, 1)),
    "lmb a4 asymmetric": dict(weights="lmb", act_bits=4, activation="asymmetric", edge_bits=8, channel_mult=(1, 1)),
    "lsq a8 asymmetric": dict(weights="lsq", act_bits=8, activation="asymmetric"),
    "ebb a4 edges 8": dict(weights="ebb", act_bits=4, edge_bits=8),
    "lsq3 a8 conditional": dict(weights="lsq", weight_bits=3, act_bits=8, num_classes=5),
    "full precision a32": dict(weights="full_precision"),
    "full precision a4": dict(weights="full_precision", act_bits=4),
    "lmb conditional, scale and shift": dict(weights="lmb", num_classes=3, scale_shift=True),
    "cross-attention": dict(weights="lmb", act_bits=8, num_classes=3, null_class=True, context_dim=6),
    "ddpm": dict(weights="baseline", layout="ddpm", num_heads=1),
}


# Each has a part that is also in another.
SLOW = ("lmb a4", "lsq a8 asymmetric", "lmb conditional, scale and shift", "full precision a4")


@pytest.mark.parametrize("name", [
  pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS
])  # fmt: skip
def test_a_loaded_model_predicts_what_the_student_does(name, tmp_path):
  """Predictions within 1e-5, payload bytes exactly those that `model_cost` promises, the header counted apart."""
  made = student(**MODELS[name])
  model, table, layers, variables = made
  path = tmp_path / "deep" / "model.safetensors"
  payload, header = write(path, made, method="test", classes=["a", "b"])
  assert payload == model_cost(layers, table, variables["params"]).packed_bytes
  assert payload + header == path.stat().st_size
  assert header == 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
  assert payload == sum(tensor.nbytes for tensor in load_file(path).values())

  loaded = load(path, "float")
  assert loaded.input_shape == SHAPE and loaded.target == "eps"
  np.testing.assert_allclose(loaded.schedule.betas, np.linspace(1e-4, 0.04, 200), rtol=1e-12)
  assert loaded.description["classes"] == ["a", "b"] and loaded.model.num_classes == model.num_classes
  x, t = jax.random.normal(jax.random.key(9), (3, *SHAPE)), jnp.array([0, 20, 199])
  labels = jnp.array([0, 2, 1]) if model.num_classes else None
  wanted = jax.jit(lambda v: model.apply(v, x, t, labels)[0])(variables)
  assert float(jnp.abs(wanted).max()) > 0.1
  got = jax.jit(lambda v: loaded.model.apply(v, x, t, labels)[0])(loaded.variables)
  np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("weights", ["lmb", "full_precision"])
def test_remainder_in_bfloat16(weights, tmp_path):
  """What is not quantized takes two bytes and comes back as its rounding; signs, scales and steps are untouched."""
  made = student(weights, act_bits=4)
  sizes = [write(tmp_path / name, made, remainder=name)[0] for name in ("float32", "bfloat16")]
  _, table, layers, variables = made
  assert sizes[1] == model_cost(layers, table, variables["params"], remainder_bytes=2).packed_bytes < sizes[0]
  whole, half = (load_file(tmp_path / name) for name in ("float32", "bfloat16"))
  assert set(whole) == set(half)
  assert {tensor.dtype.name for tensor in half.values()} <= {"uint8", "float32", "bfloat16"}
  for name, tensor in whole.items():
    part = name.rpartition("/")[2]
    rounded = part not in ("signs1", "signs2", "scale1", "scale2", "step", "step_a", "step_b")
    np.testing.assert_array_equal(tensor.astype(jnp.bfloat16) if rounded else tensor, half[name])
  x, t = jax.random.normal(jax.random.key(9), (3, *SHAPE)), jnp.array([0, 20, 199])
  # In full precision nothing is rounded to codes: the predictions stay near.
  if weights == "full_precision":
    a, b = (load(tmp_path / name, "float")(x, t) for name in ("float32", "bfloat16"))
    assert a.dtype == b.dtype == jnp.float32


def test_a_step_that_fell_below_zero_survives_export(tmp_path):
  """The quantizers floor a step; a file that export wrote must be readable, with the step at that floor."""
  made = student("baseline", act_bits=4)
  learned = jax.tree.map(lambda leaf: leaf, made[3]["quant"])
  learned["middle"]["res"]["conv1"]["step"] = jnp.float32(-1e-3)
  write(tmp_path / "m", (*made[:3], {"params": made[3]["params"], "quant": learned}))
  step = load(tmp_path / "m", "float").variables["quant"]["middle"]["res"]["conv1"]["step"]
  assert 0 < float(step) <= 1e-6


def test_the_same_model_gives_the_same_bytes(tmp_path):
  """Ten exports are equal byte for byte, tensors aligned to 8 bytes; another scale gives other bytes."""
  made = student("lmb", act_bits=4)
  for i in range(10):
    write(tmp_path / str(i), made, classes=["Zürich", "a"])
  contents = [(tmp_path / str(i)).read_bytes() for i in range(10)]
  assert len(set(contents)) == 1
  assert struct.unpack("<Q", contents[0][:8])[0] % 8 == 0
  assert load(tmp_path / "0", "float").description["classes"] == ["Zürich", "a"]
  write(tmp_path / "other", student("lmb", act_bits=4, seed=1), classes=["Zürich", "a"])
  assert (tmp_path / "other").read_bytes() != contents[0]


def test_an_interrupted_export_leaves_the_old_file(tmp_path, monkeypatch):
  made = student("baseline")
  path = tmp_path / "m.safetensors"
  write(path, made)
  before = path.read_bytes()

  def fails(descriptor):
    os.truncate(descriptor, 100)
    raise OSError("no space left on device")

  monkeypatch.setattr(os, "fsync", fails)
  with pytest.raises(OSError, match="no space"):
    write(path, student("baseline", seed=1))
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
  load(path)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, match", [(9, "9.0, not a whole number in 0 .. 8"), (0.5, "0.5, not a whole number"),
                                          (-1, "-1.0, not a whole"), (np.nan, "not finite")])
def test_zero_points_that_are_none_are_refused(value, match, tmp_path):
  made = student("baseline", act_bits=4, activation="asymmetric")
  write(tmp_path / "m", made)
  with safe_open(tmp_path / "m", "numpy") as file:
    metadata = file.metadata()
  tensors = load_file(tmp_path / "m")
  save_file({**tensors, f"{NAME}/zero_point": np.asarray(value, np.float32)}, tmp_path / "m", metadata)
  refused(tmp_path / "m", f"{NAME}/zero_point .*{match}" if np.isfinite(value) else match)
  save_file({**tensors, f"{NAME}/zero_point": np.asarray(8, np.float32)}, tmp_path / "m", metadata)
  load(tmp_path / "m", "float")


def test_zero_points_that_drifted_are_rounded(tmp_path):
  """An average of weights moves them by a last place; the quantizer rounds, and so does the file."""
  made = student("baseline", act_bits=4, activation="asymmetric")
  learned = jax.tree.map(lambda leaf: leaf, made[3]["quant"])
  learned["middle"]["res"]["conv1"]["zero_point"] = jnp.float32(3 - 2**-20)
  write(tmp_path / "m", (*made[:3], {"params": made[3]["params"], "quant": learned}))
  assert load(tmp_path / "m", "float").variables["quant"]["middle"]["res"]["conv1"]["zero_point"] == 3


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """(path, tensors, metadata) of a good file."""
  path = tmp_path_factory.mktemp("packed") / "good.safetensors"
  write(path, student("lmb", act_bits=4, edge_bits=8))
  content = path.read_bytes()
  length = struct.unpack("<Q", content[:8])[0]
  return path, load_file(path), json.loads(content[8 : 8 + length])["__metadata__"]


def edited(description, *keys, value):
  """The description's JSON with the entry at `keys` replaced."""
  tree = json.loads(description)
  *parents, last = keys
  node = tree
  for key in parents:
    node = node[key]
  node[last] = value
  return json.dumps(tree)


def refused(path, match):
  with pytest.raises(PackedError, match=match) as caught:
    load(path)
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


NAME = "middle/res/conv1"


@pytest.mark.parametrize("change, match", [
    (lambda t, m: t.pop(f"{NAME}/signs1"), f"missing or left over, the first is '{NAME}/signs1'"),
    (lambda t, m: t.pop(f"{NAME}/bias"), f"{NAME}/bias"),
    (lambda t, m: t.update(extra=np.zeros(1, np.float32)), "left over, the first is 'extra'"),
    (lambda t, m: t.update({f"{NAME}/signs1": t[f"{NAME}/signs1"][:-1]}), f"{NAME}/signs1 is U8"),
    (lambda t, m: t.update({f"{NAME}/bias": t[f"{NAME}/bias"][None]}), f"{NAME}/bias is F32"),
    (lambda t, m: t.update({f"{NAME}/scale1": t[f"{NAME}/scale1"].astype(np.float64)}), "is F64"),
    (lambda t, m: t.update({f"{NAME}/scale1": t[f"{NAME}/scale1"] * np.nan}), "scale1 holds values that are not"),
    (lambda t, m: t.update({f"{NAME}/scale2": -t[f"{NAME}/scale2"]}), "scale2 holds scales that are not positive"),
    (lambda t, m: t.update({f"{NAME}/step": np.asarray(-t[f"{NAME}/step"])}), "step holds scales that are not pos"),
    (lambda t, m: m.update(format="pt"), "has no format"),
    (lambda t, m: m.pop("format"), "has no format"),
    (lambda t, m: m.update(version="2"), "version .2. and this program reads .3.: --mode=export"),
    (lambda t, m: m.pop("description"), "description is no JSON"),
    (lambda t, m: m.update(description="{garbage"), "description is no JSON"),
    (lambda t, m: m.update(description="[1, 2]"), "description is not valid"),
    (lambda t, m: m.update(description="null"), "description is not valid"),
    (lambda t, m: m.update(description='{"model": {}}'), "description is not valid"),
], ids=range(17))
def test_damaged_content(good, tmp_path, change, match):
  """Tensors and metadata that do not fit are refused, and the message says which file and what."""
  tensors, metadata = dict(good[1]), dict(good[2])
  change(tensors, metadata)
  save_file(tensors, tmp_path / "bad.safetensors", metadata)
  refused(tmp_path / "bad.safetensors", match)


@pytest.mark.parametrize("keys, value", [
    (("model", "channel_mult"), []),
    (("model", "model_channels"), "8"),
    (("model", "norm_groups"), 3),
    (("model", "num_heads"), 0),
    (("diffusion", "schedule"), "sqrt"),
    (("diffusion", "num_timesteps"), 1e9999),
    (("diffusion", "num_timesteps"), 0),
    (("diffusion", "beta_end"), 7),
    (("diffusion", "target"), "score"),
    (("input_shape",), [8, 8]),
    (("input_shape",), [1e9999, 8, 1]),
    (("input_shape",), [0, 8, 1]),
    (("first_stage",), {}),
    (("first_stage",), {"kind": "vq", "scale_factor": 0, "sha256": ""}),
    (("first_stage",), {"kind": "ae", "latent_channels": 1, "scale_factor": 1, "sha256": ""}),
    (("first_stage",), {"kind": "vq", "latent_channels": 2, "scale_factor": 1, "sha256": ""}),
    (("first_stage",), {"kind": "vq", "latent_channels": 1, "scale_factor": 1}),
    (("first_stage",), {"kind": "vq", "depth": 3, "scale_factor": 1, "sha256": ""}),
    (("model", "num_res_blocks"), 10**6),
    (("model", "channel_mult"), [1] * 17),
    (("model", "model_channels"), 2**40),
    (("model", "attention_resolutions"), ["8"]),
    (("model", "scale_shift"), 1),
    (("model", "dropout"), float("nan")),
    (("model", "layout"), []),
    (("model", "remat"), True),
    (("diffusion", "num_timesteps"), 10**9),
    (("input_shape",), [2**30, 2**30, 1]),
    (("remainder",), "float16"),
    (("remainder",), "bfloat16"),
    (("layers", NAME, "weights"), ["lsq"]),
    (("layers", NAME, "act_bits"), 4.0),
    (("layers", NAME, "act_bits"), True),
    (("layers", NAME, "shape"), [2**60, 2**60, 8, 8]),
    (("layers", NAME, "weights"), "two_bases"),
    (("layers", NAME, "shape"), [3, 3, 8, 9]),
    (("layers", NAME, "shape"), [8, 3, 3, 8]),
    (("layers", NAME, "shape"), None),
    (("layers", NAME), {}),
    (("layers",), {}),
], ids=lambda v: "/".join(v) if isinstance(v, tuple) else str(v)[:20])
def test_a_description_that_does_not_fit(good, tmp_path, keys, value):
  """Whatever the JSON says is checked before it is used."""
  metadata = dict(good[2], description=edited(good[2]["description"], *keys, value=value))
  save_file(good[1], tmp_path / "bad.safetensors", metadata)
  refused(tmp_path / "bad.safetensors", "bad.safetensors")


def test_a_first_stage_of_a_million_blocks(good, tmp_path):
  """Each would be traced before the first stage's own file is looked at."""
  fields = {f.name: f.default for f in dataclasses.fields(Autoencoder) if f.name not in ("parent", "name")}
  fields |= {"scale_factor": 1.0, "sha256": "", "num_res_blocks": 10**6}
  text = edited(good[2]["description"], "first_stage", value=fields)
  save_file(good[1], tmp_path / "bad.safetensors", dict(good[2], description=text))
  refused(tmp_path / "bad.safetensors", "first_stage.num_res_blocks")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5_000], ids=["nesting", "long number"])
def test_json_that_the_parser_itself_refuses(good, tmp_path, text):
  save_file(good[1], tmp_path / "bad.safetensors", dict(good[2], description=text))
  refused(tmp_path / "bad.safetensors", "bad.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 8, 500, -1])
def test_truncated(good, tmp_path, kept):
  bad = tmp_path / "bad.safetensors"
  bad.write_bytes(good[0].read_bytes()[:kept])
  refused(bad, "not a readable packed model")


def test_files_that_are_something_else(tmp_path):
  """Text, a directory, a foreign safetensors file, and no file at all."""
  (tmp_path / "text").write_text("hello, I am not a model" * 10)
  refused(tmp_path / "text", "not a readable packed model")
  (tmp_path / "folder").mkdir()
  refused(tmp_path / "folder", "not a readable packed model")
  save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign")
  refused(tmp_path / "foreign", "has no format")
  refused(tmp_path / "none", "does not exist; --mode=export writes it")
