"""The training loop, through which every stage runs: checkpoints, logs, diagnostics, sample grids, guards, signals."""

import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from binarydm_jax import preemption
from binarydm_jax.compilation import jit_once
from binarydm_jax.diffusion import make_sampler
from binarydm_jax.errors import RunError
from binarydm_jax.evaluation.sampling import generate, sampling_options, to_uint8
from binarydm_jax.mesh import gather, make_mesh, replicated
from binarydm_jax.plots import image_grid, save_png
from binarydm_jax.training import diagnostics
from binarydm_jax.training.feed import get_first_stage, network_batches
from binarydm_jax.training.guards import SESSIONS, Clock, Divergence, logged_losses
from binarydm_jax.training.writers import Writer, append_line, truncate_lines

_PROCESS_BEGAN = time.time()
# Steps in a row without a finite loss or gradient, with which a run ends that skips them.
MOST_SKIPPED = 100


class TrainingError(RunError):
  """Training cannot go on."""


def _sample_grids(problem, stage, model, writer, workdir):
  """(state, step) -> None: every log.samples_every steps writes samples/<stage>_<step>.png by the averaged weights."""
  config = problem.config
  if not config.log.samples_every:
    return lambda state, step: None
  mesh = make_mesh()
  sampler = make_sampler(
      model, problem.schedule, config.diffusion.target, problem.input_shape, **sampling_options(config.sample)
  )
  gates_fn = problem.gates_fn if stage == "student" else None

  def write(state, step):
    if step % config.log.samples_every:
      return
    gates = gates_fn(jnp.int32(step)) if gates_fn else None
    ema = gather(state.ema, mesh)
    images = generate(sampler, ema, config.log.samples, 0, config.sample.batch_size, model.num_classes, gates)
    if first_stage := get_first_stage(problem, workdir):
      images = first_stage.decode(images, config.first_stage.batch_size)
    grid = image_grid(np.asarray(to_uint8(images)))
    if jax.process_index() == 0:
      save_png(Path(workdir) / "samples" / f"{stage}_{step:07d}.png", grid)
      writer.image(step, np.asarray(grid))

  return write


class _Diagnostics:
  """Rows about the student in diagnostics.jsonl, one a checkpoint (see training/diagnostics.py).

  `signs` are those of the last row, of step `last`; both are kept in the checkpoint, so that a run that was stopped
  between two rows goes on to write the same ones.
  """

  def __init__(self, problem, workdir, signs, last, start, mesh):
    """`start`: the step that the run goes on from; rows after it are dropped."""
    self.signs, self.last = signs, last
    self._table, self._path = problem.table, Path(workdir) / "diagnostics.jsonl"
    self._writes = jax.process_index() == 0 and problem.config.log.diagnostics
    self._sizes = {layer.path: layer.size for layer in problem.layers}
    self._parts = diagnostics.part_names(self._table, problem.student.block_names)
    measure = functools.partial(_measure, gates_fn=problem.gates_fn, table=self._table)
    self._measure = jit_once(measure, out_shardings=replicated(mesh))
    self._log = problem.config.log.diagnostics
    if self._writes:
      truncate_lines(self._path, "student", start or -1)

  def write(self, state, step):
    if not self._log:
      return
    self.signs, numbers = self._measure(self.signs, state.variables, jnp.int32(step))
    numbers = jax.device_get(numbers)
    row = diagnostics.make_row(numbers, step - self.last, self._sizes, self._table, self._parts)
    self.last = step
    if self._writes:
      append_line(self._path, {"stage": "student", "step": step, **row})


def _measure(signs, variables, step, gates_fn, table):
  return diagnostics.measure(signs, variables, gates_fn(step) if gates_fn else None, table)


def _summary(rows):
  """Rows of one log line -> the means of their finite values (None where there is none) and the last rate."""
  names = [name for name in rows[0] if name != "learning_rate"]
  scalars = {}
  for name in names:
    values = [row[name] for row in rows if np.isfinite(row[name])]
    scalars[name] = float(np.mean(values, dtype=np.float64)) if values else None
  return {**scalars, "learning_rate": float(rows[-1]["learning_rate"])}


def _longest_skip(rows, before):
  """(the most steps in a row that were skipped, those at the end), where `before` were so ahead of the first row."""
  most = now = before
  for row in rows:
    now = 0 if np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"]) else now + 1
    most = max(most, now)
  return most, now


def _warn(words):
  if jax.process_index() == 0:
    tqdm.write(f"warning: {words}", file=sys.stderr)


def run_stage(problem, stage, workdir, model, train_step, begin, frozen, mesh, checkpoints):
  """Trains `stage` from what `begin` has to its last step.

  Args:
    problem: Problem.
    stage: "teacher" or "student".
    workdir: of the run.
    model: for sample grids.
    train_step: from `make_train_step`.
    begin: Begin: the state to start from, on the mesh.
    frozen: what is not trained.
    mesh: of devices.
    checkpoints: Checkpoints to save to.
  Returns:
    The state after the last step.
  Raises:
    TrainingError: the loss or a gradient was not finite; checkpoints from before are kept.
    CheckpointError: one could not be written; those from before are kept.
    Preempted: a signal came; a checkpoint of the last step is on disk.
  """
  config, steps, start = problem.config, problem.config[stage].steps, begin.step
  state, pending, earlier = begin.state, list(begin.pending), len(begin.pending)
  writer = Writer(workdir, stage, start)
  first = jax.process_index() == 0
  divergence = Divergence(config.guard.divergence, logged_losses(Path(workdir) / "metrics.jsonl", stage))
  clock = Clock(Path(workdir) / SESSIONS if first else None, stage, _PROCESS_BEGAN)
  write_grid = _sample_grids(problem, stage, model, writer, workdir)
  recorder = None
  if stage == "student":
    recorder = _Diagnostics(problem, workdir, begin.signs, begin.signs_of, start, mesh)
    if not start:
      recorder.write(state, 0)

  def replaced():
    """Examples of all processes so far that stood in for one that could not be read."""
    own = stream.skipped
    if jax.process_count() > 1 and config.data.skip_unreadable:
      own = int(multihost_utils.process_allgather(np.array(own)).sum())
    return begin.replaced + own

  def save(step):
    tree = {"state": state, "projections": frozen.get("projections", ()), "signs": recorder.signs if recorder else ()}
    # A run that is stopped between two log lines goes on to write the line of all their steps.
    rows = [{name: float(value) for name, value in row.items()} for row in pending]
    checkpoints.save(step, tree, dict(
        stage=stage, step=step, next_batch=step, pending=rows, replaced=replaced(), skipped=skipped,
        in_a_row=in_a_row, signs_of=recorder.last if recorder else 0, config=config.to_dict(),
    ))  # fmt: skip

  def check_finite(step, rows=()):
    """How many steps were skipped so far; raises where the state is frozen, or too many in a row were skipped."""
    nonlocal in_a_row
    most, in_a_row = _longest_skip(rows, in_a_row)
    none = int(state.skipped) >= steps  # of a short stage nothing is left
    if state.ok and most < MOST_SKIPPED and not none:
      return int(state.skipped)
    where = f"at step {int(state.step) + 1}" if not state.ok else f"at {most} steps in a row, before step {step + 1}"
    checkpoints.wait()
    raise TrainingError(
        f"{stage}: the loss or a gradient is not finite {where}; the checkpoint of step"
        f" {checkpoints.latest_step() or 'none'} is kept. Begin another --workdir with a lower {stage}.learning_rate"
    )

  preemption.check()  # before anything is compiled
  stream = network_batches(problem, stage, mesh, start, workdir)
  bar = tqdm(total=steps, initial=start, desc=stage, unit="step", disable=not first, mininterval=1.0)
  skipped, in_a_row = begin.skipped, begin.in_a_row
  try:
    batch = clock.next(stream)
    # Ahead of the first step, so that no step's time holds it; a signal is served when it returns.
    compiled = train_step.lower(state, frozen, batch).compile()
    clock.start()
    for step in range(start + 1, steps + 1):
      state, metrics = compiled(state, frozen, batch)
      pending.append(metrics)
      bar.update()
      stop = preemption.requested()
      if step % config.log.every and step != steps:
        if stop:
          check_finite(step)
          clock.end(step)
          save(step)
          break
        batch = clock.next(stream)
        continue
      # The only place where the host waits for the device.
      rows = jax.device_get(pending)
      count, pending = check_finite(step, rows), []
      scalars, timing = _summary(rows), clock.end(step)
      timing["images_per_second"] = (len(rows) - earlier) * config[stage].batch_size / timing.pop("seconds")
      earlier = 0
      if count > skipped:
        _warn(f"{stage}: {count - skipped} steps before step {step} had no finite loss or gradient and were skipped")
        skipped = count
      scalars |= dict(skipped_steps=skipped, replaced_examples=replaced())
      if (times := divergence.check(scalars["loss"])) is not None:
        scalars["loss_over_median"] = times
        _warn(f"{stage}: the loss at step {step}, {scalars['loss']:.4g}, is {times:.1f} times its running median")
      writer.write(step, {**scalars, **timing})
      loss = "none" if scalars["loss"] is None else f"{scalars['loss']:.4f}"
      bar.set_postfix(loss=loss, wait=f"{timing['data_wait']:.0%}")
      write_grid(state, step)
      if step % config.checkpoint.every == 0 or step == steps or stop:
        # Last: whoever resumes from a checkpoint finds all that stands before it.
        if recorder and (step % config.checkpoint.every == 0 or step == steps):
          recorder.write(state, step)
        save(step)
      if stop:
        break
      clock.start()
      if step != steps:
        batch = clock.next(stream)
    checkpoints.wait()
    if step != steps:
      raise preemption.Preempted
  finally:
    stream.close()
    bar.close()
    writer.close()
  return state
