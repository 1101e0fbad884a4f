"""The two stages of a run: the teacher's pretraining, the student's binarization; and what they leave on disk."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from binarydm_jax import quant
from binarydm_jax.distill import fit_projections
from binarydm_jax.training import sharding
from binarydm_jax.training.checkpoint import Checkpoints
from binarydm_jax.training.feed import CALIBRATION, INIT, PROJECTION, STUDENT, TEACHER, network_batches, run_key
from binarydm_jax.training.loop import TrainingError, run_stage
from binarydm_jax.training.state import create_state, make_optimizer
from binarydm_jax.training.step import draw, make_train_step, student_terms, teacher_terms


def stage_optimizer(problem, stage):
  fields = problem.config[stage]
  return make_optimizer(
      fields.steps,
      fields.learning_rate,
      fields.warmup_steps,
      fields.weight_decay,
      fields.clip_norm,
      problem.config.quant.learning_rate_factor if stage == "student" else 1.0,
  )


def steps_done(stage, workdir):
  """The step of the newest checkpoint of `stage`, 0 if there is none."""
  checkpoints = Checkpoints(Path(workdir) / stage)
  try:
    return checkpoints.latest_step() or 0
  finally:
    checkpoints.close()


def is_finished(problem, stage, workdir):
  """Whether the newest checkpoint of `stage` is its last step."""
  return steps_done(stage, workdir) >= problem.config[stage].steps


def restore_ema(problem, stage, workdir, steps=None):
  """The averaged variables of a finished stage in `workdir`, replicated over all devices.

  Args:
    steps: how many steps a finished stage has; None takes the config's.

  Raises:
    TrainingError: there is no checkpoint, or training is not finished.
  """
  like = abstract_checkpoint(problem, stage, sharding.make_mesh())
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


def abstract_checkpoint(problem, stage, mesh):
  """Shapes of a stage's checkpoint, replicated over the mesh."""
  model = problem.teacher if stage == "teacher" else problem.student
  optimizer, _ = stage_optimizer(problem, stage)
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
  optimizer, learning_rate = stage_optimizer(problem, "teacher")
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
  if steps_done("teacher", workdir):
    state = abstract_checkpoint(problem, "teacher", mesh)["state"]  # its values come from the checkpoint
  else:
    # Lazily: compiling the whole network just to fill its weights takes longer than filling them.
    variables = dict(problem.teacher.lazy_init(run_key(problem, INIT), *problem.inputs()))
    state = _state_on_mesh(sharding.put_replicated(variables, mesh), optimizer, mesh)
  return run_stage(problem, "teacher", workdir, problem.teacher, train_step, state, {}, mesh).ema


def prepare_student(problem, teacher_params, mesh, workdir=None):
  """(state, frozen) before the student's first step, from the first training batches: see `initial_student`."""
  stream = network_batches(problem, "student", mesh, 0, workdir)
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
  optimizer, _ = stage_optimizer(problem, "student")
  state = _state_on_mesh(variables, optimizer, mesh)
  return state, {"teacher": teacher_params, "projections": sharding.put_replicated(projections, mesh)}


def student_train_step(problem):
  """The compiled step of quantization-aware training with distillation."""
  config = problem.config
  optimizer, learning_rate = stage_optimizer(problem, "student")
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
  if steps_done("student", workdir):
    begun = abstract_checkpoint(problem, "student", mesh)  # its values come from the checkpoint
    state, frozen = begun["state"], {"teacher": teacher_params, "projections": begun["projections"]}
  else:
    state, frozen = prepare_student(problem, teacher_params, mesh, workdir)
  return run_stage(problem, "student", workdir, problem.student, student_train_step(problem), state, frozen, mesh).ema
