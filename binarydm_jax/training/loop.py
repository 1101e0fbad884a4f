"""The training loop and the two stages that run through it: the teacher's pretraining, the student's binarization."""

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from binarydm_jax import quant
from binarydm_jax.data import batches, open_latents
from binarydm_jax.distill import fit_projections
from binarydm_jax.evaluation.sampling import generate, make_sampler, to_uint8
from binarydm_jax.first_stage import open_first_stage
from binarydm_jax.plots import image_grid, save_png
from binarydm_jax.training import sharding
from binarydm_jax.training.checkpoint import Checkpoints
from binarydm_jax.training.state import create_state, make_optimizer
from binarydm_jax.training.step import draw, make_train_step, student_terms, teacher_terms
from binarydm_jax.training.writers import Writer

# The streams of randomness of a run; each is folded into its seed.
INIT, TEACHER, CALIBRATION, PROJECTION, STUDENT, LATENTS = range(6)


class TrainingError(RuntimeError):
  """Training cannot go on; the message says why and what to do."""


def run_key(problem, stream):
  return jax.random.fold_in(jax.random.key(problem.config.seed), stream)


def _stored_batches(problem, stage, mesh, start_step, use_cache=True):
  """Global batches of `stage` from `start_step` on as they are stored, images or moments of latents, on the mesh."""
  config = problem.config
  sharding.check_batch(f"{stage}.batch_size", config[stage].batch_size, mesh)
  cache = problem.first_stage and use_cache and config.first_stage.cache
  local = batches(
      open_latents(cache) if cache else problem.train_data,
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

  def first_batch():
    if problem.train_data is None:
      raise TrainingError(
          "first_stage.scale_factor is 0, and only training finds it: run --mode=binarize first, or give a number"
      )
    return next(_stored_batches(problem, "student", sharding.make_mesh(), 0, stored))

  return open_first_stage(problem.config, problem.first_stage, workdir, first_batch)


def _batches(problem, stage, mesh, start_step, workdir=None):
  """Global batches of `stage` from `start_step` on as the network takes them: {"image", "label"}, on the mesh."""
  stored = _stored_batches(problem, stage, mesh, start_step)
  first_stage = get_first_stage(problem, workdir)
  if first_stage is None:
    return stored
  cache = problem.config.first_stage.cache
  if cache:
    open_latents(cache, cache_description(problem, first_stage))
  encode = jax.jit(first_stage.encode_batch)
  variables = sharding.put_replicated(first_stage.variables, mesh)
  key = run_key(problem, LATENTS)
  # The posterior is drawn anew at every step.
  return (
      encode(variables, batch, jax.random.fold_in(key, step)) for step, batch in enumerate(stored, start_step)
  )


def cache_description(problem, first_stage):
  """What latents on disk must have been made from, to be this run's."""
  data = problem.config.data
  about = {name: data[name] for name in ("source", "image_size", "channels", "train_split", "holdout")}
  return {**about, "first_stage": problem.config.first_stage.kind, "first_stage_sha256": first_stage.sha256}


def _optimizer(problem, stage):
  fields = problem.config[stage]
  return make_optimizer(
      fields.steps,
      fields.learning_rate,
      fields.warmup_steps,
      fields.weight_decay,
      fields.clip_norm,
      problem.config.quant.learning_rate_factor if stage == "student" else 1.0,
  )


def _sample_grids(problem, stage, model, writer, workdir):
  """(state, step) -> None: every log.samples_every steps writes samples/<stage>_<step>.png by the averaged weights."""
  config = problem.config
  if not config.log.samples_every:
    return lambda state, step: None
  s, target = config.sample, config.diffusion.target
  sampler = make_sampler(
      model, problem.schedule, target, problem.input_shape, s.sampler, s.steps, s.eta, s.clip, s.spacing, s.guidance
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


def run_stage(problem, stage, workdir, model, train_step, state, frozen, mesh):
  """Trains `stage` from its newest checkpoint, or from `state`, to its last step.

  Args:
    problem: Problem.
    stage: "teacher" or "student".
    workdir: checkpoints go to workdir/<stage>.
    model: for sample grids.
    train_step: from `make_train_step`.
    state: the state to start from, on the mesh.
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
    state, frozen = restored["state"], {**frozen, "projections": restored["projections"]}
  writer = Writer(workdir, stage, start)
  write_grid = _sample_grids(problem, stage, model, writer, workdir)
  stream = _batches(problem, stage, mesh, start, workdir)
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
        checkpoints.save(step, {"state": state, "projections": projections})
      write_grid(state, step)
      pending, since = [], time.perf_counter()
  finally:
    bar.close()
    writer.close()
    checkpoints.close()
  return state


def is_finished(problem, stage, workdir):
  """Whether the newest checkpoint of `stage` is its last step."""
  checkpoints = Checkpoints(Path(workdir) / stage)
  try:
    return (checkpoints.latest_step() or 0) >= problem.config[stage].steps
  finally:
    checkpoints.close()


def restore_ema(problem, stage, workdir, steps=None):
  """The averaged variables of a finished stage in `workdir`, replicated over all devices.

  Args:
    steps: how many steps a finished stage has; None takes the config's.

  Raises:
    TrainingError: there is no checkpoint, or training is not finished.
  """
  like = _abstract(problem, stage, sharding.make_mesh())
  steps = steps or problem.config[stage].steps
  checkpoints = Checkpoints(Path(workdir) / stage)
  step = checkpoints.latest_step()
  try:
    if step is None or step < steps:
      mode = {"teacher": "pretrain", "student": "binarize"}[stage]
      raise TrainingError(
          f"{Path(workdir) / stage} holds no finished {stage} (step {step or 0} of {steps});"
          f" run --mode={mode} first"
      )
    return checkpoints.restore(like)["state"].ema
  finally:
    checkpoints.close()


def _projection_shapes(problem):
  """Abstract projections, for restoring."""
  if not problem.distil:
    return ()
  return jax.eval_shape(
      lambda *inputs: fit_projections(
          problem.teacher.init_with_output(jax.random.key(0), *inputs)[0][1],
          jax.random.key(0),
          method=problem.method.projection,
          reduction=problem.config.distill.reduction,
      ),
      *problem.inputs(),
  )


def _abstract(problem, stage, mesh):
  """Shapes of a stage's checkpoint, replicated over the mesh."""
  model = problem.teacher if stage == "teacher" else problem.student
  optimizer, _ = _optimizer(problem, stage)
  state = jax.eval_shape(
      lambda *inputs: create_state(dict(model.init(jax.random.key(0), *inputs)), optimizer), *problem.inputs()
  )
  tree = {"state": state, "projections": _projection_shapes(problem) if stage == "student" else ()}
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), tree)


def _state_on_mesh(variables, optimizer, mesh):
  """The state before the first step, replicated; `variables` are copied, since the state is donated."""
  return jax.jit(lambda v: create_state(jax.tree.map(jnp.copy, v), optimizer), out_shardings=sharding.replicated(mesh))(
      variables
  )


def pretrain(problem, workdir, mesh=None):
  """Trains the full-precision teacher; returns its averaged variables {"params"}."""
  if is_finished(problem, "teacher", workdir):
    return restore_ema(problem, "teacher", workdir)
  mesh = mesh or sharding.make_mesh()
  config = problem.config
  optimizer, learning_rate = _optimizer(problem, "teacher")
  terms = teacher_terms(
      problem.teacher,
      problem.schedule,
      config.diffusion.target,
      config.diffusion.loss,
      config.teacher.label_dropout,
  )
  train_step = make_train_step(
      terms, {"simple": 1.0}, optimizer, learning_rate, config.teacher.ema_decay, run_key(problem, TEACHER)
  )
  # Lazily: compiling the whole network just to fill its weights takes longer than filling them.
  variables = dict(problem.teacher.lazy_init(run_key(problem, INIT), *problem.inputs()))
  variables = sharding.put_replicated(variables, mesh)
  state = _state_on_mesh(variables, optimizer, mesh)
  return run_stage(problem, "teacher", workdir, problem.teacher, train_step, state, {}, mesh).ema


def prepare_student(problem, teacher_params, mesh, workdir=None):
  """(state, frozen) before the student's first step, from the first training batches: see `initial_student`."""
  stream = _batches(problem, "student", mesh, 0, workdir)
  parts = [next(stream) for _ in range(problem.config.quant.calibration_batches)]
  return initial_student(problem, teacher_params, parts, mesh)


def initial_student(problem, teacher_params, parts, mesh):
  """(state, frozen): scales and steps calibrated on the batches `parts`, projections fitted on the first of them.

  Timesteps are drawn uniformly from the run's seed.
  """
  config = problem.config
  labels_used = config.model.class_conditional

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def calibrate(params, parts, key):
    images = jnp.concatenate([part["image"] for part in parts])
    labels = jnp.concatenate([part["label"] for part in parts]) if labels_used else None
    x_t, timesteps, _ = draw(problem.schedule, config.diffusion.target, images, key)
    return quant.calibrate(problem.student, params, x_t, timesteps, labels)

  @jax.jit
  def teacher_features(params, batch, key):
    x_t, timesteps, _ = draw(problem.schedule, config.diffusion.target, batch["image"], key)
    return problem.teacher.apply({"params": params}, x_t, timesteps, batch["label"] if labels_used else None)[1]

  key = run_key(problem, CALIBRATION)
  variables = {"params": teacher_params, "quant": calibrate(teacher_params, parts, key)}
  projections = ()
  if problem.distil:
    projections = fit_projections(
        teacher_features(teacher_params, parts[0], key),
        run_key(problem, PROJECTION),
        method=problem.method.projection,
        reduction=config.distill.reduction,
    )
  optimizer, _ = _optimizer(problem, "student")
  state = _state_on_mesh(variables, optimizer, mesh)
  return state, {"teacher": teacher_params, "projections": sharding.put_replicated(projections, mesh)}


def student_train_step(problem):
  """The compiled step of quantization-aware training with distillation."""
  config = problem.config
  optimizer, learning_rate = _optimizer(problem, "student")
  terms = student_terms(
      problem.student,
      problem.teacher,
      problem.table,
      problem.schedule,
      config.diffusion.target,
      config.diffusion.loss,
      problem.gates_fn,
      problem.distil,
      config.student.label_dropout,
  )
  weights = {"simple": 1.0, "lrm": config.distill.weight, "ebb": config.quant.tau}
  return make_train_step(
      terms, weights, optimizer, learning_rate, config.student.ema_decay, run_key(problem, STUDENT)
  )


def binarize(problem, workdir, teacher_params, mesh=None):
  """Trains the binarized student from the teacher; returns its averaged variables {"params", "quant"}."""
  if is_finished(problem, "student", workdir):
    return restore_ema(problem, "student", workdir)
  mesh = mesh or sharding.make_mesh()
  teacher_params = sharding.put_replicated(teacher_params, mesh)
  state, frozen = prepare_student(problem, teacher_params, mesh, workdir)
  return run_stage(problem, "student", workdir, problem.student, student_train_step(problem), state, frozen, mesh).ema
