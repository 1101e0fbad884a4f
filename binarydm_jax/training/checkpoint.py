"""Checkpoints of training (orbax): asynchronous, atomic, with a retention policy."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """Checkpoints of one stage in `directory`: a tree {"state": TrainState, "projections": tuple} a step."""

  def __init__(self, directory, keep=2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

  def latest_step(self):
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step, tree):
    """Starts to save; the arrays are copied before this returns, the files are written behind the training."""
    self._manager.save(step, args=ocp.args.StandardSave(tree))

  def restore(self, like):
    """The newest checkpoint as a tree of the shapes, types and shardings of `like` (arrays or abstract ones)."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    return self._manager.restore(self.latest_step(), args=ocp.args.StandardRestore(abstract))

  def close(self):
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
