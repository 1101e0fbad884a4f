"""Digits, npz and TFDS sources: their examples, their splits, and each error they raise."""

import os
import subprocess
import sys

import numpy as np
import pytest

from binarydm_jax.data import batches, open_source, read_all, sources
from tests.data.tiny_tfds import prepare


def _open(spec, split="train", image_size=4, channels=1, **arguments):
  return open_source(spec, image_size=image_size, channels=channels, split=split, **arguments)


def _fails(*parts, spec, **arguments):
  """Opening `spec` is a ValueError of one line that holds every one of `parts`."""
  with pytest.raises(ValueError) as caught:
    _open(spec, **arguments)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


# Digits.


def test_digits_split_is_disjoint_complete_and_fixed():
  train, test = (_open("digits", split, image_size=8) for split in ("train", "test"))
  assert (len(train), len(test)) == (1500, 297)
  assert train.num_classes == 10 and "digits" in train.name
  example = train[0]
  assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
  assert isinstance(example["label"], np.int32)

  from sklearn import datasets

  digits = datasets.load_digits()
  images, labels = (np.concatenate(parts) for parts in zip(read_all(train), read_all(test)))
  assert (images.min(), images.max()) == (0, 255)
  got = sorted((int(label), image.tobytes()) for image, label in zip(images, labels))
  expected = np.round(digits.images * 255 / 16).astype(np.uint8)
  assert got == sorted((int(label), image.tobytes()) for image, label in zip(expected, digits.target))
  np.testing.assert_array_equal(read_all(_open("digits", image_size=8))[1], labels[:1500])
  assert set(labels[1500:]) == set(range(10))
  # Pinned: moving the split would silently change every reference number.
  np.testing.assert_array_equal(labels[:8], digits.target[[0, 1, 2, 3, 7, 8, 10, 11]])


def test_digits_of_another_size_or_channels_is_an_error():
  _fails("data.source", "8x8", "1 channel", "data.image_size=32", spec="digits", image_size=32)
  _fails("data.source", "8x8", "1 channel", "data.channels=3", spec="digits", image_size=8, channels=3)


# Arguments.


@pytest.mark.parametrize("spec", ["", "mnist", "npz:", "folder:", "tfds:", "digits:8"])
def test_unknown_source_lists_the_forms(spec):
  _fails("data.source", repr(spec), "'digits'", "npz:PATH", "folder:PATH", "tfds:NAME", spec=spec)


def test_impossible_arguments_are_named():
  _fails("split is 'val'", spec="digits", image_size=8, split="val")
  _fails("data.channels is 2", spec="digits", image_size=8, channels=2)
  _fails("data.image_size is 0", spec="digits", image_size=0)
  for holdout in (0.0, 1.0, -1.0):
    _fails("data.holdout", spec="digits", image_size=8, holdout=holdout)


# npz.


def _npz(tmp_path, **arrays):
  path = tmp_path / "data.npz"
  np.savez(path, **arrays)
  return f"npz:{path}"


def test_npz_holds_out_a_fixed_part(tmp_path):
  images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
  spec = _npz(tmp_path, arr_0=images, arr_1=np.arange(20) % 3)
  train, test = read_all(_open(spec, holdout=0.25)), read_all(_open(spec, "test", holdout=0.25))
  assert (len(train[0]), len(test[0])) == (15, 5)
  assert sorted(np.concatenate([train[0], test[0]])[:, 0, 0, 0]) == list(range(20))
  np.testing.assert_array_equal(train[1], train[0][:, 0, 0, 0] % 3)
  assert _open(spec).num_classes == 3
  np.testing.assert_array_equal(read_all(_open(spec, "test", holdout=0.25))[0], test[0])


@pytest.mark.parametrize("holdout", [0.01, 0.99])
def test_both_sides_of_a_split_have_an_example(tmp_path, holdout):
  spec = _npz(tmp_path, images=np.zeros((3, 4, 4), np.uint8))
  sizes = [len(_open(spec, split, holdout=holdout)) for split in ("train", "test")]
  assert min(sizes) == 1 and sum(sizes) == 3


def test_npz_without_channel_axis_and_labels(tmp_path):
  source = _open(_npz(tmp_path, images=np.zeros((3, 4, 4), np.uint8)))
  assert source[0]["image"].shape == (4, 4, 1)
  assert source.num_classes == 0 and source[0]["label"] == 0


@pytest.mark.parametrize("key", ["labels", "label", "arr_1"])
def test_npz_label_names(tmp_path, key):
  assert _open(_npz(tmp_path, images=np.zeros((3, 4, 4), np.uint8), **{key: np.array([0, 4, 1])})).num_classes == 5


def test_npz_errors(tmp_path):
  images = np.zeros((3, 4, 4, 1), np.uint8)
  _fails("data.source", "data.npz", "4x4", "data.image_size=8", spec=_npz(tmp_path, arr_0=images), image_size=8)
  _fails("data.npz", "1 channels", "data.channels=3", spec=_npz(tmp_path, arr_0=images), channels=3)
  _fails("data.npz", "float64", "uint8", spec=_npz(tmp_path, arr_0=images * 1.0))
  _fails("data.npz", "'arr_0'", "np.savez", spec=_npz(tmp_path, other=images))
  _fails("data.npz", "labels", "(2,)", spec=_npz(tmp_path, arr_0=images, labels=np.zeros(2, int)))
  _fails("data.npz", "labels", "float64", spec=_npz(tmp_path, arr_0=images, labels=np.zeros(3)))
  _fails("at least 2", spec=_npz(tmp_path, arr_0=images[:1]))
  _fails("no file", "missing.npz", spec=f"npz:{tmp_path}/missing.npz")


def test_npz_that_is_something_else(tmp_path):
  (tmp_path / "text.npz").write_text("hello\nworld")
  _fails("text.npz", "np.savez", spec=f"npz:{tmp_path}/text.npz")
  np.save(tmp_path / "array.npy", np.zeros((3, 4, 4, 1), np.uint8))
  _fails("array.npy", "np.savez", spec=f"npz:{tmp_path}/array.npy")
  # A pickled array could run code, so it is never loaded.
  _fails("data.npz", "plain arrays", spec=_npz(tmp_path, arr_0=np.array([{}, {}], object)))


# TFDS.


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  return prepare(tmp_path_factory.mktemp("tfds"))


def test_tfds_reads_named_splits(tfds_dir):
  train, test = (
    _open("tfds:tiny_images", split, channels=3, test_split="test", data_dir=tfds_dir) for split in ("train", "test")
  )
  assert (len(train), len(test), train.num_classes) == (12, 5, 3)
  images, labels = read_all(train)
  assert images.shape == (12, 4, 4, 3)
  assert sorted(images[:, 0, 0, 0]) == list(range(12))
  np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)
  assert (read_all(test)[0][..., 1] == 100).all()
  assert next(batches(train, batch_size=8, seed=0))["image"].shape == (8, 4, 4, 3)


def test_tfds_holds_out_a_part_without_test_split(tfds_dir):
  parts = [read_all(_open("tfds:tiny_images", split, channels=3, data_dir=tfds_dir)) for split in ("train", "test")]
  assert [len(images) for images, _ in parts] == [11, 1]
  assert sorted(np.concatenate([images for images, _ in parts])[:, 0, 0, 0]) == list(range(12))


def test_tfds_converts_channels(tfds_dir):
  assert _open("tfds:tiny_images", data_dir=tfds_dir)[0]["image"].shape == (4, 4, 1)


def test_tfds_errors(tfds_dir, tmp_path):
  spec = "tfds:tiny_images"
  _fails("data.train_split is 'nope'", "'train'", spec=spec, train_split="nope", data_dir=tfds_dir)
  _fails("data.test_split is 'nope'", spec=spec, split="test", test_split="nope", data_dir=tfds_dir)
  _fails("data.source", "no_such_set", spec="tfds:no_such_set", data_dir=tfds_dir)
  # Known to TFDS but not prepared: nothing is downloaded behind the user's back.
  _fails("'mnist'", "array_record", "download_and_prepare", "tensorflow", spec="tfds:mnist", data_dir=str(tmp_path))
  assert not os.listdir(tmp_path)


def test_tfds_set_in_another_format(tmp_path):
  prepare(tmp_path)
  info = tmp_path / "tiny_images" / "1.0.0" / "dataset_info.json"
  assert '"array_record"' in info.read_text()
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  _fails("'tiny_images'", "not as array_record", "file_format=", spec="tfds:tiny_images", data_dir=str(tmp_path))


@pytest.mark.parametrize("keep", [0, 1000, 0.5, -1])
@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_tfds_file_that_is_cut_short_fails_when_opened(tmp_path, keep, skip_unreadable):
  prepare(tmp_path)
  file = next(tmp_path.rglob("*-train.array_record*"))
  data = file.read_bytes()
  file.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
  _fails(
    str(file), "data.source", "remove its folder", "download_and_prepare",
    spec="tfds:tiny_images", data_dir=str(tmp_path), skip_unreadable=skip_unreadable,
  )  # fmt: skip


def test_tfds_file_that_is_missing_or_another(tmp_path):
  prepare(tmp_path)
  train, test = (next(tmp_path.rglob(f"*-{split}.array_record*")) for split in ("train", "test"))
  train.write_bytes(test.read_bytes())
  _fails(str(train), "5 records where 12 belong", spec="tfds:tiny_images", data_dir=str(tmp_path))
  train.unlink()
  _fails(str(train), "No such file", spec="tfds:tiny_images", data_dir=str(tmp_path))


def test_tfds_set_without_images(tmp_path):
  import tensorflow_datasets as tfds

  prepare(tmp_path, ({"text": tfds.features.Text()}, lambda i: {"text": "x"}), name="only_text")
  _fails("only_text", "'image'", "text", spec="tfds:only_text", data_dir=str(tmp_path))


def test_nothing_imports_tensorflow_and_only_tfds_imports_tfds(tfds_dir):
  program = f"""
import sys
from binarydm_jax.data import open_source
open_source("digits", image_size=8, channels=1, split="train")[0]
assert "tensorflow_datasets" not in sys.modules
open_source("tfds:tiny_images", image_size=4, channels=3, split="train", data_dir={tfds_dir!r})[0]
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("test_split", ["", "test"])
def test_both_splits_are_those_of_single_ones(test_split, tmp_path, monkeypatch):
  """Opened once, unless TFDS has a split for each: an npz is in memory once."""
  images = np.arange(10 * 4 * 4, dtype=np.uint8).reshape(10, 4, 4)
  np.savez(tmp_path / "data.npz", images)
  spec, opened = f"npz:{tmp_path / 'data.npz'}", []
  real = sources._open_npz
  monkeypatch.setattr(sources, "_open_npz", lambda *arguments: opened.append(arguments) or real(*arguments))
  fields = dict(image_size=4, channels=1, holdout=0.3, test_split=test_split)
  both = sources.open_splits(spec, **fields)
  assert len(opened) == 1 and [len(source) for source in both] == [7, 3]
  for split, source in zip(("train", "test"), both):
    single = sources.open_source(spec, split=split, **fields)
    assert source.name == single.name == f"{spec} ({split})"
    np.testing.assert_array_equal([row["image"] for row in source], [row["image"] for row in single])
