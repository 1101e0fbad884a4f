"""From a network to a sampler by name, with classifier-free guidance.

A network here is any object with `apply(variables, x, timesteps, labels, gates) -> (prediction, features)`,
`num_classes` and, where it has classes, `null_class`.
"""

import jax
import jax.numpy as jnp

from binarydm_jax.diffusion.dpm_solver import dpm_solver_2m, dpm_solver_2s
from binarydm_jax.diffusion.plms import plms
from binarydm_jax.diffusion.samplers import ddim, ddpm

SAMPLERS = {
  "ddim": ddim,
  "ddpm": ddpm,
  "plms": plms,
  "dpm_solver++_2m": dpm_solver_2m,
  "dpm_solver++_2s": dpm_solver_2s,
}


def guided(model, guidance):
  """A function (variables, x, timesteps, labels, gates) -> prediction, with classifier-free guidance.

  prediction = unconditional + guidance (conditional - unconditional) (Ho & Salimans 2022, with their 1 + w); at 1 the
  network runs on the labels alone, else on a batch twice as large.

  Raises:
    ValueError: guidance without a null class.
  """
  if guidance != 1 and not (model.num_classes and model.null_class):
    raise ValueError(f"sample.guidance is {guidance}, and the network has no null class; set it to 1")

  def predict(variables, x, timesteps, labels, gates):
    if not model.num_classes:
      return model.apply(variables, x, timesteps, None, gates)[0]
    if guidance == 1:
      return model.apply(variables, x, timesteps, labels, gates)[0]

    def pairs(a, b):
      # Side by side, so that both stay on the device that holds the sample.
      return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])

    null = jnp.full_like(labels, model.num_classes)
    output = model.apply(variables, pairs(x, x), pairs(timesteps, timesteps), pairs(labels, null), gates)[0]
    conditional, unconditional = output[::2], output[1::2]
    return unconditional + guidance * (conditional - unconditional)

  return predict


def make_sampler(
  model, schedule, target, shape, sampler="ddim", steps=50, eta=0.0, clip=True, spacing="ldm", guidance=1.0,
  dynamic_threshold=0.0,
):
  """A jitted function (variables, keys [n], labels int32 [n], gates) -> float32 [n, *shape].

  Args:
    model: a UNet.
    schedule, target: of the diffusion.
    shape: (h, w, c) of what the model sees.
    sampler: a name of SAMPLERS.
    steps, clip, spacing, dynamic_threshold: see `diffusion.ddim`; for "ddpm" 0 steps are all.
    eta: of "ddim"; the others have none.
    guidance: see `guided`.
  """
  if sampler not in SAMPLERS:
    raise ValueError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")
  predict = guided(model, guidance)
  options = dict(steps=steps or None, clip=clip, spacing=spacing, dynamic_threshold=dynamic_threshold)
  if sampler == "ddim":
    options["eta"] = eta

  def sample(variables, keys, labels, gates):
    def denoise(x, timesteps):
      return predict(variables, x, timesteps, labels, gates)

    return SAMPLERS[sampler](denoise, keys, shape, schedule, target, **options)

  return jax.jit(sample)
