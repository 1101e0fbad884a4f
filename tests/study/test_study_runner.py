"""The runner of a study, on processes that take no time: order, failures, signals, resumption."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from binarydm_jax import preemption
from binarydm_jax.study import runner

# Appends its name to a file, then does what the second argument says.
SCRIPT = """
import os, signal, sys, time
def stop(*_):
  open(sys.argv[1], "a").write(sys.argv[2] + " saved" + chr(10))
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1], "a").write(sys.argv[2] + chr(10))
exec(sys.argv[3])
"""


@pytest.fixture
def handlers():
  """The process's handlers and the module's state are put back."""
  before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
  preemption.install()
  yield
  preemption._received = None
  for number, handler in before.items():
    signal.signal(number, handler)


def make(tmp_path, name, what="pass"):
  workdir = tmp_path / name
  return SimpleNamespace(name=name, command=["-c", SCRIPT, str(tmp_path / "said"), name, what], workdir=workdir,
                         log=workdir / "log.txt")  # fmt: skip


def execute(runs, jobs=1, prepare=lambda run: None):
  """(whether all ran to their end, [(name, exit code)])."""
  reported = []
  whole = runner.execute(runs, dict(os.environ), jobs, prepare, lambda run, code, _: reported.append((run.name, code)))
  return whole, reported


def said(tmp_path):
  return (tmp_path / "said").read_text().split("\n")[:-1]


def wait_for(path, words):
  while not (path.exists() and words in path.read_text()):
    time.sleep(0.02)


def test_in_order_and_past_failures(tmp_path):
  """One after the other; a failure is reported with its code and its last words, and the rest goes on."""
  prepared = []
  fails = make(tmp_path, "b", "print('step 1\\rstep 2'); sys.exit('error: data.source is wrong')")
  runs = [make(tmp_path, "a"), fails, make(tmp_path, "c")]
  whole, reported = execute(runs, prepare=lambda run: prepared.append((run.name, run.workdir.exists())))
  assert whole and reported == [("a", 0), ("b", 1), ("c", 0)]
  assert said(tmp_path) == ["a", "b", "c"]
  assert prepared == [("a", False), ("b", False), ("c", False)]
  assert runner.last_words(fails.log) == "error: data.source is wrong"
  assert runner.last_words(tmp_path / "none") == runner.last_words(runs[0].log) == ""


def test_logs_are_appended_to(tmp_path):
  """What an earlier attempt said stays."""
  for words in ("first", "second"):
    execute([make(tmp_path, "a", f"print('{words}')")])
  assert make(tmp_path, "a").log.read_text() == "first\nsecond\n"


def test_two_at_a_time_on_cpus_of_their_own(tmp_path):
  """Each waits until the other has begun, so one at a time would never end; their CPUs are disjoint."""
  meet = "open({0!r}, 'w').write(repr(os.sched_getaffinity(0)))\nwhile not os.path.exists({1!r}): time.sleep(0.02)"
  files = [str(tmp_path / name) for name in "ab"]
  # The CPUs are set just after the process has begun.
  runs = [make(tmp_path, name, "time.sleep(0.5)\n" + meet.format(*order))
          for name, order in (("one", files), ("two", files[::-1]))]  # fmt: skip
  whole, reported = execute(runs, jobs=2)
  assert whole and sorted(reported) == [("one", 0), ("two", 0)]
  cpus = [eval(Path(file).read_text()) for file in files]
  if len(os.sched_getaffinity(0)) > 1:
    assert not cpus[0] & cpus[1]
  assert cpus[0] | cpus[1] <= os.sched_getaffinity(0)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_passed_on(tmp_path, handlers, number):
  """The process is told, by SIGTERM, and saves; what waits is not begun."""

  def send():
    wait_for(tmp_path / "said", "a\n")
    os.kill(os.getpid(), number)

  thread = threading.Thread(target=send)
  thread.start()
  whole, reported = execute([make(tmp_path, "a", "time.sleep(60)"), make(tmp_path, "b")])
  thread.join()
  assert not whole and reported == [("a", preemption.EXIT_CODE)]
  assert said(tmp_path) == ["a", "a saved"]


def test_a_run_that_was_stopped_alone_stops_the_study(tmp_path):
  """Somebody asked one process to make room: the next one would take it at once."""
  whole, reported = execute([make(tmp_path, "a", "sys.exit(75)"), make(tmp_path, "b")])
  assert not whole and reported == [("a", 75)] and said(tmp_path) == ["a"]


def test_an_error_here_leaves_no_process(tmp_path):
  """Whatever ends the driver, processes are asked to stop first."""
  def prepare(run):
    if run.name == "b":
      wait_for(tmp_path / "said", "a\n")
      raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    execute([make(tmp_path, "a", "time.sleep(60)"), make(tmp_path, "b")], jobs=2, prepare=prepare)
  assert said(tmp_path) == ["a", "a saved"]


def test_lend(tmp_path):
  """The reference and the teacher's samples are copied, the student's are not; a run that has its own keeps them."""
  finished, new = tmp_path / "finished", tmp_path / "new"
  (finished / "samples").mkdir(parents=True)
  for name in ("reference.npz", "samples/teacher.npz", "samples/teacher.json", "samples/student.npz"):
    (finished / name).write_text(name)
  runner.lend(finished, new)
  copied = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
  assert copied == ["reference.npz", "samples/teacher.json", "samples/teacher.npz"]
  (new / "samples" / "teacher.json").write_text("own")
  runner.lend(finished, new)
  assert (new / "samples" / "teacher.json").read_text() == "own"


def test_python_is_this_one(tmp_path):
  execute([make(tmp_path, "a", "print(sys.executable)")])
  assert make(tmp_path, "a").log.read_text().strip() == sys.executable
