"""The benchmark runs and says what it should; no time is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest

from binarydm_jax.benchmark import deploy, forward, torch_process, train
from binarydm_jax.training.problem import build
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def problem():
  return build(tiny.get_config(**{"method": "baseline", "model.channel_mult": (1,)}), with_data=False)


def test_forward(problem):
  (row,) = forward.run(problem, 1)
  assert row["batch_size"] == 1 and row["first_seconds"] > 0 and row["seconds"] > 0


@pytest.mark.slow
def test_train(problem):
  """A step with finite losses; memory: teacher, weights, averages and both moments are held, four bytes a weight."""
  row, *others = train.run(problem, 1)
  assert row["finite"] and row["batch_size"] == 8
  params = sum(layer.size for layer in problem.layers)
  assert row["held_bytes"] > 4 * 4 * params
  assert row["residual_bytes"] > 0 and row["temporary_bytes"] > 0
  if others:
    *theirs, ratio = others
    assert [r["memory_format"] for r in theirs] == ["contiguous", "channels_last"]
    faster = min(theirs, key=lambda r: r["seconds"])
    assert ratio["ratio"] == row["seconds"] / faster["seconds"] and ratio["memory_format"] == faster["memory_format"]
    # Each process has its own account.
    assert len({row["peak_bytes"], *(r["peak_bytes"] for r in theirs)}) == 3


@pytest.mark.parametrize("changes, said", [
  ({}, ""),
  ({"model.dropout": 0.1}, "model.dropout is 0.1; PyTorch is compared for 0.0 alone"),
  ({"compute.dtype": "bfloat16"}, "compute.dtype is 'bfloat16'; PyTorch is compared for 'float32' alone"),
  ({"method": "lsq"}, "PyTorch is not compared for weights by lsq"),
], ids=str)
def test_why_alone(changes, said):
  """One line for what the PyTorch side does not have."""
  pytest.importorskip("torch")
  assert train.why_alone(build(tiny.get_config(**changes), with_data=False)) == said


def test_without_pytorch(problem, monkeypatch):
  monkeypatch.setattr(torch_process, "missing", lambda: True)
  assert train.why_alone(problem) == "PyTorch is not installed (requirements-dev.txt has it)"


def test_deploy(problem, tmp_path, monkeypatch):
  """Every row there is: sizes that belong together, times of every program, agreement with the student, a plot."""
  monkeypatch.setattr(deploy, "SHAPES", 2)
  rows = list(deploy.run(problem, 1))
  by_name = {row["row"]: row for row in rows}
  assert [row["row"] for row in rows[:1]] == ["machine"] and set(by_name) >= {"layer", "file", "model", "agreement"}
  layer, file, model = by_name["layer"], by_name["file"], by_name["model"]
  assert layer["xla_float32_ms"] > 0 and layer["xla_int8_ms"] > 0 and layer["macs"] > 0
  assert file["file_bytes"] == file["payload_bytes"] + file["header_bytes"]
  assert file["resident_xla_bytes"] == file["payload_bytes"] < file["float32_bytes"] / 4
  assert model["xla_float32_seconds"] > 0 and model["packed_xla_seconds"] > 0
  assert "torch_float32_seconds" in model and "torch_nchw_ms" in layer
  assert [row["relative_error"] < 1e-3 for row in rows if row["row"] == "agreement"] == [True, True]
  assert 0 < by_name["layers"]["largest"] < 1e-5 and by_name["layers"]["count"] > 5
  deploy.plot(rows, tmp_path / "out.png")
  assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("changes", [dict(method="reactnet"), {"quant.weights": "full_precision"}])
def test_deploy_needs_a_packed_network(changes, tmp_path):
  """Said before anything is measured; LSQ has one without binarized shapes, and then there is no plot of them."""
  with pytest.raises(ValueError, match="gives no packed network that the integer back ends run"):
    next(deploy.run(build(tiny.get_config(**changes), with_data=False), 1))
  for fine in (dict(method="lsq"), {"quant.act_bits": 32}):
    assert next(deploy.run(build(tiny.get_config(**fine), with_data=False), 1))["row"] == "machine"
  deploy.plot([dict(row="machine")], tmp_path / "out.png")
  assert not (tmp_path / "out.png").exists()


def test_command_line_names_what_there_is():
  """One line for a measurement that there is not."""
  command = [sys.executable, "-m", "binarydm_jax.benchmark", "sing", "--config=configs/digits.py"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode != 0 and "say what to measure: forward or train or deploy" in done.stderr
  assert "Traceback" not in done.stderr
