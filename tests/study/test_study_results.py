"""Records, summaries and tables by hand from synthetic runs; unlike runs are refused by name."""

import csv
import json
import math

import pytest
from ml_collections import ConfigDict

from binarydm_jax.study import plan, results, tables
from tests import tiny
from tests.study.synthetic import make_students, write_run

FIDS = {("full_precision", 1): 10.0, ("full_precision", 2): 12.0, ("baseline", 1): 30.0, ("baseline", 2): 32.0,
        ("lmb", 1): 20.0, ("lmb", 2): 17.0}  # fmt: skip


@pytest.fixture
def study(tmp_path):
  """Three rows of two seeds."""
  for run in make_students(tmp_path, "full_precision,baseline,lmb", (1, 2)):
    fid = FIDS[run.row.name, run.seed]
    write_run(run, fid, fid / 100)
  return tmp_path


def summary(folder, name):
  return next(row for row in results.summarize(results.collect(folder)[0]) if row["name"] == name)


def test_summary_by_hand(study):
  """(20, 17): mean 18.5, deviation 3 / sqrt 2; shares (30 - 20) / 20 = 0.5 and (32 - 17) / 20 = 0.75, seed by seed."""
  row = summary(study, "lmb")
  assert row["seeds"] == [1, 2] and row["bits"] == "1/4" and row["group"] == "core"
  assert row["metrics"]["fid"] == dict(mean=18.5, std=pytest.approx(3 / math.sqrt(2)), values=[20.0, 17.0])
  assert row["metrics"]["gap_closed_fid"] == dict(mean=0.625, std=pytest.approx(0.25 / math.sqrt(2)),
                                                  values=[0.5, 0.75])  # fmt: skip
  assert row["metrics"]["gap_closed_heldout_loss"]["mean"] == pytest.approx(0.625)
  assert row["metrics"]["sfid"] is None and row["metrics"]["training_seconds"]["values"] == [5.0, 5.0]


def test_ends_of_the_scale(study):
  """The baseline closes nothing and full precision everything, without spread."""
  for name, share in (("baseline", 0.0), ("full_precision", 1.0)):
    assert summary(study, name)["metrics"]["gap_closed_fid"] == dict(mean=share, std=0.0, values=[share, share])


def test_the_teacher_is_a_row_with_its_samplings(study):
  """Once for each sampling seed, however many students were measured beside it."""
  row = summary(study, "teacher")
  assert row["metrics"]["fid"]["values"] == [11.0, 12.0] and row["bits"] == "32/32"
  assert row["metrics"]["training_seconds"] is None


@pytest.mark.parametrize("value, floor, ceiling, share", [
    (20, 30, 10, 0.5), (35, 30, 10, -0.25), (5, 30, 10, 1.25), (20, 10, 10, None), (20, 5, 10, None),
    (None, 3, 1, None), (1, None, 1, None), (1, math.nan, 1, None),
])
def test_gap_closed(value, floor, ceiling, share):
  """Below zero for what is worse than the baseline; undefined where there is no gap."""
  assert results.gap_closed(value, floor, ceiling) == share


def test_shares_need_both_ends_of_the_same_seed(study):
  """A seed without a baseline has no share, and the table says of how many seeds the share is."""
  for path in (study / "baseline" / "seed_2").iterdir():
    path.unlink()
  row = summary(study, "lmb")
  assert row["metrics"]["gap_closed_fid"]["values"] == [0.5] and row["metrics"]["gap_closed_fid"]["std"] is None
  assert tables.format_metric("gap_closed_fid", row["metrics"]["gap_closed_fid"], 2) == "50 % (of 1)"


def test_files(study):
  """A line of CSV for each run and teacher; JSON with the same figures; Markdown with the protocol and the command."""
  attempts = [dict(run="lmb seed 1", begun=100.0, seconds=1800.0, exit_code=0, study="python -m binarydm_jax.study x"),
              dict(run="lmb seed 2", begun=1000.0, seconds=1800.0, exit_code=0,
                   study="python -m binarydm_jax.study x")]  # fmt: skip
  (study / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts) + '{"run": "lm')
  _, path = tables.write(study)
  with open(study / "results.csv") as file:
    lines = list(csv.DictReader(file))
  assert [(line["row"], line["seed"]) for line in lines] == [
      ("teacher", "1"), ("teacher", "2"), ("full_precision", "1"), ("full_precision", "2"), ("baseline", "1"),
      ("baseline", "2"), ("lmb", "1"), ("lmb", "2")]
  assert lines[-1]["fid"] == "17.0" and lines[-1]["workdir"] == str(study / "lmb" / "seed_2")
  content = json.loads((study / "results.json").read_text())
  assert [row["name"] for row in content["rows"]] == ["teacher", "full_precision", "baseline", "lmb"]
  assert content["about"]["wall_seconds"] == 2700.0  # two that overlap by 900 seconds
  text = path.read_text()
  head, lmb = (next(line for line in text.splitlines() if line.startswith(start)) for start in ("| model", "| LMB"))
  assert lmb == ("| LMB | 1/4 | 1.25 | 300 KiB | 2.00 M | 2 | 18.5 ± 2.1 | 62 ± 18 % | 1.50 ± 0.00 |"
                 " 0.5000 ± 0.0000 | 0.2500 ± 0.0000 | 0.1850 ± 0.0212 | 62 ± 18 % | 5.00 ± 0.00 |")
  assert head.count("|") == lmb.count("|")
  for words in ("python -m binarydm_jax.study x", "`abababab...`), 96 samples against 1500", "sampler ddim, steps 4",
                "2 CPU cores", "Steps of a student: 6", "2 processes ran for 0.75 hours", "other gives 5.00",
                "`distill.weight` 0.0001", "`quant.transition` 0.5"):
    assert words in text, words
  assert text.count("binarydm_jax.study x") == 1


def test_what_is_not_finished_is_left_out(study):
  """No results.json, or one of another config than config.json: training or evaluation was broken off since."""
  (study / "lmb" / "seed_1" / "results.json").unlink()
  config = json.loads((study / "lmb" / "seed_2" / "config.json").read_text())
  config["evaluation"]["num_samples"] += 1
  (study / "lmb" / "seed_2" / "config.json").write_text(json.dumps(config))
  assert {record["row"] for record in results.collect(study)[0]} == {"teacher", "full_precision", "baseline"}


def test_nothing_finished(tmp_path):
  with pytest.raises(ValueError, match="holds no finished run of a study"):
    results.collect(tmp_path)


@pytest.mark.parametrize("change, words", [
    (dict(num_samples=64), "different protocols"), (dict(feature_sha256="ef" * 32), "different protocols"),
    (dict(teacher_sha256="ef" * 32), r"differ in their teacher: cdcdcdcd \(full_precision seed 1\), efefefef \(ebb"),
])
def test_unlike_measurements_are_refused(study, change, words):
  (run,) = make_students(study, "ebb", (1,))
  write_run(run, 1.0, 1.0, **change)
  with pytest.raises(ValueError, match=words):
    results.collect(study)


def test_unlike_budgets_are_refused(study):
  """Twice the steps are no equal budget."""
  (run,) = make_students(study, "ebb", (1,), tiny.get_config(**{"student.steps": 12}))
  write_run(run, 1.0, 1.0)
  with pytest.raises(ValueError, match=r"differ in student.steps: 6 \(full_precision seed 1\), 12 \(ebb seed 1\)"):
    results.collect(study)


def test_what_a_row_does_not_set_must_agree(study):
  """Activation bits of the whole study; a row that sets them itself may have others."""
  (run,) = make_students(study, "ebb", (1,), tiny.get_config(**{"quant.act_bits": 8}))
  write_run(run, 1.0, 1.0)
  with pytest.raises(ValueError, match=r"differ in quant.act_bits: 4 \(baseline seed 1\), 8 \(ebb seed 1\)"):
    results.collect(study)
  (run.workdir / "results.json").unlink()
  write_run(make_students(study, "baseline_a8", (1,))[0], 1.0, 1.0)
  assert "quant.act_bits" in results.collect(study)[3]


def test_unlike_settings_are_refused(study):
  """Another tau than the other rows have is no like comparison, unless it is the row's own; a config that did not know
  the field yet had its default."""
  (own,) = make_students(study, "ebb_tau", (1,))
  write_run(own, 1.0, 1.0)
  old = make_students(study, "lmb", (1,))[0]
  fields = json.loads((old.workdir / "config.json").read_text())
  del fields["quant"]["tau"]
  (old.workdir / "config.json").write_text(json.dumps(fields))
  found = json.loads((old.workdir / "results.json").read_text())
  found["config_sha256"] = plan.config_digest(ConfigDict(fields))
  (old.workdir / "results.json").write_text(json.dumps(found))
  records, *_ = results.collect(study)
  assert {record["row"]: record["quant.tau"] for record in records if record["seed"] == 1} == {
      "teacher": None, "full_precision": 0.09, "baseline": 0.09, "lmb": 0.09, "ebb_tau": 0.9}
  (run,) = make_students(study, "ebb", (1,), tiny.get_config(**{"quant.tau": 0.5}))
  write_run(run, 1.0, 1.0)
  with pytest.raises(ValueError, match=r"differ in quant.tau: 0.09 \(full_precision seed 1\), 0.5 \(ebb seed 1\)"):
    results.collect(study)


def test_finished_by_its_present_config(study):
  """Logging may change; what is measured, trained or sampled may not; a field that a run did not know must have its
  default."""
  finished = lambda **changes: plan.finished_results(make_students(study, "lmb", (1,), tiny.get_config(**changes))[0])
  assert finished()["models"][1]["fid"] == 20.0
  assert finished(**{"log.every": 1, "checkpoint.keep": 1, "data.threads": 1})
  assert finished(**{"sample.batch_size": 5, "compute.accumulate": 2, "compute.remat": "blocks"})  # speed alone
  for changes in ({"student.steps": 7}, {"sample.steps": 5}, {"evaluation.num_samples": 97}, {"quant.act_bits": 8}):
    assert finished(**changes) is None
  run = make_students(study, "lmb", (1,))[0]
  config = run.config.copy_and_resolve_references()
  del config.evaluation["timesteps_per_image"]  # 1 here, 8 by default
  del config.quant["tau"]  # the default here
  (run.workdir / "config.json").write_text(json.dumps(config.to_dict()))
  old = json.loads((run.workdir / "results.json").read_text())
  old["config_sha256"] = plan.config_digest(config)
  (run.workdir / "results.json").write_text(json.dumps(old))
  assert finished() is None
  assert finished(**{"evaluation.timesteps_per_image": 8})
  for step, whole in ((6, True), (5, False)):  # of a student in training, by export.force
    (run.workdir / "results.json").write_text(json.dumps({**old, "packed": {"step": step}}))
    assert bool(finished(**{"evaluation.timesteps_per_image": 8})) is whole
  (run.workdir / "results.json").write_text("{")
  assert finished(**{"evaluation.timesteps_per_image": 8}) is None
