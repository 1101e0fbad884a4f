"""The methods that BinaryDM is compared with, as `method`: loss terms, one trace, training, the packed student."""

import json

import jax
import numpy as np
import pytest

from binarydm_jax import main, quant
from binarydm_jax.quant import untrained
from binarydm_jax.training.methods import METHODS, resolve_method
from binarydm_jax.training.problem import build
from tests import tiny
from tests.training.test_step import student_run


@pytest.mark.parametrize("name", quant.RIVALS)
def test_three_steps(name):
  """Every leaf of both collections moves, in one trace; NeM is there for Q-DM, with its weight in the sum, and nowhere
  else."""
  # The other blocks in float: they are nearly all of the time, which is the compiler's.
  fields = {"student.warmup_steps": 1, "student.steps": 30, "quant.overrides": ("*put_*=float/32",)}
  problem, first, _, state, metrics = student_run(3, method=name, **fields)
  # What reaches the logits of a fresh attention is too small for the first layers of TDQ's networks.
  assert [path for path in untrained(first.variables, state.variables) if "/qk/" not in path] == []
  assert problem.mimic == (name == "q_dm") and not problem.distil and problem.gates_fn is None
  extra = {"nem"} if problem.mimic else set()
  for m in metrics:
    assert set(m) == {"loss", "simple", "grad_norm", "learning_rate"} | extra
    np.testing.assert_allclose(m["loss"], m["simple"] + m.get("nem", 0), rtol=1e-5)
    assert all(np.isfinite(value) for value in m.values())
  table = problem.table.values()
  assert {rule.weights for rule in table} == {"float", "one_basis"}
  assert {rule.activation for rule in table} >= {quant.RIVALS[name][0]}
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
  ({"quant.activation": "sign"}, r"quant.activation 'sign' is not one of method, lsq, normalised"),
  ({"quant.response": "relu"}, r"quant.response 'relu' is not one of method, none, rprelu, timed_rprelu"),
  ({"distill.prediction": "yes"}, r"distill.prediction 'yes' is not one of method, on, off"),
  ({"distill.prediction_weight": -1.0}, r"distill.prediction_weight is -1.0; it must be at least 0"),
])  # fmt: skip
def test_config_errors(fields, match):
  """One line that names the field and the mend, before anything is compiled."""
  with pytest.raises(ValueError, match=match) as error:
    build(tiny.get_config(**fields))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", quant.RIVALS)
def test_info(name, tmp_path, capsys):
  """--mode=info counts what a method adds to the file, and names it in the row of the layer."""
  main.run(tiny.get_config(method=name), str(tmp_path / name), "info")
  main.run(tiny.get_config(method="baseline"), str(tmp_path / "baseline"), "info")
  counted, plain = (json.loads((tmp_path / n / "info.json").read_text()) for n in (name, "baseline"))
  assert (counted["packed_bytes"] > plain["packed_bytes"]) == (name != "q_dm")
  assert counted["ops"] == plain["ops"] and counted["macs"] == plain["macs"]
  row = next(row for row in counted["layers"] if row["path"] == "middle/res/conv1")
  assert (row["activation"], row["response"]) == quant.RIVALS[name]
  assert " ".join(part for part in quant.RIVALS[name] if part != "none") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", quant.RIVALS)
def test_the_whole_job(name, tmp_path):
  """Teacher, student, packed file, samples, report, through the command line's own functions; the file is sampled."""
  config = tiny.get_config(method=name, **{"model.channel_mult": (1,), "student.steps": 4})
  main.run(config, str(tmp_path), "all")
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["method"] == name and results["models"][1]["bits"] == "1/4"
  assert results["packed"]["payload_bytes"] == results["models"][1]["size_bytes"]
  rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
  assert len(rows) == 3 and "middle/res/conv1/step" in rows[0]["activation_steps"]["middle"]
  main.run(config, str(tmp_path), "sample")
  assert np.load(tmp_path / "samples" / "packed.npz")["arr_0"].shape == (6, 8, 8, 1)
