"""What the loop works with, without orbax and without a compiler: each of them takes seconds."""

from binarydm_jax.training.state import Begin


class Memory:
  """Checkpoints that are kept in memory; orbax takes a second for each."""

  kept = {}

  def __init__(self, directory, keep=2):
    self.saved = self.kept.setdefault(str(directory), {})

  def latest_step(self):
    return max(self.saved, default=None)

  def save(self, step, tree, facts):
    self.saved[step] = tree, facts

  def wait(self):
    pass

  def begin(self, state):
    """What a run goes on from: the newest checkpoint, or `state`."""
    step = self.latest_step()
    if step is None:
      return state
    tree, facts = self.saved[step]
    counts = facts["replaced"], facts["skipped"]
    signs = tree["signs"], facts["signs_of"]
    return Begin(step, tree["state"], tuple(facts["pending"]), *counts, *signs, facts["in_a_row"])


class Compiled:
  """What a jitted function offers, around a function that needs no compiler."""

  def __init__(self, function):
    self.function = function

  def lower(self, *args):
    return self

  def compile(self):
    return self.function
