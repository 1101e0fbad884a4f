"""Networks ready to be sampled: the trained teacher and student, and the student as it is shipped."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from binarydm_jax import __version__, plots, preemption
from binarydm_jax.deploy import load
from binarydm_jax.diffusion import make_sampler
from binarydm_jax.evaluation.sample_files import SampleWriter, open_samples
from binarydm_jax.evaluation.sampling import make_draw, sampling_options, to_uint8
from binarydm_jax.first_stage import open_first_stage
from binarydm_jax.importers import check_diffusion, load_unet
from binarydm_jax.mesh import make_mesh, put_replicated, wait_for_all
from binarydm_jax.models import Autoencoder
from binarydm_jax.training import feed, stages
from binarydm_jax.training.problem import compute_dtype
from binarydm_jax.training.validation import check_clipping
from binarydm_jax.workdir import digest, is_run, lock_inputs, read_config


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

  def make_draw(self, fields, batch_size, decode_batch):
    """A function (first, count) -> images number first .. first + count - 1, float32 [count, h, w, c].

    Args:
      fields: `config.sample`.
      batch_size: samples that are drawn at once.
      decode_batch: those that the first stage decodes at once.
    """
    sampler = make_sampler(self.model, self.schedule, self.target, self.input_shape, **sampling_options(fields))
    draw = make_draw(sampler, self.variables, batch_size, fields.seed, self.model.num_classes, self.gates, ahead=True)
    if self.first_stage is None:
      return draw
    self.first_stage.decode(np.zeros((1, *self.input_shape), np.float32), decode_batch)  # compiles
    return lambda first, count: self.first_stage.decode(draw(first, count), decode_batch)

  def protocol(self, fields):
    """All that samples by `config.sample` depend on, for JSON; the network is known by a SHA-256."""
    described = {f.name: getattr(self.model, f.name) for f in dataclasses.fields(self.model) if f.name != "parent"}
    values = digest((self.variables, self.gates, self.schedule.betas))
    network_sha256 = hashlib.sha256((json.dumps(described, default=str, sort_keys=True) + values).encode()).hexdigest()
    first_stage = self.first_stage and dict(sha256=self.first_stage.sha256, scale_factor=self.first_stage.scale_factor)
    return dict(
        network_sha256=network_sha256, target=self.target, input_shape=self.input_shape, first_stage=first_stage,
        **sampling_options(fields), seed=fields.seed, binarydm_jax=__version__,
    )


def stream_samples(network, workdir, name, fields, count, decode_batch):
  """Draws samples/<name>.npz batch by batch, and samples/<name>.png of the first 64; goes on where it stopped.

  With several processes each draws its share of the batches on its own devices, and the first joins them.

  Args:
    network: Network.
    workdir: folder.
    name: of the files.
    fields: `config.sample`.
    count: of images.
    decode_batch: see `Network.make_draw`.
  Returns:
    (uint8 [count, h, w, c] mapped from the file, images a second of one process, without compilation).
  """
  folder = Path(workdir) / "samples"
  writer = SampleWriter(folder, name, network.protocol(fields), count, jax.process_index(), jax.process_count())
  wait_for_all("samples: protocol")
  batch_size = min(fields.batch_size, count)
  remaining = writer.remaining(batch_size)
  wait_for_all("samples: remaining")
  draw = network.make_draw(fields, batch_size, decode_batch) if remaining else None
  own = sum(size for _, size in remaining)
  alone = jax.process_count() == 1
  with tqdm(total=count if alone else own, initial=count - own if alone else 0, desc=f"samples of {network.name}",
            unit="img", disable=jax.process_index() != 0 or not remaining) as bar:
    for first, size in preemption.between(remaining):
      start = time.perf_counter()
      images = np.asarray(to_uint8(draw(first, size)))
      writer.add(first, images, time.perf_counter() - start)
      bar.update(size)
  wait_for_all("samples: parts")
  classes = network.model.num_classes
  writer.finish(np.arange(count) % classes if classes else None)
  wait_for_all("samples: finished")
  images = open_samples(writer.path)
  if jax.process_index() == 0:
    plots.save_png(folder / f"{name}.png", plots.image_grid(images[:64]))
  return images, writer.images_per_second


def trained_network(problem, workdir, name):
  """The "teacher" or the "student" from its checkpoints; `compute.remat` is for gradients."""
  if name == "teacher":
    parts = problem.teacher.clone(remat="none"), teacher_variables(problem, workdir), None
  else:
    variables = stages.student_variables(problem, stages.newest_state(problem, "student", workdir)[1])
    parts = problem.student.clone(remat="none"), variables, problem.final_gates()
  first_stage = feed.get_first_stage(problem, workdir)
  return Network(name, *parts, problem.schedule, problem.config.diffusion.target, problem.input_shape, first_stage)


def packed_network(path, config, workdir, backend="float"):
  """The student as it is shipped; the first stage of a latent model comes from the config's checkpoint.

  Args:
    backend: see `deploy.load`. "float" computes what the trained student computes, up to the rounding of sums; the
      integer ones differ from it where that rounding decides between two codes of an activation.
  """
  file = load(path, backend)
  first_stage = None
  if file.first_stage:
    check_clipping(config.sample)
    fields = dict(file.first_stage)
    known = {name: fields.pop(name) for name in ("scale_factor", "sha256")}
    first_stage = open_first_stage(config, Autoencoder(**fields), workdir, None, known)
  # The teacher beside it computes in the same type.
  model = file.model.clone(dtype=compute_dtype(config.compute))
  return Network("packed", model, file.variables, None, file.schedule, file.target, file.input_shape, first_stage)


def teacher_variables(problem, workdir):
  """{"params"} of the teacher: this workdir's, or from config.teacher.checkpoint, a run or a published file.

  Raises:
    ValueError: it does not fit the network, or is another one than the run was begun with.
  """
  external = problem.config.teacher.checkpoint
  if not external:
    variables = stages.restore_ema(problem, "teacher", workdir)
  elif is_run(external):
    steps = read_config(external)["teacher"]["steps"]
    variables = stages.restore_ema(problem, "teacher", Path(external).expanduser(), steps)
  else:
    check_diffusion(external, problem.schedule, problem.config.diffusion.target)
    variables = {"params": put_replicated(load_unet(external, problem.teacher), make_mesh())}
  # Once given it is not trained here: `check_own_teacher`.
  lock_inputs(workdir, teacher_sha256=digest(variables["params"]), **({"teacher_given": True} if external else {}))
  return variables
