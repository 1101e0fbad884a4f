"""Image files: finding them, checking them, and turning any that Pillow reads into a uint8 square."""

import os
from concurrent import futures

import numpy as np
from absl import logging
from PIL import Image, ImageOps


class DataError(ValueError):
  """The data asked for cannot be had; the message is one line that names the field and the mend."""


def find_images(root: str) -> list[tuple[str, ...]]:
  """Paths below `root` of the images in it, split at the separators and sorted: one order on every file system."""
  names = []
  visited = set()
  for folder, subfolders, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    # A link to a parent would be walked for ever.
    subfolders[:] = [] if real in visited else [name for name in subfolders if not name.startswith(".")]
    if real not in visited:
      relative = os.path.relpath(folder, root)
      parents = () if relative == os.curdir else tuple(relative.split(os.sep))
      names.extend((*parents, name) for name in files if _is_image_name(name))
    visited.add(real)
  return sorted(names)


def readable_images(root: str, names: list[tuple[str, ...]], skip_unreadable: bool) -> list[tuple[str, ...]]:
  """The `names` whose files are images: headers are read, or, to leave out what is unreadable, every pixel.

  Raises DataError for the first unreadable file, with `skip_unreadable` only if there is no other; else it warns once.
  """
  check = _check_pixels if skip_unreadable else _check_header

  def fault(name: tuple[str, ...]) -> DataError | None:
    try:
      check(os.path.join(root, *name))
    except DataError as error:
      return error
    return None

  with futures.ThreadPoolExecutor() as pool:
    faults = list(pool.map(fault, names))
  bad = [(name, error) for name, error in zip(names, faults) if error]
  if not bad:
    return names
  if not skip_unreadable:
    raise bad[0][1]
  first = os.path.join(root, *bad[0][0])
  if len(bad) == len(names):
    raise DataError(
      f"data.source: none of the {len(bad)} images in {root!r} can be read, the first is {first!r}; replace them"
    )
  logging.warning("data.skip_unreadable: left out %d of %d images, the first is %r", len(bad), len(names), first)
  return [name for name, error in zip(names, faults) if not error]


def read_image(path: str, image_size: int, channels: int) -> np.ndarray:
  """Decodes one file to uint8 [image_size, image_size, channels]. Raises DataError naming an unreadable file."""
  try:
    with Image.open(path) as image:
      return to_square(image, image_size, channels)
  except Exception as error:
    raise _unreadable(path, error) from error


def to_square(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
  """Shrinks until the shorter side is `image_size`, cuts the centre: uint8 [image_size, image_size, channels].

  The arithmetic of `center_crop_arr` in ADM (Dhariwal & Nichol 2021), whose published reference statistics assume it:
  halve by box filter while that leaves enough pixels, then one bicubic step.
  """
  image = convert(image, channels)
  while min(image.size) >= 2 * image_size:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = image_size / min(image.size)
  size = (round(image.width * scale), round(image.height * scale))
  if size != image.size:
    image = image.resize(size, Image.Resampling.BICUBIC)
  left, top = (size[0] - image_size) // 2, (size[1] - image_size) // 2
  pixels = np.array(image.crop((left, top, left + image_size, top + image_size)), np.uint8)
  return pixels.reshape(image_size, image_size, channels)


def convert(image: Image.Image, channels: int) -> Image.Image:
  """Turns any Pillow mode upright and into L (1) or RGB (3); what is transparent becomes white."""
  image = ImageOps.exif_transpose(image)
  if image.mode == "I" or image.mode.startswith("I;16"):
    # Pillow clips 16-bit grey to 255 when it converts, which turns nearly all of it white.
    image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
  elif image.mode == "F":
    raise ValueError("floating-point pixels have no defined range")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert("L" if channels == 1 else "RGB")


def _is_image_name(name: str) -> bool:
  """Whether a file name has an ending that Pillow can open; hidden files (`._photo.jpg`) are not images."""
  # `registered_extensions` also lists formats Pillow only writes, such as PDF.
  image_format = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
  return image_format in Image.OPEN and not name.startswith(".")


def _check_header(path: str) -> None:
  """Reads the header only. Raises DataError if `path` is no image."""
  try:
    with Image.open(path):
      pass
  except Exception as error:  # Pillow's readers raise many kinds: OSError, SyntaxError, struct.error, ...
    raise _unreadable(path, error) from error


def _check_pixels(path: str) -> None:
  """Checksums, then a full decode. Raises DataError if anything is broken or cut short."""
  try:
    with Image.open(path) as image:
      image.verify()
    with Image.open(path) as image:  # `verify` leaves the file unusable, so it is opened again.
      convert(image, 1)
  except Exception as error:
    raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
  reason = " ".join(str(error).split()) or type(error).__name__
  return DataError(
    f"data.source: cannot read the image {path!r} ({reason}); repair or remove it, or set data.skip_unreadable=True to "
    "leave out such files"
  )
