"""One run at a time in a workdir; a lock ends with its process, however that ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from binarydm_jax import main, run_lock
from tests import tiny

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from binarydm_jax import run_lock
with run_lock.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


def test_second_run_is_refused_by_name_until_the_first_is_gone(tmp_path):
  """The process is named; nothing of the workdir is touched; after SIGKILL of the holder the way is free."""
  holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  try:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"is in use by process {holder.pid} on .*: wait for it, or give another"):
      main.run(tiny.get_config(), str(tmp_path), "pretrain")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
  with run_lock.hold(tmp_path), pytest.raises(ValueError, match="is in use by process"), run_lock.hold(tmp_path):
    raise AssertionError("two hold it")


def test_workdir_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="cannot be made: Not a directory; give another folder"):
    with run_lock.hold(tmp_path / "file" / "run"):
      raise AssertionError("held")
