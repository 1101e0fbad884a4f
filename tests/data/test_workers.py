"""Worker processes: the same batches and errors, no accelerator; what signals and a killed parent mean to them."""

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import pytest
from PIL import Image

import binarydm_jax
from binarydm_jax.data import DataError, Source, batches, open_latents, open_source, read_all
from tests.data.small_latents import write
from tests.data.tiny_tfds import prepare

ROOT = os.path.dirname(os.path.dirname(binarydm_jax.__file__))


def _take(source, count, **arguments):
  stream = batches(source, **arguments)
  taken = list(itertools.islice(stream, count)), stream.skipped
  stream.close()
  return taken


def _folder(path, broken):
  for i in range(14):
    (path / str(i % 3)).mkdir(exist_ok=True)
    Image.fromarray(np.arange(i, i + 16, dtype=np.uint8).reshape(4, 4)).save(path / str(i % 3) / f"{i}.png")
  for i in broken:
    (path / str(i % 3) / f"{i}.png").write_text("no image")
  return open_source(f"folder:{path}", image_size=4, channels=1, split="train", skip_unreadable=True)


@pytest.mark.parametrize(
  ("workers", "arguments"),
  [(2, {}), (2, {"start_step": 9, "process_index": 1, "process_count": 2, "prefetch": 0, "threads": 0})],
)
def test_batches_do_not_depend_on_workers(tmp_path, workers, arguments):
  source = _folder(tmp_path, broken=(4, 5, 9))
  arguments = {"batch_size": 6, "seed": 3, "flip": True, **arguments}
  expected, skipped = _take(source, 7, **arguments)
  got, same = _take(source, 7, workers=workers, **arguments)
  for left, right in zip(expected, got, strict=True):
    assert set(right) == {"image", "label"}
    for key in left:
      assert right[key].dtype == left[key].dtype
      np.testing.assert_array_equal(left[key], right[key])
  assert same == skipped > 0
  assert not multiprocessing.active_children()


def test_the_error_of_a_worker_is_the_same_line(tmp_path):
  write(tmp_path, examples_per_shard=10)
  shard = next(tmp_path.glob("*.array_record"))
  data = bytearray(shard.read_bytes())
  data[1500] ^= 255
  shard.write_bytes(data)
  messages = []
  for workers in (0, 1):
    with pytest.raises(DataError, match=r"example \d: record \d+ of latents-00000-of-00001.*--mode=encode") as caught:
      _take(open_latents(str(tmp_path)), 9, batch_size=2, seed=0, flip=True, workers=workers)
    messages.append(str(caught.value))
  assert messages[0] == messages[1] and "\n" not in messages[0]


def test_a_worker_holds_no_accelerator_and_its_death_is_an_error():
  def read(i):
    from jax._src import xla_bridge

    return np.full((1, 1, 1), xla_bridge.backends_are_initialized(), np.uint8), os.getpid()

  stream = batches(Source("probe", 0, range(4), read), batch_size=2, seed=0, workers=1)
  batch = next(stream)
  (worker,) = multiprocessing.active_children()
  assert (batch["label"] == worker.pid).all()
  assert (batch["image"] == -1).all()  # False
  os.kill(worker.pid, signal.SIGKILL)
  with pytest.raises(DataError, match="process that reads data ended.*exit code -9.*data.workers"):
    for _ in range(100):
      next(stream)


def test_every_kind_of_data_can_be_sent_to_a_worker(tmp_path):
  np.savez(tmp_path / "data.npz", np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
  (tmp_path / "images").mkdir()
  sources = [
    open_source("digits", image_size=8, channels=1, split="test"),
    open_source(f"npz:{tmp_path}/data.npz", image_size=4, channels=1, split="train"),
    open_source("tfds:tiny_images", image_size=4, channels=3, split="train", data_dir=prepare(tmp_path)),
    _folder(tmp_path / "images", broken=(2,)),
  ]
  for source in sources:
    sent = pickle.loads(cloudpickle.dumps(source))
    assert (sent.name, len(sent), sent.num_classes) == (source.name, len(source), source.num_classes)
    for left, right in zip(read_all(source), read_all(sent)):
      np.testing.assert_array_equal(left, right)


_PROGRAM = """
import multiprocessing, signal
import numpy as np
from binarydm_jax.data import Source, batches

def read(i):
  return np.zeros((1, 1, 1), np.uint8), i

if __name__ == "__main__":
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: print("got", number, flush=True))
  stream = batches(Source("s", 0, range(8), read), batch_size=2, seed=0, workers=2)
  while len(multiprocessing.active_children()) < 2:
    pass
  print(*(process.pid for process in multiprocessing.active_children()), flush=True)
  for turn in range(3):
    input()
    for _ in range(20):
      next(stream)
    print("read", flush=True)
"""


def _gone(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] == "Z"
  except FileNotFoundError:
    return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_signals_to_the_group_leave_workers_alone_and_they_end_with_their_parent(tmp_path):
  (tmp_path / "program.py").write_text(_PROGRAM)
  with open(tmp_path / "errors", "w") as errors:
    program = subprocess.Popen(
      [sys.executable, str(tmp_path / "program.py")], start_new_session=True, text=True, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    workers = []
    try:
      line = lambda: program.stdout.readline().split()
      ask = lambda: (program.stdin.write("\n"), program.stdin.flush())
      workers = [int(pid) for pid in line()]
      assert len(workers) == 2 and not any(map(_gone, workers))
      # First while the workers still import, then while they work.
      for _ in range(2):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
          os.killpg(program.pid, number)
          assert line() == ["got", str(int(number))]
        ask()
        assert line() == ["read"]
      assert (tmp_path / "errors").read_text() == ""
      program.kill()
      deadline = time.monotonic() + 60
      while not all(map(_gone, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    finally:
      program.kill()
      program.wait()
      for pid in workers:
        if not _gone(pid):
          os.kill(pid, signal.SIGKILL)
      program.stdin.close()
      program.stdout.close()
