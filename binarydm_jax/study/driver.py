"""The whole of a study: plan it, run what is not finished, say how it goes, write the tables."""

import contextlib
import sys
import time
from pathlib import Path

from binarydm_jax import preemption
from binarydm_jax.formats import format_number
from binarydm_jax.study import checks, merging, plan, runner, tables
from binarydm_jax.study.results import finished_runs
from binarydm_jax.study.rows import select
from binarydm_jax.training.problem import build
from binarydm_jax.training.validation import load_features
from binarydm_jax.training.writers import append_line
from binarydm_jax.workdir import check_teacher


def run_study(
    config_file, config, overrides, folder, rows, seeds, *, teacher_each, jobs, environment, command, added=(),
):
  """Runs a study, or the rest of it; prints a line for each run and the table at the end.

  Args:
    config_file, config, overrides: see `plan.make_runs`.
    folder: Path of the study.
    rows: text for `rows.select`; seeds: ints.
    teacher_each: a teacher for each seed.
    jobs: runs at a time.
    environment: of the runs' processes.
    command: that of the study, for the tables.
    added: see `tables.write`.
  Returns:
    The exit code: 0, 1 if a run has failed, 75 if a signal has stopped it.
  Raises:
    ValueError: a config that is wrong, or one whose runs could not stand in one table with those that the folder or
      `added` has, before anything is run.
  """
  teachers, students = plan.make_runs(config_file, config, overrides, folder, select(rows), seeds, teacher_each)
  finished = {run.name: plan.finished_results(run) for run in students}
  todo = [run for run in students if finished[run.name] is None]
  # What would keep the tables from being written is said now, not after the runs.
  others = [merging.read(Path(path)) for path in added]
  if todo:
    checks.check_planned(folder, teachers, todo, load_features(config.evaluation), others)
  again = {(run.row.name, run.seed) for run in todo}
  if added or any(finished_runs(folder, without=again)):
    tables.read_all(folder, added, again)
  for run in teachers:
    plan.check_teacher_folder(run)
  for line in plan.overruled(students, config, overrides):
    print(line, flush=True)
  progress = Progress(folder, len(students), command)
  for run in students:
    if finished[run.name] is not None:
      progress.finished(run, finished[run.name])
  teachers = [run for run in teachers if todo and not plan.teacher_is_finished(run)]
  _check(teachers, todo)
  # One teacher alone has all CPUs.
  whole = runner.execute(teachers, environment, max(1, min(jobs, len(teachers))), lambda run: None, progress.report)
  if whole:
    missing = {str(run.workdir) for run in teachers if run.name in progress.failed}
    ready = [run for run in todo if run.config.teacher.checkpoint not in missing]
    progress.without_teacher([run for run in todo if run not in ready])
    whole = runner.execute(ready, environment, jobs, progress.lend, progress.report)
  if progress.done:
    print("\n" + tables.write(folder, added)[1].read_text())
  if not whole:
    print(f"{folder}: stopped by a signal, all is saved; the same command goes on", file=sys.stderr)
    return preemption.EXIT_CODE
  for name in progress.failed:
    print(f"failed: {name}", file=sys.stderr)
  return 1 if progress.failed else 0


def _check(teachers, students):
  """Builds every config once, as each run will, so that what is wrong is said before the first of them starts."""
  checked = set()
  for run in [*teachers, *students]:
    name = run.row and run.row.name
    if name in checked:
      continue
    config = run.config.copy_and_resolve_references()
    config.mesh.update(dict(data=0, fsdp=1))  # of the run's devices; this process has one CPU
    try:
      build(config, with_data=not checked)  # the data are the same for all
      if not teachers:
        check_teacher(config)
    except ValueError as error:
      raise ValueError(f"{run.name}: {error}") from None
    checked.add(name)


class Progress:
  """What is done: a line on the terminal for each run, a line in study.jsonl for each process."""

  def __init__(self, folder, total, command):
    self.folder, self.total, self.command = folder, total, command
    self.done, self.failed, self.ended = [], [], 0

  def finished(self, run, results, seconds=None):
    """A student's results."""
    self.done.append(run)
    self.ended += 1
    student = results["models"][1]
    quality = [f"held-out loss {format_number(student['heldout_loss'], 4)}"]
    if student["fid"] is not None:
      quality.insert(0, f"Frechet distance {format_number(student['fid'])}")
    took = "finished before" if seconds is None else f"{seconds:.0f} s"
    self._say(run, f"{', '.join(quality)}, {took}")

  def report(self, run, code, seconds):
    """A process has ended."""
    append_line(self.folder / "study.jsonl", dict(
        run=run.name, begun=time.time() - seconds, seconds=seconds, exit_code=code, command=run.shell_command(),
        study=self.command))  # fmt: skip
    # By its own account: the program may have been changed since this process has read the config.
    results = plan.read_results(run.workdir) if run.row else None
    if code == 0 and results:
      self.finished(run, results, seconds)
    elif code == 0 and not run.row:
      self._say(run, f"{seconds:.0f} s")
    elif code == preemption.EXIT_CODE or preemption.requested():
      self._say(run, f"stopped after {seconds:.0f} s")
    else:
      self.failed.append(run.name)
      self.ended += bool(run.row)
      words = runner.last_words(run.log) if code else "it has left no results.json"
      self._say(run, f"FAILED after {seconds:.0f} s, exit code {code}: {words} ({run.log})")

  def without_teacher(self, runs):
    """Students that cannot be trained."""
    for run in runs:
      self.failed.append(run.name)
      self.ended += 1
      self._say(run, "not trained: it has no teacher")

  def lend(self, run):
    """Lets a run have the teacher's samples and the reference of a finished run of the same seed."""
    other = next((other for other in self.done if other.seed == run.seed), None)
    if other:
      runner.lend(other.workdir, run.workdir)

  def _say(self, run, words):
    count = f"[{self.ended}/{self.total}] " if run.row else ""
    with contextlib.suppress(OSError):  # the terminal may be gone, and what follows has to be kept
      print(f"{count}{run.name}: {words}", flush=True)
