"""Images from a network: one compiled program for all steps, run in batches of one shape split over the devices."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion import sample_keys
from binarydm_jax.mesh import copy_to, make_mesh, over_batch

OPTIONS = ("sampler", "steps", "eta", "clip", "dynamic_threshold", "spacing", "guidance")


def sampling_options(fields):
  """The arguments of `make_sampler` that `config.sample` has: with the seed, the protocol of a set of samples."""
  return {name: fields[name] for name in OPTIONS}


def to_uint8(images):
  """Float [-1, 1] -> uint8: clipped, (x + 1) 127.5 rounded."""
  return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


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
  variables, gates = (copy_to(tree, mesh) for tree in (variables, gates))

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
