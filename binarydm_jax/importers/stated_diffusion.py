"""What a published checkpoint says of the diffusion that its network was trained for; shapes do not show it."""

import json

import numpy as np

from binarydm_jax.diffusion import make_schedule
from binarydm_jax.importers.load import find, read
from binarydm_jax.importers.mapping import CheckpointError, as_arrays

# diffusers' names, and ours.
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
CONFIG = "scheduler_config.json"


def check_diffusion(path, schedule, target):
  """Compares the diffusion that a published U-Net's file states with that which the network is to be used for.

  Latent diffusion's files hold their betas; a diffusers pipeline has scheduler/scheduler_config.json. Others say
  nothing and pass.

  Args:
    path: as in `load_unet`.
    schedule: the Schedule of `config.diffusion`.
    target: "eps", "x0" or "v".
  Raises:
    CheckpointError: the number of timesteps, the betas or the target differ.
  """
  file, config = find(path, ("unet",))
  betas, stated = _of_scheduler(file) if config else (_of_buffers(file), None)
  if stated not in (None, target):
    raise CheckpointError(f"{file} predicts {stated!r} by its {CONFIG}, and diffusion.target is {target!r}")
  if betas is None:
    return
  ours = schedule.betas
  # Files may be stored in bfloat16, which is right to 0.4 %; schedules that are another differ by far more.
  if len(betas) != len(ours) or not np.allclose(betas, ours, rtol=1e-2, atol=1e-7):
    of = lambda betas: f"{len(betas)} timesteps with betas from {betas[0]:.4g} to {betas[-1]:.4g}"
    middle = " (another curve between them)" if of(betas) == of(ours) else ""
    raise CheckpointError(
        f"{file} was trained for {of(betas)}, and diffusion.schedule, num_timesteps, beta_start and beta_end give"
        f" {of(ours)}{middle}; latent diffusion's 'linear' is 'scaled_linear' here"
    )


def _of_buffers(file):
  """Latent diffusion's betas, or None."""
  tensors = read(file, {"betas"})
  betas = as_arrays(tensors, file).get("betas")
  return betas if betas is not None and betas.ndim == 1 and len(betas) else None


def _of_scheduler(file):
  """(betas or None, our name of the target or None) of a diffusers pipeline, or of a network beside its scheduler."""
  for path in (file.parent.parent / "scheduler" / CONFIG, file.parent / CONFIG):
    if path.is_file():
      break
  else:
    return None, None
  try:
    fields = json.loads(path.read_text())
    betas, name = fields.get("trained_betas"), SCHEDULES.get(fields.get("beta_schedule", "linear"))
    if betas is None and name:
      ends = float(fields.get("beta_start", 1e-4)), float(fields.get("beta_end", 0.02))
      betas = make_schedule(name, int(fields.get("num_train_timesteps", 1000)), *ends).betas
    betas = None if betas is None else np.asarray(betas, np.float64)
    return betas, TARGETS.get(fields.get("prediction_type", "epsilon"))
  except (OSError, AttributeError, TypeError, ValueError) as error:
    raise CheckpointError(f"{path} cannot be read: {error}") from None
