"""The endless stream of training batches, a pure function of (seed, step), and a plain read for evaluation."""

import atexit
import sys
import weakref
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from binarydm_jax.data.examples import Examples
from binarydm_jax.data.images import DataError, one_line
from binarydm_jax.data.latents import Latents
from binarydm_jax.data.sources import Source
from binarydm_jax.data.workers import init_worker, signals_blocked

_SKIPPED = "skipped"


class Batches(Iterator[dict[str, np.ndarray]]):
  """The endless stream of one process's batches; made by `batches`.

  Attributes:
    skipped: how many examples, of the batches given so far, stand in for one that could not be read.
  """

  def __init__(self, iterator: grain.DatasetIterator, workers: int):
    self.skipped = 0
    self._iterator = iterator
    # When this object is collected, and at exit before multiprocessing ends the processes that grain waits for.
    self._end = weakref.finalize(self, iterator.close)
    if workers:
      atexit.register(self._end)
      if not flags.FLAGS.is_parsed():
        # grain reads flags of its own here, also where no program has parsed any.
        flags.FLAGS.mark_as_parsed()
      with signals_blocked():
        # To ask for the state makes the iterators of all workers, which could not be started before.
        iterator.get_state()
        iterator.start_prefetch()

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      batch = next(self._iterator)
    except RuntimeError as error:
      if not str(error).startswith("Worker process was terminated"):
        raise
      raise DataError(
        f"a process that reads data ended ({one_line(error)}); if memory ran out, lower data.workers or data.prefetch"
      ) from error
    self.skipped += int(batch.pop(_SKIPPED))
    return batch

  def close(self) -> None:
    """Ends threads and worker processes; without it they end when the object is collected, or with the program."""
    self._end()


def batches(
  source: Source | Latents,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  flip: bool = False,
  threads: int = 2,
  workers: int = 0,
  prefetch: int = 4,
) -> Batches:
  """Yields this process's part of the global batches start_step, start_step + 1, ... without end.

  Every epoch is a new permutation of the whole source; a batch may straddle two epochs, so that no example is dropped.
  Batch k depends on (source, batch_size, seed, k) alone: a run resumes by `start_step`, at no cost, and the
  parts of all processes, joined in order, are the same batch whatever `process_count` is. Nor do threads, workers,
  prefetch, or damage elsewhere in the data change a batch (`Examples` says what takes a damaged example's place).

  Args:
    source: the examples.
    batch_size: size of the global batch.
    seed: 0 <= seed < 2**32.
    start_step: number of global batches to leave out.
    process_index: which part is ours.
    process_count: number of parts; must divide `batch_size`.
    flip: mirror each image left to right with probability 1/2; of latents, read the record of the mirror image.
    threads: threads that decode, each a batch of its own, in this process or, with workers, in each of them; 0 reads in
      the caller's thread.
    workers: processes that decode; worth it where threads wait for each other (Python code, not Pillow's decoders),
      since each takes seconds to start and memory, with a copy of an npz file.
    prefetch: local batches kept ready, at least one a worker.

  Returns:
    `Batches` of {"image": float32 [batch_size // process_count, H, W, C] in [-1, 1], "label": int32 [...]}; of
    latents, {"moments": float32 [batch_size // process_count, h, w, c] as stored, "label": int32 [...]}.

  Raises:
    DataError: a ValueError of one line that names the argument and the mend; from the iterator, the record that cannot
      be read, of worker processes too.
  """
  if not 0 <= process_index < process_count:
    raise DataError(f"process_index is {process_index}; it must lie in 0..{process_count - 1} (process_count)")
  if batch_size < 1 or batch_size % process_count:
    raise DataError(f"batch_size is {batch_size}; it must be a positive multiple of the {process_count} processes")
  if not 0 <= seed < 2**32:
    raise DataError(f"seed is {seed}; it must lie in 0..2**32-1")
  if start_step < 0:
    raise DataError(f"start_step is {start_step}; it must be 0 or more")
  if min(threads, workers, prefetch) < 0:
    raise DataError(f"threads={threads}, workers={workers}, prefetch={prefetch}; each must be 0 or more")
  if flip and not source.mirrored:
    raise DataError(
      f"data.flip is True, but the {source.name} have no mirror images; set data.flip=False, "
      "or run --mode=encode with data.flip=True and another folder"
    )
  if not len(source):
    raise DataError(f"data.source: {source.name} is empty; at least one example is needed")

  indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
  if flip:
    # After `repeat`, so that an example is drawn anew in every epoch; before reading, so that one record is read.
    examples = indices.random_map(lambda i, rng: _read(source, i, mirror=rng.random() < 0.5))
  else:
    examples = indices.map(lambda i: _read(source, i))
  # The stream is "infinite" only up to sys.maxsize: without drop_remainder its length is rounded up beyond that.
  local = examples.batch(batch_size // process_count, drop_remainder=True)
  # Local batch number step * process_count + process_index; index arithmetic, so a late start reads nothing more.
  local = local[start_step * process_count + process_index :: process_count]

  def finish(batch):
    return {**source.finish(batch), _SKIPPED: batch[_SKIPPED].sum()}

  if not workers:
    # grain warns if fewer batches may wait than threads work.
    options = grain.ReadOptions(num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch)
    return Batches(iter(local.map(finish).to_iter_dataset(options)), workers)
  stream = local.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  # Batches come through pipes. Shared memory is faster, but containers have little of it, its lack kills the
  # worker, and grain leaves pieces of it behind. So images come as bytes, and are finished here.
  pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
  stream = grain.experimental.WithOptionsIterDataset(stream, pipes)
  # Each worker takes every workers-th batch, and they are given in turn: the order is the same.
  processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, -(-prefetch // workers)))
  return Batches(iter(stream.mp_prefetch(processes, init_worker).map(finish)), workers)


def _read(source: Examples, i: int, mirror: bool = False) -> dict[str, np.ndarray | np.int32]:
  example, replaced = source.read_or_replace(i, mirror)
  return {**example, _SKIPPED: np.int32(replaced)}


def spread(length: int, count: int) -> np.ndarray:
  """`count` <= length row numbers in rising order, evenly spread: a source may be in the order of its classes."""
  return np.arange(count) * length // max(count, 1)


def read_all(source: Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """`limit` examples, evenly spread over the source, or all, in order: images uint8 [n, H, W, C], labels int32 [n]."""
  count = len(source) if limit is None else min(limit, len(source))
  if count < 1:
    raise DataError(f"limit is {limit} and {source.name} has {len(source)} examples; at least one must be read")
  first = source[0]
  images = np.empty((count, *first["image"].shape), np.uint8)
  labels = np.empty(count, np.int32)
  images[0], labels[0] = first["image"], first["label"]
  for i, row in enumerate(spread(len(source), count)[1:], 1):
    example = source[int(row)]
    images[i], labels[i] = example["image"], example["label"]
  return images, labels
