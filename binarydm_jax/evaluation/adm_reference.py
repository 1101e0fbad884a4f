"""Published reference files of ADM's suite (`VIRTUAL_*.npz`) and pytorch-fid's statistics -> Reference.

`mu`, `sigma` are moments of TensorFlow's InceptionV3, over images that need not be in the file; `mu_s`, `sigma_s` those
of its spatial features, 17 x 17 x 7 flattened; `arr_0` images, usually 10,000, for precision and recall. pytorch-fid
writes `mu` and `sigma` only, and resizes images in another way (see `inception.resize_like_tf1`).
"""

import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from binarydm_jax.evaluation.reference import (
  KEPT,
  VERSION,
  InvalidReference,
  Reference,
  load_arrays,
  measure,
  moments_of,
)
from binarydm_jax.files import sha256_of

IMAGES = "arr_0"


def check(path, network, image_shape=None):
  """What `compute` refuses, as far as the file's directory and its images' header show it.

  Args:
    image_shape: (h, w, c) of the samples; None: not known yet.
  Raises:
    InvalidReference.
  """
  path = pathlib.Path(path).expanduser()
  if network.name != "inception":
    raise InvalidReference(
      f"{path} belongs to InceptionV3, but evaluation.feature_network is {network.name!r}; set it to 'inception'"
    )
  keys = _keys(path)
  shape = _image_shape(path) if IMAGES in keys else None
  if shape is None and "mu" not in keys:
    raise InvalidReference(f"{path} holds neither mu and sigma nor images ({IMAGES}); its keys: {', '.join(keys)}")
  if None not in (shape, image_shape) and tuple(shape[1:]) != tuple(image_shape):
    size = lambda shape: "x".join(map(str, shape))
    raise InvalidReference(f"{path} holds images of {size(shape[1:])}, and these are of {size(image_shape)}")


def protocol_of(path, network, keep: int = KEPT) -> dict:
  """The protocol of `compute` with these arguments. Reads the file through, for its SHA-256."""
  path = pathlib.Path(path).expanduser()
  keys = _keys(path)
  shape = _image_shape(path) if IMAGES in keys else None
  return dict(
    version=VERSION,
    source=f"published: {path.name}",
    file_sha256=sha256_of(path),
    image_shape=None if shape is None else list(shape[1:]),
    # Moments in the file are of images that it does not count.
    count=None if "mu" in keys or shape is None else shape[0],
    kept=0 if shape is None else min(keep, shape[0]),
    network=network.name,
    sha256=network.sha256,
  )


def compute(path, network, keep: int = KEPT, batch_size: int = 64, progress=None) -> Reference:
  """Reads the moments of a published file, and measures its images (never all in memory) for what is lacking.

  Args as `reference.compute`. InvalidReference where the file is not such a file, or the network is not InceptionV3;
  ValueError where it holds no moments and too few images to compute them.
  """
  path = pathlib.Path(path).expanduser()
  check(path, network)
  protocol = protocol_of(path, network, keep)
  arrays = load_arrays(path, leave=(IMAGES,))
  moments, spatial = (moments_of(path, arrays, suffix, None) for suffix in ("", "_s"))
  for found, dim in ((moments, network.dim), (spatial, network.spatial_dim)):
    if found is not None and found.mean.size != dim:
      raise InvalidReference(f"{path} has moments of {found.mean.size} features, the network has {dim}")
  given = None if moments is None else (moments, spatial)
  if given is not None and not protocol["kept"]:
    return Reference(protocol, *given, None)
  num_images = _image_shape(path)[0]
  return measure(network, npz_batches(path, batch_size), protocol, batch_size, given, progress, num_images)


def _keys(path):
  if not path.is_file():
    raise InvalidReference(f"there is no reference file {str(path)!r}")
  try:
    with zipfile.ZipFile(path) as archive:
      return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
  except Exception:  # zipfile raises NotImplementedError for a damaged version
    raise InvalidReference(f"{path} is not an npz file; give a published reference such as VIRTUAL_*.npz") from None


def _open_images(archive, path):
  """(file at the first pixel, shape) of the images in an open archive."""
  try:
    file = archive.open(f"{IMAGES}.npy")
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
  except Exception as error:  # of a damaged file everything: zlib.error, NotImplementedError, TokenError
    raise InvalidReference(f"{path}: {IMAGES} is unreadable ({' '.join(str(error).split())[:160]})") from None
  if dtype != np.uint8 or fortran or len(shape) != 4 or not shape[0]:
    raise InvalidReference(f"{path}: {IMAGES} is {dtype} {shape}; it must hold images, uint8 [n, h, w, c]")
  return file, shape


def _image_shape(path):
  with zipfile.ZipFile(path) as archive:
    return _open_images(archive, path)[1]


def npz_batches(path, batch_size: int) -> Iterator[np.ndarray]:
  """Images of an npz file as uint8 [n, h, w, c], n <= batch_size, decompressed as they are asked for."""
  with zipfile.ZipFile(path) as archive:
    file, shape = _open_images(archive, path)
    size = int(np.prod(shape[1:]))
    for start in range(0, shape[0], batch_size):
      count = min(batch_size, shape[0] - start)
      try:
        content = file.read(count * size)
      except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise InvalidReference(f"{path}: {IMAGES} is broken ({error}); download it again") from None
      if len(content) != count * size:
        raise InvalidReference(f"{path}: {IMAGES} ends after {start} of {shape[0]} images; download it again")
      yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
