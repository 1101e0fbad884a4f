"""The loop around a step that costs nothing: guards, signals between two log lines, a slow source."""

import json
import time
from unittest import mock

import numpy as np
import pytest

from binarydm_jax import preemption
from binarydm_jax.training import loop, sharding
from binarydm_jax.training.problem import build
from binarydm_jax.training.state import Begin, TrainState
from tests import tiny
from tests.training.fakes import Compiled, Memory

NAN = float("nan")


def run(workdir, losses, stop_after=None, delay=0.0, **changes):
  """The teacher's loop; step i has losses[i - 1], and one that is not finite is skipped as the real step does.

  Returns:
    The lines of metrics.jsonl.
  """
  flat = {"teacher.steps": len(losses), "log.every": 4, "checkpoint.every": 4, "data.threads": 0, **changes}
  problem = build(tiny.get_config(**flat))
  workdir.mkdir(exist_ok=True)
  done = []

  def train_step(state, frozen, batch):
    done.append(done[-1] + 1 if done else begin.step + 1)
    loss = np.float32(losses[done[-1] - 1])
    time.sleep(delay)
    finite = bool(np.isfinite(loss)) and state.ok
    if changes.get("guard.non_finite") == "skip":
      new = TrainState(state.step + 1, (), (), (), state.skipped + (not finite), True)
    else:
      new = TrainState(state.step + finite, (), (), (), 0, finite)
    return new, {"loss": loss, "simple": loss, "grad_norm": loss, "learning_rate": np.float32(0.1 * state.step)}

  checkpoints = Memory(workdir)
  begin = checkpoints.begin(Begin(0, TrainState(0, (), (), (), 0, True)))
  requested = lambda: stop_after is not None and bool(done) and done[-1] >= stop_after
  with mock.patch.object(preemption, "requested", requested):
    loop.run_stage(problem, "teacher", workdir, problem.teacher, Compiled(train_step), begin, {},
                   sharding.make_mesh(), checkpoints)  # fmt: skip
  return lines(workdir)


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed(rows):
  return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait", "goodput")} for row in rows]


def test_a_log_line_is_the_mean_of_its_steps(tmp_path):
  """Means of the terms, the last rate; the last line has the steps that are left."""
  rows = run(tmp_path / "run", [1, 2, 3, 4, 5, 6])
  assert [(row["step"], row["loss"]) for row in rows] == [(4, 2.5), (6, 5.5)]
  assert rows[0]["learning_rate"] == pytest.approx(0.3) and rows[0]["skipped_steps"] == 0


@pytest.mark.parametrize("stops", [(2,), (3, 5, 6), (4,)])
def test_a_signal_between_two_log_lines_changes_no_line(tmp_path, stops):
  """The steps since the last line are kept in the checkpoint, and the resumed run writes the line of all of them."""
  losses = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
  whole = run(tmp_path / "whole", losses)
  for stop in stops:
    with pytest.raises(preemption.Preempted):
      run(tmp_path / "parts", losses, stop_after=stop)
    assert Memory(tmp_path / "parts").latest_step() == stop
  assert untimed(run(tmp_path / "parts", losses)) == untimed(whole)


def test_skipped_steps_are_counted_and_left_out_of_the_means(tmp_path, capsys):
  """A warning, a count over the run, a mean over the finite losses, and JSON without NaN."""
  rows = run(tmp_path / "run", [1, NAN, 3, NAN, 5, 5, 5, 5], **{"guard.non_finite": "skip"})
  assert [(row["loss"], row["skipped_steps"]) for row in rows] == [(2.0, 2), (5.0, 2)]
  assert "2 steps before step 4 had no finite loss or gradient and were skipped" in capsys.readouterr().err


@pytest.mark.parametrize("how, losses, message", [
  ("stop", [1, 1, NAN, 1, 1], r"teacher: the loss or a gradient is not finite at step 3; .* step none is kept"),
  ("skip", [1, 1, 1, 1, 1, NAN, NAN, NAN], r"at 3 steps in a row, before step 9; .* of step 4 is kept"),
  ("skip", [NAN, NAN], r"at 2 steps in a row, before step 3; .* none is kept"),
  ("skip", [1, 1, 1, NAN, NAN, NAN, 1, 1], r"at 3 steps in a row, before step 9; .* of step 4 is kept"),
])  # fmt: skip
def test_a_run_without_finite_losses_stops(tmp_path, monkeypatch, how, losses, message):
  """At the first by default; with `skip` after so many in a row, log lines or not."""
  monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
  with pytest.raises(loop.TrainingError, match=message):
    run(tmp_path / "run", losses, **{"guard.non_finite": how})


@pytest.mark.parametrize("every", [1, 4])
def test_skipping_does_not_depend_on_log_lines(tmp_path, every):
  """A line of one step, or a last line of one: that step is skipped like any other."""
  rows = run(tmp_path / "run", [1, NAN, 3, 4, NAN, 6], **{"guard.non_finite": "skip", "log.every": every})
  assert rows[-1]["skipped_steps"] == 2 and rows[-1]["step"] == 6


def test_steps_in_a_row_are_counted_over_sessions(tmp_path, monkeypatch):
  """Two of three before the signal, the third after it."""
  monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
  losses = [1, 1, NAN, NAN, NAN, 1, 1, 1]
  with pytest.raises(preemption.Preempted):
    run(tmp_path / "run", losses, stop_after=4, **{"guard.non_finite": "skip"})
  with pytest.raises(loop.TrainingError, match="at 3 steps in a row, before step 9"):
    run(tmp_path / "run", losses, **{"guard.non_finite": "skip"})


def test_a_signal_does_not_save_a_frozen_state(tmp_path):
  """The loss was not finite, and a signal comes before the log line: the error, and no checkpoint of it."""
  with pytest.raises(loop.TrainingError, match="not finite at step 6; the checkpoint of step 4 is kept"):
    run(tmp_path / "run", [1, 1, 1, 1, 1, NAN, 1, 1], stop_after=7)
  assert Memory(tmp_path / "run").latest_step() == 4


def test_a_run_that_skipped_goes_on_without(tmp_path):
  """Skipped steps of an earlier session are no reason to stop."""
  with pytest.raises(preemption.Preempted):
    run(tmp_path / "run", [NAN, 1, 1, 1, 1, 1, 1, 1], stop_after=5, **{"guard.non_finite": "skip"})
  rows = run(tmp_path / "run", [NAN, 1, 1, 1, 1, 1, 1, 1])
  assert [(row["step"], row["loss"]) for row in rows] == [(4, 1.0), (8, 1.0)]


def test_divergence_is_reported_and_does_not_stop(tmp_path, capsys):
  """A loss above guard.divergence times the running median: a warning and a field in that line alone."""
  rows = run(tmp_path / "run", [1.0] * 24 + [9.0] * 4 + [1.0] * 4, **{"guard.divergence": 4.0})
  assert [row["step"] for row in rows if "loss_over_median" in row] == [28]
  assert rows[6]["loss_over_median"] == 9.0
  assert "the loss at step 28, 9, is 9.0 times its running median" in capsys.readouterr().err


def test_a_slow_source_shows_in_the_log(tmp_path):
  """data_wait is the share of the time in which the host waited for a batch."""
  real = loop.network_batches

  def slow(*args):
    stream = real(*args)
    plain = stream._local

    class Slow:
      skipped, close = 0, plain.close
      __next__ = lambda self: time.sleep(0.05) or next(plain)

    stream._local = Slow()
    return stream

  with mock.patch.object(loop, "network_batches", slow):
    assert run(tmp_path / "slow", [1.0] * 8)[-1]["data_wait"] > 0.8
  fast = run(tmp_path / "fast", [1.0] * 8, delay=0.05)[-1]
  assert fast["data_wait"] < 0.2 and fast["goodput"] > 0
