"""Writing latents to disk, shard by shard, so that an interrupted run goes on where it was; `latents` reads them."""

import contextlib
import glob
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from binarydm_jax.data.images import DataError
from binarydm_jax.data.latent_layout import Layout, read_layout
from binarydm_jax.data.latents import DESCRIPTOR, check_same, open_shard
from binarydm_jax.files import write_atomically

# The descriptor of a cache that is not complete: a restart with another configuration must not mix its latents in.
_PARTIAL = "latents.partial.json"
# One record a chunk, as random access wants. The fastest level: noise-like floats shrink by 7 % at any of them.
_WRITER_OPTIONS = "group_size:1,zstd:1"


class LatentWriter:
  """Writes a cache shard by shard; what an earlier, interrupted run completed is kept.

    writer = LatentWriter(path, shape=(64, 64, 3), num_examples=len(source), num_classes=0, mirrored=False, about={})
    for examples in writer.remaining():
      with writer.shard(examples) as add:
        add(moments, labels)  # once or more, in the order of `examples`
    writer.finish()
  """

  def __init__(
    self,
    path: str,
    *,
    shape: tuple[int, int, int],
    num_examples: int,
    num_classes: int,
    mirrored: bool,
    about: dict[str, Any],
    examples_per_shard: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Starts a cache in the folder `path`, or goes on with the one there.

    Args:
      path: the folder; made if it is not there.
      shape: h, w, c of the moments; c is the latent's channels, or twice that, means then log variances.
      num_examples: examples of the split, at least 1.
      num_classes: number of labels, 0 if there are none (every label is then 0).
      mirrored: whether every example has a second record, of its mirror image.
      about: what the latents were made from, kept in the descriptor; values JSON can hold.
      examples_per_shard: None chooses by `num_examples`; a cache that was begun keeps its own.
      process_index: which part of the shards is ours.
      process_count: number of parts.

    Raises:
      DataError: the folder holds a cache of something else (the first field that differs is named), or no valid one.
    """
    if not 0 <= process_index < process_count:
      raise DataError(f"process_index is {process_index}; it must lie in 0..{process_count - 1} (process_count)")
    self.path = os.path.expanduser(path)
    self._process = slice(process_index, None, process_count)
    self._is_first = process_index == 0
    self.layout = Layout.make(shape, num_examples, num_classes, mirrored, about, examples_per_shard)
    if os.path.exists(self.path) and not os.path.isdir(self.path):
      raise DataError(f"{self.path!r} is not a folder; name another for the latents")
    files = [os.path.join(self.path, name) for name in (DESCRIPTOR, _PARTIAL)]
    begun = next((file for file in files if os.path.exists(file)), None)
    if begun is None:
      if glob.glob(os.path.join(glob.escape(self.path), "latents-*.array_record")):
        # They might be of another configuration, and would be taken as done.
        raise DataError(f"{self.path!r} has latents but no descriptor; remove the folder or name another")
      os.makedirs(self.path, exist_ok=True)
      if self._is_first:
        write_atomically(files[1], self.layout.to_json())
      return
    found = read_layout(begun)
    wanted = {**self.layout.fields(), "examples_per_shard": found.examples_per_shard}
    check_same(self.path, wanted, found.fields())
    self.layout = found

  def remaining(self) -> list[range]:
    """Examples of each shard of this process that is not there or not whole, to be given to `shard`."""
    ours = range(self.layout.num_shards)[self._process]
    return [self.layout.examples(shard) for shard in ours if self._fault(shard)]

  @contextlib.contextmanager
  def shard(self, examples: range) -> Iterator[Callable[..., None]]:
    """Writes the shard of `examples`; it appears when the block ends, and not at all if the block raises.

    Gives add(moments, labels, mirrored=None): the next n examples, moments and mirrored (moments of the mirror images,
    in a mirrored cache only) float32 [n, h, w, c] and finite, labels integers [n].

    Raises:
      DataError: arrays that are not as stated, too many or too few examples, or a disk that takes no more.
    """
    shard = examples.start // self.layout.examples_per_shard
    if examples != self.layout.examples(shard):
      raise DataError(f"{examples} is no shard of the latents in {self.path!r}; take those that remaining() gives")
    name = self.layout.shard_name(shard)
    final = os.path.join(self.path, name)
    # A killed run leaves its file behind, up to hundreds of megabytes.
    for leftover in glob.glob(os.path.join(glob.escape(self.path), f".{name}.tmp*")):
      os.unlink(leftover)
    temporary = os.path.join(self.path, f".{name}.tmp{os.getpid()}")
    with _disk_errors(final):
      writer = ArrayRecordWriter(temporary, _WRITER_OPTIONS)
    count = 0

    def add(moments: np.ndarray, labels: np.ndarray, mirrored: np.ndarray | None = None) -> None:
      nonlocal count
      records = self.layout.records(moments, labels, mirrored, examples.start + count)
      count += len(records)
      if count > len(examples):
        raise DataError(f"{final!r} was given {count} examples; it takes {len(examples)}")
      with _disk_errors(final):
        for record in records.ravel():
          writer.write(record.tobytes())

    try:
      yield add
      if count != len(examples):
        raise DataError(f"{final!r} was given {count} examples; it takes {len(examples)}")
      with _disk_errors(final):
        writer.close()
      open_shard(temporary, self.layout, shard).close()
      os.replace(temporary, final)
    finally:
      with contextlib.suppress(RuntimeError):
        writer.close()
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)

  def finish(self) -> None:
    """Declares the cache complete. Call it on every process, after all of them have written (the caller's barrier).

    Raises:
      DataError: a shard, of whatever process, is not there or not whole; on process 0, the only one that looks.
    """
    if not self._is_first:
      return
    fault = next(filter(None, map(self._fault, range(self.layout.num_shards))), None)
    if fault:
      raise fault
    with contextlib.suppress(FileNotFoundError):  # A complete cache has no partial descriptor any more.
      os.replace(os.path.join(self.path, _PARTIAL), os.path.join(self.path, DESCRIPTOR))

  def _fault(self, shard: int) -> DataError | None:
    try:
      open_shard(os.path.join(self.path, self.layout.shard_name(shard)), self.layout, shard).close()
    except DataError as error:
      return error
    return None


@contextlib.contextmanager
def _disk_errors(file: str) -> Iterator[None]:
  try:
    yield
  except RuntimeError as error:
    reason = " ".join(str(error).split())[:160]
    raise DataError(f"cannot write {file!r} ({reason}); mend that and run --mode=encode again, it goes on") from error
