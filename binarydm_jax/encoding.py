"""--mode=encode: the latents of the training images, once, on disk."""

import concurrent.futures
import contextlib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from binarydm_jax import preemption, run_lock
from binarydm_jax.data import LatentWriter, open_latents
from binarydm_jax.mesh import wait_for_all
from binarydm_jax.training import feed


def encode(problem, workdir):
  """Writes the latents of the training images to first_stage.cache; continues where it stopped."""
  fields = problem.config.first_stage
  if problem.first_stage is None:
    raise ValueError("first_stage.kind is 'none': there is nothing to encode")
  if not fields.cache:
    raise ValueError("first_stage.cache is empty: give the folder that the latents are to be written to")
  cache = Path(fields.cache).expanduser()
  # Runs of other workdirs may write there, too.
  own = cache.resolve() == Path(workdir).resolve()
  with contextlib.nullcontext() if own else run_lock.hold(cache, "first_stage.cache"):
    _encode(problem, workdir)


def read_ahead(data, examples, batch_size, pool):
  """Batches of (example, whether another took its place); the next is read while one is used."""
  batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
  following = []
  for numbers in [*batches, ()]:
    current, following = following, [pool.submit(data.read_or_replace, i) for i in numbers]
    if current:
      yield [example.result() for example in current]


def _encode(problem, workdir):
  fields, data = problem.config.first_stage, problem.train_data
  first_stage = feed.get_first_stage(problem, workdir, stored=False)
  h, w, _ = problem.input_shape
  mirrored = problem.config.data.flip
  writer = LatentWriter(
      fields.cache,
      shape=(h, w, problem.first_stage.moment_channels),
      num_examples=len(data),
      num_classes=data.num_classes,
      mirrored=mirrored,
      about=feed.cache_description(problem, first_stage.sha256),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
  )
  remaining = writer.remaining()
  total, replaced = sum(map(len, remaining)), 0
  pool = concurrent.futures.ThreadPoolExecutor(max(1, problem.config.data.threads))
  with pool, tqdm(total=total, desc="encode", unit="img", disable=jax.process_index() != 0) as bar:
    for examples in preemption.between(remaining):
      with writer.shard(examples) as add:
        for found in read_ahead(data, examples, fields.batch_size, pool):
          # What is encoded of this file is done again. Several processes may have other numbers of batches each, and
          # are asked between files.
          if jax.process_count() == 1:
            preemption.check()
          rows = [row for row, _ in found]
          replaced += sum(other for _, other in found)
          images = np.stack([row["image"] for row in rows])
          moments = first_stage.moments(images, fields.batch_size)
          mirror = first_stage.moments(images[:, :, ::-1], fields.batch_size) if mirrored else None
          add(moments, np.stack([row["label"] for row in rows]), mirror)
          bar.update(len(rows))
  wait_for_all("latents")
  writer.finish()  # by the first process
  wait_for_all("latents' descriptor")
  replaced = int(multihost_utils.process_allgather(np.int32(replaced)).sum())
  others = f", {replaced} of them now written in place of one that could not be read" if replaced else ""
  if jax.process_index() == 0:
    print(f"{fields.cache}: latents of {len(open_latents(fields.cache))} images{others}", flush=True)
