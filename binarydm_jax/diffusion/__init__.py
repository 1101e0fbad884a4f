"""Diffusion itself, knowing nothing of networks: noise schedules, the forward process and its targets, samplers."""

from binarydm_jax.diffusion.process import TARGETS, predict_eps, predict_x0, q_sample, training_target
from binarydm_jax.diffusion.samplers import SPACINGS, ddim, ddpm, sample_keys, sampling_timesteps
from binarydm_jax.diffusion.schedules import SCHEDULES, Schedule, make_schedule

__all__ = [
  "SCHEDULES",
  "SPACINGS",
  "Schedule",
  "TARGETS",
  "ddim",
  "ddpm",
  "make_schedule",
  "predict_eps",
  "predict_x0",
  "q_sample",
  "sample_keys",
  "sampling_timesteps",
  "training_target",
]
