"""What the loop is fed: the config's way of reading changes no batch, and what could not be read is counted."""

import multiprocessing

import jax
import numpy as np
import pytest
from PIL import Image

from binarydm_jax.data import DataError, LatentWriter
from binarydm_jax.mesh import make_mesh
from binarydm_jax.training import feed
from binarydm_jax.training.problem import build
from tests import tiny


def _problem(path, **fields):
  """A run on 12 images, all of one grey each, of which 2 cannot be read."""
  for i in range(12):
    Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path / f"{i:02}.png")
  fields = {"data.source": f"folder:{path}", "evaluation.feature_network": "none", **fields}
  problem = build(tiny.get_config(**fields))
  for i in (3, 8):
    file = path / f"{i:02}.png"
    file.write_bytes(file.read_bytes()[:50])
  return problem


def _take(stream, count):
  batches = [jax.device_get(next(stream)) for _ in range(count)]
  stream.close()
  return np.concatenate([batch["image"] for batch in batches]), stream.skipped


def test_fields_of_reading_change_no_batch(tmp_path):
  arguments = "student", make_mesh()
  problem = _problem(tmp_path, **{"data.skip_unreadable": True})
  images, skipped = _take(feed.network_batches(problem, *arguments, 0), 5)
  assert images.shape == (40, 8, 8, 1)
  grey = np.round((images[:, 0, 0, 0] + 1) * 127.5 / 20).astype(int)
  assert not {3, 8} & set(grey) and skipped > 0
  problem.config.data.update(dict(threads=1, workers=1, prefetch=1))
  stream = feed.network_batches(problem, *arguments, 3)
  first = jax.device_get(next(stream))["image"]
  assert len(multiprocessing.active_children()) == 1
  late, late_skipped = _take(stream, 1)
  assert not multiprocessing.active_children()
  np.testing.assert_array_equal(np.concatenate([first, late]), images[24:])
  assert 0 < late_skipped < skipped


def test_by_default_the_run_stops(tmp_path):
  stream = feed.network_batches(_problem(tmp_path), "student", make_mesh(), 0)
  with pytest.raises(DataError, match=r"example \d+: cannot read the image '.*0[38]\.png'.*data.skip_unreadable=True"):
    _take(stream, 5)


def test_damaged_latents_are_counted_too(tmp_path):
  (tmp_path / "images").mkdir()
  problem = _problem(tmp_path / "images", **{"data.skip_unreadable": True})
  problem.config.first_stage.cache = str(tmp_path / "cache")
  count = len(problem.train_data)
  writer = LatentWriter(
    problem.config.first_stage.cache, shape=(1, 1, 2), num_examples=count, num_classes=0, mirrored=False,
    about=feed.cache_description(problem, "sha"),
  )  # fmt: skip
  with writer.shard(range(count)) as add:
    add(np.arange(2 * count, dtype=np.float32).reshape(count, 1, 1, 2), np.zeros(count, np.int32))
  writer.finish()
  file = next((tmp_path / "cache").glob("*.array_record"))
  data = bytearray(file.read_bytes())
  data[64 + 40] ^= 255  # The first record.
  file.write_bytes(data)
  stream = feed.stored_batches(problem, "student", make_mesh(), 0, latents_of="sha")
  moments = np.concatenate([jax.device_get(next(stream))["moments"] for _ in range(5)])[:, 0, 0, 0]
  assert set(moments) == set(range(2, 2 * count, 2)) and stream.skipped > 0
  problem.config.data.skip_unreadable = False
  with pytest.raises(DataError, match="damaged.*--mode=encode"):
    feed.stored_batches(problem, "student", make_mesh(), 0, latents_of="sha")
