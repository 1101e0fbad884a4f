"""One finished run of the default method that several files look at: training it is most of their time."""

import fcntl
import os
import shutil

from binarydm_jax import main
from tests import tiny
from tests.drawn_once import drawn_once

STEPS, SAVED = 20, 8  # few checkpoints: each is slower than 20 steps


def get_config(**flat):
  # Three blocks: less to compile. At the first checkpoint, which is kept, the outer ring of blocks and attention's
  # activations are still to come.
  small = {"model.channel_mult": (1,), "model.num_res_blocks": 0, "quant.edges": "8bit", "quant.interval": SAVED + 1}
  saved = {"checkpoint.every": SAVED, "checkpoint.keep": 3}
  return tiny.get_config(**{**small, **saved, "student.steps": STEPS, **flat})


def copy(tmp_path_factory):
  """(config, workdir): a copy, which the caller may change; the first test process that asks trains it for all."""
  folder = tmp_path_factory.getbasetemp()
  shared = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
  shared.mkdir(exist_ok=True)
  with open(shared / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (shared / "done").exists():
      with drawn_once():
        main.run(get_config(), str(shared / "run"), "all")
      (shared / "done").touch()
  workdir = tmp_path_factory.mktemp("finished") / "run"
  shutil.copytree(shared / "run", workdir)
  return get_config(), workdir
