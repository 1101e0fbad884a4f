"""Networks ready to be sampled: the trained teacher and student, and the student as it is shipped."""

import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from binarydm_jax import plots
from binarydm_jax.deploy import packed
from binarydm_jax.evaluation.sampling import generate, make_sampler
from binarydm_jax.files import write_atomically
from binarydm_jax.first_stage import open_first_stage
from binarydm_jax.importers import load_unet
from binarydm_jax.models import Autoencoder
from binarydm_jax.training import feed, sharding, stages
from binarydm_jax.workdir import is_run, read_config


@dataclasses.dataclass(frozen=True)
class Network:
  """A network ready to be sampled: what `--mode=sample` and the evaluation work on.

  `first_stage` decodes what it draws to images; None for diffusion on pixels.
  """

  name: str
  model: Any
  variables: dict
  gates: Any
  schedule: Any
  target: str
  input_shape: tuple
  first_stage: Any = None

  def draw(self, fields, count, seed, decode_batch=8):
    """(float images [count, h, w, c], images a second without the compilation) by `config.sample`."""
    sampler = make_sampler(
        self.model, self.schedule, self.target, self.input_shape, fields.sampler, fields.steps, fields.eta, fields.clip,
        fields.spacing, fields.guidance,
    )
    batch = min(fields.batch_size, count)
    with tqdm(total=count, desc=f"samples of {self.name}", unit="img", disable=jax.process_index() != 0) as bar:
      def run(count, progress=None):
        images = generate(sampler, self.variables, count, seed, batch, self.model.num_classes, self.gates, progress)
        return self.first_stage.decode(images, decode_batch) if self.first_stage else images

      run(batch)  # compiles
      start = time.perf_counter()
      return run(count, bar.update), count / (time.perf_counter() - start)


def trained_network(problem, workdir, name):
  """The "teacher" or the "student" from its checkpoints."""
  if name == "teacher":
    parts = problem.teacher, teacher_variables(problem, workdir), None
  else:
    parts = problem.student, stages.restore_ema(problem, "student", workdir), problem.final_gates()
  first_stage = feed.get_first_stage(problem, workdir)
  return Network(name, *parts, problem.schedule, problem.config.diffusion.target, problem.input_shape, first_stage)


def packed_network(path, config, workdir):
  """The student as it is shipped; the first stage of a latent model comes from the config's checkpoint."""
  file = packed.load(path)
  first_stage = None
  if file.first_stage:
    fields = dict(file.first_stage)
    factor = fields.pop("scale_factor")
    first_stage = open_first_stage(config, Autoencoder(**fields), workdir, None, factor)
  return Network("packed", file.model, file.variables, None, file.schedule, file.target, file.input_shape, first_stage)


def teacher_variables(problem, workdir):
  """{"params"} of the teacher: this workdir's, or from config.teacher.checkpoint, a run or a published file."""
  external = problem.config.teacher.checkpoint
  if not external:
    return stages.restore_ema(problem, "teacher", workdir)
  if not is_run(external):
    return {"params": sharding.put_replicated(load_unet(external, problem.teacher), sharding.make_mesh())}
  steps = read_config(external)["teacher"]["steps"]
  return stages.restore_ema(problem, "teacher", external, steps)


def save_samples(workdir, name, images, most=64):
  """samples/<name>.npz of all and samples/<name>.png of the first `most`."""
  if jax.process_index():
    return
  folder = Path(workdir) / "samples"
  buffer = io.BytesIO()
  np.savez(buffer, arr_0=images)
  write_atomically(folder / f"{name}.npz", buffer.getvalue())
  plots.save_png(folder / f"{name}.png", plots.image_grid(images[:most]))
