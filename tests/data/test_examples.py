"""An example that cannot be read: named or replaced, by a rule that neither resuming nor other processes change."""

import itertools

import numpy as np
import pytest
from absl import logging
from PIL import Image

from binarydm_jax.data import DataError, Source, batches, examples, open_latents, open_source, read_all
from binarydm_jax.data.images import Unreadable
from binarydm_jax.evaluation.reference import image_batches
from tests.data.small_latents import moments_of, write
from tests.data.tiny_tfds import prepare


@pytest.fixture
def warnings(monkeypatch):
  given = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: given.append(text % values))
  return given


def _numbered(size, broken=(), skip_unreadable=True):
  """Pixels (i, 0) and label i, but for the `broken` i."""

  def read(i):
    if i in broken:
      raise Unreadable(f"cannot read record {i} of 'file' (wrong checksum)", "mend it")
    return np.array([[[i], [0]]], np.uint8), i

  return Source("numbered", size, range(size), read, skip_unreadable)


def _take(source, count, **arguments):
  stream = batches(source, **{"batch_size": 4, "seed": 3, **arguments})
  return list(itertools.islice(stream, count)), stream.skipped


def test_the_next_that_can_be_read_takes_the_place():
  source = _numbered(6, broken=(1, 4, 5))
  assert len(source) == 6
  assert [source.read_or_replace(i)[1] for i in range(6)] == [False, True, False, False, True, True]
  np.testing.assert_array_equal(read_all(source)[1], [0, 2, 2, 3, 0, 0])
  np.testing.assert_array_equal(read_all(source)[0][:, 0, 0, 0], [0, 2, 2, 3, 0, 0])
  example, replaced = source.read_or_replace(1, mirror=True)
  assert replaced and example["image"].tolist() == [[[0], [2]]]


def test_by_default_it_is_an_error_that_names_everything():
  source = _numbered(6, broken=(4,), skip_unreadable=False)
  for read in (lambda: source[4], lambda: read_all(source), lambda: _take(source, 3)):
    with pytest.raises(DataError) as caught:
      read()
    assert str(caught.value) == (
      "numbered, example 4: cannot read record 4 of 'file' (wrong checksum); mend it, or set data.skip_unreadable=True "
      "to let the next example take its place"
    )


def test_each_is_warned_of_once(warnings):
  source = _numbered(5, broken=(1, 3))
  _take(source, 20)
  read_all(source)
  assert sorted(warnings) == [
    f"data.skip_unreadable: numbered, example {i}: cannot read record {i} of 'file' (wrong checksum); the next example "
    "that can be read takes its place"
    for i in (1, 3)
  ]


def test_no_example_at_all_and_too_many_in_a_row(monkeypatch, warnings):
  with pytest.raises(DataError, match="none of 3 examples in a row from 2 on.*example 1: .*repair the data"):
    _numbered(3, broken=range(3))[2]
  monkeypatch.setattr(examples, "MOST_IN_A_ROW", 4)
  assert _numbered(9, broken=range(2, 5))[2]["label"] == 5
  with pytest.raises(DataError, match="none of 4 examples in a row from 2 on"):
    _numbered(9, broken=range(2, 6))[2]


def test_numbers_outside_are_an_error():
  for i in (-1, 3):
    with pytest.raises(IndexError, match=f"no example {i}"):
      _numbered(3)[i]


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_the_whole_ones_but_for_the_broken(flip):
  """Damage changes the examples it hits and no other; resuming, processes and threads change nothing."""
  broken = (2, 7)
  whole, none = _take(_numbered(11), 8, flip=flip)
  damaged, skipped = _take(_numbered(11, broken), 8, flip=flip)
  hits = 0
  for expected, got in zip(whole, damaged):
    assert set(got) == {"image", "label"}
    hit = np.isin(expected["label"], broken)
    np.testing.assert_array_equal(got["label"], expected["label"] + hit)
    np.testing.assert_array_equal(got["image"][~hit], expected["image"][~hit])
    hits += hit.sum()
  assert none == 0 and skipped == hits > 3

  late, late_skipped = _take(_numbered(11, broken), 3, flip=flip, start_step=5, threads=0)
  parts = [_take(_numbered(11, broken), 8, flip=flip, process_index=k, process_count=2) for k in range(2)]
  for key in ("image", "label"):
    for step in range(8):
      np.testing.assert_array_equal(damaged[step][key], np.concatenate([part[step][key] for part, _ in parts]))
    for step in range(3):
      np.testing.assert_array_equal(late[step][key], damaged[5 + step][key])
  assert sum(count for _, count in parts) == skipped
  assert late_skipped == sum(np.isin(batch["label"], broken).sum() for batch in whole[5:]) > 0


# Each kind of data, damaged after it was opened.


@pytest.fixture(params=["folder", "tfds", "latents"])
def damaged(request, tmp_path):
  """(open, value of an example, whole values, the damaged example, what an error names)."""
  if request.param == "folder":
    for i in range(8):
      Image.fromarray(np.full((32, 32), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    opened = lambda skip: open_source(
      f"folder:{tmp_path}", image_size=4, channels=1, split="train", skip_unreadable=skip
    )
    values = [int(opened(False)[i]["image"][0, 0, 0]) for i in range(7)]
    file = tmp_path / f"{values[3] // 20}.png"
    file.write_bytes(file.read_bytes()[:60])
    yield opened, lambda example: int(example["image"][0, 0, 0]), values, 3, file.name
  elif request.param == "tfds":
    prepare(tmp_path)
    opened = lambda skip: open_source(
      "tfds:tiny_images", image_size=4, channels=3, split="train", test_split="test", data_dir=str(tmp_path),
      skip_unreadable=skip,
    )
    values = [int(opened(False)[i]["image"][0, 0, 0]) for i in range(12)]
    file = next(tmp_path.rglob("*-train.array_record*"))
    data = bytearray(file.read_bytes())
    data[583 + 100] ^= 255  # Records of 173 bytes follow a header of 64.
    file.write_bytes(data)
    yield opened, lambda example: int(example["image"][0, 0, 0]), values, 3, f"record 3 of {str(file)!r}"
  else:
    write(tmp_path, examples_per_shard=4)
    opened = lambda skip: open_latents(str(tmp_path), skip_unreadable=skip)
    values = [moments_of(10)[i].tobytes() for i in range(10)]
    file = tmp_path / "latents-00001-of-00003.array_record"
    data = bytearray(file.read_bytes())
    data[64 + 40] ^= 255  # The shard's first record, that of example 4.
    file.write_bytes(data)
    yield opened, lambda example: example["moments"].tobytes(), values, 4, file.name


def test_damage_in_the_middle(damaged, warnings):
  """Named with its file when read; or replaced and counted, and every other example as before."""
  opened, value, whole, at, named = damaged
  source = opened(True)
  expected = [*whole[:at], whole[at + 1], *whole[at + 1 :]]
  assert [value(source[i]) for i in range(len(source))] == expected
  assert len(warnings) == 1 and f"example {at}: " in warnings[0] and named in warnings[0]
  batch, skipped = _take(source, 1, batch_size=len(whole))
  assert skipped == 1 and len(batch[0]["label"]) == len(whole)


def test_damage_in_the_middle_is_one_line_by_default(damaged):
  opened, _, whole, at, named = damaged
  try:
    source = opened(False)
    for i in range(at):
      source[i]
    next(batches(source, batch_size=len(whole), seed=0))
  except DataError as error:
    message = str(error)
  assert named in message and "\n" not in message


def test_evaluation_reads_the_same_replacements(tmp_path):
  source = _numbered(7, broken=(2, 6))
  images = np.concatenate(list(image_batches(source, 7, 3)))
  np.testing.assert_array_equal(images, read_all(source)[0])
  np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 3, 3, 4, 5, 0])
