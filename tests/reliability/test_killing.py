"""A run that is killed anywhere continues as if nothing had happened: bit for bit, by the real command.

All of it is slow; `python -m tests.reliability.killing` is the long form. test_processes.py has a kill of the teacher.
"""

import pytest

from tests.reliability import killing


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_both_signals(tmp_path, processes):
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
