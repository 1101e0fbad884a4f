"""What a study refuses before it trains, because no table could hold it, and what it does not."""

import json
import shutil
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from binarydm_jax.study import plan
from tests.study.pretend import Study


@pytest.fixture
def study(tmp_path, monkeypatch):
  return Study(tmp_path, monkeypatch)


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
