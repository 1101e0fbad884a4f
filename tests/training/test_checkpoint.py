"""Checkpoints that are damaged are passed over by name; a full disk is said."""

import resource
from pathlib import Path

import jax
import numpy as np
import pytest

from binarydm_jax.training import sharding
from binarydm_jax.training.checkpoint import CheckpointError, Checkpoints, fingerprint

LIKE = {"w": np.zeros((64, 32), np.float32), "bits": np.zeros(9, np.uint8), "step": np.int32(0), "none": ()}


def tree(step):
  """A tree on one device, its values drawn by `step`."""
  rng = np.random.default_rng(step)
  values = {"w": rng.standard_normal((64, 32)).astype(np.float32), "bits": rng.integers(0, 255, 9).astype(np.uint8),
            "step": np.int32(step), "none": ()}
  return sharding.put_replicated(values, sharding.make_mesh(jax.devices()[:1]))


@pytest.fixture
def written(tmp_path):
  """A folder with the checkpoints of steps 10 and 20, of three that were written and two that are kept."""
  checkpoints = Checkpoints(tmp_path / "student", keep=2, writes=True)
  for step in (5, 10, 20):
    checkpoints.save(step, tree(step), {"pending": [{"loss": 0.1}], "step": step})
  checkpoints.wait()
  assert checkpoints.steps() == [10, 20]
  checkpoints.close()
  return tmp_path / "student"


def read(folder, **options):
  checkpoints = Checkpoints(folder, **({"writes": True} if options else {}))
  found = checkpoints.restore(tree(0), **options)
  checkpoints.close()
  return found


def largest(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_newest_is_read_with_its_facts(written):
  """Bit for bit, beside what JSON holds; no folder is no checkpoint, and reading makes none."""
  step, found, facts = read(written)
  assert step == 20 and facts["pending"] == [{"loss": 0.1}] and facts["step"] == 20
  jax.tree.map(np.testing.assert_array_equal, found, tree(20))
  assert read(written.with_name("teacher")) is None and not written.with_name("teacher").exists()


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damaged_checkpoint_is_passed_over_by_name(written, capsys, damage):
  """The one before it is used; a run that trains on moves the damaged one aside and can save that step again."""
  damage(largest(written / "20"))
  assert read(written)[0] == 10
  assert f"warning: checkpoint {written / '20'} is passed over (" in capsys.readouterr().err
  step, found, _ = read(written, set_aside=True)
  assert step == 10 and (written.with_name("student.unreadable") / "20").is_dir()
  jax.tree.map(np.testing.assert_array_equal, found, tree(10))
  checkpoints = Checkpoints(written, writes=True)
  checkpoints.save(20, tree(21))
  checkpoints.wait()
  checkpoints.close()
  np.testing.assert_array_equal(read(written)[1]["w"], tree(21)["w"])


def test_half_written_checkpoint_is_none(written):
  """What a killed save leaves behind is no checkpoint, and is removed by the next run that writes."""
  left = written / "30.orbax-checkpoint-tmp"
  (written / "20").rename(left)
  assert read(written)[0] == 10
  assert read(written, set_aside=True)[0] == 10


def test_no_readable_checkpoint_is_an_error(written):
  """Nothing begins anew over the remains of a run."""
  for step in ("10", "20"):
    cut(largest(written / step))
  with pytest.raises(CheckpointError, match="no checkpoint in .* can be read .*; to begin this stage anew, move"):
    read(written, set_aside=True)
  assert {path.name for path in written.iterdir()} == {"10", "20"}


def test_full_disk_is_said_and_the_last_checkpoint_stays(written):
  """The system refuses to write (here by a limit on the size of files): one line with what is left."""
  checkpoints = Checkpoints(written, writes=True)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    with pytest.raises(CheckpointError, match=r"could not be written to .* GiB free\): that of step 20 is whole. Make"):
      checkpoints.save(30, tree(30))
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  checkpoints.close()
  assert read(written)[0] == 20


def test_fingerprint_by_hand():
  """Words times odd numbers of their places, mod 2^32; a swap of two values and a changed bit are seen."""
  one = fingerprint({"a": np.array([3, 5], np.uint32), "b": np.array([1.0], np.float32)})
  assert np.asarray(one).tolist() == [3 * 1 + 5 * 3, 0x3F800000]
  assert int(fingerprint([np.array([5, 3], np.uint32)])[0]) != 18
  many = fingerprint([np.full(3, 2**31, np.uint32), np.array([True, False]), np.array([255, 2], np.uint8)])
  assert np.asarray(many).tolist() == [2**31 * 9 % 2**32, 1, 255 + 6]
