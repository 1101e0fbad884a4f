"""One run at a time in a workdir."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

LOCK = ".lock"


def _take(path):
  """(open file that holds the lock, None), or (None, who holds it)."""
  file = open(path, "a+")
  try:
    # Of the open file: it ends with the process, however that ends, so no lock is ever left over.
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read()
    file.close()
    try:
      return None, "process {pid} on {host}, since {since}".format(**json.loads(holder))
    except (ValueError, KeyError):
      return None, "another process"
  file.truncate(0)
  since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
  file.write(json.dumps(dict(pid=os.getpid(), host=socket.gethostname(), since=since)))
  file.flush()
  return file, None


@contextlib.contextmanager
def hold(workdir, name="--workdir"):
  """Holds workdir/.lock; of several processes the first holds it for all. `name` says in errors whose folder it is.

  Raises:
    ValueError: another run is in this workdir.
  """
  workdir = Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"{name}={workdir} cannot be made: {error.strerror}; give another folder") from None
  file, problem = None, None
  if jax.process_index() == 0:
    try:
      file, holder = _take(workdir / LOCK)
      if holder:
        problem = f"{workdir} is in use by {holder}: wait for it, or give another {name}"
    except OSError as error:
      problem = f"{workdir / LOCK} cannot be locked ({error.strerror}): give a {name} on a file system with locks"
  several = jax.process_count() > 1
  if several and not multihost_utils.broadcast_one_to_all(np.array(problem is None)):
    problem = problem or f"{workdir} cannot be locked: process 0 says why"
  if problem:
    raise ValueError(problem)
  try:
    yield
  finally:
    if file:
      file.close()
