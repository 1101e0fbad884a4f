"""Runs processes one after the other, or a few at a time, and passes signals on."""

import collections
import contextlib
import os
import re
import subprocess
import sys
import time
from signal import SIGKILL, SIGTERM

from binarydm_jax import preemption
from binarydm_jax.files import write_atomically

PAUSE = 0.2  # seconds between two looks at the processes
# What an evaluation beside the same teacher, with the same sampling seed, need not do again; the record comes last. The
# evaluation checks both against their protocols.
LENT = ("reference.npz", "samples/teacher.npz", "samples/teacher.json")


def execute(runs, environment, jobs, prepare, report):
  """Runs all `runs` in their order, `jobs` at a time on as many disjoint sets of CPUs.

  One that fails does not stop the others. A signal is passed on to the processes, which save and end.

  Args:
    runs: Runs; each has `command` (the arguments after python), `workdir` and `log`, a file that is appended to.
    environment: of the processes.
    jobs: how many at a time.
    prepare: called with a run before it is started.
    report: called with (run, exit code, seconds) after each, those that a signal has stopped included.
  Returns:
    Whether all have run to their end: False where a signal stopped them, or one of them was stopped by a signal.
  """
  waiting, active = collections.deque(runs), {}
  free = _cpu_sets(jobs)
  try:
    while waiting or active:
      if preemption.requested():
        return False
      while waiting and free:
        run, cpus = waiting.popleft(), free.pop(0)
        prepare(run)
        active[_start(run, environment, cpus)] = run, cpus, time.perf_counter()
      time.sleep(PAUSE)
      for process in [process for process in active if process.poll() is not None]:
        run, cpus, begun = active.pop(process)
        free.append(cpus)
        report(run, process.returncode, time.perf_counter() - begun)
        if process.returncode == preemption.EXIT_CODE:
          return False
    return True
  finally:
    _stop(active)
    for process, (run, _, begun) in active.items():
      report(run, process.returncode, time.perf_counter() - begun)


def _cpu_sets(jobs):
  """`jobs` sets of CPUs; None, which leaves a process alone, where there is but one job or no way to say it."""
  if jobs == 1 or not hasattr(os, "sched_setaffinity"):
    return [None] * jobs
  cpus = sorted(os.sched_getaffinity(0))
  return [set(cpus[i::jobs]) or set(cpus) for i in range(jobs)]


def _start(run, environment, cpus):
  run.workdir.mkdir(parents=True, exist_ok=True)
  with open(run.log, "a") as log:
    # A session of its own: Ctrl-C reaches the driver alone, which passes it on once.
    process = subprocess.Popen(
        [sys.executable, *run.command], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
  if cpus:
    # Before jax counts its processors, seconds from now. A process that has ended already needs none.
    with contextlib.suppress(ProcessLookupError):
      os.sched_setaffinity(process.pid, cpus)
  return process


def _stop(processes):
  """Lets processes save and end; a second Ctrl-C ends them at once."""
  try:
    for process in processes:
      process.send_signal(SIGTERM)
    for process in processes:
      process.wait()
  except KeyboardInterrupt:
    for process in processes:
      process.send_signal(SIGKILL)
      process.wait()
    raise


def lend(finished, workdir):
  """Copies to a new workdir what the evaluation in a finished one has measured and the new one would measure again."""
  if (workdir / "samples").exists():
    return
  for name in LENT:
    if (finished / name).exists():
      write_atomically(workdir / name, (finished / name).read_bytes())


def last_words(log):
  """The last line of a log that is not empty, where a run says why it failed; "" where there is none."""
  with contextlib.suppress(OSError):
    lines = [line.strip() for line in re.split(r"[\r\n]+", log.read_text(errors="replace")[-4000:])]
    return next((line for line in reversed(lines) if line), "")
  return ""
