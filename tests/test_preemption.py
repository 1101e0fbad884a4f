"""Signals ask a run to stop between two pieces of work."""

import os
import signal

import pytest

from binarydm_jax import preemption


@pytest.fixture
def handlers():
  """The process's handlers and the module's state are put back."""
  before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
  preemption.install()
  yield
  preemption._received = None
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_stops_before_the_next_piece_of_work(handlers, number):
  """What was begun is finished, what follows is left; before the signal everything is done."""
  assert list(preemption.between([1, 2])) == [1, 2] and not preemption.requested()
  done = []
  with pytest.raises(preemption.Preempted):
    for item in preemption.between([1, 2, 3]):
      if item == 2:
        os.kill(os.getpid(), number)
      done.append(item)
  assert done == [1, 2] and preemption.requested()


def test_nohup(handlers):
  """A run that is not to end with its terminal does not."""
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  preemption.install()
  os.kill(os.getpid(), signal.SIGHUP)
  assert not preemption.requested()


def test_second_interrupt_stops_at_once(handlers):
  """Ctrl-C twice is for those who do not want to wait; SIGTERM may come as often as it likes."""
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
