"""The stream of batches: what is in it, and that (seed, step) alone decides it."""

import itertools

import numpy as np
import pytest

from binarydm_jax.data import Source, batches, read_all


def _numbered(size):
  """`size` images [1, 2, 1], pixels (i, 0), label i: every example is recognisable, and so is its mirror image."""
  return Source("numbered", size, range(size), lambda i: (np.array([[[i], [0]]], np.uint8), i))


def _take(iterator, count):
  return list(itertools.islice(iterator, count))


def _labels(source, count, **arguments):
  return np.concatenate([batch["label"] for batch in _take(batches(source, **arguments), count)])


def _assert_same(left, right):
  for a, b in zip(left, right, strict=True):
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["label"], b["label"])


def test_batch_has_the_stated_shapes_types_and_range():
  source = Source("two", 0, range(2), lambda i: (np.full((2, 3, 1), 255 * i, np.uint8), 0))
  batch = next(batches(source, batch_size=2, seed=0))
  assert batch["image"].shape == (2, 2, 3, 1)
  assert batch["image"].dtype == np.float32
  assert batch["label"].shape == (2,)
  assert batch["label"].dtype == np.int32
  assert sorted(set(batch["image"].ravel())) == [-1.0, 1.0]


def test_pixels_are_mapped_to_minus_one_to_one():
  batch = next(batches(_numbered(256), batch_size=256, seed=0))
  np.testing.assert_allclose(batch["image"][:, 0, 0, 0], batch["label"] / 127.5 - 1, atol=1e-6)


def test_every_example_once_per_epoch_and_epochs_differ():
  # 7 batches of 5 are 5 epochs of 7: batches straddle the epochs' ends and nothing is dropped.
  epochs = _labels(_numbered(7), 7, batch_size=5, seed=1).reshape(5, 7)
  for epoch in epochs:
    assert sorted(epoch) == list(range(7))
  assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_may_hold_several_epochs():
  np.testing.assert_array_equal(np.bincount(_labels(_numbered(3), 1, batch_size=12, seed=0)), [4, 4, 4])


def test_order_depends_on_the_seed_only():
  source = _numbered(50)
  first = _labels(source, 4, batch_size=10, seed=3)
  np.testing.assert_array_equal(first, _labels(source, 4, batch_size=10, seed=3, threads=0, prefetch=0))
  assert (first != _labels(source, 4, batch_size=10, seed=4)).any()


def test_order_and_flips_are_pinned():
  """Another order would silently change every run that resumes and every reference number."""
  batch = next(batches(_numbered(7), batch_size=14, seed=11, flip=True))
  np.testing.assert_array_equal(batch["label"], [3, 1, 2, 4, 6, 5, 0, 3, 5, 1, 0, 2, 4, 6])
  flips = [1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1]
  np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] == -1, flips)  # 0 is its own mirror image.


@pytest.mark.parametrize("start_step", [1, 3, 9])
def test_start_step_skips_exactly_that_many_batches(start_step):
  arguments = {"batch_size": 6, "seed": 5, "flip": True}
  whole = _take(batches(_numbered(10), **arguments), start_step + 4)
  _assert_same(whole[start_step:], _take(batches(_numbered(10), start_step=start_step, **arguments), 4))


def test_late_start_reads_no_more_than_it_returns():
  reads = []

  def read(i):
    reads.append(i)
    return np.zeros((1, 1, 1), np.uint8), i

  source = Source("counted", 10, range(10), read)
  next(batches(source, batch_size=4, seed=0, start_step=10**12, threads=0))
  assert len(reads) == 4


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_one_global_batch(process_count):
  arguments = {"batch_size": 8, "seed": 2, "start_step": 1, "flip": True}
  whole = _take(batches(_numbered(11), **arguments), 4)
  parts = [
    _take(batches(_numbered(11), process_index=index, process_count=process_count, **arguments), 4)
    for index in range(process_count)
  ]
  joined = [{key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]} for step in range(4)]
  _assert_same(whole, joined)


def test_batches_of_one_do_not_overflow_the_infinite_length():
  assert next(batches(_numbered(3), batch_size=1, seed=0))["image"].shape == (1, 1, 2, 1)


def test_flip_mirrors_about_half_and_repeats_itself():
  source = Source("lit left", 0, range(10), lambda i: (np.array([[[255], [0]]], np.uint8), 0))
  arguments = {"batch_size": 100, "seed": 0, "flip": True}
  batch = next(batches(source, **arguments))
  mirrored = batch["image"][:, 0, 1, 0] == 1
  assert 30 < mirrored.sum() < 70
  np.testing.assert_array_equal(batch["image"][mirrored, 0, 0, 0], -1)
  _assert_same([batch], [next(batches(source, **arguments))])
  plain = next(batches(source, batch_size=100, seed=0))
  assert (plain["image"][:, 0, 0, 0] == 1).all()


def test_flip_leaves_the_source_untouched():
  pixels = np.array([[[255], [0]]], np.uint8)
  next(batches(Source("one", 0, range(1), lambda i: (pixels, 0)), batch_size=16, seed=0, flip=True))
  np.testing.assert_array_equal(pixels, [[[255], [0]]])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"batch_size": 6, "process_count": 4}, "batch_size is 6"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"process_index": 2, "process_count": 2}, "process_index is 2"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"start_step": -1}, "start_step is -1"),
    ({"threads": -1}, "threads=-1"),
  ],
)
def test_impossible_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    batches(_numbered(4), **{"batch_size": 4, "seed": 0, **arguments})


def test_empty_source_is_named():
  with pytest.raises(ValueError, match="numbered is empty"):
    batches(_numbered(0), batch_size=1, seed=0)


def test_an_error_while_reading_reaches_the_caller():
  def read(i):
    raise ValueError("cannot read the image 'a.png'")

  with pytest.raises(ValueError, match="a.png"):
    next(batches(Source("broken", 0, range(3), read), batch_size=2, seed=0))


def test_read_all_keeps_the_order():
  images, labels = read_all(_numbered(5))
  assert images.shape == (5, 1, 2, 1) and images.dtype == np.uint8
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(labels, range(5))
  np.testing.assert_array_equal(images[:, 0, 0, 0], range(5))


@pytest.mark.parametrize(("limit", "rows"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (5, range(5)), (99, range(5))])
def test_read_all_stops_at_the_limit(limit, rows):
  """What it reads is spread over the source, not its beginning, which may be of one class."""
  images, labels = read_all(_numbered(5), limit)
  np.testing.assert_array_equal(labels, rows)
  np.testing.assert_array_equal(images[:, 0, 0, 0], rows)


def test_read_all_of_nothing_is_an_error():
  with pytest.raises(ValueError, match="limit is 0"):
    read_all(_numbered(5), 0)
