"""Worker processes that read batches: how they start, what signals mean to them, how they end."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def init_worker(worker_index: int, worker_count: int) -> None:
  """What a worker does before it reads anything.

  It ignores SIGINT, SIGTERM and SIGHUP: they may go to the whole process group, and the parent, which may have to write
  a checkpoint first, is who ends its workers. If the parent is killed, they end with it.
  """
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
  threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  # Other threads may wait for a place in a queue for ever.
  os._exit(1)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
  """Processes that are started inside begin with those signals blocked: they wait until `init_worker` runs.

  Before that a worker imports for seconds, and Ctrl-C would end it with a traceback. Only this thread's signals wait.
  """
  # Its start would unblock the signals.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
