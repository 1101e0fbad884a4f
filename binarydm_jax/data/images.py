"""Image files: finding them, checking them, and turning any that Pillow reads into a uint8 square."""

import os
from concurrent import futures

import numpy as np
from PIL import Image, ImageOps


class DataError(ValueError):
  """The data asked for cannot be had; the message is one line that names the field and the mend."""


class Unreadable(DataError):
  """One example cannot be read, the others may be fine; `args` are the fault and the mend."""

  def __init__(self, fault: str, mend: str):
    # Both are arguments, so that the error survives its way out of a worker process.
    super().__init__(fault, mend)

  def __str__(self) -> str:
    return "{}; {}, or set data.skip_unreadable=True to let the next example take its place".format(*self.args)


def one_line(error: Exception) -> str:
  """What an error of another library says, as a part of a line."""
  return " ".join(str(error).split())[:160] or type(error).__name__


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


def check_headers(root: str, names: list[tuple[str, ...]]) -> None:
  """Reads the header of every image. Raises Unreadable for the first that has none."""

  def fault(name: tuple[str, ...]) -> Unreadable | None:
    path = os.path.join(root, *name)
    try:
      with Image.open(path):
        return None
    except Exception as error:  # Pillow's readers raise many kinds: OSError, SyntaxError, struct.error, ...
      return _unreadable(path, error)

  with futures.ThreadPoolExecutor() as pool:
    first = next(filter(None, pool.map(fault, names)), None)
  if first:
    raise first


def read_image(path: str, image_size: int, channels: int) -> np.ndarray:
  """Decodes one file to uint8 [image_size, image_size, channels]. Raises Unreadable, naming the file."""
  try:
    with Image.open(path) as image:
      return to_square(image, image_size, channels)
  except MemoryError:
    raise
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


def _unreadable(path: str, error: Exception) -> Unreadable:
  return Unreadable(f"cannot read the image {path!r} ({one_line(error)})", "repair or remove it")
