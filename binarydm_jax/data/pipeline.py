"""The endless stream of training batches, a pure function of (seed, step), and a plain read for evaluation."""

from collections.abc import Iterator

import grain
import numpy as np

from binarydm_jax.data.images import DataError
from binarydm_jax.data.latents import Latents
from binarydm_jax.data.sources import Source


def batches(
  source: Source | Latents,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  flip: bool = False,
  num_threads: int = 2,
  prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's part of the global batches start_step, start_step + 1, ... without end.

  Every epoch is a new permutation of the whole source; a batch may straddle two epochs, so that no example is dropped.
  Batch k depends on (source, batch_size, seed, k) alone: a run resumes by `start_step`, at no cost, and the
  parts of all processes, joined in order, are the same batch whatever `process_count` is.

  Args:
    source: the examples.
    batch_size: size of the global batch.
    seed: 0 <= seed < 2**32.
    start_step: number of global batches to leave out.
    process_index: which part is ours.
    process_count: number of parts; must divide `batch_size`.
    flip: mirror each image left to right with probability 1/2; of latents, read the record of the mirror image.
    num_threads: threads that decode; 0 reads in the caller's thread.
    prefetch: local batches kept ready.

  Returns:
    An iterator of {"image": float32 [batch_size // process_count, H, W, C] in [-1, 1], "label": int32 [...]}; of
    latents, {"moments": float32 [batch_size // process_count, h, w, c] as stored, "label": int32 [...]}.

  Raises:
    DataError: a ValueError of one line that names the argument and the mend.
  """
  if not 0 <= process_index < process_count:
    raise DataError(f"process_index is {process_index}; it must lie in 0..{process_count - 1} (process_count)")
  if batch_size < 1 or batch_size % process_count:
    raise DataError(f"batch_size is {batch_size}; it must be a positive multiple of the {process_count} processes")
  if not 0 <= seed < 2**32:
    raise DataError(f"seed is {seed}; it must lie in 0..2**32-1")
  if start_step < 0:
    raise DataError(f"start_step is {start_step}; it must be 0 or more")
  if num_threads < 0 or prefetch < 0:
    raise DataError(f"num_threads is {num_threads} and prefetch is {prefetch}; both must be 0 or more")
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
    examples = indices.random_map(lambda i, rng: source.read(i, mirror=rng.random() < 0.5))
  else:
    examples = indices.map(source.read)
  # The stream is "infinite" only up to sys.maxsize: without drop_remainder its length is rounded up beyond that.
  local = examples.batch(batch_size // process_count, drop_remainder=True)
  # Local batch number step * process_count + process_index; index arithmetic, so a late start reads nothing more.
  local = local[start_step * process_count + process_index :: process_count].map(source.finish)
  # grain warns if fewer batches may wait than threads work.
  options = grain.ReadOptions(num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch)
  return iter(local.to_iter_dataset(options))


def read_all(source: Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """The first `limit` examples (all if None) in order: images uint8 [n, H, W, C], labels int32 [n]."""
  count = len(source) if limit is None else min(limit, len(source))
  if count < 1:
    raise DataError(f"limit is {limit} and {source.name} has {len(source)} examples; at least one must be read")
  first = source[0]
  images = np.empty((count, *first["image"].shape), np.uint8)
  labels = np.empty(count, np.int32)
  images[0], labels[0] = first["image"], first["label"]
  for i in range(1, count):
    example = source[i]
    images[i], labels[i] = example["image"], example["label"]
  return images, labels
