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
from binarydm_jax.training import loop
from binarydm_jax.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Network:
  """A network ready to be sampled: what `--mode=sample` and the evaluation work on."""

  name: str
  model: Any
  variables: dict
  gates: Any
  schedule: Any
  target: str
  image_shape: tuple

  def draw(self, fields, count, seed):
    """(float images [count, h, w, c], images a second without the compilation) by `config.sample`."""
    sampler = make_sampler(
        self.model, self.schedule, self.target, self.image_shape, fields.sampler, fields.steps, fields.eta, fields.clip,
        fields.spacing,
    )
    batch = min(fields.batch_size, count)
    with tqdm(total=count, desc=f"samples of {self.name}", unit="img", disable=jax.process_index() != 0) as bar:
      def run(count, progress=None):
        return generate(sampler, self.variables, count, seed, batch, self.model.num_classes, self.gates, progress)

      run(batch)  # compiles
      start = time.perf_counter()
      return run(count, bar.update), count / (time.perf_counter() - start)


def trained_network(problem, workdir, name):
  """The "teacher" or the "student" from its checkpoints."""
  if name == "teacher":
    parts = problem.teacher, teacher_variables(problem, workdir), None
  else:
    parts = problem.student, loop.restore_ema(problem, "student", workdir), problem.final_gates()
  return Network(name, *parts, problem.schedule, problem.config.diffusion.target, problem.image_shape)


def packed_network(path):
  """The student as it is shipped."""
  file = packed.load(path)
  return Network("packed", file.model, file.variables, None, file.schedule, file.target, file.image_shape)


def teacher_variables(problem, workdir):
  """{"params"} of the finished teacher: this workdir's, or that of config.teacher.checkpoint."""
  external = problem.config.teacher.checkpoint
  if not external:
    return loop.restore_ema(problem, "teacher", workdir)
  steps = read_config(external)["teacher"]["steps"]
  return loop.restore_ema(problem, "teacher", external, steps)


def save_samples(workdir, name, images, most=64):
  """samples/<name>.npz of all and samples/<name>.png of the first `most`."""
  if jax.process_index():
    return
  folder = Path(workdir) / "samples"
  buffer = io.BytesIO()
  np.savez(buffer, arr_0=images)
  write_atomically(folder / f"{name}.npz", buffer.getvalue())
  plots.save_png(folder / f"{name}.png", plots.image_grid(images[:most]))
