"""Reading ahead of the encoder; the rest of --mode=encode is in test_latent_diffusion.py."""

import concurrent.futures
import threading

import pytest

from binarydm_jax.encoding import read_ahead


class Data:
  """Example i is 10 i; 3 is replaced; what is read is noted."""

  def __init__(self):
    self.read, self.lock = [], threading.Lock()

  def read_or_replace(self, i):
    with self.lock:
      self.read.append(i)
    if i == 99:
      raise ValueError("99 cannot be read")
    return 10 * i, i == 3


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_in_order_one_ahead(threads):
  data = Data()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    batches = read_ahead(data, range(2, 9), 3, pool)
    assert next(batches) == [(20, False), (30, True), (40, False)]
    assert next(batches) == [(50, False), (60, False), (70, False)]
    assert next(batches) == [(80, False)] and next(batches, None) is None
  assert sorted(data.read) == list(range(2, 9))
  assert list(read_ahead(data, range(0), 3, None)) == []


def test_the_next_batch_is_asked_for_before_one_is_used():
  data = Data()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    next(read_ahead(data, range(6), 2, pool))
  assert sorted(data.read) == [0, 1, 2, 3]


def test_what_cannot_be_read_is_raised():
  with concurrent.futures.ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="99 cannot be read"):
    list(read_ahead(Data(), range(98, 100), 1, pool))
