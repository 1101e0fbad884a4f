"""Random access to labelled images: the embedded digits, an npz file, a folder of images, a TFDS set."""

import os
from collections.abc import Sequence

import numpy as np

from binarydm_jax.data import images as images_lib
from binarydm_jax.data.examples import Examples, Read
from binarydm_jax.data.images import DataError, Unreadable
from binarydm_jax.data.tfds_set import open_tfds

_FORMS = "'digits', 'npz:PATH', 'folder:PATH' or 'tfds:NAME'"
_DIGITS_TRAIN = 1500


class Source(Examples):
  """One split of a data set: `source[i]` is {"image": uint8 [H, W, C], "label": np.int32}, 0 <= i < len(source).

  `Examples` says what its attributes are and what happens to an example that cannot be read.
  """

  def __init__(
    self, name: str, num_classes: int, indices: Sequence[int], read: Read, skip_unreadable: bool = False
  ):
    """`read(indices[i])` gives the image and the label of example i; it must be safe to call from several threads.

    To be read in worker processes, `read` must survive cloudpickle.
    """
    super().__init__(name, num_classes, skip_unreadable)
    self._indices = indices
    self._read = read

  def __len__(self) -> int:
    return len(self._indices)

  def _load(self, i: int, mirror: bool) -> dict[str, np.ndarray | np.int32]:
    image, label = self._read(int(self._indices[i]))
    return {"image": image[:, ::-1] if mirror else image, "label": np.int32(label)}

  @staticmethod
  def finish(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What training takes of a batch: uint8 images become float32 in [-1, 1]."""
    # In float32 throughout: 255 / 127.5 - 1 is exactly 1, and the batch is never held in float64.
    return {"image": batch["image"].astype(np.float32) / np.float32(127.5) - np.float32(1), "label": batch["label"]}

  def __repr__(self) -> str:
    return f"Source({self.name!r}, {len(self)} examples, {self.num_classes} classes)"


def open_source(
  spec: str,
  *,
  image_size: int,
  channels: int,
  split: str,
  train_split: str = "train",
  test_split: str = "",
  holdout: float = 0.1,
  skip_unreadable: bool = False,
  data_dir: str | None = None,
) -> Source:
  """Opens one split of the data that `spec` names.

  Args:
    spec: 'digits' (8x8x1, in scikit-learn), 'npz:PATH' (uint8, already of the right size), 'folder:PATH' (any images,
      cropped and resized; the first folder level gives the labels) or 'tfds:NAME' (prepared as array_record).
    image_size: height and width of every image.
    channels: 1 (grey) or 3 (RGB).
    split: 'train' or 'test'. For npz and folder, and for TFDS without `test_split`, the test split is a fixed part of
      the data that does not depend on any seed; digits has a fixed split of its own.
    train_split: name of the TFDS split to train on.
    test_split: name of the TFDS split to test on; '' holds out a part of `train_split`.
    holdout: the part held out, 0 < holdout < 1.
    skip_unreadable: an example that cannot be read is replaced by the next one that can (see `Examples`) instead of
      being an error, and the headers of a folder's files are not checked now.
    data_dir: where TFDS looks for prepared sets; None is its default.

  Returns:
    The source.

  Raises:
    DataError: a ValueError of one line that names the field and the mend.
  """
  if split not in ("train", "test"):
    raise DataError(f"split is {split!r}; it must be 'train' or 'test'")
  fields = train_split, test_split, holdout, skip_unreadable, data_dir
  return _splits(spec, image_size, channels, *fields)(split)


def open_splits(
  spec: str, *, image_size, channels, train_split="train", test_split="", holdout=0.1, skip_unreadable=False,
  data_dir=None,
) -> tuple[Source, Source]:
  """(train, test) sources of data that are opened once: `open_source` has the arguments and errors."""
  split = _splits(spec, image_size, channels, train_split, test_split, holdout, skip_unreadable, data_dir)
  return split("train"), split("test")


def _splits(spec, image_size, channels, train_split, test_split, holdout, skip_unreadable, data_dir):
  """"train" or "test" -> Source; what both read from is opened, and held in memory, once."""
  if channels not in (1, 3):
    raise DataError(f"data.channels is {channels}; it must be 1 (grey) or 3 (RGB)")
  if image_size < 1:
    raise DataError(f"data.image_size is {image_size}; it must be at least 1")
  if not 0 < holdout < 1:
    raise DataError(f"data.holdout is {holdout}; it must lie between 0 and 1, both excluded")
  kind, _, argument = spec.partition(":")
  make = lambda split, num_classes, indices, read: Source(
    f"{spec} ({split})", num_classes, indices, read, skip_unreadable
  )
  if kind == "tfds" and argument and test_split:

    def of_its_own(split):
      chosen, field = (test_split, "data.test_split") if split == "test" else (train_split, "data.train_split")
      total, num_classes, read = open_tfds(argument, chosen, field, image_size, channels, data_dir)
      return make(split, num_classes, range(total), read)

    return of_its_own
  if spec == "digits":
    total, num_classes, read = _open_digits(image_size, channels)
    num_test = total - _DIGITS_TRAIN
  else:
    if kind == "tfds" and argument:
      opened = open_tfds(argument, train_split, "data.train_split", image_size, channels, data_dir)
    elif kind == "npz" and argument:
      opened = _open_npz(os.path.expanduser(argument), image_size, channels)
    elif kind == "folder" and argument:
      opened = _open_folder(os.path.expanduser(argument), image_size, channels, skip_unreadable)
    else:
      raise DataError(f"data.source is {spec!r}; it must be {_FORMS}")
    total, num_classes, read = opened
    if total < 2:
      raise DataError(
        f"data.source {spec!r} has {total} images; at least 2 are needed, one to train on and one to test"
      )
    num_test = min(max(round(total * holdout), 1), total - 1)
  return lambda split: make(split, num_classes, _split_indices(total, num_test, split), read)


def _split_indices(total: int, num_test: int, split: str) -> np.ndarray:
  # RandomState's stream is frozen for good (numpy's Generator makes no such promise), so the split never moves.
  order = np.random.RandomState(0).permutation(total)
  return np.sort(order[:num_test] if split == "test" else order[num_test:])


def _open_digits(image_size: int, channels: int) -> tuple[int, int, Read]:
  if (image_size, channels) != (8, 1):
    raise DataError(
      f"data.source 'digits' has 8x8 images of 1 channel, but data.image_size={image_size} and data.channels={channels}"
      "; set data.image_size=8 and data.channels=1, or choose another data.source"
    )
  from sklearn import datasets  # pylint: disable=g-import-not-at-top  # A second of imports only digits needs.

  digits = datasets.load_digits()
  pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  return len(pixels), 10, lambda i: (pixels[i], digits.target[i])


def _open_npz(path: str, image_size: int, channels: int) -> tuple[int, int, Read]:
  if not os.path.isfile(path):
    raise DataError(f"data.source: there is no file {path!r}; give the path of an npz file as 'npz:PATH'")
  try:
    with np.load(path, allow_pickle=False) as archive:
      image_key = next((key for key in ("arr_0", "images") if key in archive), None)
      label_key = next((key for key in ("labels", "label", "arr_1") if key in archive), None)
      pixels = archive[image_key] if image_key else None
      labels = archive[label_key] if label_key else None
  except Exception as error:  # numpy raises ValueError, OSError, BadZipFile, TypeError (an npy file), ...
    reason = " ".join(str(error).split())
    raise DataError(
      f"data.source: {path!r} is not an npz file of plain arrays ({reason}); write it with np.savez(path, images)"
    ) from error
  if pixels is None:
    raise DataError(f"data.source: {path!r} has neither 'arr_0' nor 'images'; write it with np.savez(path, images)")
  shape = pixels.shape
  if pixels.dtype != np.uint8 or len(shape) not in (3, 4):
    raise DataError(
      f"data.source: {path!r} holds {pixels.dtype} {shape}; images must be uint8 [N, H, W, C] or [N, H, W]"
    )
  pixels = pixels if len(shape) == 4 else pixels[..., None]
  height, width, found = pixels.shape[1:]
  if (height, width, found) != (image_size, image_size, channels):
    # Already square and of a known number of channels: then the configuration can follow the file.
    follow = (
      f"set data.image_size={height} and data.channels={found}, or " if height == width and found in (1, 3) else ""
    )
    raise DataError(
      f"data.source: {path!r} has {height}x{width} images of {found} channels, but data.image_size={image_size} and "
      f"data.channels={channels}; {follow}resize the images in the file (a 'folder:PATH' is resized for you)"
    )
  if labels is None:
    return len(pixels), 0, lambda i: (pixels[i], 0)
  if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
    raise DataError(
      f"data.source: {path!r} has {label_key!r} {labels.dtype} {labels.shape}; labels must be integers from 0 up, one "
      f"for each of the {len(pixels)} images, or be left out"
    )
  return len(pixels), int(labels.max(initial=-1)) + 1, lambda i: (pixels[i], labels[i])


def _open_folder(root: str, image_size: int, channels: int, skip_unreadable: bool) -> tuple[int, int, Read]:
  if not os.path.isdir(root):
    raise DataError(f"data.source: there is no folder {root!r}; give the path of a folder of images as 'folder:PATH'")
  names = images_lib.find_images(root)
  if not names:
    raise DataError(
      f"data.source: the folder {root!r} has no images; put files that Pillow reads (png, jpg, ...) in it"
    )
  if not skip_unreadable:
    try:
      images_lib.check_headers(root, names)
    except Unreadable as error:
      raise DataError(f"data.source: {error}") from error
  folders = [name[0] if len(name) > 1 else None for name in names]
  # A single subfolder tells nothing apart, and an image outside all of them has no label.
  classes = sorted(set(folders)) if None not in folders and len(set(folders)) > 1 else []
  class_of = {folder: label for label, folder in enumerate(classes)}

  def read(i: int) -> tuple[np.ndarray, int]:
    path = os.path.join(root, *names[i])
    return images_lib.read_image(path, image_size, channels), class_of.get(folders[i], 0)

  return len(names), len(classes), read
