"""A study from its command to its tables: with processes that only pretend, and once, slowly, with real ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from binarydm_jax.preemption import EXIT_CODE
from binarydm_jax.study import driver, plan
from tests import tiny
from tests.study.synthetic import MEASURED, make_results

ROOT = Path(__file__).parents[2]
# Copies to the run's workdir what is to be found there; or says why not.
PRETEND = """
import pathlib, shutil, sys
source, workdir = map(pathlib.Path, sys.argv[1:])
if not source.exists():
  sys.exit("error: the disk is full")
for path in source.iterdir():
  shutil.copy(path, workdir / path.name) if path.is_file() else shutil.copytree(path, workdir / path.name)
"""


class Study:
  """A study in a folder whose runs copy their results from another."""

  def __init__(self, tmp_path, monkeypatch):
    self.folder, self.source = tmp_path / "study", tmp_path / "source"
    (self.source / "teacher seed 0" / "teacher" / "6").mkdir(parents=True)
    command = lambda run: ["-c", PRETEND, str(self.source / run.name), str(run.workdir)]
    monkeypatch.setattr(plan.Run, "command", property(command))
    # Building is test_study_rows's; here it would only take time.
    self.built = []
    monkeypatch.setattr(driver, "build", lambda config, with_data: self.built.append((config.method, with_data)))
    monkeypatch.setattr(driver, "check_teacher", lambda config: None)
    self.features = SimpleNamespace(sha256=MEASURED["feature_sha256"])
    monkeypatch.setattr(driver, "load_features", lambda fields: self.features)

  def succeed(self, name, seed, fid):
    """From now on the run of this row and seed leaves these results."""
    (run,) = self.plan(name, (seed,))
    source = self.source / run.name
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(run.config.to_dict()))
    (source / "results.json").write_text(json.dumps(make_results(run, fid, fid / 100)))

  def plan(self, names, seeds):
    rows = driver.select(names)
    return plan.make_runs("tests/tiny.py", tiny.get_config(), {}, self.folder, rows, seeds)[1]

  def run(self, rows="baseline,lmb", seeds=(1, 2), jobs=1, teacher_each=False, added=(), **overrides):
    overrides = {name.replace("__", "."): value for name, value in overrides.items()}
    return driver.run_study(
        "tests/tiny.py", tiny.get_config(**overrides), overrides, self.folder, rows, seeds, teacher_each=teacher_each,
        jobs=jobs, environment=dict(os.environ), command="python -m study", added=added)  # fmt: skip

  def attempts(self):
    lines = (self.folder / "study.jsonl").read_text().splitlines()
    return [(line["run"], line["exit_code"]) for line in map(json.loads, lines)]


@pytest.fixture
def study(tmp_path, monkeypatch):
  return Study(tmp_path, monkeypatch)


def test_runs_then_continues(study, capfd):
  """A failing run is named with its log and does not stop the others, exit code 1; run again, only it is run, exit code
  0; a third time nothing is run at all."""
  for name, seed, fid in (("baseline", 1, 30.0), ("baseline", 2, 32.0), ("lmb", 2, 20.0)):
    study.succeed(name, seed, fid)
  assert study.run() == 1
  said, errors = capfd.readouterr()
  lines = said.splitlines()
  assert lines[1].startswith("[1/4] baseline seed 1: Frechet distance 30.0, held-out loss 0.3000, ")
  log = study.folder / "lmb" / "seed_1" / "log.txt"
  assert lines[2].startswith("[2/4] lmb seed 1: FAILED after") and lines[2].endswith(f"the disk is full ({log})")
  assert "failed: lmb seed 1" in errors
  assert study.built == [("binarydm_v1", True), ("baseline", False), ("lmb", False)]
  assert study.attempts() == [("teacher seed 0", 0), ("baseline seed 1", 0), ("lmb seed 1", 1), ("baseline seed 2", 0),
                              ("lmb seed 2", 0)]  # fmt: skip
  assert "| LMB | 1/4 | 1.25 | 300 KiB | 2.00 M | 1 |" in (study.folder / "table.md").read_text()

  study.succeed("lmb", 1, 21.0)
  assert study.run() == 0
  assert study.attempts()[5:] == [("lmb seed 1", 0)]
  assert "baseline seed 1: Frechet distance 30.0, held-out loss 0.3000, finished before" in capfd.readouterr()[0]
  assert "| LMB | 1/4 | 1.25 | 300 KiB | 2.00 M | 2 | 20.5 ± 0.7 |" in (study.folder / "table.md").read_text()

  study.built.clear()
  assert study.run() == 0 and len(study.attempts()) == 6 and not study.built


def test_more_rows_and_seeds_are_added(study):
  """A study grows: what is there is kept."""
  study.succeed("baseline", 1, 30.0)
  assert study.run("baseline", (1,)) == 0
  study.succeed("lmb", 1, 20.0)
  study.succeed("lmb", 3, 20.0)
  study.succeed("baseline", 3, 20.0)
  assert study.run("baseline,lmb", (1, 3)) == 0
  assert study.attempts()[2:] == [("lmb seed 1", 0), ("baseline seed 3", 0), ("lmb seed 3", 0)]


def test_a_teacher_of_other_settings_is_no_teacher(study):
  """It is there and finished, and was trained by another rate: said before any student is."""
  folder = study.folder / "teacher"
  folder.mkdir(parents=True)
  config = tiny.get_config(**{"teacher.learning_rate": 0.5, "student.steps": 99, "data.workers": 3})
  (folder / "config.json").write_text(json.dumps(config.to_dict()))
  with pytest.raises(ValueError, match="holds a teacher with teacher.learning_rate=0.5, and now it is 0.001: give"):
    study.run()
  assert not (study.folder / "study.jsonl").exists()


def test_one_teacher_has_all_cpus(study, monkeypatch):
  """Two students have half of them each."""
  jobs, execute = [], driver.runner.execute
  monkeypatch.setattr(driver.runner, "execute", lambda runs, env, count, *rest: jobs.append(count) or execute(
      runs, env, count, *rest))  # fmt: skip
  study.succeed("baseline", 1, 30.0)
  study.succeed("baseline", 2, 30.0)
  assert study.run("baseline", jobs=2) == 0 and jobs == [1, 2]


def test_no_teacher_no_students(study, capfd):
  """A teacher that fails is named with its log, and each student that needed it; those of another are trained."""
  (study.source / "teacher seed 0").rename(study.source / "teacher seed 2")
  study.succeed("baseline", 2, 30.0)
  assert study.run("baseline", teacher_each=True) == 1
  said, errors = capfd.readouterr()
  assert said.startswith("teacher seed 1: FAILED") and "[1/2] baseline seed 1: not trained: it has no teacher" in said
  assert "[2/2] baseline seed 2: Frechet distance 30.0" in said
  assert "failed: teacher seed 1\nfailed: baseline seed 1\n" in errors
  assert study.attempts() == [("teacher seed 1", 1), ("teacher seed 2", 0), ("baseline seed 2", 0)]


@pytest.mark.parametrize("rows", ["lmb", "baseline,lmb"])
def test_a_second_teacher_of_a_seed(study, rows):
  """Also where the finished run is among those that are asked for, and would be kept."""
  study.succeed("baseline", 1, 30.0)
  assert study.run("baseline", (1,)) == 0
  with pytest.raises(ValueError, match=r"baseline/seed_1 was trained from .*/teacher, and other runs of seed 1 would be"
                                       r" from .*/teacher_1: give --teachers"):  # fmt: skip
    study.run(rows, (1,), teacher_each=True)
  assert len(study.attempts()) == 2


@pytest.mark.parametrize("changes, words", [
    (dict(teacher_each=True), r"baseline/seed_1 was trained from .*/teacher, and other runs of seed 1 would be from"
                              r" .*/teacher_1: give --teachers"),
    (dict(sample__steps=9), r"differ in sample.steps: 4 \(baseline seed 1\), 9 \(lmb seed 1\); give another --folder"),
    (dict(student__steps=9), r"differ in student.steps: 6 \(baseline seed 1\), 9 \(lmb seed 1\)"),
])
def test_runs_that_no_table_could_hold(study, changes, words):
  """Beside what the folder has: said before a teacher or a student is trained."""
  study.succeed("baseline", 1, 30.0)
  assert study.run("baseline", (1,)) == 0
  with pytest.raises(ValueError, match=words):
    study.run("lmb", (1,), **changes)
  assert len(study.attempts()) == 2


def test_another_teacher_would_be_trained(study):
  """The folder's teacher was given by its path, which is forgotten now; a folder that was moved with it is taken."""
  study.succeed("baseline", 1, 30.0)
  assert study.run("baseline", (1,)) == 0
  study.succeed("lmb", 1, 20.0)
  moved = study.folder.rename(study.folder.with_name("moved"))
  study.folder = moved
  assert study.run("lmb", (1,)) == 0
  (moved / "teacher" / "teacher" / "6").rmdir()
  with pytest.raises(ValueError, match="baseline/seed_1 was trained from .*/study/teacher, and other runs of seed 1"):
    study.run("ebb", (1,))


def test_added_results_that_do_not_fit(study, tmp_path):
  """They are compared with what the folder has before anything is run."""
  study.succeed("baseline", 1, 30.0)
  assert study.run("baseline", (1,)) == 0
  content = json.loads((study.folder / "results.json").read_text())
  content["about"]["training_steps"] = [99]
  (tmp_path / "other.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match="differ in training_steps"):
    study.run("lmb", (1,), added=[tmp_path / "other.json"])
  assert len(study.attempts()) == 2


@pytest.mark.parametrize("features", [SimpleNamespace(sha256="ef" * 32), None])
def test_other_features(study, tmp_path, features):
  """A classifier that was trained anew, beside finished runs or those of another study: said before a run is."""
  study.succeed("baseline", 1, 30.0)
  assert study.run("baseline", (1,)) == 0
  study.features = features
  words = "measured with features of SHA-256 abab.* now has (efef|None)"
  with pytest.raises(ValueError, match=words):
    study.run("baseline,lmb", (1,))
  added = study.folder.rename(tmp_path / "other") / "results.json"
  with pytest.raises(ValueError, match=words):
    study.run("lmb", (1,), added=[added])
  assert not study.folder.exists()


def test_without_features(study):
  """evaluation.feature_network="none": results say nothing of features; the study goes on all the same."""
  study.features = None
  for name in ("baseline", "lmb"):
    study.succeed(name, 1, 30.0)
    path = study.source / f"{name} seed 1" / "results.json"
    content = json.loads(path.read_text())
    for model in content["models"]:
      del model["feature_sha256"]
      model |= dict(fid=None, feature_network=None)
    path.write_text(json.dumps(content))
  assert study.run("baseline", (1,)) == study.run("baseline,lmb", (1,)) == 0


def test_measured_again_by_other_fields(study):
  """Sampling steps that change for all rows: broken off in the middle, the same command goes on; another row alone is
  refused."""
  names = ("baseline", "lmb")
  for name in names:
    study.succeed(name, 1, 30.0)
  assert study.run(seeds=(1,)) == 0
  source = study.source / "baseline seed 1"
  config = json.loads((source / "config.json").read_text())
  config["sample"]["steps"] = 9
  (source / "config.json").write_text(json.dumps(config))
  results = json.loads((source / "results.json").read_text())
  results["config_sha256"] = plan.config_digest(ConfigDict(config))
  results["models"] = [{**model, "steps": 9} for model in results["models"]]
  (source / "results.json").write_text(json.dumps(results))
  for path in (study.folder / "baseline" / "seed_1").iterdir():
    if path.name in ("config.json", "results.json"):
      path.write_text((source / path.name).read_text())  # measured again; then the study was stopped
  with pytest.raises(ValueError, match="differ in sample.steps"):
    study.run("baseline,ebb", (1,), sample__steps=9)
  lmb = study.source / "lmb seed 1"
  config["method"] = "lmb"
  (lmb / "config.json").write_text(json.dumps(config))
  (lmb / "results.json").write_text(json.dumps({**results, "config_sha256": plan.config_digest(ConfigDict(config))}))
  assert study.run(seeds=(1,), sample__steps=9) == 0
  assert study.attempts()[-1] == ("lmb seed 1", 0)


def test_of_the_first_held_out_images(study, tmp_path):
  """A run of before, which took the first of them, is measured again with its row; beside it no other is trained."""
  study.succeed("baseline", 1, 30.0)
  path = study.source / "baseline seed 1" / "results.json"
  new = json.loads(path.read_text())
  path.write_text(json.dumps({**new, "heldout": {"images": 2048}}))
  assert study.run("baseline", (1,)) == 0
  study.succeed("lmb", 1, 20.0)
  with pytest.raises(ValueError, match="baseline/seed_1 was measured on the first 2048 held-out images"):
    study.run("lmb", (1,))
  shutil.copy(study.folder / "results.json", tmp_path / "other.json")
  path.write_text(json.dumps({**new, "heldout": {"images": 2048, "of": 5000}}))
  assert study.run("baseline", (1,)) == 0
  assert study.attempts()[-1] == ("baseline seed 1", 0) and len(study.attempts()) == 3
  with pytest.raises(ValueError, match="a study of --add was measured on the first 2048"):
    study.run("lmb", (1,), added=[tmp_path / "other.json"])


def test_fields_that_rows_set_themselves(study, capfd):
  """A field of the command line that a row overrules is named with the row."""
  study.succeed("baseline", 1, 30.0)
  study.run("baseline,ebb_fade", (1,), quant__fade=0.1)
  assert "--config.quant.fade=0.1 is not for ebb_fade, which set it themselves" in capfd.readouterr()[0]


def test_the_mesh_is_the_runs_own(study, monkeypatch):
  """This process has one CPU, the runs may have eight devices: each checks its own."""
  meshes = []
  monkeypatch.setattr(driver, "build", lambda config, with_data: meshes.append(config.mesh.to_dict()))
  study.succeed("baseline", 1, 30.0)
  study.run("baseline", (1,), mesh__fsdp=8)
  assert [(mesh["data"], mesh["fsdp"]) for mesh in meshes] == [(0, 1)] * 2


def test_a_process_without_results_has_failed(study, capfd):
  """Exit code 0 is not enough."""
  (study.source / "baseline seed 1").mkdir()
  assert study.run("baseline", (1,)) == 1
  assert "FAILED after 0 s, exit code 0: it has left no results.json" in capfd.readouterr()[0]


def test_stopped(study, tmp_path, capfd, monkeypatch):
  """Exit code 75, and the table of what is finished."""
  study.succeed("baseline", 1, 30.0)
  command = plan.Run.command.fget
  stop = ["-c", f"import sys; sys.exit({EXIT_CODE})"]
  monkeypatch.setattr(plan.Run, "command", property(lambda run: stop if run.seed == 2 else command(run)))
  assert study.run("baseline") == EXIT_CODE
  said, errors = capfd.readouterr()
  assert "[1/2] baseline seed 2: stopped after" in said and "the same command goes on" in errors
  assert "| baseline: one basis | 1/4 |" in (study.folder / "table.md").read_text()


def test_a_wrong_config_is_named_before_anything_runs(study, monkeypatch):
  def build(config, with_data):
    if config.method == "lmb":
      raise ValueError("quant.act_bits is wrong")

  monkeypatch.setattr(driver, "build", build)
  with pytest.raises(ValueError, match="lmb seed 1: quant.act_bits is wrong"):
    study.run()
  assert not study.folder.exists()


def command(*arguments):
  return subprocess.run(
      [sys.executable, "-m", "binarydm_jax.study", *arguments], cwd=ROOT, capture_output=True, text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=1800,
  )  # fmt: skip


@pytest.mark.parametrize("arguments, words", [
    (["--rows=nothing"], "--rows names nothing; there are complete, core"),
    (["--seeds=1,x"], "--seeds=1,x: give different whole numbers"),
    (["--table"], "holds no finished run of a study"),
    (["--add=none.json"], "--add=none.json: No such file or directory; give results.json of other studies"),
])
def test_errors_are_one_line(tmp_path, arguments, words):
  """Of the command itself."""
  done = command("--config=tests/tiny.py", f"--folder={tmp_path}", *arguments)
  assert done.returncode == 1 and words in done.stderr.splitlines()[-1]
  assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_a_small_study(tmp_path):
  """Real runs: two rows, two seeds, two at a time; the share of the gap is filled in; the second start runs nothing."""
  arguments = ("--config=tests/tiny.py", f"--folder={tmp_path}", "--rows=full_precision,baseline,binarydm_v5",
               "--seeds=1,2", "--jobs=2", "--config.student.steps=4")  # fmt: skip
  done = command(*arguments)
  assert done.returncode == 0, done.stdout + done.stderr
  rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
  assert list(rows) == ["teacher", "full_precision", "baseline", "binarydm_v5"]
  assert rows["full_precision"]["bits"] == "32/32" and rows["baseline"]["bits"] == "1/4"
  for row in rows.values():
    assert row["seeds"] == [1, 2] and row["metrics"]["fid"]["std"] > 0
  assert rows["baseline"]["metrics"]["training_seconds"]["mean"] > 0
  attempts = (tmp_path / "study.jsonl").read_text()
  assert command(*arguments).returncode == 0
  assert (tmp_path / "study.jsonl").read_text() == attempts
