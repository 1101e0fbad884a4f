"""Images from a network: one compiled program for all steps, run in batches of one shape split over the devices."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion import ddim, ddpm, dpm_solver_2m, dpm_solver_2s, plms, sample_keys
from binarydm_jax.mesh import make_mesh, over_batch, put_replicated, replicated

SAMPLERS = {
  "ddim": ddim,
  "ddpm": ddpm,
  "plms": plms,
  "dpm_solver++_2m": dpm_solver_2m,
  "dpm_solver++_2s": dpm_solver_2s,
}
OPTIONS = ("sampler", "steps", "eta", "clip", "dynamic_threshold", "spacing", "guidance")


def sampling_options(fields):
  """The arguments of `make_sampler` that `config.sample` has: with the seed, the protocol of a set of samples."""
  return {name: fields[name] for name in OPTIONS}


def to_uint8(images):
  """Float [-1, 1] -> uint8: clipped, (x + 1) 127.5 rounded."""
  return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


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
  predict = guided(model, guidance)
  options = dict(steps=steps or None, clip=clip, spacing=spacing, dynamic_threshold=dynamic_threshold)
  if sampler == "ddim":
    options["eta"] = eta

  def sample(variables, keys, labels, gates):
    def denoise(x, timesteps):
      return predict(variables, x, timesteps, labels, gates)

    return SAMPLERS[sampler](denoise, keys, shape, schedule, target, **options)

  return jax.jit(sample)


def make_draw(sampler, variables, batch_size, seed, num_classes=0, gates=None, devices=None, ahead=False):
  """A function (first, count) -> samples number first .. first + count - 1 as float32 [count, h, w, c], numpy.

  Sample i depends on (seed, i) alone, whatever the batch and the devices (up to the rounding of sums).

  Args:
    sampler: from `make_sampler`.
    variables, gates: of the model; copied to all devices.
    batch_size: samples that are drawn at once, rounded up to a multiple of the devices; what is not asked for is cut.
    seed: of the run.
    num_classes: labels are i % num_classes: balanced.
    devices: None takes all of this process. Processes share no batch, so that each can draw others.
    ahead: compiles here, for this function alone, so that what is drawn can be timed; else at the first call.
  """
  mesh = make_mesh(jax.local_devices() if devices is None else devices)
  batch_size = -(-batch_size // mesh.size) * mesh.size
  key = jax.random.key(seed)
  variables, gates = (_on_all(tree, mesh) for tree in (variables, gates))

  def inputs(first):
    labels = jnp.arange(first, first + batch_size) % max(num_classes, 1)
    return jax.device_put((sample_keys(key, first, batch_size), labels), over_batch(mesh))

  run = sampler.lower(variables, *inputs(0), gates).compile() if ahead else sampler

  def draw(first, count):
    parts = []
    for start in range(first, first + count, batch_size):
      samples = np.asarray(run(variables, *inputs(start), gates))
      parts.append(samples[: first + count - start])
    return np.concatenate(parts)

  return draw


def generate(sampler, variables, count, seed, batch_size, num_classes=0, gates=None):
  """The first `count` samples as float32 [count, h, w, c], numpy: see `make_draw`."""
  return make_draw(sampler, variables, min(batch_size, count), seed, num_classes, gates)(0, count)


def _on_all(tree, mesh):
  """A tree of arrays -> the same on every device of the mesh, without a copy where they are already."""
  here = all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree))
  return jax.device_put(tree, replicated(mesh)) if here else put_replicated(tree, mesh)
