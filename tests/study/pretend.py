"""A study whose runs are processes that only pretend: they copy their results from another folder."""

import json
import os
from types import SimpleNamespace

from binarydm_jax.study import driver, plan
from tests import tiny
from tests.study.synthetic import MEASURED, make_results

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
