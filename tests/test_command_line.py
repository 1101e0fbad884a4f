"""What all commands share."""

import os

import pytest

from binarydm_jax import command_line
from binarydm_jax.command_line import set_up_jax


def test_deterministic_asks_xla(monkeypatch):
  """`compute.deterministic` adds XLA's flag to those that are set; without it they stay as they are."""
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
  set_up_jax()
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
  set_up_jax(deterministic=True)
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"


def test_configs_of_the_package_from_elsewhere(tmp_path, monkeypatch):
  """As installed: configs/digits.py is found beside the package, unless there is one here."""
  monkeypatch.chdir(tmp_path)
  found = str(command_line.PROJECT / "configs" / "digits.py")
  assert command_line.find_config(["x", "--config=configs/digits.py", "--mode=all"]) == [
      "x", f"--config={found}", "--mode=all"]
  assert command_line.find_config(["x", "--config", "configs/digits.py:a:b"]) == ["x", "--config", f"{found}:a:b"]
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "digits.py").touch()
  assert command_line.find_config(["x", "--config=configs/digits.py"])[1] == "--config=configs/digits.py"
  assert command_line.find_config(["x", "--config.seed=3", "--config"]) == ["x", "--config.seed=3", "--config"]
  with pytest.raises(SystemExit, match="--config=configs/none.py: there is no such file"):
    command_line.find_config(["x", "--config=configs/none.py"])
