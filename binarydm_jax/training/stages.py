"""The two stages of a run: the teacher's pretraining, the student's binarization; and what they leave on disk."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from binarydm_jax import preemption, quant
from binarydm_jax.compilation import jit_once
from binarydm_jax.distill import fit_projections
from binarydm_jax.training import sharding
from binarydm_jax.training.checkpoint import Checkpoints
from binarydm_jax.training.diagnostics import student_signs
from binarydm_jax.training.feed import CALIBRATION, INIT, PROJECTION, STUDENT, TEACHER, network_batches, run_key
from binarydm_jax.training.loop import TrainingError, run_stage
from binarydm_jax.training.state import Begin, create_state, make_optimizer
from binarydm_jax.training.step import draw, make_examples, make_train_step, student_terms, teacher_terms


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


def newest_state(problem, stage, workdir, least=None):
  """(step, TrainState) of the newest checkpoint of a stage in `workdir`, split as in training.

  Args:
    least: steps that must be done; None takes the config's, a finished stage.
  Raises:
    TrainingError: there is no checkpoint, or fewer steps are done.
  """
  least = problem.config[stage].steps if least is None else least
  checkpoints = Checkpoints(Path(workdir) / stage)
  try:
    found = checkpoints.restore(abstract_checkpoint(problem, stage, sharding.config_mesh(problem.config.mesh)))
  finally:
    checkpoints.close()
  step = found[0] if found else 0
  if step < least:
    mode = {"teacher": "pretrain", "student": "binarize"}[stage]
    raise TrainingError(
        f"{Path(workdir) / stage} holds no finished {stage} (step {step} of {least}); run --mode={mode} first"
    )
  return step, found[1]["state"]


def restore_ema(problem, stage, workdir, steps=None):
  """The averaged variables of a finished stage in `workdir`, on every device; `steps` is `least` of `newest_state`."""
  ema = newest_state(problem, stage, workdir, steps)[1].ema
  return sharding.gather(ema, sharding.config_mesh(problem.config.mesh))


def student_variables(problem, state):
  """What is exported and sampled of a student's state, on every device: averaged or last, as `export.averaged` says."""
  variables = state.ema if problem.config.export.averaged else state.variables
  return sharding.gather(variables, sharding.config_mesh(problem.config.mesh))


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
  """Shapes of a stage's checkpoint, sharded over the mesh as training has it."""
  model = problem.teacher if stage == "teacher" else problem.student
  optimizer, _ = stage_optimizer(problem, stage)
  state = jax.eval_shape(
      lambda *inputs: create_state(dict(model.init(jax.random.key(0), *inputs)), optimizer), *problem.inputs()
  )
  projections, signs = (), ()
  if stage == "student":
    projections = _projection_shapes(problem)
    signs = jax.eval_shape(functools.partial(student_signs, table=problem.table), state.variables)
  shardings = {
      "state": _shardings(problem, state, mesh),
      "projections": jax.tree.map(lambda _: sharding.replicated(mesh), projections),
      "signs": jax.tree.map(lambda _: sharding.replicated(mesh), signs),
  }
  tree = {"state": state, "projections": projections, "signs": signs}
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _shardings(problem, tree, mesh):
  return sharding.shardings_of(tree, mesh, problem.config.mesh.min_size)


def _state_on_mesh(problem, variables, optimizer, mesh):
  """The state before the first step; `variables` are copied, since the state is donated."""
  create = lambda v: create_state(jax.tree.map(jnp.copy, v), optimizer)
  shardings = _shardings(problem, jax.eval_shape(create, variables), mesh)
  return jit_once(create, out_shardings=shardings)(variables)


def _begin(step, tree, facts):
  """What a checkpoint says: see `Begin` and `loop.run_stage`."""
  counts = facts["replaced"], facts["skipped"]
  signs = tree["signs"], facts["signs_of"]
  return Begin(step, tree["state"], tuple(facts["pending"]), *counts, *signs, facts.get("in_a_row", 0))


def _run(problem, stage, workdir, mesh, model, make_begin, make_step):
  """Trains a stage from its newest checkpoint that can be read, or from its beginning; returns averaged variables.

  Args:
    make_begin: (found or None) -> (Begin, frozen); found is (step, tree, facts) of a checkpoint.
    make_step: (state, frozen) -> the compiled step.
  """
  config = problem.config
  checkpoints = Checkpoints(Path(workdir) / stage, config.checkpoint.keep, writes=True)
  try:
    found = checkpoints.restore(abstract_checkpoint(problem, stage, mesh), set_aside=True)
    if found and found[0] >= config[stage].steps:
      return sharding.gather(found[1]["state"].ema, mesh)
    preemption.check()
    begin, frozen = make_begin(found)
    step = make_step(begin.state, frozen)
    state = run_stage(problem, stage, workdir, model, step, begin, frozen, mesh, checkpoints)
    return sharding.gather(state.ema, mesh)
  finally:
    checkpoints.close()


def _key(problem, stream, mesh):
  """The data of the key of a stage's steps, as `make_train_step` takes it."""
  return sharding.put_replicated(jax.random.key_data(run_key(problem, stream)), mesh)


def _train_step(problem, stage, terms, weights, model, state, frozen):
  config = problem.config
  optimizer, learning_rate = stage_optimizer(problem, stage)
  examples_of = functools.partial(
      make_examples, model, problem.schedule, config.diffusion.target, config[stage].label_dropout
  )
  return make_train_step(
      terms, examples_of, weights, optimizer, learning_rate, config[stage].ema_decay, state, frozen,
      accumulate=config.compute.accumulate, skip=config.guard.non_finite == "skip",
  )  # fmt: skip


def initial_teacher(problem):
  """{"params"} of the teacher before its first step, by the run's seed, on this process' first device."""

  def init(key):
    # Of all this the compiler keeps what fills the weights.
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), problem.inputs())
    return dict(problem.teacher.init(key, *inputs))

  return jit_once(init)(run_key(problem, INIT))


def pretrain(problem, workdir, mesh=None):
  """Trains the full-precision teacher, if it is not finished; returns its averaged variables {"params"}."""
  mesh = mesh or sharding.config_mesh(problem.config.mesh)

  def begin(found):
    frozen = {"key": _key(problem, TEACHER, mesh)}
    if found:
      return _begin(*found), frozen
    variables = initial_teacher(problem)
    optimizer, _ = stage_optimizer(problem, "teacher")
    return Begin(0, _state_on_mesh(problem, sharding.put_replicated(variables, mesh), optimizer, mesh)), frozen

  def step(state, frozen):
    terms = teacher_terms(problem.teacher, problem.config.diffusion.loss)
    return _train_step(problem, "teacher", terms, {"simple": 1.0}, problem.teacher, state, frozen)

  return _run(problem, "teacher", workdir, mesh, problem.teacher, begin, step)


def prepare_student(problem, teacher_params, mesh, workdir=None):
  """(state, frozen) before the student's first step, from the first training batches: see `initial_student`."""
  stream = network_batches(problem, "student", mesh, 0, workdir)
  parts = [next(stream) for _ in range(problem.config.quant.calibration_batches)]
  return initial_student(problem, teacher_params, parts, mesh)


def initial_student(problem, teacher_params, parts, mesh):
  """(state, frozen): scales and steps calibrated on the batches `parts`, projections fitted on the first of them.

  Timesteps are drawn uniformly from the run's seed.

  Args:
    teacher_params: on every device of the mesh.
  """
  config = problem.config
  labels_used = config.model.class_conditional
  everywhere = sharding.replicated(mesh)

  @functools.partial(jit_once, out_shardings=everywhere)
  def calibrate(params, parts, key):
    images = jnp.concatenate([part["image"] for part in parts])
    labels = jnp.concatenate([part["label"] for part in parts]) if labels_used else None
    x_t, timesteps, _ = draw(problem.schedule, config.diffusion.target, images, key)
    return quant.calibrate(problem.student, params, x_t, timesteps, labels)

  @jit_once
  def teacher_features(params, batch, key):
    x_t, timesteps, _ = draw(problem.schedule, config.diffusion.target, batch["image"], key)
    return problem.teacher.apply({"params": params}, x_t, timesteps, batch["label"] if labels_used else None)[1]

  key = run_key(problem, CALIBRATION)
  variables = {"params": teacher_params}
  # None of it where all is in full precision: then there is no such collection, as after `init`.
  if learned := calibrate(teacher_params, parts, key):
    variables["quant"] = learned
  projections = ()
  if problem.distil:
    fit = functools.partial(fit_projections, method=problem.method.projection, reduction=config.distill.reduction)
    features = teacher_features(teacher_params, parts[0], key)
    projections = jit_once(fit, out_shardings=everywhere)(features, run_key(problem, PROJECTION))
  optimizer, _ = stage_optimizer(problem, "student")
  state = _state_on_mesh(problem, variables, optimizer, mesh)
  return state, _frozen(problem, teacher_params, projections, mesh)


def _frozen(problem, teacher_params, projections, mesh):
  """What the student's step is given and does not train; no teacher where nothing is distilled."""
  needed = problem.distil or problem.mimic
  teacher = sharding.put(teacher_params, _shardings(problem, teacher_params, mesh)) if needed else ()
  return {"teacher": teacher, "projections": projections, "key": _key(problem, STUDENT, mesh)}


def student_train_step(problem, state, frozen):
  """The compiled step of quantization-aware training with distillation, for what `initial_student` gives."""
  config = problem.config
  terms = student_terms(
      problem.student, problem.teacher, problem.table, config.diffusion.loss, problem.gates_fn, problem.distil,
      problem.mimic,
  )  # fmt: skip
  weights = {
    "simple": 1.0, "lrm": config.distill.weight, "nem": config.distill.prediction_weight, "ebb": config.quant.tau,
  }  # fmt: skip
  return _train_step(problem, "student", terms, weights, problem.student, state, frozen)


def binarize(problem, workdir, get_teacher, mesh=None):
  """Trains the binarized student from the teacher, if it is not finished; returns its averaged {"params", "quant"}.

  Args:
    get_teacher: () -> the teacher's parameters; called only if there is something to train.
  """
  mesh = mesh or sharding.config_mesh(problem.config.mesh)

  def begin(found):
    teacher = sharding.put_replicated(get_teacher(), mesh)
    if found:
      return _begin(*found), _frozen(problem, teacher, found[1]["projections"], mesh)
    state, frozen = prepare_student(problem, teacher, mesh, workdir)
    signs = jit_once(functools.partial(student_signs, table=problem.table), out_shardings=sharding.replicated(mesh))
    return Begin(0, state, signs=signs(state.variables)), frozen

  return _run(
      problem, "student", workdir, mesh, problem.student, begin, functools.partial(student_train_step, problem)
  )
