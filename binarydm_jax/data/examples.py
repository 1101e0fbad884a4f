"""Examples by their number, and what happens where one cannot be read."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from absl import logging

from binarydm_jax.data.images import DataError, Unreadable

# Image uint8 [H, W, C] and label of a record.
Read = Callable[[int], tuple[np.ndarray, int]]
# So many in a row are not a few damaged records, but a disk that is gone or a copy that broke off.
MOST_IN_A_ROW = 1000


class Examples(ABC):
  """`examples[i]` is a dict of one example, 0 <= i < len(examples); safe to read from several threads.

  With `skip_unreadable`, an example that cannot be read is replaced by the next one that can (the first follows the
  last), its label included. So nothing is left out and nothing moves: what is at i depends on i and the data alone,
  whatever was read before, in whichever process.

  Attributes:
    name: what was opened, for logs.
    num_classes: number of labels, 0 if the data has none (every label is then 0).
    mirrored: whether mirror images can be read.
    skip_unreadable: whether an example that cannot be read is replaced, instead of being an error.
  """

  mirrored = True

  def __init__(self, name: str, num_classes: int, skip_unreadable: bool):
    self.name = name
    self.num_classes = num_classes
    self.skip_unreadable = skip_unreadable
    self._named = {}

  @abstractmethod
  def __len__(self) -> int:
    """Number of examples."""

  @abstractmethod
  def _load(self, i: int, mirror: bool) -> dict[str, np.ndarray | np.int32]:
    """Example i. Raises Unreadable where the fault is in this example alone."""

  def __getitem__(self, i: int) -> dict[str, np.ndarray | np.int32]:
    return self.read(i)

  def read(self, i: int, mirror: bool = False) -> dict[str, np.ndarray | np.int32]:
    """Example i, of its mirror image if `mirror`."""
    return self.read_or_replace(i, mirror)[0]

  def read_or_replace(self, i: int, mirror: bool = False) -> tuple[dict[str, np.ndarray | np.int32], bool]:
    """Example i, of its mirror image if `mirror`, and whether another took its place.

    A process warns once of each example that it cannot read.

    Raises:
      Unreadable: a DataError of one line: the example, its file, what failed and the mend; with `skip_unreadable` a
        DataError where none can be read, or so many in a row that they are not a few.
      IndexError: there is no example i.
    """
    if not 0 <= i < len(self):
      raise IndexError(f"there is no example {i} in the {len(self)} of {self.name}")
    tries = min(len(self), MOST_IN_A_ROW)
    for j in range(int(i), int(i) + tries):
      number = j % len(self)
      try:
        return self._load(number, mirror), j != i
      except Unreadable as error:
        fault, mend = error.args
        named = Unreadable(f"{self.name}, example {number}: {fault}", mend)
        if not self.skip_unreadable:
          raise named from error
        self._warn(named.args[0])
    raise DataError(
      f"{self.name}: none of {tries} examples in a row from {i} on can be read, the last is example {number}: {fault}; "
      "data.skip_unreadable is for a few: repair the data"
    )

  def _warn(self, fault: str) -> None:
    # `setdefault` is atomic; a lock could not be sent to a worker process.
    mine = object()
    if self._named.setdefault(fault, mine) is mine:
      logging.warning("data.skip_unreadable: %s; the next example that can be read takes its place", fault)
