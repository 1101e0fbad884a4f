"""JPEG files in an npz -> small images in an npz, for `data.source=npz:PATH`.

  python -m binarydm_jax.study.prepare_cifar cifar10_train_jpeg.npz runs/cifar16.npz --size=16

The input has the arrays `jpeg` (uint8, all files one after the other), `offsets` (n + 1 integers: file i is
jpeg[offsets[i]:offsets[i + 1]]) and `labels` (n integers). The output has `images` uint8 [n, size, size, 3] and
`labels` int64 [n]. Pixels are averaged over the areas that become one (Pillow's BOX), rounded to uint8.
"""

import argparse
import io
import sys

import numpy as np
from PIL import Image, UnidentifiedImageError

from binarydm_jax.files import write_atomically


def read(path):
  """(jpeg uint8 [bytes], offsets int64 [n + 1], labels int64 [n]) of an npz file.

  Raises:
    ValueError: one line: no such file, an array is missing, or they do not fit together.
  """
  try:
    with np.load(path, allow_pickle=False) as archive:
      jpeg, offsets, labels = (archive[name] for name in ("jpeg", "offsets", "labels"))
  except Exception as error:  # numpy raises ValueError, OSError, KeyError, BadZipFile, ...
    why = " ".join(str(error).split())
    raise ValueError(f"{path} is not an npz file with jpeg, offsets and labels ({why})") from None
  whole = jpeg.dtype == np.uint8 and all(array.dtype.kind in "iu" for array in (offsets, labels))
  if not whole or not jpeg.ndim == offsets.ndim == labels.ndim == 1 or len(offsets) != len(labels) + 1:
    found = ", ".join(f"{array.dtype} {array.shape}" for array in (jpeg, offsets, labels))
    raise ValueError(f"{path}: jpeg must be uint8 [bytes], offsets whole numbers [n + 1], labels whole numbers [n];"
                     f" they are {found}")
  offsets, labels = offsets.astype(np.int64), labels.astype(np.int64)
  if len(labels) == 0 or offsets[0] < 0 or offsets[-1] > len(jpeg) or (np.diff(offsets) <= 0).any():
    raise ValueError(f"{path}: offsets must ascend from 0 or more to at most the {len(jpeg)} bytes of jpeg")
  return jpeg, offsets, labels


def shrink(content, size):
  """Bytes of an image file -> uint8 [size, size, 3], each pixel the mean of an area. ValueError if it is no image."""
  try:
    with Image.open(io.BytesIO(content)) as image:
      return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
  except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
    raise ValueError(str(error)) from None


def convert(source, target, size):
  """Reads `source`, writes `target`; returns the images, uint8 [n, size, size, 3]. ValueError as in `read`."""
  jpeg, offsets, labels = read(source)
  images = np.empty((len(labels), size, size, 3), np.uint8)
  for i, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
    try:
      images[i] = shrink(jpeg[start:stop].tobytes(), size)
    except ValueError as error:
      raise ValueError(f"{source}: file {i} cannot be read ({error})") from None
  buffer = io.BytesIO()
  np.savez(buffer, images=images, labels=labels)
  write_atomically(target, buffer.getvalue())
  return images


def main(argv=None):
  parser = argparse.ArgumentParser(description="JPEG files in an npz -> small images in an npz.")
  parser.add_argument("source", help="npz with jpeg, offsets, labels")
  parser.add_argument("target", help="npz to write")
  parser.add_argument("--size", type=int, default=16, help="height and width of the images")
  arguments = parser.parse_args(argv)
  if arguments.size < 1:
    sys.exit(f"error: --size={arguments.size}: it must be at least 1")
  try:
    images = convert(arguments.source, arguments.target, arguments.size)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(f"{arguments.target}: {len(images)} images of {arguments.size} x {arguments.size}")


if __name__ == "__main__":
  main()
