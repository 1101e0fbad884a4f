"""Packed files of the methods that BinaryDM is compared with: size, prediction, back ends, damage, older files."""

import json
import logging
import struct

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from binarydm_jax import quant
from binarydm_jax.deploy import PackedError, load, model_cost, packed
from binarydm_jax.models.unet import EDGES
from tests.deploy.test_packed import SHAPE, refused, unet, write

NAME = "middle/res/conv1"


def student(name, edge_bits=32, **fields):
  """(model with rules, table, layers, variables), all of them random, so that no method is where it starts."""
  teacher = unet(**fields)
  inputs = teacher.abstract_inputs(SHAPE)
  layers = quant.inspect_layers(teacher, *inputs)
  table = quant.preset(name, 4, 2, EDGES, edge_bits, num_timesteps=200).resolve(layers)
  model, rng = teacher.clone(rules=table), np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

  def fill(path, leaf):
    if path[0].key == "params" or path[-1].key in quant.rivals.NAMES:
      return jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32)
    return jnp.asarray(rng.uniform(0.05, 0.3, leaf.shape), jnp.float32)

  return model, table, layers, jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module", params=quant.RIVALS)
def made(request, tmp_path_factory):
  """(name, what `student` gives, path of its file)."""
  path = tmp_path_factory.mktemp("rivals") / f"{request.param}.safetensors"
  parts = student(request.param, edge_bits=8)
  payload, _ = write(path, parts)
  _, table, layers, variables = parts
  assert payload == model_cost(layers, table, variables["params"]).packed_bytes  # to the byte
  return request.param, parts, path


def test_a_loaded_model_predicts_what_the_student_does(made):
  """By the float back end, to which "auto" falls back; one trace each."""
  _, (model, _, _, variables), path = made
  loaded = load(path, "float")
  x, t = jax.random.normal(jax.random.key(9), (3, *SHAPE)), jnp.array([0, 90, 199])
  wanted = jax.jit(lambda v: model.apply(v, x, t)[0])(variables)
  assert float(jnp.abs(wanted).max()) > 0.1
  np.testing.assert_allclose(loaded(x, t), wanted, atol=1e-5)
  back = flax.traverse_util.flatten_dict(loaded.variables["quant"], sep="/")
  for name, value in flax.traverse_util.flatten_dict(variables["quant"], sep="/").items():
    if name.rpartition("/")[2] in quant.rivals.NAMES:
      np.testing.assert_array_equal(back[name], value)


def test_back_ends(made, caplog):
  """Integers are refused in one line that says what to take; "auto" takes it and says so once."""
  path = made[2]
  for backend in ("xla", "cpu"):
    with pytest.raises(ValueError, match=rf"has activation .*: back end '{backend}' does not compute them, take 'flo"):
      load(path, backend)
  with caplog.at_level(logging.WARNING):
    assert load(path).backend == "float"
  assert [record.message.endswith("the model runs by the back end 'float'") for record in caplog.records] == [True]


def description(path):
  content = path.read_bytes()
  length = struct.unpack("<Q", content[:8])[0]
  metadata = json.loads(content[8 : 8 + length])["__metadata__"]
  return metadata, json.loads(metadata["description"])


def test_only_layers_that_differ_state_the_new_fields(made, tmp_path):
  """The edges, and a file of the baseline, are described as before there were other methods: older readers read it."""
  name, _, path = made
  layers = description(path)[1]["layers"]
  assert set(layers["out_conv"]) == {"weights", "weight_bits", "act_bits", "shape"}
  activation, response = quant.RIVALS[name]
  assert layers[NAME]["activation"] == activation
  assert layers[NAME].get("response", "none") == response
  assert layers[NAME].get("num_timesteps", 0) == (200 if name == "bi_diffsr" else 0)
  if name == "reactnet":
    write(tmp_path / "baseline", student("baseline"))
    assert all(len(row) == 4 for row in description(tmp_path / "baseline")[1]["layers"].values())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """(path, tensors, metadata) of a file of BI-DiffSR."""
  path = tmp_path_factory.mktemp("good") / "good.safetensors"
  write(path, student("bi_diffsr"))
  return path, load_file(path), description(path)[0]


@pytest.mark.parametrize("change, match", [
  (lambda t: t.pop(f"{NAME}/shift"), f"missing or left over, the first is '{NAME}/shift'"),
  (lambda t: t.update({f"{NAME}/shift": t[f"{NAME}/shift"][:3]}), f"{NAME}/shift is F32"),
  (lambda t: t.update({f"{NAME}/moment": np.zeros(8, np.float32)}), f"the first is '{NAME}/moment'"),
  (lambda t: t.update({f"{NAME}/response_zeta": t[f"{NAME}/response_zeta"] + np.inf}), "response_zeta holds values"),
  (lambda t: t.update({f"{NAME}/response_slope": t[f"{NAME}/response_slope"].astype(np.float16)}), "slope is F16"),
])  # fmt: skip
def test_damaged_variables(good, tmp_path, change, match):
  """Each has a name, a shape, a type and finite values, or the file is refused."""
  tensors = dict(good[1])
  change(tensors)
  save_file(tensors, tmp_path / "bad.safetensors", good[2])
  refused(tmp_path / "bad.safetensors", match)


@pytest.mark.parametrize("field, value", [
  ("activation", "clipped"), ("activation", ["lsq"]), ("activation", 1), ("response", None), ("num_timesteps", 0),
  ("num_timesteps", -1), ("num_timesteps", 2.0), ("num_timesteps", True), ("num_timesteps", 10**9), ("ranges", 5),
  ("act_bits", 32), ("activation", "shifted"),
])  # fmt: skip
def test_a_rule_that_does_not_fit(good, tmp_path, field, value):
  """Unknown names, types, sizes and fields; and a rule that wants other variables than the file has."""
  said = json.loads(good[2]["description"])
  said["layers"][NAME][field] = value
  save_file(good[1], tmp_path / "bad.safetensors", dict(good[2], description=json.dumps(said)))
  refused(tmp_path / "bad.safetensors", "bad.safetensors")


def test_older_files_load(tmp_path):
  """A description without the new fields is one of LSQ activations and no response."""
  write(tmp_path / "old", student("baseline"))
  table = packed.read(tmp_path / "old").description.table
  assert all(rule.plain and rule.num_timesteps == 0 for rule in table.values())


def test_a_shift_that_is_missing_is_a_packed_error_of_one_line(good, tmp_path):
  """The public loader's error type, not one of numpy or jax."""
  tensors = {name: tensor for name, tensor in good[1].items() if not name.endswith("shift")}
  save_file(tensors, tmp_path / "bad.safetensors", good[2])
  with pytest.raises(PackedError):
    load(tmp_path / "bad.safetensors")
