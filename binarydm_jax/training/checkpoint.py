"""Checkpoints of training (orbax): asynchronous, atomic, with a retention policy, and checked when they are read."""

import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from binarydm_jax.errors import RunError
from binarydm_jax.mesh import wait_for_all


class CheckpointError(RunError):
  """A checkpoint could not be written, or none could be read; the message says which are left."""


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step):
    # `preemption` asks the service, with its own count; a second counter would confuse it.
    return False


@jax.jit
def fingerprint(tree):
  """uint32 [leaves]: the values' bits as 32-bit words, each times an odd number of its place, summed mod 2^32.

  Integers add up to the same in any order: it does not depend on devices and processes.
  """

  def one(x):
    if x.dtype.itemsize < 4:  # bytes and truth values
      x = x.astype(jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
    return jnp.sum(words * (2 * jax.lax.iota(jnp.uint32, words.size) + 1))

  return jnp.stack([one(leaf) for leaf in jax.tree.leaves(tree)])


def _abstract(like):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def _everywhere(ok):
  """Whether all processes say so."""
  return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(ok)).all())


class Checkpoints:
  """Checkpoints of one stage in `directory`: at each saved step a tree of arrays, and facts as JSON.

  Args:
    directory: made if it is not there.
    keep: how many are kept.
    writes: whether this run writes here (else nothing in the directory is touched).
  """

  def __init__(self, directory, keep=2, writes=False):
    self._path = Path(directory).absolute()
    self._keep, self._writes = keep, writes
    self._open()

  def _open(self):
    self._manager = None
    if self._writes or self._path.is_dir():
      options = ocp.CheckpointManagerOptions(
          max_to_keep=self._keep, create=self._writes, cleanup_tmp_directories=self._writes
      )
      self._manager = _Manager(self._path, options=options, item_names=("tree", "facts"))

  def steps(self):
    """The steps of complete checkpoints, in rising order."""
    # From the disk, where a checkpoint has its name once it is whole; orbax's own list runs ahead of it.
    return sorted(int(path.name) for path in self._path.glob("*") if path.name.isdigit())

  def latest_step(self):
    """The newest complete step, or None."""
    return max(self.steps(), default=None)

  def save(self, step, tree, facts=None):
    """Starts to save; the arrays are copied before this returns, the files are written behind the training.

    Args:
      step: above those that are there.
      tree: of arrays.
      facts: what JSON holds.
    Raises:
      CheckpointError: this checkpoint or the one before could not be written.
    """
    facts = {**(facts or {}), "fingerprint": np.asarray(fingerprint(tree)).tolist()}
    args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), facts=ocp.args.JsonSave(facts))
    self._guarded(lambda: self._manager.save(step, args=args, force=True))

  def _guarded(self, write):
    try:
      write()
    except Exception as error:  # orbax and tensorstore raise what they like: OSError, ValueError, RuntimeError
      free = shutil.disk_usage(self._path).free
      whole = self.steps()
      kept = f"that of step {whole[-1]} is whole" if whole else "there is no other"
      raise CheckpointError(
          f"a checkpoint could not be written to {self._path} ({_line(error)}; {free / 2**30:.2f} GiB free): {kept}."
          " Make room and run the same command again"
      ) from error

  def restore(self, like, set_aside=False):
    """The newest checkpoint that is whole: (step, tree, facts), or None if there are no checkpoints.

    One that cannot be read, or whose arrays are not those that were written, is passed over with a warning that names
    it.

    Args:
      like: tree of arrays or abstract ones, with the shardings that are wanted: of any number of devices.
      set_aside: moves what was passed over to <directory>.unreadable, so that its step can be saved again.
    Raises:
      CheckpointError: there are checkpoints, and none can be read.
    """
    passed_over = []
    for step in reversed(self.steps()):
      reason = None
      try:
        args = ocp.args.Composite(tree=ocp.args.StandardRestore(_abstract(like)), facts=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=args)
        if np.asarray(fingerprint(found.tree)).tolist() != found.facts["fingerprint"]:
          reason = "its arrays are not those that were written"
      except Exception as error:  # whatever a damaged file makes orbax or tensorstore raise
        reason = _line(error)
      if _everywhere(reason is None):
        if set_aside and passed_over:
          self._set_aside(passed_over)
        return step, found.tree, found.facts
      passed_over.append(step)
      if jax.process_index() == 0:
        print(f"warning: checkpoint {self._path / str(step)} is passed over ({reason or 'see the other processes'})",
              file=sys.stderr, flush=True)  # fmt: skip
    if passed_over:
      raise CheckpointError(
          f"no checkpoint in {self._path} can be read ({reason or 'see the other processes'}); to begin this stage"
          " anew, move that folder away"
      )
    return None

  def _set_aside(self, steps):
    self._manager.close()
    if jax.process_index() == 0:
      folder = self._path.with_name(f"{self._path.name}.unreadable")
      folder.mkdir(exist_ok=True)
      for step in steps:
        shutil.rmtree(folder / str(step), ignore_errors=True)
        shutil.move(self._path / str(step), folder / str(step))
    wait_for_all("unreadable checkpoints set aside")
    self._open()

  def wait(self):
    """Waits until everything is on disk. Raises CheckpointError if something could not be written."""
    self._guarded(self._manager.wait_until_finished)

  def close(self):
    """Ends without an answer to what is still being written: `wait` first."""
    if self._manager:
      try:
        self._manager.close()
      except Exception as error:  # of a save in flight; it must not hide what ended the run
        print(f"warning: a checkpoint in {self._path} was not completed ({_line(error)})", file=sys.stderr, flush=True)


def _line(error):
  """An exception's message on one line."""
  return " ".join(str(error).split())[:200] or type(error).__name__
