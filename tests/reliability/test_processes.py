"""Several processes train as one does, and each number of them goes on from the checkpoints of any other."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from binarydm_jax.preemption import EXIT_CODE

ROOT = Path(__file__).parents[2]
STEPS = 20
FLAGS = [
  "--config=tests/tiny.py", "--mode=pretrain", "--config.model.channel_mult=(1,)", f"--config.teacher.steps={STEPS}",
  "--config.log.every=1", "--config.checkpoint.every=5", "--config.teacher.learning_rate=0.0001",
]  # fmt: skip
SPLIT = ("--config.mesh.fsdp=2", "--config.mesh.min_size=256")


def start(processes, workdir, *more):
  command = ["launch/local_cluster.sh", str(processes), *FLAGS, f"--workdir={workdir}", *more]
  environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
  with open(f"{workdir}.log", "a") as log:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
  return [line["loss"] for line in lines]


def finish(processes, workdir, *more):
  assert start(processes, workdir, *more).wait(timeout=900) == 0, Path(f"{workdir}.log").read_text()[-3000:]
  return losses(workdir)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  return finish(1, tmp_path_factory.mktemp("alone") / "run")


def test_two_processes_train_as_one(alone, tmp_path):
  """20 losses, with parameters split over both."""
  together = finish(2, tmp_path / "run", *SPLIT)
  np.testing.assert_allclose(together, alone, rtol=1e-4)


@pytest.mark.slow
def test_four_processes_hand_over_to_one_and_back(alone, tmp_path):
  """Stopped by a signal to one of four, resumed by one, stopped again, finished by four: the losses of an undisturbed
  run; every process ends with the code that asks to be run again."""
  np.testing.assert_allclose(finish(4, tmp_path / "four", *SPLIT), alone, rtol=1e-4)
  workdir, rng = tmp_path / "run", random.Random(0)
  # Slow steps, so that a signal finds the run in the middle: a grid of samples at each.
  slow = ("--config.log.samples_every=1", "--config.sample.steps=50")
  for processes, until in ((4, 4), (1, 10)):
    group = start(processes, workdir, *slow, *(SPLIT if processes > 1 else ()))
    while not (workdir / "metrics.jsonl").exists() or len(losses(workdir)) < until:
      assert group.poll() is None, Path(f"{workdir}.log").read_text()[-3000:]
      time.sleep(0.05)
    children = subprocess.run(["pgrep", "-f", f"process_id.*{workdir}"], capture_output=True, text=True).stdout.split()
    os.kill(int(rng.choice(children)), signal.SIGTERM)
    assert group.wait(timeout=300) == EXIT_CODE
    assert until <= len(losses(workdir)) < STEPS
  np.testing.assert_allclose(finish(4, workdir), alone, rtol=1e-4)
