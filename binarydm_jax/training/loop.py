"""The training loop, through which every stage runs: checkpoints, logs, diagnostics, sample grids."""

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from binarydm_jax.diffusion import make_sampler
from binarydm_jax.evaluation.sampling import generate, sampling_options, to_uint8
from binarydm_jax.plots import image_grid, save_png
from binarydm_jax.training import diagnostics
from binarydm_jax.training.checkpoint import Checkpoints
from binarydm_jax.training.feed import get_first_stage, network_batches
from binarydm_jax.training.writers import Writer, append_line, truncate_lines


class TrainingError(RuntimeError):
  """Training cannot go on; the message says why and what to do."""


def _sample_grids(problem, stage, model, writer, workdir):
  """(state, step) -> None: every log.samples_every steps writes samples/<stage>_<step>.png by the averaged weights."""
  config = problem.config
  if not config.log.samples_every:
    return lambda state, step: None
  sampler = make_sampler(
      model, problem.schedule, config.diffusion.target, problem.input_shape, **sampling_options(config.sample)
  )
  gates_fn = problem.gates_fn if stage == "student" else None

  def write(state, step):
    if step % config.log.samples_every:
      return
    gates = gates_fn(jnp.int32(step)) if gates_fn else None
    images = generate(sampler, state.ema, config.log.samples, 0, config.sample.batch_size, model.num_classes, gates)
    if first_stage := get_first_stage(problem, workdir):
      images = first_stage.decode(images, config.first_stage.batch_size)
    grid = image_grid(np.asarray(to_uint8(images)))
    if jax.process_index() == 0:
      save_png(Path(workdir) / "samples" / f"{stage}_{step:07d}.png", grid)
      writer.image(step, np.asarray(grid))

  return write


def _diagnostics(problem, stage, workdir, state, start):
  """(state, step) -> None: appends a row about the student to diagnostics.jsonl (see training/diagnostics.py).

  Args:
    state: of step `start`, new or restored; the row of step 0 is written here.
  """
  if stage != "student" or not problem.config.log.diagnostics:
    return lambda state, step: None
  table, path = problem.table, Path(workdir) / "diagnostics.jsonl"
  sizes = {layer.path: layer.size for layer in problem.layers}
  parts = diagnostics.part_names(table, problem.student.block_names)
  signs, last = jax.jit(functools.partial(diagnostics.student_signs, table=table))(state.variables), start

  @jax.jit
  def measure(signs, variables, step):
    gates = problem.gates_fn(step) if problem.gates_fn else None
    return diagnostics.measure(signs, variables, gates, table)

  def write(state, step):
    nonlocal signs, last
    signs, numbers = measure(signs, state.variables, jnp.int32(step))
    row = diagnostics.make_row(jax.device_get(numbers), step - last, sizes, table, parts)
    last = step
    if jax.process_index() == 0:
      append_line(path, {"stage": stage, "step": step, **row})

  if jax.process_index() == 0:
    truncate_lines(path, stage, start or -1)
  if not start:
    write(state, 0)
  return write


def run_stage(problem, stage, workdir, model, train_step, state, frozen, mesh):
  """Trains `stage` from its newest checkpoint, or from `state`, to its last step.

  Args:
    problem: Problem.
    stage: "teacher" or "student".
    workdir: checkpoints go to workdir/<stage>.
    model: for sample grids.
    train_step: from `make_train_step`.
    state: the state to start from, on the mesh; only its shapes matter where a checkpoint is to be restored.
    frozen: what is not trained; its "projections" are kept in the checkpoint.
    mesh: of devices.
  Returns:
    The state after the last step.
  Raises:
    TrainingError: the loss or a gradient was not finite; checkpoints from before are kept.
  """
  config, steps = problem.config, problem.config[stage].steps
  checkpoints = Checkpoints(Path(workdir) / stage, config.checkpoint.keep)
  projections = frozen.get("projections", ())
  start = checkpoints.latest_step() or 0
  if start:
    restored = checkpoints.restore({"state": state, "projections": projections})
    state, projections = restored["state"], restored["projections"]
    frozen = {**frozen, "projections": projections}
  writer = Writer(workdir, stage, start)
  write_grid = _sample_grids(problem, stage, model, writer, workdir)
  write_diagnostics = _diagnostics(problem, stage, workdir, state, start)
  stream = network_batches(problem, stage, mesh, start, workdir)
  bar = tqdm(total=steps, initial=start, desc=stage, unit="step", disable=jax.process_index() != 0, mininterval=1.0)
  pending, since = [], time.perf_counter()
  try:
    for step in range(start + 1, steps + 1):
      state, metrics = train_step(state, frozen, next(stream))
      pending.append(metrics)
      bar.update()
      if step % config.log.every and step != steps:
        continue
      # The only place where the host waits for the device.
      rows = jax.device_get(pending)
      ok = bool(state.ok)
      seconds, images = time.perf_counter() - since, len(rows) * config[stage].batch_size
      scalars = {name: float(np.mean([row[name] for row in rows], dtype=np.float64)) for name in rows[0]}
      scalars["learning_rate"] = float(rows[-1]["learning_rate"])
      if not ok:
        raise TrainingError(
            f"{stage}: the loss or a gradient is not finite at step {int(state.step) + 1}; the checkpoint of step"
            f" {checkpoints.latest_step() or 'none'} is kept. Begin another --workdir with a lower"
            f" {stage}.learning_rate"
        )
      writer.write(step, {**scalars, "images_per_second": images / seconds})
      bar.set_postfix(loss=f"{scalars['loss']:.4f}")
      if step % config.checkpoint.every == 0 or step == steps:
        # Before the checkpoint: whoever resumes from it finds this row.
        write_diagnostics(state, step)
        checkpoints.save(step, {"state": state, "projections": projections})
      write_grid(state, step)
      pending, since = [], time.perf_counter()
  finally:
    bar.close()
    writer.close()
    checkpoints.close()
  return state
