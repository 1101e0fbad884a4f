"""What a run watches: steps without a finite loss, a loss that runs away, and where the time goes."""

import json
import os
import statistics
import time
from collections import deque
from pathlib import Path

from binarydm_jax.plots import read_curves
from binarydm_jax.training.writers import append_line

WINDOW = 20  # log lines
SESSIONS = "sessions.jsonl"


class Divergence:
  """Compares the loss of each log line with the median of the WINDOW lines before it.

  Args:
    limit: a loss above `limit` times the median is reported; 0 never.
    losses: of earlier log lines, so that a resumed run sees what an uninterrupted one does.
  """

  def __init__(self, limit, losses=()):
    self._limit = limit
    self._losses = deque((loss for loss in losses if loss is not None), maxlen=WINDOW)

  def check(self, loss):
    """The loss over the running median where that is above the limit, else None. `loss` None: there was none."""
    if loss is None:
      return None
    median = statistics.median(self._losses) if len(self._losses) >= WINDOW // 4 else None
    self._losses.append(loss)
    if not self._limit or not median or loss <= self._limit * median:
      return None
    return loss / median


def logged_losses(path, stage):
  """The losses of a stage's last WINDOW lines in metrics.jsonl."""
  series = read_curves(path).get(stage, {})
  return series["loss"][1][-WINDOW:].tolist() if "loss" in series else []


class Clock:
  """Time of one stage in this process: in steps, waiting for data, and since the start of the process."""

  def __init__(self, path, stage, begun):
    """`path`: of sessions.jsonl, or None to write nothing; `begun`: time.time() when the process started."""
    self._path, self._stage, self._begun = path, stage, begun
    self._stage_begun = time.perf_counter()
    self._waiting = self._in_steps = 0.0
    self.start()

  def start(self):
    """A window of steps begins."""
    self._since, self._waited = time.perf_counter(), 0.0

  def next(self, stream):
    """The next batch, timed."""
    before = time.perf_counter()
    batch = next(stream)
    self._waited += time.perf_counter() - before
    return batch

  def end(self, step):
    """The window's steps are done: {"seconds", "data_wait", "goodput"} for the log.

    data_wait is the share of the window that the host spent waiting for a batch; goodput the share of this process's
    time in the stage, compilation, checkpoints and sample grids included, that went into steps, waiting for data apart.
    """
    now = time.perf_counter()
    seconds = now - self._since
    self._in_steps += seconds - self._waited
    if self._path:
      row = dict(session=f"{self._begun:.3f} {os.getpid()}", stage=self._stage, step=step)
      append_line(self._path, {**row, "in_steps": seconds - self._waited, "elapsed": time.time() - self._begun})
    return dict(seconds=seconds, data_wait=self._waited / seconds,
                goodput=self._in_steps / (now - self._stage_begun))  # fmt: skip


def run_goodput(workdir):
  """Of a whole run, over all its sessions: time in steps that are part of the result / time that the processes ran.

  A session that was killed counts up to its last log line; steps that a later session did again count once.

  Returns:
    {"goodput", "sessions", "seconds"}, or None where no training was logged.
  """
  useful, elapsed = {}, {}
  try:
    lines = (Path(workdir) / SESSIONS).read_text().splitlines()
  except OSError:
    return None
  for line in lines:
    try:
      row = json.loads(line)
    except json.JSONDecodeError:  # the last line of a process that was killed
      continue
    useful[row["stage"], row["step"]] = row["in_steps"]
    elapsed[row["session"]] = max(elapsed.get(row["session"], 0.0), row["elapsed"])
  total = sum(elapsed.values())
  return dict(goodput=sum(useful.values()) / total, sessions=len(elapsed), seconds=total) if total else None
