"""Samples on disk: written part by part, so that a run that is broken off goes on where it was, then as one .npz.

A finished set is <name>.npz, in the shape that ADM's evaluation reads: arr_0 uint8 [n, h, w, c], and arr_1 int64 [n],
the labels of a class-conditional network. Beside it <name>.json says how it was drawn.
"""

import io
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np

from binarydm_jax.files import write_atomically


class SampleWriter:
  """Writes one set of samples; parts that an earlier run with the same protocol wrote are kept.

    writer = SampleWriter(folder, "student", protocol, count)
    for first, size in writer.remaining(batch_size):
      writer.add(first, images, seconds)
    writer.finish(labels)

  With several processes each calls all of it, on a file system that all of them see, and the caller lets them wait for
  each other after the constructor, after `remaining`, and before and after `finish`.
  """

  def __init__(self, folder, name, protocol, count, process_index=0, process_count=1):
    """Starts a set of samples, goes on with it, or finds it finished.

    Args:
      folder: where the files go; made if it is not there.
      name: of the set.
      protocol: dict for JSON, all that the samples depend on. If it is not that of the files that are there, they are
        removed: samples of two protocols are never mixed.
      count: of samples.
      process_index, process_count: which part of the samples is ours.
    """
    folder = Path(folder)
    self.path, self.count = folder / f"{name}.npz", count
    self._parts, self._record = folder / f"{name}.parts", folder / f"{name}.json"
    self._process = slice(process_index, None, process_count)
    self._is_first = process_index == 0
    if not self._is_first:
      return
    # A machine that lost power may have kept a name alone.
    for path in (self.path, *self._parts.glob("*.npz")):
      if path.exists() and not zipfile.is_zipfile(path):
        path.unlink()
    protocol = json.loads(json.dumps({**protocol, "count": count}))
    if self._read_record().get("protocol") != protocol:
      # The record goes first: without it nothing of the rest is taken for samples of some protocol.
      for path in (self._record, self.path, folder / f"{name}.png"):
        path.unlink(missing_ok=True)
      shutil.rmtree(self._parts, ignore_errors=True)
      self._write_record(protocol=protocol)
    elif self.path.exists():
      shutil.rmtree(self._parts, ignore_errors=True)

  def remaining(self, batch_size):
    """[(first, size)] of the batches that this process has to draw, of at most batch_size samples; [] if finished."""
    if self._joined():
      return []
    batches, position = [], 0
    for first, stop, _ in [*self._ranges(), (self.count, self.count, None)]:
      batches += [(start, min(batch_size, first - start)) for start in range(position, first, batch_size)]
      position = stop
    return batches[self._process]

  def _joined(self):
    """Whether the set is there, by its folder's list: over NFS other hosts remember that a name was not there yet."""
    return self.path.parent.exists() and self.path.name in os.listdir(self.path.parent)

  def add(self, first, images, seconds):
    """Writes images uint8 [n, h, w, c], number first .. first + n - 1, that took so many seconds to draw."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, seconds=seconds)
    write_atomically(self._parts / f"{first:09d}-{first + len(images):09d}.npz", buffer.getvalue())

  def finish(self, labels=None):
    """Joins the parts to the .npz, one at a time in memory, on the first process; nothing to do if it is there.

    Args:
      labels: int [count], or None.
    Raises:
      RuntimeError: samples are missing.
    """
    if not self._is_first or self.path.exists():
      return
    missing, ranges = self.remaining(self.count), self._ranges()
    if missing:
      raise RuntimeError(f"{self._parts} has no samples from {missing[0][0]} on; run again")
    seconds = sum(float(_read(path, "seconds")) for *_, path in ranges)
    self._write_record(protocol=self._read_record()["protocol"], seconds_of_drawing=seconds)
    temporary = self.path.with_name(f".{self.path.name}.tmp{os.getpid()}")
    try:
      _join([path for *_, path in ranges], self.count, labels, temporary)
      os.replace(temporary, self.path)
    finally:
      temporary.unlink(missing_ok=True)
    shutil.rmtree(self._parts)

  @property
  def images_per_second(self):
    """Of one process that drew a finished set, over all runs that it took."""
    return self.count / self._read_record()["seconds_of_drawing"]

  def _ranges(self):
    """[(first, stop, path)] of the parts, in order."""
    return [(*map(int, path.stem.split("-")), path) for path in sorted(self._parts.glob("*.npz"))]

  def _read_record(self):
    try:
      return json.loads(self._record.read_text())
    except (OSError, json.JSONDecodeError):
      return {}

  def _write_record(self, **fields):
    write_atomically(self._record, (json.dumps(fields, indent=2) + "\n").encode())


def _read(path, name):
  with np.load(path, allow_pickle=False) as file:
    return file[name]


def _join(parts, count, labels, path):
  """Writes an .npz as np.savez does, with the parts' images one after the other as arr_0."""
  shape = (count, *_read(parts[0], "images").shape[1:])
  # ZipInfo's fixed date: the same samples give the same bytes.
  with zipfile.ZipFile(path, "w") as archive:
    with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(member, dict(descr="|u1", fortran_order=False, shape=shape))
      for part in parts:
        member.write(_read(part, "images").tobytes())
    if labels is not None:
      with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
        np.lib.format.write_array(member, np.asarray(labels, np.int64))


def open_samples(path):
  """The images of a finished set (or of any np.savez, not compressed), uint8 [n, h, w, c], mapped from the file."""
  with zipfile.ZipFile(path) as archive:
    start = archive.getinfo("arr_0.npy").header_offset
  with open(path, "rb") as file:
    # A local header is 30 bytes, the last four the lengths of the name and the extra field that follow it.
    file.seek(start + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.memmap(file, dtype, "r", file.tell(), shape)
