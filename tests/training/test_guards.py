"""Divergence against the running median, and where the time of a run goes, by hand."""

import json
import time

import pytest

from binarydm_jax.training.guards import Clock, Divergence, logged_losses, run_goodput


def test_divergence_by_hand():
  """Above the limit times the median of the lines before; too few lines, no limit and no loss say nothing."""
  guard = Divergence(3.0)
  assert [guard.check(loss) for loss in (1.0, 9.0, 2.0, 3.0, 2.0)] == [None] * 5  # five lines before the first verdict
  assert guard.check(6.0) is None  # median 2, three times is not above
  assert guard.check(8.0) == pytest.approx(8 / 2.5)
  assert guard.check(None) is None
  off = Divergence(0.0, [1.0] * 20)
  assert off.check(1e9) is None


def test_divergence_forgets_and_a_resumed_run_remembers(tmp_path):
  """The median is of the last 20 lines; those of the log file stand for those that an earlier process saw."""
  guard = Divergence(3.0, [1.0] * 20)
  for _ in range(11):
    guard.check(10.0)
  assert guard.check(29.0) is None  # the median is 10 by now
  path = tmp_path / "metrics.jsonl"
  rows = [{"stage": "teacher", "step": 1, "loss": 50.0}]
  rows += [{"stage": "student", "step": i, "loss": float(i)} for i in range(1, 31)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert logged_losses(path, "student") == [float(i) for i in range(11, 31)]
  assert logged_losses(tmp_path / "none", "student") == []


def test_clock_tells_waiting_from_steps(tmp_path):
  """A slow source shows as the share of the window that was spent in `next`."""

  def slow():
    while True:
      time.sleep(0.02)
      yield 7

  clock = Clock(tmp_path / "sessions.jsonl", "student", time.time() - 1)
  stream = slow()
  assert [clock.next(stream) for _ in range(3)] == [7] * 3
  shares = clock.end(5)
  assert shares["data_wait"] > 0.9 and shares["goodput"] < 0.1
  clock.start()
  time.sleep(0.05)
  assert clock.end(10)["data_wait"] == 0
  rows = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
  assert [(row["stage"], row["step"]) for row in rows] == [("student", 5), ("student", 10)]
  assert rows[1]["in_steps"] >= 0.05 and rows[1]["elapsed"] > 1


def test_goodput_of_a_run_counts_steps_once(tmp_path):
  """Two sessions, the second does step 20 again; a half-written last line is nothing."""
  rows = [
    dict(session="a", stage="student", step=10, in_steps=3.0, elapsed=10.0),
    dict(session="a", stage="student", step=20, in_steps=3.0, elapsed=14.0),
    dict(session="b", stage="student", step=20, in_steps=2.0, elapsed=5.0),
    dict(session="b", stage="student", step=30, in_steps=2.0, elapsed=6.0),
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows) + '{"session": "b", "st'
  (tmp_path / "sessions.jsonl").write_text(text)
  assert run_goodput(tmp_path) == dict(goodput=(3 + 2 + 2) / 20, sessions=2, seconds=20.0)
  assert run_goodput(tmp_path / "none") is None
