"""What a run logs, and what that loads."""

import json
import subprocess
import sys

import numpy as np

from binarydm_jax.training.writers import Writer

SCRIPT = """
import sys
from binarydm_jax.training.writers import Writer
Writer(sys.argv[1], "teacher", 0).close()
assert "torch" not in sys.modules
import torch  # of whoever wants it afterwards
torch.zeros(1)
"""


def test_scalars_and_images(tmp_path):
  """A line with all of a step; events with what is a number, and the picture."""
  writer = Writer(tmp_path, "student", 0)
  writer.write(2, {"loss": 0.5, "lrm": None})
  writer.image(2, np.zeros((4, 4), np.uint8))
  writer.close()
  line = json.loads((tmp_path / "metrics.jsonl").read_text())
  assert line == {"stage": "student", "step": 2, "loss": 0.5, "lrm": None}
  (events,) = (tmp_path / "tensorboard" / "student").iterdir()
  content = events.read_bytes()
  assert b"loss" in content and b"samples" in content and b"lrm" not in content


def test_a_resumed_stage_repeats_no_line(tmp_path):
  """Lines after the step it was restored at go, those of the other stage stay, half a line goes."""
  rows = [("teacher", 4), ("student", 1), ("student", 2), ("student", 3)]
  text = "".join(json.dumps({"stage": stage, "step": step}) + "\n" for stage, step in rows)
  (tmp_path / "metrics.jsonl").write_text(text + '{"stage": "stu')
  Writer(tmp_path, "student", 2).close()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(line["stage"], line["step"]) for line in lines] == [("teacher", 4), ("student", 1), ("student", 2)]


def test_pytorch_is_not_loaded(tmp_path):
  """Seconds of every start, where it is installed."""
  done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
