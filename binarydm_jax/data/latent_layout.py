"""How a cache of latents is laid out: its descriptor, its shards, and the bytes of a record (see `latents`)."""

import dataclasses
import json
from typing import Any

import numpy as np

from binarydm_jax.data.images import DataError

VERSION = 1
# An interruption costs each process at most a shard, and every shard stays open, of which systems allow 256 or more.
_EXAMPLES_PER_SHARD = 4096
_MAX_SHARDS = 128


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the descriptor says; the arguments of `LatentWriter` explain the fields."""

  shape: tuple[int, int, int]
  num_examples: int
  num_classes: int
  mirrored: bool
  examples_per_shard: int
  about: dict[str, Any]

  @classmethod
  def make(cls, shape, num_examples, num_classes, mirrored, about, examples_per_shard=None) -> "Layout":
    """Checks the fields; None chooses `examples_per_shard`. Raises DataError naming the field that is wrong."""
    if examples_per_shard is None:
      examples_per_shard = max(_EXAMPLES_PER_SHARD, -(-num_examples // _MAX_SHARDS))
    fields = as_json(dict(shape=list(shape), num_examples=num_examples, num_classes=num_classes, mirrored=mirrored,
                          examples_per_shard=examples_per_shard, about=about))
    _check_fields(fields, "latents cannot be written", "correct it")
    return cls(**{**fields, "shape": tuple(fields["shape"])})

  @property
  def num_shards(self) -> int:
    return -(-self.num_examples // self.examples_per_shard)

  @property
  def dtype(self) -> np.dtype:
    """Of one record, without padding."""
    return np.dtype([("moments", "<f4", self.shape), ("label", "<i4")])

  def shard_name(self, shard: int) -> str:
    return f"latents-{shard:05d}-of-{self.num_shards:05d}.array_record"

  def examples(self, shard: int) -> range:
    """Examples of a shard."""
    start = shard * self.examples_per_shard
    return range(start, min(start + self.examples_per_shard, self.num_examples))

  def num_records(self, shard: int) -> int:
    return len(self.examples(shard)) * (1 + self.mirrored)

  def locate(self, i: int, mirror: bool = False) -> tuple[int, int]:
    """Shard of example i, and which record of that shard is its own or its mirror image's."""
    shard, position = divmod(int(i), self.examples_per_shard)
    return shard, position * (1 + self.mirrored) + bool(mirror)

  def records(self, moments, labels, mirrored, first: int) -> np.ndarray:
    """The records of n examples, [n, 1] or, mirrored, [n, 2], of `self.dtype`; `first` is their first number.

    Raises DataError unless moments (and mirrored) are finite float32 [n, h, w, c] and labels integers [n] in range.
    """
    if (mirrored is not None) != self.mirrored:
      raise DataError(f"mirrored moments are {'missing' if self.mirrored else 'given'}, but mirrored={self.mirrored}")
    parts = [np.asarray(part) for part in ((moments, mirrored) if self.mirrored else (moments,))]
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
      raise DataError(f"labels are {labels.dtype} {labels.shape}; they must be integers [n]")
    if labels.size and not 0 <= labels.min() <= labels.max() < max(self.num_classes, 1):
      raise DataError(f"labels lie in {labels.min()}..{labels.max()}; num_classes is {self.num_classes}")
    records = np.empty((len(labels), len(parts)), self.dtype)
    for k, part in enumerate(parts):
      if part.dtype != np.float32 or part.shape != (len(labels), *self.shape):
        raise DataError(f"moments are {part.dtype} {part.shape}; float32 {(len(labels), *self.shape)} is expected")
      finite = np.isfinite(part).all(axis=(1, 2, 3))
      if not finite.all():
        raise DataError(
          f"the moments of example {first + int(np.argmin(finite))} are not finite; check the first stage's weights"
        )
      records["moments"][:, k] = part
      records["label"][:, k] = labels
    return records

  def parse(self, record: bytes) -> tuple[np.ndarray, np.int32]:
    """Moments float32 [h, w, c] and label of one record. Raises ValueError if it has another size."""
    if len(record) != self.dtype.itemsize:
      raise ValueError(f"a record of {len(record)} bytes; {self.dtype.itemsize} are expected")
    fields = np.frombuffer(record, self.dtype)[0]
    return fields["moments"].astype(np.float32), np.int32(fields["label"])

  def fields(self) -> dict[str, Any]:
    """The fields as JSON holds them, the version first."""
    return {"version": VERSION, **dataclasses.asdict(self), "shape": list(self.shape)}

  def to_json(self) -> bytes:
    return (json.dumps(self.fields(), indent=2) + "\n").encode()


def read_layout(file: str) -> Layout:
  """Reads a descriptor. Raises DataError, a line that names the file, if it is none or of another version."""
  mend = "remove the folder and run --mode=encode to make it again"
  try:
    with open(file, encoding="utf-8") as opened:
      fields = json.load(opened)
  except (OSError, ValueError, RecursionError) as error:
    reason = " ".join(str(error).split())
    raise DataError(f"cannot read the descriptor {file!r} ({reason}); {mend}") from error
  if not isinstance(fields, dict) or "version" not in fields:
    raise DataError(f"{file!r} is no descriptor of latents, it has no version; {mend}")
  version = fields.pop("version")
  if version != VERSION:
    raise DataError(f"{file!r} has version {version!r}, this program reads version {VERSION}; {mend}")
  _check_fields(fields, f"{file!r} is no valid descriptor", mend)
  return Layout(**{**fields, "shape": tuple(fields["shape"])})


def as_json(fields: dict[str, Any]) -> dict[str, Any]:
  """What is read back after writing `fields` as JSON: tuples become lists, keys strings."""
  return json.loads(json.dumps(fields))


def difference(wanted: dict, found: dict, parent: str = "") -> tuple[str, str, str] | None:
  """The first field that differs: its dotted name and both values as text; None if there is none."""
  for key in [*wanted, *(key for key in found if key not in wanted)]:
    if isinstance(wanted.get(key), dict) and isinstance(found.get(key), dict):
      inner = difference(wanted[key], found[key], f"{parent}{key}.")
      if inner:
        return inner
    elif key not in wanted or key not in found or wanted[key] != found[key]:
      ours, theirs = (repr(side[key]) if key in side else "(absent)" for side in (wanted, found))
      return f"{parent}{key}", ours, theirs
  return None


def _check_fields(fields: dict[str, Any], wrong: str, mend: str) -> None:
  # `type`, since a bool is an int to isinstance.
  shape, about = fields.get("shape"), fields.get("about")
  valid = {
    "shape": isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape),
    **{name: type(fields.get(name)) is int and fields[name] > 0 for name in ("num_examples", "examples_per_shard")},
    "num_classes": type(fields.get("num_classes")) is int and fields["num_classes"] >= 0,
    "mirrored": type(fields.get("mirrored")) is bool,
    "about": isinstance(about, dict),
  }
  bad = [name for name, fine in valid.items() if not fine] + [name for name in fields if name not in valid]
  if bad:
    raise DataError(f"{wrong}: {bad[0]} is {fields.get(bad[0])!r}; {mend}")
