"""A study from its command to its tables: with processes that only pretend, and once, slowly, with real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from binarydm_jax.preemption import EXIT_CODE
from binarydm_jax.study import driver, plan
from tests import tiny
from tests.study.pretend import Study

ROOT = Path(__file__).parents[2]


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
    (["--seeds=1,x"], "--seeds=1,x: give different whole numbers"),
    (["--table"], "holds no finished run of a study"),
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
               "--seeds=1,2", "--jobs=2")  # fmt: skip
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
