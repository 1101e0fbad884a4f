"""Several processes train as one does, go on from each other's checkpoints, and a killed one goes on from its own."""

import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest

from binarydm_jax.preemption import EXIT_CODE
from tests.reliability import killing

STEPS = killing.CHANGES["teacher.steps"]
SPLIT = {"mesh.fsdp": 2, "mesh.min_size": 256}


def pretraining(workdir, processes, **more):
  return killing.Run(workdir, processes, "pretrain", more)


def losses(run):
  lines = run.lines()
  assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
  return [line["loss"] for line in lines]


def finish(run):
  run.finish()
  assert len(losses(run)) == STEPS
  return losses(run)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """A finished run of one process that nobody disturbed."""
  run = pretraining(tmp_path_factory.mktemp("alone") / "run", 1)
  run.finish()
  return run


def test_killed_and_resumed_equals_uninterrupted(alone, tmp_path):
  """A SIGKILL in training: parameters, averages, optimizer and every logged loss are those of the undisturbed run.
  test_killing.py has the students, the other signal and the other moments."""
  run = pretraining(tmp_path / "run", 1)
  assert run.run_until("training", random.Random(0), time.time() + 300, longest=0)
  run.send(signal.SIGKILL)
  assert 0 < len(run.lines()) < STEPS
  run.finish()
  wanted = killing.contents(alone.workdir)
  assert len(wanted) > 100 and killing.differences(wanted, killing.contents(run.workdir)) == []


def test_two_processes_train_as_one(alone, tmp_path):
  """20 losses, with parameters split over both."""
  run = pretraining(tmp_path / "run", 2, **SPLIT, **{"checkpoint.every": STEPS})
  np.testing.assert_allclose(finish(run), losses(alone), rtol=1e-4)


@pytest.mark.slow
def test_four_processes_hand_over_to_one_and_back(alone, tmp_path):
  """Stopped by a signal to one of four, resumed by one, stopped again, finished by four: the losses of an undisturbed
  run; every process ends with the code that asks to be run again."""
  wanted = losses(alone)
  np.testing.assert_allclose(finish(pretraining(tmp_path / "four", 4, **SPLIT)), wanted, rtol=1e-4)
  workdir, rng = tmp_path / "run", random.Random(0)
  # Slow steps, so that a signal finds the run in the middle: a grid of samples at each.
  slow = {"log.samples_every": 1, "sample.steps": 50}
  for processes, until in ((4, 4), (1, 10)):
    run = pretraining(workdir, processes, **slow, **(SPLIT if processes > 1 else {}))
    run.start()
    while len(run.lines()) < until:
      assert run.group.poll() is None, run.tail()
      time.sleep(0.05)
    children = subprocess.run(["pgrep", "-f", f"workdir={workdir}"], capture_output=True, text=True).stdout.split()
    children = [child for child in children if processes == 1 or int(child) != run.group.pid]
    os.kill(int(rng.choice(children)), signal.SIGTERM)
    assert run.group.wait(timeout=300) == EXIT_CODE
    assert until <= len(losses(run)) < STEPS
  np.testing.assert_allclose(finish(pretraining(workdir, 4)), wanted, rtol=1e-4)
