"""Kills the real command in real processes, resumes it, and compares what is left with a run that nobody disturbed.

  python -m tests.reliability.killing --processes=1,2,4 --sigkill=20 --sigterm=10

prints a row for each number of processes. One kill is at a random time of a random phase: while the program compiles,
in training, while a checkpoint is written, in the evaluation.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open

from binarydm_jax import main
from binarydm_jax.preemption import EXIT_CODE
from binarydm_jax.training import sharding, stages
from binarydm_jax.training.checkpoint import Checkpoints
from binarydm_jax.training.problem import build
from tests import tiny

ROOT = Path(__file__).parents[2]
TIMES = ("images_per_second", "data_wait", "goodput")
PHASES = ("compilation", "training", "saving", "evaluation")
CHANGES = {
  "model.channel_mult": (1,), "model.num_res_blocks": 0, "teacher.steps": 20, "student.steps": 60,
  "checkpoint.every": 10, "log.every": 1, "sample.batch_size": 8, "sample.steps": 3, "teacher.learning_rate": 1e-4,
}  # fmt: skip


class Run:
  """One run of the command by some processes."""

  def __init__(self, workdir, processes, mode="all", more=()):
    """more: {field: value} beside CHANGES."""
    self.workdir, self.processes, self.mode, self.more = Path(workdir), processes, mode, dict(more)
    self.group = None

  def start(self, cache=None):
    """`cache`: of compiled programs; None takes the environment's."""
    flags = [f"--config.{name}={value!r}" for name, value in {**CHANGES, **self.more}.items()]
    command = ["--config=tests/tiny.py", f"--workdir={self.workdir}", f"--mode={self.mode}", *flags]
    start = [sys.executable, "-m", "binarydm_jax.main"]
    if self.processes > 1:
      start = ["launch/local_cluster.sh", str(self.processes)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    if cache:
      environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    self.log = open(self.workdir.with_suffix(".log"), "a")
    self.group = subprocess.Popen(
        [*start, *command], cwd=ROOT, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
    )

  def phase(self):
    """What the files say that the run is doing."""
    if self.group.poll() is not None:
      return "finished"
    stage = "student" if (self.workdir / "student").exists() else "teacher"
    if set((self.workdir / stage).glob("*tmp*")) - self.left:
      return "saving"
    if (self.workdir / "student" / str(CHANGES["student.steps"])).exists():
      return "evaluation"
    lines = self.lines()
    return "training" if lines and lines[-1]["stage"] == stage and self.stepped(lines) else "compilation"

  def lines(self):
    try:
      return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
      return []

  def stepped(self, lines):
    """Whether this start of the command has logged a line."""
    try:
      return (self.workdir / "sessions.jsonl").read_text().count("\n") > self.begun_with and bool(lines)
    except OSError:
      return False

  def run_until(self, phase, rng, deadline, longest=None):
    """Starts, and waits for a random time after the phase was first seen; False if the run ended before.

    longest: seconds of that time; None takes what suits the phase.
    """
    sessions = self.workdir / "sessions.jsonl"
    self.left = set(self.workdir.glob("*/*tmp*"))  # by processes that were killed while they saved
    self.begun_with = sessions.read_text().count("\n") if sessions.exists() else 0
    self.start(tempfile.mkdtemp(prefix="killed_cache_") if phase == "compilation" else None)
    seen = None
    usual = {"compilation": 25, "training": 2.0, "saving": 0.2, "evaluation": 8}[phase]
    wait = rng.uniform(0, usual if longest is None else longest)
    while time.time() < deadline:
      now = self.phase()
      if now == "finished":
        return False
      if seen is None and now == phase:
        seen = time.time()
      if seen is not None and time.time() >= seen + wait:
        return True
      time.sleep(0.005)
    raise TimeoutError(f"{self.workdir}: {phase} was not reached")

  def send(self, number):
    """Sends a signal to every process; returns the exit code."""
    os.killpg(self.group.pid, number)
    return self.group.wait(timeout=300)

  def finish(self):
    """Runs the command to its end; one process in this one, which has loaded everything already."""
    if self.processes == 1:
      main.run(tiny.get_config(**CHANGES, **self.more), str(self.workdir), self.mode)
      return
    self.start()
    assert self.group.wait(timeout=1800) == 0, self.tail()

  def tail(self):
    return self.workdir.with_suffix(".log").read_text()[-3000:]


def contents(workdir):
  """All that must be equal at the end: name -> array, bytes or list."""
  workdir = Path(workdir)
  problem = build(tiny.get_config(**CHANGES), with_data=False)
  found = {}
  for stage in ("teacher", "student"):
    if not (workdir / stage).exists():
      continue
    like = stages.abstract_checkpoint(problem, stage, sharding.make_mesh(jax.devices()[:1]))
    checkpoints = Checkpoints(workdir / stage)
    step, tree, _ = checkpoints.restore(like)
    checkpoints.close()
    found[f"{stage} step"] = step
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[f"{stage} {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  found["losses"] = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
  for name in ("diagnostics.jsonl", "samples/teacher.npz", "samples/student.npz"):
    if (workdir / name).exists():
      found[name] = (workdir / name).read_bytes()
  if (workdir / "model.safetensors").exists():
    # By content: safetensors writes its metadata in any order.
    with safe_open(workdir / "model.safetensors", "numpy") as file:
      found["packed metadata"] = file.metadata()
      found |= {f"packed {name}": file.get_tensor(name) for name in file.keys()}
  return found


def differences(a, b):
  """Names of what is not bit for bit equal in two results of `contents`."""
  equal = lambda x, y: np.array_equal(np.asarray(x), np.asarray(y))
  return [name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or not equal(a[name], b[name])]


def campaign(folder, processes, sigkill, sigterm, seed=0, mode="all", phases=PHASES, say=print):
  """Kills runs until so many signals of each kind have been sent; every run is resumed to its end and compared.

  Args:
    mode: of the command: "all", or "binarize", for which the teacher is trained once and left in peace.
  Returns:
    {"processes", "signals": {(signal, phase): count}, "runs", "exit_codes", "differences": [names], "seconds"}.
  """
  begun, rng = time.time(), random.Random(seed)
  folder = Path(folder)
  whole, pretrained = Run(folder / f"whole{processes}", processes, mode), folder / f"pretrained{processes}"
  if mode == "binarize":
    Run(pretrained, processes, "pretrain").finish()
    shutil.copytree(pretrained, whole.workdir)
  whole.finish()
  wanted = contents(whole.workdir)
  todo = [(signal.SIGKILL, phases[i % len(phases)]) for i in range(sigkill)]
  todo += [(signal.SIGTERM, phases[-1 - i % len(phases)]) for i in range(sigterm)]
  rng.shuffle(todo)
  sent, codes, found, runs = {}, set(), [], 0
  while todo:
    runs += 1
    run = Run(folder / f"killed{processes}_{runs}", processes, mode)
    if mode == "binarize":
      shutil.copytree(pretrained, run.workdir)
    while True:
      # Phases in the order of a run, so that several signals fit into one.
      todo.sort(key=lambda item: phases.index(item[1]))
      number, phase = todo.pop(0) if todo else (None, None)
      if number is None:
        break
      if not run.run_until(phase, rng, time.time() + 1800):
        assert run.group.returncode == 0, run.tail()
        todo.append((number, phase))
        break
      at = run.phase()
      said = run.workdir.with_suffix(".log").stat().st_size
      code = run.send(number)
      if number == signal.SIGTERM:
        # Before the program has begun, while Python starts, nobody takes the signal, and nothing is there to be lost.
        begun_yet = run.workdir.with_suffix(".log").stat().st_size > said
        assert code in (EXIT_CODE, 0) or (code in (-number, 128 + number) and not begun_yet), (code, run.tail())
        codes.add(code)
      sent[number.name, at] = sent.get((number.name, at), 0) + 1
      say(f"{processes} processes: {number.name} while {at} ({phase} wanted), exit code {code}")
      if rng.random() < 0.3:  # now and then a run is left in peace, so that several runs are compared
        break
    run.finish()
    wrong = differences(wanted, contents(run.workdir))
    say(f"{processes} processes: run {runs} resumed to its end: {'DIFFERENT ' + str(wrong[:5]) if wrong else 'equal'}")
    found += wrong
  return dict(processes=processes, signals=sent, runs=runs, exit_codes=sorted(codes), differences=found,
              compared=len(wanted), seconds=time.time() - begun)  # fmt: skip


def command():
  import tests.conftest  # noqa: F401  The processes compile as cheaply as those of the tests.

  parser = argparse.ArgumentParser()
  parser.add_argument("--processes", default="1,2,4")
  parser.add_argument("--sigkill", type=int, default=20)
  parser.add_argument("--sigterm", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  folder = tempfile.mkdtemp(prefix="killing_")
  print("| processes | SIGKILL while | SIGTERM while | runs compared | bits that differ |")
  print("| --- | --- | --- | --- | --- |")
  failed = False
  for count in map(int, arguments.processes.split(",")):
    result = campaign(folder, count, arguments.sigkill, arguments.sigterm, arguments.seed,
                      say=lambda words: print(words, file=sys.stderr, flush=True))  # fmt: skip
    cells = []
    for name in ("SIGKILL", "SIGTERM"):
      cells.append(", ".join(f"{at} {n}" for (kind, at), n in sorted(result["signals"].items()) if kind == name))
    failed |= bool(result["differences"])
    print(f"| {count} | {cells[0]} | {cells[1]} | {result['runs']} | {result['differences'] or 'none'} |", flush=True)
  sys.exit(failed)


if __name__ == "__main__":
  command()
