"""Noise schedules, the forward process and its targets, samplers: nothing here knows what a network is made of."""

from binarydm_jax.diffusion.chain import sample_keys, threshold
from binarydm_jax.diffusion.dpm_solver import dpm_solver_2m, dpm_solver_2s
from binarydm_jax.diffusion.guidance import SAMPLERS, guided, make_sampler
from binarydm_jax.diffusion.plms import plms
from binarydm_jax.diffusion.process import TARGETS, predict_eps, predict_x0, q_sample, training_target
from binarydm_jax.diffusion.samplers import ddim, ddpm
from binarydm_jax.diffusion.schedules import SCHEDULES, Schedule, make_schedule
from binarydm_jax.diffusion.timesteps import SPACINGS, sampling_timesteps, solver_timesteps

__all__ = [
  "SAMPLERS",
  "SCHEDULES",
  "SPACINGS",
  "Schedule",
  "TARGETS",
  "ddim",
  "ddpm",
  "dpm_solver_2m",
  "dpm_solver_2s",
  "guided",
  "make_sampler",
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
