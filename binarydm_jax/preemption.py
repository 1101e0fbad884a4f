"""SIGTERM, SIGINT and SIGHUP end a run where nothing is lost: all ask between two pieces of work whether to stop.

One process keeps a flag. Several take JAX's preemption service, which lets all of them stop at the same question: so
every process must ask equally often. A signal that comes while a program compiles or runs is served when it returns.
"""

import os
import signal

# sysexits.h EX_TEMPFAIL: the run is whole, the same command continues it. A scheduler may requeue on it.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last: the terminal is gone

_received = None
_shared = False
_asked, _agreed = 0, False


class Preempted(Exception):
  """A signal asked the run to stop, and everything is saved."""


def install():
  """Takes the signals from now on, SIGHUP unless `nohup` has; the second SIGINT interrupts at once."""

  def receive(number, frame):
    global _received
    del frame
    if _received == number == signal.SIGINT:
      raise KeyboardInterrupt
    _received = number
    if _shared and number != signal.SIGTERM:
      os.kill(os.getpid(), signal.SIGTERM)  # which the service takes, so that all processes learn of it

  for number in SIGNALS:
    if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, receive)


def share():
  """From now on all processes stop together; after `jax.distributed.initialize`, which has taken SIGTERM."""
  global _shared
  _shared = True
  if _received is not None:
    os.kill(os.getpid(), signal.SIGTERM)  # it came while the processes were waiting for each other


def requested():
  """Whether to stop here. With several processes each must ask equally often, and all get the same answer."""
  global _asked, _agreed
  if not _shared:
    return _received is not None
  # Here, so that `install` need not wait for jax to be imported.
  from jax.experimental import multihost_utils

  _asked += 1
  # The service says yes once, at the question that all processes reach next.
  _agreed = _agreed or multihost_utils.reached_preemption_sync_point(_asked)
  return _agreed


def between(items):
  """Yields `items`, asking before each whether to stop; a process with fewer items asks as often as the others."""
  most = len(items)
  if _shared:
    import numpy as np
    from jax.experimental import multihost_utils

    most = int(multihost_utils.process_allgather(np.array(most)).max())
  for i in range(most):
    check()
    if i < len(items):
      yield items[i]


def check():
  """Raises Preempted if the run is to stop here, between two pieces of work that are each on disk."""
  if requested():
    raise Preempted
