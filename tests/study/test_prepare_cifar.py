"""JPEG files in an npz become small images: area means by hand, labels kept, what is wrong named."""

import io

import numpy as np
import pytest
from PIL import Image

from binarydm_jax.data import open_source
from binarydm_jax.study import prepare_cifar


def pack(path, images, classes, form="PNG", **changes):
  """PNG or JPEG files of `images` in the layout of the input."""
  files = []
  for image in images:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    files.append(buffer.getvalue())
  arrays = dict(jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=np.cumsum([0, *map(len, files)]),
                labels=np.asarray(classes, np.uint8))  # fmt: skip
  np.savez(path, **{**arrays, **changes})
  return path


@pytest.fixture
def images():
  return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def test_means_of_areas(tmp_path, images):
  """PNG loses nothing: each pixel is the mean of its 2 x 2, rounded along each axis; the data source reads it."""
  source = pack(tmp_path / "in.npz", images, [2, 0, 9])
  assert prepare_cifar.main([str(source), str(tmp_path / "out" / "small.npz"), "--size=4"]) is None
  with np.load(tmp_path / "out" / "small.npz") as file:
    small, labels = file["images"], file["labels"]
  means = images.reshape(3, 4, 2, 4, 2, 3).astype(float).mean(axis=(2, 4))
  assert small.dtype == np.uint8 and np.abs(small - means).max() <= 1
  assert labels.tolist() == [2, 0, 9]
  opened = open_source(f"npz:{tmp_path / 'out' / 'small.npz'}", image_size=4, channels=3, split="train", holdout=0.4)
  assert len(opened) == 2 and opened.num_classes == 10


def test_jpeg(tmp_path):
  """Flat colours survive JPEG."""
  flat = np.broadcast_to(np.array([[200, 100, 50]], np.uint8)[:, None, None], (1, 32, 32, 3)).copy()
  small = prepare_cifar.convert(pack(tmp_path / "in.npz", flat, [1], "JPEG"), tmp_path / "out.npz", 16)
  assert small.shape == (1, 16, 16, 3) and np.abs(small.astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("changes, words", [
    (dict(offsets=np.array([0, 1])), r"they are uint8 .*, int64 \(2,\), uint8 \(3,\)"),
    (dict(labels=np.array([0.5, 1, 2])), r"float64 \(3,\)"),
    (dict(offsets=np.array([0, 5, 5, 9])), "offsets must ascend"),
    (dict(offsets=np.array([0, 5, 7, 10**9])), "at most the"),
    (dict(jpeg=np.zeros(100, np.uint8), offsets=np.array([0, 5, 7, 9])), "file 0 cannot be read"),
    (dict(jpeg=np.array([None] * 3, object)), "is not an npz file with jpeg, offsets and labels"),
])
def test_wrong_files_are_named(tmp_path, images, changes, words):
  """One line each; nothing is written; no pickle is read."""
  source = pack(tmp_path / "in.npz", images, [0, 1, 2], **changes)
  with pytest.raises(SystemExit) as caught:
    prepare_cifar.main([str(source), str(tmp_path / "out.npz")])
  text = str(caught.value.code)
  assert text.startswith("error: ") and "\n" not in text
  with pytest.raises(ValueError, match=words):
    prepare_cifar.convert(source, tmp_path / "out.npz", 16)
  assert not (tmp_path / "out.npz").exists()


def test_wrong_arguments_are_named(tmp_path):
  for arguments, words in ((["none", "out"], "none is not an npz file"), (["a", "b", "--size=0"], "--size=0: it must")):
    with pytest.raises(SystemExit, match=words):
      prepare_cifar.main(arguments)
