"""The whole job through the command line's own functions, on a network of a few thousand weights."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from binarydm_jax import compare, diagnostic_plots, main
from binarydm_jax.deploy import load
from binarydm_jax.deploy.packed import file_sizes
from binarydm_jax.evaluation.sampling import to_uint8
from binarydm_jax.networks import packed_network, trained_network
from binarydm_jax.training import loop
from binarydm_jax.training.checkpoint import Checkpoints
from binarydm_jax.training.problem import build
from tests import finished, tiny
from tests.finished import SAVED, STEPS, get_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run of the default method: (config, workdir)."""
  return finished.copy(tmp_path_factory)


def records(workdir, stage=None):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if stage in (None, line["stage"])]


def test_all_writes_what_the_design_says(run):
  """Every artifact stands where the documentation says, and parses."""
  _, workdir = run
  for name in ("config.json", "metrics.jsonl", "diagnostics.jsonl", "model.safetensors", "results.json", "report.html"):
    assert (workdir / name).stat().st_size > 0, name
  for name in ("teacher", "student", "comparison"):
    assert (workdir / "samples" / f"{name}.png").exists(), name
  assert list((workdir / "tensorboard" / "student").iterdir())
  samples = np.load(workdir / "samples" / "student.npz")["arr_0"]
  assert samples.shape == (96, 8, 8, 1) and samples.dtype == np.uint8
  assert not list(workdir.rglob("*.tmp*"))


def test_logs_hold_every_loss_term(run):
  """One line at each log step of each stage, with the terms, the rate, the speed and the second-basis scale."""
  _, workdir = run
  assert [line["step"] for line in records(workdir, "teacher")] == [2, 4, 6]
  assert [line["step"] for line in records(workdir, "student")] == list(range(2, STEPS + 1, 2))
  for line in records(workdir, "student"):
    for name in ("loss", "simple", "lrm", "second_scale", "grad_norm", "learning_rate", "images_per_second"):
      assert np.isfinite(line[name]), name
    np.testing.assert_allclose(line["loss"], line["simple"] + 1e-4 * line["lrm"], rtol=1e-5)
    assert "ebb" not in line
  assert records(workdir, "student")[-1]["learning_rate"] < records(workdir, "student")[0]["learning_rate"]


def test_results_name_their_protocol(run):
  """Beside each figure stand the feature network and its hash, the sampler and the sample count."""
  _, workdir = run
  results = json.loads((workdir / "results.json").read_text())
  teacher, student = results["models"]
  assert (teacher["bits"], student["bits"]) == ("32/32", "1/4")
  for row in (teacher, student):
    assert row["fid"] > 0 and row["heldout_loss"] > 0
    assert row["feature_network"] == "digits_classifier" and len(row["feature_sha256"]) == 64
    assert (row["num_samples"], row["sampler"], row["steps"]) == (96, "ddim", 4)
  assert student["size_bytes"] < teacher["size_bytes"] / 3
  assert 2 < student["true_weight_bits"] < 4  # two bases in all blocks, 8 bits at the edges


def test_results_and_report_have_the_diagnostics(run):
  """Distance by block and loss by timestep as numbers; a plot of each, and of what was recorded at checkpoints."""
  _, workdir = run
  results = json.loads((workdir / "results.json").read_text())
  distance, loss = results["block_distance"], results["loss_by_timestep"]
  assert len(distance["blocks"]) == len(distance["relative"]) == 3
  assert distance["timesteps"] == [100, 300, 500, 700, 900]
  np.testing.assert_allclose(np.array(distance["distance"]) / distance["teacher_norm"], distance["relative"])
  assert 0 < min(distance["relative"]) and max(distance["relative"]) < 3
  for row in results["models"]:  # one draw an image: the buckets are equally full but for one
    assert np.mean(loss[row["name"]]) == pytest.approx(row["heldout_loss"], rel=0.02) and len(loss[row["name"]]) == 10
  rows = diagnostic_plots.read_rows(workdir / "diagnostics.jsonl")
  assert [row["step"] for row in rows] == [0, SAVED, 2 * SAVED, STEPS]
  page = (workdir / "report.html").read_text()
  for words in ("Relative distance to the teacher", "Held-out loss by timestep", "Quantized weights: two bases",
                "Signs flipped per thousand steps", "Activation steps", "Scales of the weights"):
    assert words in page, words


def test_payload_is_what_cost_counts(run):
  """To the byte, the header apart."""
  _, workdir = run
  results = json.loads((workdir / "results.json").read_text())
  payload, header = file_sizes(workdir / "model.safetensors")
  assert payload == results["models"][1]["size_bytes"]
  assert payload + header == os.path.getsize(workdir / "model.safetensors")


def test_packed_samples_equal_the_students(run):
  """Same seed, same float graph on the dequantized weights: 1e-4."""
  config, workdir = run
  problem = build(config)
  student = trained_network(problem, workdir, "student")
  packed = packed_network(workdir / "model.safetensors", config, workdir)
  a, b = (network.make_draw(config.sample, 6, 6)(0, 6) for network in (student, packed))
  assert a.std() > 0.1
  np.testing.assert_allclose(a, b, atol=1e-4)


def test_second_run_trains_nothing_and_reports(run, capsys):
  """Run again, the finished job prints its table; checkpoints and logs stay as they are."""
  config, workdir = run
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.name != "config.json"}
  for name in ("model.safetensors", ".lock"):
    before.pop(workdir / name)
  main.run(config, str(workdir), "all")
  assert "is finished" in capsys.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p in before}
  assert after == before


def test_sample_mode_reads_the_packed_file_without_data(run, tmp_path):
  """sample.model=FILE needs neither the run's data nor its checkpoints; teacher and student come from checkpoints."""
  config, workdir = run
  other = get_config(**{"sample.model": str(workdir / "model.safetensors"), "data.source": "folder:/nowhere"})
  main.run(other, str(tmp_path), "sample")
  images = np.load(tmp_path / "samples" / "packed.npz")["arr_0"]
  assert images.shape == (6, 8, 8, 1)
  config = config.copy_and_resolve_references()
  config.sample.model = "student"
  before = (workdir / "samples" / "student.npz").read_bytes()
  main.run(config, str(workdir), "sample")
  trained = np.load(workdir / "samples" / "trained_student.npz")["arr_0"]
  assert (workdir / "samples" / "student.npz").read_bytes() == before  # those of the evaluation
  np.testing.assert_allclose(trained.astype(int), images.astype(int), atol=1)
  assert to_uint8(np.zeros(1)).dtype == np.uint8


def test_training_fields_are_locked_and_others_are_not(run):
  """A changed training field is refused by name; a changed sampling field is taken."""
  _, workdir = run
  with pytest.raises(ValueError, match=r"student.learning_rate=0.001, and now it is 0.5.*another --workdir"):
    main.run(get_config(**{"student.learning_rate": 0.5}), str(workdir), "binarize")
  main.run(get_config(**{"sample.num_images": 2}), str(workdir), "info")
  assert json.loads((workdir / "info.json").read_text())["params"] > 1000


@pytest.mark.slow
def test_teacher_of_another_run(run, tmp_path):
  """teacher.checkpoint takes a run's teacher; another network, or no run, is refused by name."""
  _, workdir = run
  config = get_config(method="baseline", **{"teacher.checkpoint": str(workdir), "student.steps": 2})
  main.run(config, str(tmp_path / "a"), "binarize")
  assert not (tmp_path / "a" / "teacher").exists()
  config.model.dropout = 0.5
  with pytest.raises(ValueError, match="model.dropout=0.0, this run 0.5"):
    main.run(config, str(tmp_path / "b"), "binarize")
  config.teacher.checkpoint = str(tmp_path / "none")
  with pytest.raises(ValueError, match="none does not exist"):
    main.run(config, str(tmp_path / "c"), "binarize")


def test_compare_reads_finished_runs(run, capsys):
  """The table of several runs."""
  _, workdir = run
  compare.main([str(workdir)])
  assert "| binarydm_v1 | 1 | 1/4 |" in capsys.readouterr().out


@pytest.mark.slow
def test_divergence_stops_with_a_message_and_keeps_the_checkpoint(tmp_path):
  """A learning rate that makes the loss infinite: one line, and the last good checkpoint stays."""
  config = tiny.get_config(**{"teacher.learning_rate": 1e30, "teacher.warmup_steps": 2, "teacher.clip_norm": 0.0,
                              "teacher.steps": 12, "log.every": 1, "checkpoint.every": 1, "model.channel_mult": (1,)})
  with pytest.raises(loop.TrainingError, match=r"teacher: the loss or a gradient is not finite at step \d+; .*kept"):
    main.run(config, str(tmp_path), "pretrain")
  assert Checkpoints(tmp_path / "teacher").latest_step() >= 1
  with pytest.raises(loop.TrainingError, match="holds no finished teacher"):
    main.run(config, str(tmp_path), "binarize")


@pytest.mark.slow
def test_the_host_waits_at_log_steps_only(tmp_path, monkeypatch):
  """Between log steps nothing is read back from the device; a grid of samples is drawn when asked for."""
  calls, real = [], jax.device_get
  monkeypatch.setattr(loop.jax, "device_get", lambda x: calls.append(1) or real(x))
  config = tiny.get_config(**{"log.every": 3, "checkpoint.every": 3, "log.samples_every": 6})
  main.run(config, str(tmp_path), "pretrain")
  assert len(calls) == 2
  assert [path.name for path in (tmp_path / "samples").iterdir()] == ["teacher_0000006.png"]


def test_load_needs_only_the_file(run):
  """The public loader gives a model that can be called."""
  _, workdir = run
  packed = load(workdir / "model.safetensors")
  x = np.zeros((2, *packed.input_shape), np.float32)
  prediction, features = jax.eval_shape(packed.model.apply, packed.variables, x, np.array([1, 2]))
  assert prediction.shape == x.shape and len(features) == 3
