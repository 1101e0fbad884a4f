"""What training reads: batches as they are stored, and as the network takes them; the run's streams of randomness."""

import jax

from binarydm_jax.data import batches, open_latents
from binarydm_jax.first_stage import open_first_stage
from binarydm_jax.mesh import make_mesh, put_replicated
from binarydm_jax.training import sharding

# Each is folded into the run's seed.
INIT, TEACHER, CALIBRATION, PROJECTION, STUDENT, LATENTS = range(6)


def run_key(problem, stream):
  """The key of one stream of a run's randomness."""
  return jax.random.fold_in(jax.random.key(problem.config.seed), stream)


def stored_batches(problem, stage, mesh, start_step, latents_of=""):
  """Global batches of `stage` from `start_step` on as they are stored, on the mesh.

  Args:
    latents_of: SHA-256 of the first stage whose moments are read from first_stage.cache, if there is one; else images.
  Raises:
    DataError: the cache does not hold the latents of this run.
  """
  config = problem.config
  sharding.check_batch(f"{stage}.batch_size", config[stage].batch_size, mesh)
  source, cache = problem.train_data, config.first_stage.cache
  if latents_of and cache:
    source = open_latents(cache, cache_description(problem, latents_of))
  local = batches(
      source,
      batch_size=config[stage].batch_size,
      seed=config.seed,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      flip=config.data.flip,
  )
  return (sharding.put_batch(batch, mesh) for batch in local)


def get_first_stage(problem, workdir, stored=True):
  """The run's FirstStage, or None for diffusion on pixels.

  Args:
    stored: whether the first batch, where the scale factor is to come from it, may be read from first_stage.cache.
  """
  if problem.first_stage is None:
    return None

  def first_batch(sha256):
    if problem.train_data is None:
      raise ValueError(
          "first_stage.scale_factor is 0, and only training finds it: run --mode=binarize first, or give a number"
      )
    return next(stored_batches(problem, "student", make_mesh(), 0, sha256 if stored else ""))

  return open_first_stage(problem.config, problem.first_stage, workdir, first_batch)


def network_batches(problem, stage, mesh, start_step, workdir=None):
  """Global batches of `stage` from `start_step` on as the network takes them: {"image", "label"}, on the mesh."""
  first_stage = get_first_stage(problem, workdir)
  if first_stage is None:
    return stored_batches(problem, stage, mesh, start_step)
  stored = stored_batches(problem, stage, mesh, start_step, first_stage.sha256)
  encode = jax.jit(first_stage.encode_batch)
  variables = put_replicated(first_stage.variables, mesh)
  key = run_key(problem, LATENTS)
  # The posterior is drawn anew at every step.
  return (
      encode(variables, batch, jax.random.fold_in(key, step)) for step, batch in enumerate(stored, start_step)
  )


def cache_description(problem, first_stage_sha256):
  """What latents on disk must have been made from, to be this run's."""
  data = problem.config.data
  names = ("source", "image_size", "channels", "train_split", "test_split", "holdout", "data_dir")
  about = {name: data[name] for name in names}
  images = dict(num_images=len(problem.train_data), num_classes=problem.train_data.num_classes)
  return {**about, **images, "first_stage": problem.config.first_stage.kind, "first_stage_sha256": first_stage_sha256}
