"""The frozen first stage of latent diffusion, ready to use: images -> latents for training, and back after it."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.importers import load_autoencoder, load_scale_factor
from binarydm_jax.mesh import make_mesh, over_batch, put_replicated
from binarydm_jax.models import Autoencoder, posterior_sample
from binarydm_jax.workdir import digest, is_run, lock_inputs, read_config, read_inputs


@dataclasses.dataclass(frozen=True)
class FirstStage:
  """An Autoencoder with its weights; latents are its own times `scale_factor`.

  Attributes:
    model: Autoencoder.
    variables: {"params"}, float32, on every device.
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
      moments = _apply(self.model, variables, batch["image"], "encode")
    return {"image": self.latents(moments, key), "label": batch["label"]}

  def moments(self, images, batch_size):
    """Images uint8 [n, h, w, c] -> moments float32 [n, h', w', c'], in batches of one compiled shape."""
    return _in_batches(_encode, self, np.asarray(images), batch_size)

  def decode(self, latents, batch_size):
    """Latents float32 [n, h, w, c] -> images float32 [n, h', w', c'], about [-1, 1]."""
    return _in_batches(_decode, self, np.asarray(latents) / np.float32(self.scale_factor), batch_size)

  def describe(self):
    """What a packed file says of it, as JSON: the Autoencoder's fields, scale factor and SHA-256."""
    fields = {f.name: getattr(self.model, f.name) for f in dataclasses.fields(self.model)}
    fields = {name: value for name, value in fields.items() if name not in ("name", "parent")}
    return {**fields, "scale_factor": self.scale_factor, "sha256": self.sha256}


def _apply(model, variables, x, method):
  # Accelerators would multiply in less than float32, and what the first stage loses is lost for both networks.
  with jax.default_matmul_precision("float32"):
    return model.apply(variables, x, method=method)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, images):
  return _apply(model, variables, images.astype(jnp.float32) / 127.5 - 1, "encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, latents):
  return _apply(model, variables, latents, "decode")


def _in_batches(function, stage, inputs, batch_size):
  """function(model, variables, part) over parts of equal size; the last is filled up and cut.

  A part is split over the devices where their number divides it; several processes use one device each.
  """
  variables, sharding = stage.variables, over_batch(make_mesh())
  if jax.process_count() > 1 or batch_size % jax.device_count():
    variables, sharding = jax.tree.map(lambda v: v.addressable_data(0), variables), None
  parts = []
  for first in range(0, len(inputs), batch_size):
    part = inputs[first : first + batch_size]
    filled = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * 3)
    parts.append(np.asarray(function(stage.model, variables, jax.device_put(filled, sharding)))[: len(part)])
  return np.concatenate(parts)


@functools.lru_cache(maxsize=1)
def _load(path, model, changed):
  """(variables on every device, the checkpoint's scale factor or None, SHA-256 of the weights)."""
  del changed  # a file that is another one by now
  params, factor = load_autoencoder(path, model)
  return {"params": put_replicated(params, make_mesh())}, factor, digest(params)


def checkpoint_of(config):
  """The file of the first stage's weights: the config's own, or that of the teacher, or of the teacher's run.

  Raises:
    ValueError: the config names none, or it does not exist.
  """
  path, teacher = config.first_stage.checkpoint, config.teacher.checkpoint
  field = "first_stage.checkpoint" if path else "teacher.checkpoint"
  if not path and teacher and is_run(teacher):
    theirs = read_config(teacher)
    path = theirs.get("first_stage", {}).get("checkpoint") or theirs["teacher"]["checkpoint"]
    field = f"the first stage of {teacher}"
  path = path or teacher
  if not path:
    raise ValueError("first_stage.checkpoint is empty: give the first stage's file, or that of the whole model")
  if not Path(path).expanduser().exists():
    raise ValueError(f"{field} {path!r} does not exist: give first_stage.checkpoint, or the file of the whole model")
  return path


def open_first_stage(config, model, workdir, first_batch, known=None):
  """The FirstStage of a run.

  The scale factor is, in this order: that of the config; of the teacher; of the first stage's file; for "vq" 1, for
  "kl" 1 / standard deviation of the first batch's latents (both are latent diffusion's rules).

  Args:
    config: ConfigDict.
    model: its Autoencoder.
    workdir: what a run found is kept there.
    first_batch: (sha256) -> the first training batch, asked for only where the scale factor is to come from it.
    known: {"scale_factor", "sha256"} of a packed file, to which the weights must belong.
  Raises:
    ValueError: no checkpoint, one that does not fit, or other weights or another factor than before.
  """
  path = checkpoint_of(config)
  file = Path(path).expanduser()
  variables, factor, sha256 = _load(path, model, file.stat().st_mtime)
  if known:
    if known["sha256"] != sha256:
      raise ValueError(f"{path} is not the first stage that the packed model was trained with (SHA-256 of the weights)")
    return FirstStage(model, variables, known["scale_factor"], sha256)
  factor = _teachers_factor(config, path, sha256) or factor
  given = config.first_stage.scale_factor
  if given and factor and abs(given - factor) > 1e-6 * factor:
    raise ValueError(f"first_stage.scale_factor is {given}, and the checkpoint has {factor}: set it to 0")
  factor = given or factor or read_inputs(workdir).get("scale_factor") or (1.0 if model.kind == "vq" else None)
  lock_inputs(workdir, first_stage_sha256=sha256)
  if not factor:
    unit = FirstStage(model, variables, 1.0, sha256)
    latents = jax.jit(unit.encode_batch)(variables, first_batch(sha256), jax.random.key(config.seed))["image"]
    factor = float(1 / jnp.std(latents, ddof=1))
  lock_inputs(workdir, scale_factor=factor)
  return FirstStage(model, variables, float(factor), sha256)


def _teachers_factor(config, path, sha256):
  """The factor with which the teacher's latents were scaled, or None where it does not say."""
  teacher = config.teacher.checkpoint
  if not teacher or teacher == path:
    return None
  if not is_run(teacher):
    return load_scale_factor(teacher)
  theirs = read_inputs(teacher)
  if theirs.get("first_stage_sha256", sha256) != sha256:
    raise ValueError(f"teacher.checkpoint {teacher!r} was trained with another first stage than {path!r}")
  return theirs.get("scale_factor")
