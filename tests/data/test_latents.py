"""Reading latents: bit for bit what was written, each kind of damaged cache, and the batches that training gets."""

import itertools
import json
import os
from concurrent import futures

import numpy as np
import pytest

from binarydm_jax.data import DataError, LatentWriter, batches, open_latents
from binarydm_jax.data.latent_layout import Layout
from tests.data.small_latents import ABOUT, SHAPE, moments_of, write


def _fails(path, *parts, about=None):
  """Opening is a DataError of one line that holds the folder and every one of `parts`."""
  with pytest.raises(DataError) as caught:
    open_latents(str(path), about)
  message = str(caught.value)
  assert "\n" not in message
  for part in (str(path), "--mode=encode", *parts):
    assert part in message


@pytest.mark.parametrize("mirrored", [False, True])
def test_round_trip_is_bit_for_bit(tmp_path, mirrored):
  latents = open_latents(write(tmp_path, mirrored=mirrored), ABOUT)
  assert (len(latents), latents.num_classes, latents.mirrored, latents.shape) == (10, 7, mirrored, SHAPE)
  assert latents.about["first_stage"] == {"sha256": "ab", "factors": [1, 2]}
  assert str(tmp_path) in latents.name and "10 examples" in repr(latents)
  for i in range(10):
    for mirror in (False, True)[: 1 + mirrored]:
      example = latents.read(i, mirror)
      assert example["moments"].dtype == np.float32 and isinstance(example["label"], np.int32)
      assert example["moments"].tobytes() == moments_of(10, mirror)[i].tobytes()
      assert example["label"] == i % 7
  np.testing.assert_array_equal(latents[9]["moments"], moments_of(10)[9])
  for i in (10, -1):
    with pytest.raises(IndexError, match=f"no example {i}"):
      latents[i]


def test_a_record_is_the_stated_bytes():
  """Pinned: another layout needs another version."""
  layout = Layout.make((1, 1, 2), 1, 5, False, {})
  record = layout.records(np.array([[[[1.0, -2.0]]]], np.float32), np.array([3]), None, 0)[0, 0].tobytes()
  assert record == bytes.fromhex("0000803f" "000000c0" "03000000")


def test_special_floats_survive(tmp_path):
  values = np.array([-0.0, 1e-45, np.finfo(np.float32).max, np.pi], np.float32).reshape(1, 1, 1, 4)
  writer = LatentWriter(str(tmp_path), shape=(1, 1, 4), num_examples=1, num_classes=0, mirrored=False, about={})
  with writer.shard(range(1)) as add:
    add(values, np.zeros(1, np.int64))
  writer.finish()
  assert open_latents(str(tmp_path))[0]["moments"].tobytes() == values.tobytes()


def test_threads_read_the_same(tmp_path):
  latents = open_latents(write(tmp_path))
  order = np.random.RandomState(0).randint(0, 10, 500)
  with futures.ThreadPoolExecutor(8) as pool:
    for i, example in zip(order, pool.map(latents.__getitem__, order)):
      np.testing.assert_array_equal(example["moments"], moments_of(10)[i])


# Arithmetic of shards.


@pytest.mark.parametrize("count", [1, 4096, 4097, 3_033_042, 2**31 + 5, 10**12])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_example_has_a_place_of_its_own(count, mirrored):
  layout = Layout.make(SHAPE, count, 0, mirrored, {})
  assert 1 <= layout.num_shards <= 128
  shards = [layout.examples(shard) for shard in range(layout.num_shards)]
  assert shards[0].start == 0 and shards[-1].stop == count and min(map(len, shards)) > 0
  assert all(left.stop == right.start for left, right in itertools.pairwise(shards))
  for i in {0, count // 2, count - 1, *(examples.start for examples in shards)}:
    shard, record = layout.locate(np.int64(i))
    assert i in shards[shard] and record == (i - shards[shard].start) * (2 if mirrored else 1)
    assert record < layout.num_records(shard)
    if mirrored:
      assert layout.locate(i, True) == (shard, record + 1)


# Damaged caches.


def _edit(path, **changes):
  descriptor = path / "latents.json"
  fields = {**json.loads(descriptor.read_text()), **changes}
  descriptor.write_text(json.dumps({name: value for name, value in fields.items() if value != "remove"}))


def test_nothing_there(tmp_path):
  _fails(tmp_path / "missing", "no folder")
  _fails(tmp_path, "not complete", "latents.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"shape": [1]}', "[" * 100_000, "\x00\xff"])
def test_descriptor_that_is_none(tmp_path, text):
  write(tmp_path)
  (tmp_path / "latents.json").write_text(text, encoding="latin-1")
  _fails(tmp_path, "latents.json", "remove the folder")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("shape", [2, 3]), ("shape", [2, 3, 0]), ("shape", "abc"), ("shape", [2, 3, 4.0]), ("shape", "remove"),
    ("num_examples", 0), ("num_examples", "10"), ("num_examples", True), ("num_classes", -1), ("num_classes", None),
    ("mirrored", 1), ("examples_per_shard", 0), ("about", []), ("extra", 1),
  ],
)  # fmt: skip
def test_descriptor_with_a_wrong_field(tmp_path, field, value):
  write(tmp_path)
  _edit(tmp_path, **{field: value})
  _fails(tmp_path, "no valid descriptor", f"{field} is", "remove the folder")


def test_descriptor_of_another_version(tmp_path):
  write(tmp_path)
  _edit(tmp_path, version=2)
  _fails(tmp_path, "version 2", "version 1")


def test_missing_shard(tmp_path):
  write(tmp_path)
  os.unlink(tmp_path / "latents-00001-of-00003.array_record")
  _fails(tmp_path, "there is no", "latents-00001-of-00003")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_truncated_shard(tmp_path, keep):
  write(tmp_path)
  shard = tmp_path / "latents-00002-of-00003.array_record"
  data = shard.read_bytes()
  shard.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
  _fails(tmp_path, "latents-00002-of-00003", "cut short")


def test_shard_of_another_count_or_record_size(tmp_path):
  write(tmp_path)
  shards = sorted(tmp_path.glob("*.array_record"))
  last = shards[2].read_bytes()
  shards[2].write_bytes(shards[0].read_bytes())
  _fails(tmp_path, "latents-00002-of-00003", "8 records where 4 belong")
  shards[2].write_bytes(last)
  _edit(tmp_path, shape=[2, 3, 5])
  _fails(tmp_path, "latents-00000-of-00003", "100 bytes", "124 are expected")


def test_damage_inside_a_shard_is_named_when_read(tmp_path):
  write(tmp_path, examples_per_shard=10)
  shard = next(tmp_path.glob("*.array_record"))
  data = bytearray(shard.read_bytes())
  data[1500] ^= 255  # Behind the first record, which is read at once, and before the index at the end.
  shard.write_bytes(data)
  latents = open_latents(str(tmp_path))
  with pytest.raises(DataError, match=r"record \d+ of latents-00000-of-00001.*damaged.*--mode=encode") as caught:
    for i, mirror in itertools.product(range(10), (False, True)):
      latents.read(i, mirror)
  assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"image_size": 16}, ["image_size=8", "image_size=16"]),
    ({"source": "npz:a", "image_size": 16}, ["source='digits'", "source='npz:a'"]),
    ({"first_stage": {"sha256": "cd", "factors": [1, 2]}}, ["first_stage.sha256='ab'", "first_stage.sha256='cd'"]),
    ({"first_stage": {"sha256": "ab"}}, ["first_stage.factors=[1, 2]", "first_stage.factors=(absent)"]),
    ({"added": None}, ["added=(absent)", "added=None"]),
  ],
)
def test_latents_of_something_else(tmp_path, changes, parts):
  write(tmp_path)
  _fails(tmp_path, *parts, about={**ABOUT, **changes})


# Batches.


def _take(latents, count, **arguments):
  return list(itertools.islice(batches(latents, **arguments), count))


def _recognised(batch, count=10):
  """(example, whether of its mirror image) of all that a batch holds; their labels must be right."""
  of = {moments_of(count, mirror)[i].tobytes(): (i, mirror) for i in range(count) for mirror in (False, True)}
  found = [of[moments.tobytes()] for moments in batch["moments"]]
  np.testing.assert_array_equal(batch["label"], [i % 7 for i, _ in found])
  return found


def test_batches_hold_the_moments_as_stored(tmp_path):
  batch = next(batches(open_latents(write(tmp_path)), batch_size=10, seed=0))
  assert set(batch) == {"moments", "label"}
  assert batch["moments"].shape == (10, *SHAPE) and batch["moments"].dtype == np.float32
  assert batch["label"].shape == (10,) and batch["label"].dtype == np.int32
  assert sorted(_recognised(batch)) == [(i, False) for i in range(10)]


def test_flips_are_drawn_anew_in_every_epoch(tmp_path):
  epochs = [_recognised(batch) for batch in _take(open_latents(write(tmp_path)), 20, batch_size=10, seed=0, flip=True)]
  assert all(sorted(i for i, _ in epoch) == list(range(10)) for epoch in epochs)
  assert len({tuple(sorted(epoch)) for epoch in epochs}) > 15
  assert 70 < sum(mirror for epoch in epochs for _, mirror in epoch) < 130


@pytest.mark.parametrize("flip", [False, True])
def test_batches_depend_on_seed_and_step_alone(tmp_path, flip):
  latents = open_latents(write(tmp_path))
  arguments = {"batch_size": 4, "seed": 3, "flip": flip}
  whole = _take(latents, 6, **arguments)
  late = _take(latents, 2, start_step=4, threads=0, **arguments)
  parts = [_take(latents, 6, process_index=k, process_count=2, **arguments) for k in range(2)]
  for key in ("moments", "label"):
    for step in range(6):
      np.testing.assert_array_equal(whole[step][key], np.concatenate([part[step][key] for part in parts]))
    for step in (4, 5):
      np.testing.assert_array_equal(whole[step][key], late[step - 4][key])


def test_flip_needs_mirrored_records(tmp_path):
  latents = open_latents(write(tmp_path, mirrored=False))
  with pytest.raises(DataError, match="data.flip is True.*set data.flip=False.*--mode=encode") as caught:
    batches(latents, batch_size=2, seed=0, flip=True)
  assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(DataError, match="no mirror images"):
    latents.read(0, mirror=True)
