"""A run that is killed anywhere continues as if nothing had happened: bit for bit, by the real command.

The short form; `--slow` runs the long one, which is `python -m tests.reliability.killing`.
"""

import pytest

from tests.reliability import killing


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, processes):
  """A SIGKILL in training and a SIGTERM about when a checkpoint is written: parameters, scales, averages, optimizer,
  projections, every logged loss and every row of diagnostics are those of an undisturbed run."""
  phases = ("training", "saving")
  result = killing.campaign(tmp_path, processes, 1, 1, seed=processes, mode="binarize", phases=phases)
  assert result["differences"] == [] and result["compared"] > 100
  assert sum(result["signals"].values()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_many_signals(tmp_path, processes):
  """Twenty SIGKILL and ten SIGTERM at random moments of compilation, training, saving and evaluation."""
  result = killing.campaign(tmp_path, processes, 20, 10, seed=processes)
  assert result["differences"] == [] and result["compared"] > 100
  assert sum(result["signals"].values()) == 30
