"""What training reads: batches as they are stored, and as the network takes them; the run's streams of randomness."""

import itertools

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


class Stream:
  """Global batches on the mesh, without end; `next` waits for the data, and for nothing else."""

  def __init__(self, local, place):
    """`place` is what is done with each of the `local` batches of this process."""
    self._local = local
    self._place = place

  def __iter__(self):
    return self

  def __next__(self):
    return self._place(next(self._local))

  @property
  def skipped(self):
    """How many examples of this process's batches, so far, stand in for one that could not be read."""
    return self._local.skipped

  def close(self):
    """Ends the threads and worker processes that read."""
    self._local.close()


def stored_batches(problem, stage, mesh, start_step, latents_of="", workers=0):
  """Stream of the batches of `stage` from `start_step` on as they are stored.

  Args:
    latents_of: SHA-256 of the first stage whose moments are read from first_stage.cache, if there is one; else images.
    workers: processes that read.
  Raises:
    DataError: the cache does not hold the latents of this run.
  """
  config = problem.config
  sharding.check_batch(f"{stage}.batch_size", config[stage].batch_size, mesh)
  source, cache = problem.train_data, config.first_stage.cache
  if latents_of and cache:
    source = open_latents(cache, cache_description(problem, latents_of), config.data.skip_unreadable)
  local = batches(
      source,
      batch_size=config[stage].batch_size,
      seed=config.seed,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      flip=config.data.flip,
      threads=config.data.threads,
      workers=workers,
      prefetch=config.data.prefetch,
  )
  return Stream(local, lambda batch: sharding.put_batch(batch, mesh))


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
  """Stream of the batches of `stage` from `start_step` on as the network takes them: {"image", "label"}."""
  first_stage, workers = get_first_stage(problem, workdir), problem.config.data.workers
  if first_stage is None:
    return stored_batches(problem, stage, mesh, start_step, workers=workers)
  stored = stored_batches(problem, stage, mesh, start_step, first_stage.sha256, workers)
  encode = jax.jit(first_stage.encode_batch)
  variables = put_replicated(first_stage.variables, mesh)
  key, steps = run_key(problem, LATENTS), itertools.count(start_step)
  # The posterior is drawn anew at every step.
  return Stream(stored, lambda batch: encode(variables, batch, jax.random.fold_in(key, next(steps))))


def cache_description(problem, first_stage_sha256):
  """What latents on disk must have been made from, to be this run's."""
  data = problem.config.data
  names = ("source", "image_size", "channels", "train_split", "test_split", "holdout", "data_dir")
  about = {name: data[name] for name in names}
  images = dict(num_images=len(problem.train_data), num_classes=problem.train_data.num_classes)
  return {**about, **images, "first_stage": problem.config.first_stage.kind, "first_stage_sha256": first_stage_sha256}
