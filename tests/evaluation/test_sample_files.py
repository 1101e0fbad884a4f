"""Samples on disk: parts, resumption, protocols, the joined file."""

import json

import numpy as np
import pytest

from binarydm_jax.evaluation.sample_files import SampleWriter, open_samples

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 3, 2, 1), np.uint8)
PROTOCOL = {"seed": 0, "shape": (3, 2, 1)}


def draw(writer, batch_size, most=99):
  """Adds at most so many batches; returns them."""
  batches = writer.remaining(batch_size)[:most]
  for first, size in batches:
    writer.add(first, IMAGES[first : first + size], 0.5)
  return batches


def test_one_run(tmp_path):
  """The file holds images and labels as ADM's evaluation reads them; no part stays."""
  writer = SampleWriter(tmp_path / "samples", "a", PROTOCOL, 10)
  assert draw(writer, 4) == [(0, 4), (4, 4), (8, 2)]
  writer.finish(np.arange(10) % 3)
  with np.load(tmp_path / "samples" / "a.npz", allow_pickle=False) as file:
    assert sorted(file) == ["arr_0", "arr_1"]
    np.testing.assert_array_equal(file["arr_0"], IMAGES)
    assert file["arr_1"].dtype == np.int64 and file["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
  mapped = open_samples(writer.path)
  assert isinstance(mapped, np.memmap) and mapped.dtype == np.uint8
  np.testing.assert_array_equal(mapped, IMAGES)
  assert writer.images_per_second == 10 / 1.5
  assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["a.json", "a.npz"]


def test_without_labels_and_of_numpy_itself(tmp_path):
  """arr_0 alone; `open_samples` also reads what numpy wrote."""
  writer = SampleWriter(tmp_path, "a", PROTOCOL, 10)
  draw(writer, 10)
  writer.finish()
  assert list(np.load(writer.path)) == ["arr_0"]
  np.savez(tmp_path / "other.npz", arr_0=IMAGES)
  np.testing.assert_array_equal(open_samples(tmp_path / "other.npz"), IMAGES)


def test_resumed_with_another_batch_size(tmp_path):
  """What is there is not drawn again, the gaps are filled, and the file is that of one run, to the byte."""
  whole = SampleWriter(tmp_path / "whole", "a", PROTOCOL, 10)
  draw(whole, 4)
  whole.finish()
  draw(SampleWriter(tmp_path, "a", PROTOCOL, 10), 4, most=1)
  writer = SampleWriter(tmp_path, "a", PROTOCOL, 10)
  with pytest.raises(RuntimeError, match="has no samples from 4 on; run again"):
    writer.finish()
  assert draw(writer, 3) == [(4, 3), (7, 3)]
  (tmp_path / "a.parts" / ".000000099-000000100.npz.tmp1").write_bytes(b"of a killed run")
  writer.finish()
  assert writer.path.read_bytes() == whole.path.read_bytes()
  again = SampleWriter(tmp_path, "a", PROTOCOL, 10)
  assert again.remaining(4) == [] and again.images_per_second == 10 / 1.5
  again.finish()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 3}, "count"])
def test_changed_protocol(tmp_path, finished, change):
  """Nothing of another protocol stays, parts or file."""
  writer = SampleWriter(tmp_path, "a", PROTOCOL, 10)
  draw(writer, 4, most=9 if finished else 1)
  if finished:
    writer.finish()
    (tmp_path / "a.png").touch()
  (tmp_path / "b.npz").touch()
  count = 9 if change == "count" else 10
  other = SampleWriter(tmp_path, "a", PROTOCOL if change == "count" else {**PROTOCOL, **change}, count)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.npz"]
  assert sum(size for _, size in other.remaining(4)) == count
  assert json.loads((tmp_path / "a.json").read_text())["protocol"]["count"] == count


def test_broken_part_is_drawn_again(tmp_path):
  """As after a loss of power: the name is there, the content is not."""
  draw(SampleWriter(tmp_path, "a", PROTOCOL, 10), 4, most=2)
  (tmp_path / "a.parts" / "000000000-000000004.npz").write_bytes(b"")
  assert draw(SampleWriter(tmp_path, "a", PROTOCOL, 10), 4) == [(0, 4), (8, 2)]


def test_broken_set_is_drawn_again(tmp_path):
  """The same of a finished one."""
  writer = SampleWriter(tmp_path, "a", PROTOCOL, 10)
  draw(writer, 4)
  writer.finish()
  (tmp_path / "a.npz").write_bytes(b"")
  writer = SampleWriter(tmp_path, "a", PROTOCOL, 10)
  assert draw(writer, 4) == [(0, 4), (4, 4), (8, 2)]
  writer.finish()
  np.testing.assert_array_equal(open_samples(writer.path), IMAGES)


def test_several_processes(tmp_path):
  """Each has its own batches; the first joins all, the others write no file but their parts."""
  writers = [SampleWriter(tmp_path, "a", PROTOCOL, 10, index, 3) for index in range(3)]
  batches = [writer.remaining(2) for writer in writers]
  assert batches == [[(0, 2), (6, 2)], [(2, 2), (8, 2)], [(4, 2)]]
  for writer, own in zip(writers, batches):
    for first, size in own:
      writer.add(first, IMAGES[first : first + size], 1.0)
  for writer in reversed(writers):
    assert not writer.path.exists()
    writer.finish()
  np.testing.assert_array_equal(open_samples(writers[2].path), IMAGES)
  assert writers[1].remaining(2) == []
