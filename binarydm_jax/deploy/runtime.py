"""A packed file as a model that runs: `load(path)`, `model(x, t)`, `model.sample(key, n)`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from binarydm_jax.deploy import backends, packed
from binarydm_jax.diffusion import Schedule, make_sampler, sample_keys
from binarydm_jax.models import UNet


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A network loaded from a packed file.

  Attributes:
    model: UNet whose rule table says how each layer runs; `model.apply(variables, x, t, labels)`.
    variables: what it is applied to. Collections "params" and "quant" as in training; "packed" holds the layers with
      quantized weights, as bits (none with the back end "float").
    schedule, target: of the diffusion.
    input_shape: (h, w, c) of images, or of latents.
    first_stage: None, or the fields of the Autoencoder that the latents belong to, and their "scale_factor" and the
      "sha256" of its weights.
    backend: "xla", "cpu" or "float".
    description: the file's JSON.
  """

  model: UNet
  variables: dict
  schedule: Schedule
  target: str
  input_shape: tuple
  first_stage: dict | None
  backend: str
  description: dict

  @functools.cached_property
  def _predict(self):
    return jax.jit(lambda variables, x, t, labels: self.model.apply(variables, x, t, labels)[0])

  @functools.cached_property
  def _samplers(self):
    return {}

  def __call__(self, x, t, labels=None):
    """The network's prediction of `target`.

    Args:
      x: [batch, h, w, c], taken as float32.
      t: integer [batch], or one number for all.
      labels: int [batch] of a class-conditional model.
    Returns:
      float32 [batch, h, w, c].
    """
    x = jnp.asarray(x, jnp.float32)
    t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
    return self._predict(self.variables, x, t, None if labels is None else jnp.asarray(labels))

  def sample(self, key, n, sampler="ddim", steps=50, labels=None, clip=None, **options):
    """n samples, in one compiled program for all steps; sample i depends on (key, i) alone.

    Args:
      key: from `jax.random.key`.
      n: how many, all at once.
      sampler: "ddim", "ddpm", "plms", "dpm_solver++_2m" or "dpm_solver++_2s".
      steps: runs of the network (plms: one more); for "ddpm" 0 takes all timesteps.
      labels: int [n] of a class-conditional model; None: i % num_classes.
      clip: of the predicted x0 to [-1, 1]; None: for images, not for latents.
      **options: eta, spacing, guidance, dynamic_threshold of `diffusion.make_sampler`.
    Returns:
      float32 [n, h, w, c]: images, about [-1, 1], or latents (their first stage is not in the file).
    Raises:
      ValueError: a sampler, steps or options that there are not.
    """
    clip = self.first_stage is None if clip is None else clip
    arguments = tuple(sorted({**options, "sampler": sampler, "steps": steps, "clip": clip}.items()))
    if arguments not in self._samplers:
      self._samplers[arguments] = make_sampler(
          self.model, self.schedule, self.target, self.input_shape, **dict(arguments)
      )
    if labels is None:
      labels = jnp.arange(n) % max(self.model.num_classes, 1)
    return self._samplers[arguments](self.variables, sample_keys(key, 0, n), jnp.asarray(labels), None)

  @property
  def nbytes(self):
    """Bytes of all arrays that the model holds."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.variables))


def load(path, backend="auto"):
  """The Model of a packed file; nothing in the file is executed.

  Args:
    path: of the file.
    backend: "xla": integers in plain XLA, on any device; "cpu": the native kernel; "auto": that one where it has a
      path for the processor (the portable one is slower than XLA), else XLA, and one line says so; "float": kernels
      dequantized to float32 at once, which is also what "auto" takes, with one line, for activations and responses of
      other methods than BinaryDM's (`LayerRule.plain`).
  Raises:
    PackedError: see `packed.read`.
    ValueError: an unknown back end, "cpu" where there is none, or one that does not compute the file's rules.
  """
  file = packed.read(path)
  name, table, variables = backends.prepare(file, backend)
  said = file.description
  return Model(
      said.model.clone(rules=table), jax.tree.map(jnp.asarray, variables), said.schedule, said.target,
      said.input_shape, said.first_stage, name, said.json,
  )
