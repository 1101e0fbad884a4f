"""The methods that BinaryDM is compared with, as `method`: loss terms, one trace, training, the packed student."""

import dataclasses
import json
from unittest import mock

import flax.traverse_util
import jax
import numpy as np
import pytest

from binarydm_jax import main, quant
from binarydm_jax.modes import costs
from binarydm_jax.quant import untrained
from binarydm_jax.training.methods import METHODS, resolve_method
from binarydm_jax.training.problem import build
from tests import tiny
from tests.training.test_step import student_run


def with_all_of_them(problem):
  """The problem with another method at each layer of its middle block, and the other blocks in float."""
  by_name = {
    "res/conv1": "reactnet", "res/emb": "tdq", "res/conv2": "insta_bnn", "attn/qkv": "q_dm", "attn/qk": "q_dm",
    "attn/av": "tdq", "attn/proj": "reactnet", "res1/conv1": "bi_diffsr", "res1/emb": "bi_diffsr", "res1/conv2": "tdq",
  }  # fmt: skip
  table = {path: quant.LayerRule() for path in problem.table}
  for layer in problem.layers:
    if layer.block == "middle":
      (rule,) = quant.preset(by_name[layer.path.removeprefix("middle/")], 4, num_timesteps=1000).rules
      table[layer.path] = rule.layer.of_product() if layer.kind == "matmul" else rule.layer
  for path in ("middle/res/emb", "middle/attn/qk"):
    table[path] = dataclasses.replace(table[path], activation="asymmetric")
  return dataclasses.replace(problem, table=table, student=problem.teacher.clone(rules=table))


def test_three_steps():
  """All methods in one network, traced once: every leaf of both collections moves; NeM is a term with its weight."""
  make = lambda config: with_all_of_them(build(config))
  fields = {"method": "q_dm", "distill.prediction_weight": 2.0, "student.warmup_steps": 1, "student.steps": 30}
  with mock.patch("tests.training.test_step.build", make):
    problem, first, _, state, metrics = student_run(3, **fields)
  assert untrained(first.variables, state.variables) == []
  assert problem.mimic and not problem.distil and problem.gates_fn is None
  # Zero points, of the asymmetric layers, stay whole numbers.
  before, after = (tree["quant"]["middle"] for tree in (first.variables, state.variables))
  assert before["attn"]["qk"]["zero_point_a"] == after["attn"]["qk"]["zero_point_a"] in range(9)
  assert before["res"]["emb"]["zero_point"] == after["res"]["emb"]["zero_point"] in range(8)
  names = {path.rpartition("/")[2] for path in flax.traverse_util.flatten_dict(first.variables["quant"], sep="/")}
  assert names >= {"shift", "moment", "response_gamma", "step", "step_time2", "step_a", "step_b_time0", "scale1"}
  for m in metrics:
    assert set(m) == {"loss", "simple", "nem", "grad_norm", "learning_rate"}
    assert m["nem"] > 0
    np.testing.assert_allclose(m["loss"], m["simple"] + 2 * m["nem"], rtol=1e-5)
  # Averages are kept of all of them, as of scales and steps.
  assert jax.tree.structure(state.ema) == jax.tree.structure(state.variables)


def test_methods_resolve_by_name_and_by_part():
  """A method is its parts; any of them can be set apart."""
  assert set(quant.RIVALS) < set(METHODS)
  q_dm = resolve_method("q_dm", weights="method", activation="method")
  assert (q_dm.weights, q_dm.activation, q_dm.prediction) == ("baseline", "normalised", "on")
  mixed = resolve_method("tdq", weights="lmb", projection="pca", progressive="method", response="rprelu")
  assert mixed == ("lmb", "pca", "none", "dynamic", "rprelu", "off")
  problem = build(tiny.get_config(method="binarydm_v1", **{"quant.activation": "dynamic", "distill.prediction": "on"}))
  assert problem.distil and problem.mimic and problem.gates_fn is not None
  assert problem.table["middle/res/conv1"].timed and problem.table["middle/attn/qk"].activation == "dynamic"
  assert problem.table["input_0/conv"].plain and problem.table["time_embed_0"].plain
  assert all(rule.num_timesteps == 0 for rule in build(tiny.get_config(method="baseline")).table.values())
  assert not build(tiny.get_config(method="q_dm", **{"distill.prediction_weight": 0.0})).mimic


@pytest.mark.parametrize("fields, match", [
  ({"method": "tdq", "quant.act_bits": 32}, r"quant.activation 'dynamic' \(of method 'tdq'\) .* is 32: take 8, 4"),
  ({"method": "reactnet", "export.stablehlo": True}, r"export.stablehlo .* 'reactnet' has activation 'shifted'"),
  ({"method": "bidm"}, r"method 'bidm' is not one of .*lsq, reactnet, insta_bnn, bi_diffsr, q_dm, tdq"),
  ({"quant.activation": "sign"}, r"quant.activation 'sign' is not one of method, lsq, asymmetric, normalised"),
  ({"quant.response": "relu"}, r"quant.response 'relu' is not one of method, none, rprelu, timed_rprelu"),
  ({"distill.prediction": "yes"}, r"distill.prediction 'yes' is not one of method, on, off"),
  ({"distill.prediction_weight": -1.0}, r"distill.prediction_weight is -1.0; it must be at least 0"),
])  # fmt: skip
def test_config_errors(fields, match):
  """One line that names the field and the mend, before anything is compiled."""
  with pytest.raises(ValueError, match=match) as error:
    build(tiny.get_config(**fields))
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def baseline():
  """What --mode=info counts for it."""
  return costs(build(tiny.get_config(method="baseline", **{"model.channel_mult": (1,)})))[1].as_dict()


@pytest.mark.parametrize("name", quant.RIVALS)
def test_info(name, baseline, tmp_path, capsys):
  """--mode=info counts what a method adds to the file, and names it in the row of the layer."""
  main.run(tiny.get_config(method=name, **{"model.channel_mult": (1,)}), str(tmp_path), "info")
  counted, plain = json.loads((tmp_path / "info.json").read_text()), baseline
  assert (counted["packed_bytes"] > plain["packed_bytes"]) == (name != "q_dm")
  assert counted["ops"] == plain["ops"] and counted["macs"] == plain["macs"]
  row = next(row for row in counted["layers"] if row["path"] == "middle/res/conv1")
  assert (row["activation"], row["response"]) == quant.RIVALS[name]
  assert " ".join(part for part in quant.RIVALS[name] if part != "none") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name, activation", [(name, "method") for name in quant.RIVALS] + [("lmb", "asymmetric")])
def test_the_whole_job(name, activation, tmp_path):
  """Teacher, student, packed file, samples, report, through the command line's own functions; the file is sampled."""
  fields = {"model.channel_mult": (1,), "student.steps": 4, "quant.activation": activation}
  config = tiny.get_config(method=name, **fields)
  main.run(config, str(tmp_path), "all")
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["method"] == name and results["models"][1]["bits"] == "1/4"
  assert results["packed"]["payload_bytes"] == results["models"][1]["size_bytes"]
  rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
  assert len(rows) == 3 and "middle/res/conv1/step" in rows[0]["activation_steps"]["middle"]
  main.run(config, str(tmp_path), "sample")
  assert np.load(tmp_path / "samples" / "packed.npz")["arr_0"].shape == (6, 8, 8, 1)
