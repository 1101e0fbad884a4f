"""Writing latents: interrupted runs go on, processes share the work, and nothing wrong gets into a cache."""

import os
import resource
import signal

import numpy as np
import pytest

from binarydm_jax.data import DataError, LatentWriter, open_latents
from tests.data.small_latents import ABOUT, SHAPE, labels_of, moments_of, write


def _writer(path, count=10, **arguments):
  arguments = {"shape": SHAPE, "num_classes": 7, "mirrored": True, "about": ABOUT, "examples_per_shard": 4, **arguments}
  return LatentWriter(str(path), num_examples=count, **arguments)


def _arrays(examples, count=10):
  part = slice(examples.start, examples.stop)
  return moments_of(count)[part], labels_of(count)[part], moments_of(count, True)[part]


def _fill(writer, ranges):
  for examples in ranges:
    with writer.shard(examples) as add:
      add(*_arrays(examples))


def _contents(path):
  return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The files of a cache that was written without interruption."""
  path = tmp_path_factory.mktemp("whole")
  write(path)
  return _contents(path)


def test_files_of_a_complete_cache(whole):
  assert set(whole) == {"latents.json", *(f"latents-{i:05d}-of-00003.array_record" for i in range(3))}


def test_an_exception_leaves_whole_shards_only_and_a_restart_makes_the_same_files(tmp_path, whole):
  writer = _writer(tmp_path)
  assert writer.remaining() == [range(0, 4), range(4, 8), range(8, 10)]
  _fill(writer, [range(0, 4)])
  with pytest.raises(RuntimeError, match="first stage"), writer.shard(range(4, 8)) as add:
    add(*_arrays(range(4, 6)))
    raise RuntimeError("the first stage broke")
  assert set(_contents(tmp_path)) == {"latents.partial.json", "latents-00000-of-00003.array_record"}
  with pytest.raises(DataError, match="not complete"):
    open_latents(str(tmp_path))
  # What a killed process leaves.
  (tmp_path / ".latents-00001-of-00003.array_record.tmp1").write_bytes(b"half")
  written = os.stat(tmp_path / "latents-00000-of-00003.array_record").st_mtime_ns
  again = _writer(tmp_path)
  assert again.remaining() == [range(4, 8), range(8, 10)]
  _fill(again, again.remaining())
  again.finish()
  assert os.stat(tmp_path / "latents-00000-of-00003.array_record").st_mtime_ns == written
  assert _contents(tmp_path) == whole


def test_complete_cache_has_nothing_left_to_do(tmp_path, whole):
  write(tmp_path)
  writer = _writer(tmp_path)
  assert writer.remaining() == []
  writer.finish()
  assert _contents(tmp_path) == whole


def test_damaged_shards_of_a_complete_cache_are_made_again(tmp_path, whole):
  write(tmp_path)
  (tmp_path / "latents-00000-of-00003.array_record").unlink()
  (tmp_path / "latents-00002-of-00003.array_record").write_bytes(b"")
  writer = _writer(tmp_path)
  assert writer.remaining() == [range(0, 4), range(8, 10)]
  _fill(writer, writer.remaining())
  writer.finish()
  assert _contents(tmp_path) == whole


@pytest.mark.parametrize("process_count", [2, 3, 5])
def test_processes_share_the_shards(tmp_path, whole, process_count):
  writers = [_writer(tmp_path, process_index=k, process_count=process_count) for k in range(process_count)]
  shares = [writer.remaining() for writer in writers]
  assert sorted(examples.start for share in shares for examples in share) == [0, 4, 8]
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  _fill(writers[0], shares[0])
  with pytest.raises(DataError, match="there is no.*latents-00001"):
    writers[0].finish()
  for writer, share in zip(writers[1:], shares[1:]):
    _fill(writer, share)
    writer.finish()
  assert "latents.json" not in _contents(tmp_path)
  writers[0].finish()
  assert _contents(tmp_path) == whole


def test_a_started_cache_keeps_its_shards_when_the_default_differs(tmp_path):
  _writer(tmp_path)
  assert len(_writer(tmp_path, examples_per_shard=None).remaining()) == 3


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"shape": (2, 3, 8)}, ["shape=[2, 3, 4]", "shape=[2, 3, 8]"]),
    ({"count": 11}, ["num_examples=10", "num_examples=11"]),
    ({"num_classes": 0}, ["num_classes=7", "num_classes=0"]),
    ({"mirrored": False}, ["mirrored=True", "mirrored=False"]),
    ({"about": {**ABOUT, "image_size": 16}}, ["about.image_size=8", "about.image_size=16"]),
  ],
)
def test_latents_of_two_configurations_are_not_mixed(tmp_path, complete, changes, parts):
  write(tmp_path) if complete else _writer(tmp_path)
  with pytest.raises(DataError) as caught:
    _writer(tmp_path, **changes)
  for part in (str(tmp_path), "another folder", *parts):
    assert part in str(caught.value)


def test_folder_that_cannot_be_used(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match="file.*is not a folder"):
    _writer(tmp_path / "file")
  write(tmp_path / "cache")
  (tmp_path / "cache" / "latents.json").unlink()
  with pytest.raises(DataError, match="cache.*no descriptor; remove the folder"):
    _writer(tmp_path / "cache")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"count": 0}, "num_examples is 0"),
    ({"shape": (2, 3)}, r"shape is \[2, 3\]"),
    ({"num_classes": -1}, "num_classes is -1"),
    ({"examples_per_shard": 0}, "examples_per_shard is 0"),
    ({"process_index": 2, "process_count": 2}, "process_index is 2"),
  ],
)
def test_impossible_arguments_are_named(tmp_path, changes, message):
  with pytest.raises(DataError, match=message):
    _writer(tmp_path, **changes)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m, k, f: (m.astype(np.float64), k, f), "float64.*float32 .* is expected"),
    (lambda m, k, f: (m, k, f[:, :1]), r"\(4, 1, 3, 4\)"),
    (lambda m, k, f: (m, k[:3], f), r"\(3, 2, 3, 4\) is expected"),
    (lambda m, k, f: (m, k.astype(np.float32), f), "labels are float32"),
    (lambda m, k, f: (m, k + 7, f), "labels lie in 11..14; num_classes is 7"),
    (lambda m, k, f: (m, k - 7, f), "labels lie in -3..0"),
    (lambda m, k, f: (m, k, None), "mirrored moments are missing"),
    (lambda m, k, f: (m, k, np.where(np.arange(4)[:, None, None, None] == 2, np.float32(np.nan), f)), "of example 6"),
    (lambda m, k, f: (m[:3], k[:3], f[:3]), "given 3 examples; it takes 4"),
    (lambda m, k, f: (np.concatenate([m, m]), np.concatenate([k, k]), np.concatenate([f, f])), "given 8 examples"),
  ],
)
def test_wrong_examples_do_not_make_a_shard(tmp_path, change, message):
  writer = _writer(tmp_path)
  examples = range(4, 8)
  moments, _, mirrored = _arrays(examples)
  with pytest.raises(DataError, match=message), writer.shard(examples) as add:
    add(*change(moments, np.arange(4, 8) % 7 if "lie" not in message else np.array([4, 5, 6, 7]), mirrored))
  assert set(_contents(tmp_path)) == {"latents.partial.json"}


def test_mirrored_moments_that_were_not_announced(tmp_path):
  writer = _writer(tmp_path, mirrored=False)
  with pytest.raises(DataError, match="mirrored moments are given"), writer.shard(range(4)) as add:
    add(*_arrays(range(4)))


def test_range_that_is_no_shard(tmp_path):
  for examples in (range(0, 3), range(1, 5), range(12, 16)):
    with pytest.raises(DataError, match="is no shard"), _writer(tmp_path).shard(examples):
      pass


def test_full_disk_is_one_line(tmp_path):
  writer = _writer(tmp_path)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    with pytest.raises(DataError, match="cannot write.*latents-00000.*goes on") as caught:
      _fill(writer, [range(4)])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert "\n" not in str(caught.value)
  assert set(_contents(tmp_path)) == {"latents.partial.json"}
