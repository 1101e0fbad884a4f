"""What samples are compared with: moments and features of real images, computed once and kept in one npz file.

The file holds plain arrays and, as JSON, the protocol by which they were measured; it is never used under another one.
Its `mu` and `sigma` are those that pytorch-fid and ADM's suite would read.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from binarydm_jax.data import spread
from binarydm_jax.evaluation.metrics import Moments, check_count, frechet_distance
from binarydm_jax.evaluation.streaming_moments import MomentsAccumulator
from binarydm_jax.files import write_atomically

VERSION = 1
# As many as ADM's reference files hold images.
KEPT = 10_000
# Images of a source that its digest is computed from: another crop or resize shows in every image.
_DIGESTED = 16


class InvalidReference(ValueError):
  """A reference that cannot be used; the message names the file or the field and the mend."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """Real images as a feature network sees them.

  protocol: JSON values; at least version, source, image_shape ([h, w, c], None if not known), count (of the images
  behind the moments, None if not known), kept, network, sha256 (of the network's weights).
  moments: of the features. spatial: of the spatial features, or None.
  features: float32 [kept, d], for precision, recall and KID, or None.
  halves: Frechet distance between every other image and the rest: what real images reach, half as many of them; None
  where the halves are too small, or the moments come from a published file.
  """

  protocol: dict[str, Any]
  moments: Moments
  spatial: Moments | None
  features: np.ndarray | None
  halves: float | None = None


def image_batches(source, count: int, batch_size: int, num_threads: int = 2) -> Iterator[np.ndarray]:
  """`count` images of a data source (`source[i]["image"]`), evenly spread, as uint8 [n, h, w, c], n <= batch_size."""
  rows = spread(len(source), count)
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    for start in range(0, count, batch_size):
      yield np.stack(list(pool.map(lambda i: source[int(i)]["image"], rows[start : start + batch_size])))


def protocol_of(network, source, count: int | None = None, keep: int = KEPT) -> dict[str, Any]:
  """The protocol of `compute` with these arguments. Reads a few images, for a digest of what the source gives."""
  count = len(source) if count is None else min(count, len(source))
  digest = hashlib.sha256()
  for i in spread(len(source), count)[spread(count, min(_DIGESTED, count))]:
    digest.update(np.ascontiguousarray(source[int(i)]["image"]).tobytes())
  return dict(
    version=VERSION,
    source=source.name,  # what was opened, and which split
    image_shape=list(source[0]["image"].shape),
    images_sha256=digest.hexdigest(),
    count=count,
    kept=min(keep, count),
    network=network.name,
    sha256=network.sha256,
  )


def compute(network, source, count=None, keep=KEPT, batch_size=64, num_threads=2, progress=None) -> Reference:
  """Measures `count` images of a data source, evenly spread over it (all if None), read in batches.

  Args:
    network: a FeatureNetwork.
    source: `source[i]["image"]` uint8 [h, w, c], `len(source)` and `source.name`; safe for several threads.
    keep: at most so many images, spread evenly over all, keep their features; 0 for none.
    batch_size, num_threads: images a call of the network; threads that read them.
    progress: called with the number of images after each batch.
  Raises:
    ValueError: no more images than features, images that the network does not take, features that are not finite.
  """
  protocol = protocol_of(network, source, count, keep)
  batches = image_batches(source, protocol["count"], batch_size, num_threads)
  return measure(network, batches, protocol, batch_size, progress=progress)


def measure(network, batches, protocol, batch_size=64, given=None, progress=None, num_images=None) -> Reference:
  """The Reference of image batches under a protocol whose `count` and `kept` they fulfil.

  given: (moments, spatial) that are known already; then only features are kept of the images.
  num_images: how many there are, where it is not the protocol's `count`.
  """
  count = protocol["count"] if num_images is None else num_images
  if given is None:
    check_count(count, network.dim)
    check_count(count, network.spatial_dim or 0)
  parts, spatial = (MomentsAccumulator(), MomentsAccumulator()), MomentsAccumulator()
  rows, kept, start = spread(count, protocol["kept"]), [], 0
  for images in batches:
    outputs = network.outputs(images, batch_size)
    if given is None:
      for part in (0, 1):
        parts[part].update(outputs.features[(start + part) % 2 :: 2])
      if outputs.spatial is not None:
        spatial.update(outputs.spatial)
    chosen = rows[(rows >= start) & (rows < start + len(images))] - start
    kept.append(outputs.features[chosen])
    start += len(images)
    if progress:
      progress(len(images))
  features = np.concatenate(kept) if protocol["kept"] else None
  if given is not None:
    return Reference(protocol, *given, features)
  halves = None
  if min(part.count for part in parts) > network.dim:
    halves = frechet_distance(*(part.result() for part in parts))
  parts[0].merge(parts[1])
  return Reference(protocol, parts[0].result(), spatial.result() if spatial.count else None, features, halves)


def save(path, reference: Reference):
  """Writes the npz file, whole or not at all."""
  arrays = dict(protocol=np.array(json.dumps(reference.protocol, sort_keys=True)))
  for suffix, moments in (("", reference.moments), ("_s", reference.spatial)):
    if moments is not None:
      arrays |= {f"mu{suffix}": moments.mean, f"sigma{suffix}": moments.cov}
  if reference.features is not None:
    arrays["features"] = reference.features
  if reference.halves is not None:
    arrays["halves"] = np.float64(reference.halves)
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  write_atomically(path, buffer.getbuffer())


def read(path, wanted: dict[str, Any] | None = None) -> Reference:
  """Reads what `save` wrote.

  Args:
    path: of the file.
    wanted: the protocol that it must have been measured by; None takes any.
  Raises:
    InvalidReference: one line: no such file, broken, another format, or another protocol, naming the fields.
  """
  arrays = load_arrays(path)
  try:
    protocol = json.loads(str(arrays["protocol"]))
    version = protocol["version"]
  except (KeyError, TypeError, ValueError):
    raise InvalidReference(f"{path} states no protocol; it was not written by this package: remove it") from None
  if version != VERSION:
    raise InvalidReference(f"{path} has format version {version}, expected {VERSION}; remove it to measure again")
  if wanted is not None and protocol != wanted:
    fields = [name for name in sorted(wanted | protocol) if protocol.get(name) != wanted.get(name)]
    differences = "; ".join(f"{name} is {protocol.get(name)!r}, wanted {wanted.get(name)!r}" for name in fields)
    raise InvalidReference(f"{path} was measured otherwise: {differences}; remove it or give another path")
  if not {"count", "kept", "network", "sha256", "source", "image_shape"} <= set(protocol):
    raise InvalidReference(f"{path} has an incomplete protocol; remove it to measure again")
  moments = moments_of(path, arrays, "", protocol["count"])
  spatial = moments_of(path, arrays, "_s", protocol["count"])
  features = arrays.get("features")
  if moments is None or (len(features) if features is not None else 0) != protocol["kept"]:
    raise InvalidReference(f"{path} lacks arrays that its protocol states; remove it to measure again")
  if features is not None and (features.dtype != np.float32 or features.shape[1:] != moments.mean.shape):
    raise InvalidReference(f"{path} holds features {features.dtype} {features.shape}; remove it to measure again")
  halves = float(arrays["halves"]) if "halves" in arrays else None
  return Reference(protocol, moments, spatial, features, halves)


def load_arrays(path, leave=()) -> dict[str, np.ndarray]:
  """All arrays of an npz file but those named in `leave`. InvalidReference where it is none, or holds objects."""
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise InvalidReference(f"there is no reference file {str(path)!r}")
  try:
    with np.load(path, allow_pickle=False) as archive:
      return {key: archive[key] for key in archive.files if key not in leave}
  except Exception as error:  # of a damaged file everything: zlib.error, MemoryError, NotImplementedError, TokenError
    reason = " ".join(str(error).split())[:160]
    raise InvalidReference(f"{path} is not an npz file of plain arrays ({reason}); remove it or give another") from None


def moments_of(path, arrays, suffix, count) -> Moments | None:
  """Moments from the arrays mu, sigma (with a suffix), checked; None where there are none."""
  names = f"mu{suffix}", f"sigma{suffix}"
  found = [arrays.get(name) for name in names]
  if all(array is None for array in found):
    return None
  if any(array is None or array.dtype.kind != "f" for array in found):
    raise InvalidReference(f"{path} must hold both {names[0]} and {names[1]} as floating point numbers")
  mean, cov = (array.astype(np.float64) for array in found)
  if mean.ndim != 1 or cov.shape != 2 * mean.shape or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise InvalidReference(
      f"{path}: {names[0]} {mean.shape} and {names[1]} {cov.shape} must be finite, of shapes [d] and [d, d]"
    )
  return Moments(mean, cov, count)


def cached(path, protocol, calculate, recompute=False) -> Reference:
  """The Reference in the file `path` if it has this protocol, else that of `calculate()`, which is written there.

  recompute: replaces a file that is broken or of another protocol; otherwise it stays, and InvalidReference says why.
  """
  if pathlib.Path(path).exists():
    try:
      return read(path, protocol)
    except InvalidReference:
      if not recompute:
        raise
  reference = calculate()
  if reference.protocol != protocol:
    raise InvalidReference("the reference that was computed has another protocol than the one asked for")
  save(path, reference)
  return reference
