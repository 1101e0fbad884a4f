"""The frozen first stage of latent diffusion, ready to use: images -> latents for training, and back after it."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.files import write_atomically
from binarydm_jax.importers import load_autoencoder
from binarydm_jax.models import Autoencoder, posterior_sample

FILE = "first_stage.json"


@dataclasses.dataclass(frozen=True)
class FirstStage:
  """An Autoencoder with its weights; latents are its own times `scale_factor`.

  Attributes:
    model: Autoencoder.
    variables: {"params"}, float32.
    scale_factor: latents are multiplied by it, so that their standard deviation is about one.
    sha256: of the weights.
  """

  model: Autoencoder
  variables: dict
  scale_factor: float
  sha256: str

  def latents(self, moments, key):
    """Moments [batch, h, w, c] -> latents, drawn from the posterior by `key` (None: its mean)."""
    shape = (*moments.shape[:-1], self.model.latent_channels)
    noise = 0.0 if key is None else jax.random.normal(key, shape)
    return posterior_sample(moments, self.model.kind, noise) * self.scale_factor

  def encode_batch(self, variables, batch, key):
    """{"image" or "moments", "label"} -> {"image": latents, "label"}; to be compiled by the caller."""
    moments = batch.get("moments")
    if moments is None:
      moments = self.model.apply(variables, batch["image"], method="encode")
    return {"image": self.latents(moments, key), "label": batch["label"]}

  def moments(self, images, batch_size):
    """Images uint8 [n, h, w, c] -> moments float32 [n, h', w', c'], in batches of one compiled shape."""
    return _in_batches(_encode, self, np.asarray(images), batch_size)

  def decode(self, latents, batch_size):
    """Latents float32 [n, h, w, c] -> images float32 [n, h', w', c'], about [-1, 1]."""
    return _in_batches(_decode, self, np.asarray(latents) / np.float32(self.scale_factor), batch_size)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, images):
  return model.apply(variables, images.astype(jnp.float32) / 127.5 - 1, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, latents):
  return model.apply(variables, latents, method="decode")


def _in_batches(function, stage, inputs, batch_size):
  """function(model, variables, part) over parts of equal size; the last is filled up and cut."""
  parts = []
  for first in range(0, len(inputs), batch_size):
    part = inputs[first : first + batch_size]
    filled = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * 3)
    parts.append(np.asarray(function(stage.model, stage.variables, filled))[: len(part)])
  return np.concatenate(parts)


@functools.lru_cache(maxsize=1)
def _load(path, model):
  """(variables on the device, the checkpoint's scale factor or None, SHA-256 of the weights)."""
  params, factor = load_autoencoder(path, model)
  digest = hashlib.sha256()
  for name, value in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
    digest.update(name.encode() + value.tobytes())
  return {"params": jax.device_put(params)}, factor, digest.hexdigest()


def checkpoint_of(config):
  """The file of the first stage's weights.

  Raises:
    ValueError: the config names none.
  """
  path = config.first_stage.checkpoint or config.teacher.checkpoint
  if not path:
    raise ValueError("first_stage.checkpoint is empty: give the first stage's file, or that of the whole model")
  return path


def open_first_stage(config, model, workdir, first_batch, scale_factor=None):
  """The FirstStage of a run.

  Args:
    config: ConfigDict.
    model: its Autoencoder.
    workdir: the scale factor that a run found is kept there.
    first_batch: () -> the first training batch, asked for only where the scale factor is to come from it.
    scale_factor: what is already known of it.
  Raises:
    ValueError: no checkpoint, or one that does not fit.
  """
  variables, factor, sha256 = _load(checkpoint_of(config), model)
  path = Path(workdir) / FILE
  given = scale_factor or config.first_stage.scale_factor or factor
  if not given and path.is_file():
    kept = json.loads(path.read_text())
    if kept["sha256"] != sha256:
      raise ValueError(f"{path} belongs to other weights of the first stage: give another --workdir")
    given = kept["scale_factor"]
  if not given:
    # Latent diffusion's rule: latents of the first batch get unit variance.
    unit = FirstStage(model, variables, 1.0, sha256)
    latents = jax.jit(unit.encode_batch)(variables, first_batch(), jax.random.key(config.seed))["image"]
    given = float(1 / jnp.std(latents, ddof=1))
    if jax.process_index() == 0:
      write_atomically(path, (json.dumps(dict(scale_factor=given, sha256=sha256)) + "\n").encode())
  return FirstStage(model, variables, float(given), sha256)
