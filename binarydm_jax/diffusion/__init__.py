"""Diffusion itself, knowing nothing of networks: noise schedules, the forward process and its targets, samplers."""

from binarydm_jax.diffusion.chain import sample_keys, threshold
from binarydm_jax.diffusion.dpm_solver import dpm_solver_2m, dpm_solver_2s
from binarydm_jax.diffusion.plms import plms
from binarydm_jax.diffusion.process import TARGETS, predict_eps, predict_x0, q_sample, training_target
from binarydm_jax.diffusion.samplers import ddim, ddpm
from binarydm_jax.diffusion.schedules import SCHEDULES, Schedule, make_schedule
from binarydm_jax.diffusion.timesteps import SPACINGS, sampling_timesteps, solver_timesteps

__all__ = [
  "SCHEDULES",
  "SPACINGS",
  "Schedule",
  "TARGETS",
  "ddim",
  "ddpm",
  "dpm_solver_2m",
  "dpm_solver_2s",
  "make_schedule",
  "plms",
  "predict_eps",
  "predict_x0",
  "q_sample",
  "sample_keys",
  "sampling_timesteps",
  "solver_timesteps",
  "threshold",
  "training_target",
]
