"""Logs: one JSON object a line in metrics.jsonl, and TensorBoard events. Written by the first process only."""

import json
import sys
from pathlib import Path

import jax

from binarydm_jax.files import write_atomically


def truncate_lines(path, stage, step):
  """Drops the lines of `stage` after `step` (and a half-written last one), so that a resumed run repeats none."""
  path = Path(path)
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if record.get("stage") != stage or record["step"] <= step:
      kept.append(line + "\n")
  write_atomically(path, "".join(kept).encode())


def append_line(path, record):
  """Adds one JSON object to a file of lines."""
  with open(path, "a") as file:
    file.write(json.dumps(record) + "\n")


def _tensorboard():
  """tensorboardX without PyTorch, which it loads where it finds it: seconds, for a type of argument not used here."""
  absent = "torch" not in sys.modules
  if absent:
    sys.modules["torch"] = None  # an import raises ImportError
  try:
    import tensorboardX
  finally:
    if absent:
      del sys.modules["torch"]
  return tensorboardX


class Writer:
  """Scalars of one stage, from the step it was restored at."""

  def __init__(self, workdir, stage, step):
    self._first = jax.process_index() == 0
    if not self._first:
      return
    workdir = Path(workdir)
    truncate_lines(workdir / "metrics.jsonl", stage, step)
    self._stage = stage
    self._file = open(workdir / "metrics.jsonl", "a", buffering=1)
    purge = step + 1 if step else None
    self._events = _tensorboard().SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=purge)

  def write(self, step, scalars):
    """`scalars`: name -> float, logged for `step`; None, where there is none, is in metrics.jsonl alone."""
    if not self._first:
      return
    self._file.write(json.dumps({"stage": self._stage, "step": step, **scalars}) + "\n")
    for name, value in scalars.items():
      if value is not None:
        self._events.add_scalar(name, value, step)

  def image(self, step, array):
    """array: uint8 [h, w, c] or [h, w]."""
    if self._first:
      self._events.add_image("samples", array, step, dataformats="HW" if array.ndim == 2 else "HWC")

  def close(self):
    if self._first:
      self._file.close()
      self._events.close()
