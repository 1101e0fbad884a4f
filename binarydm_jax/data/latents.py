"""Latents of a first stage on disk, read in place of images; `latent_writer` makes them.

A folder holds one split of one data set:

  latents.json                               the descriptor, written last: a folder that has it is complete
  latents-00000-of-00004.array_record, ...   shards of `examples_per_shard` examples each; the last may hold fewer

A record is the moments, float32 [h, w, c] in C order, then the label, int32; all little-endian, 4 (h w c + 1) bytes.
Counted through all shards, example i is record i or, in a mirrored cache, records 2 i and 2 i + 1: of the image, then
of its mirror image.
"""

import os
from concurrent import futures
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from binarydm_jax.data.examples import Examples
from binarydm_jax.data.images import DataError, Unreadable, one_line
from binarydm_jax.data.latent_layout import Layout, as_json, difference, read_layout

DESCRIPTOR = "latents.json"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Latents(Examples):
  """A complete cache: `latents[i]` is {"moments": float32 [h, w, c], "label": np.int32}, 0 <= i < len(latents).

  Made by `open_latents`. `Examples` says what happens to an example that cannot be read, and has further attributes.

  Attributes:
    shape: h, w, c of the moments.
    mirrored: whether there are records of the mirror images.
    about: what the latents were made from.
  """

  def __init__(self, path: str, layout: Layout, readers: list[ArrayRecordReader], skip_unreadable: bool = False):
    super().__init__(f"latents in {path!r}", layout.num_classes, skip_unreadable)
    self.shape = layout.shape
    self.mirrored = layout.mirrored
    self.about = layout.about
    self._path = path
    self._layout = layout
    self._readers = readers

  def __reduce__(self):
    # Readers cannot be sent to a worker process, which opens the files for itself.
    return open_latents, (self._path, None, self.skip_unreadable)

  def __len__(self) -> int:
    return self._layout.num_examples

  def _load(self, i: int, mirror: bool) -> dict[str, np.ndarray | np.int32]:
    if mirror and not self.mirrored:
      raise DataError(f"the {self.name} have no mirror images; `mirrored` says so")
    shard, record = self._layout.locate(i, mirror)
    try:
      moments, label = self._layout.parse(self._readers[shard].read([record])[0])
    except (RuntimeError, ValueError) as error:
      raise Unreadable(
        f"record {record} of {self._layout.shard_name(shard)} is damaged ({one_line(error)})",
        "remove that file and run --mode=encode to make it again",
      ) from error
    return {"moments": moments, "label": label}

  @staticmethod
  def finish(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Latents are trained on as they are: what the moments mean is known to the first stage alone."""
    return batch

  def __repr__(self) -> str:
    return f"Latents({self.name!r}, {len(self)} examples, {self.num_classes} classes)"


def open_latents(path: str, about: dict[str, Any] | None = None, skip_unreadable: bool = False) -> Latents:
  """Opens the complete cache in the folder `path` and checks that every shard is there and whole.

  Args:
    path: the folder.
    about: what the latents should have been made from; None takes any.
    skip_unreadable: a damaged record is replaced by the one of the next example (see `Examples`); shards that are cut
      short or missing remain an error.

  Raises:
    DataError: a ValueError of one line that names the folder and the mend; if `about` differs, the first field that
      does and both values.
  """
  path = os.path.expanduser(path)
  if not os.path.isdir(path):
    raise DataError(f"there is no folder of latents {path!r}; run --mode=encode to make it")
  file = os.path.join(path, DESCRIPTOR)
  if not os.path.exists(file):
    raise DataError(f"the latents in {path!r} are not complete, there is no {DESCRIPTOR}; run --mode=encode to the end")
  layout = read_layout(file)
  if about is not None:
    check_same(path, as_json(about), layout.about)

  def open_one(shard: int) -> ArrayRecordReader:
    return open_shard(os.path.join(path, layout.shard_name(shard)), layout, shard, skip_unreadable)

  with futures.ThreadPoolExecutor() as pool:
    return Latents(path, layout, list(pool.map(open_one, range(layout.num_shards))), skip_unreadable)


def open_shard(file: str, layout: Layout, shard: int, skip_unreadable: bool = False) -> ArrayRecordReader:
  """A reader of the whole shard. Raises DataError if it is not there or not as the layout has it.

  The first record is read as a sample; with `skip_unreadable` it may be damaged, but not of another size.
  """
  mend = "run --mode=encode, which makes what is missing"
  if not os.path.isfile(file):
    raise DataError(f"there is no {file!r}; {mend}")
  # A file cut short lacks the index at its end: it opens, but is not ok.
  reader = ArrayRecordReader(file, _READER_OPTIONS)
  if not reader.ok():
    raise DataError(f"{file!r} is cut short or no array_record file; {mend}")
  wanted, found = layout.num_records(shard), reader.num_records()
  if found != wanted:
    raise DataError(f"{file!r} has {found} records where {wanted} belong; {mend}")
  try:
    layout.parse(reader.read([0])[0])
  except (RuntimeError, ValueError) as error:
    if not (skip_unreadable and isinstance(error, RuntimeError)):
      raise DataError(f"{file!r} is damaged ({one_line(error)}); {mend}") from error
  return reader


def check_same(path: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
  """Raises DataError naming the first field of the latents in `path` that is not as wanted."""
  differs = difference(wanted, found)
  if differs:
    name, ours, theirs = differs
    raise DataError(
      f"the latents in {path!r} were made with {name}={theirs}, but {name}={ours} is asked for; "
      "set it back, or run --mode=encode with another folder"
    )
