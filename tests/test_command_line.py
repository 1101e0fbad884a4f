"""What all commands share."""

import os

from binarydm_jax.command_line import set_up_jax


def test_deterministic_asks_xla(monkeypatch):
  """`compute.deterministic` adds XLA's flag to those that are set; without it they stay as they are."""
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
  set_up_jax()
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
  set_up_jax(deterministic=True)
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
