"""What is drawn for a step, the loss terms of teacher and student, and the one jitted step that serves both."""

import jax
import jax.numpy as jnp
import optax

from binarydm_jax.diffusion import q_sample, training_target
from binarydm_jax.distill import lrm_loss
from binarydm_jax.mesh import over_batch, replicated
from binarydm_jax.models.dropout import example_keys
from binarydm_jax.training.gradient import make_gradient
from binarydm_jax.training.state import TrainState


def draw(schedule, target, images, key):
  """Noisy images, timesteps and training targets of one batch, from one key.

  Args:
    images: float32 [batch, h, w, c] in [-1, 1].
  Returns:
    x_t [batch, h, w, c], timesteps int32 [batch], target [batch, h, w, c].
  """
  time_key, noise_key = jax.random.split(key)
  timesteps = jax.random.randint(time_key, (len(images),), 0, schedule.num_timesteps)
  noise = jax.random.normal(noise_key, images.shape)
  wanted = training_target(schedule, target, images, noise, timesteps)
  return q_sample(schedule, images, noise, timesteps), timesteps, wanted


def drop_labels(labels, num_classes, part, key):
  """Labels int32 [batch] of which `part` become the null class, number `num_classes` (classifier-free guidance)."""
  if not part:
    return labels
  return jnp.where(jax.random.bernoulli(key, part, labels.shape), num_classes, labels)


def prediction_loss(name, prediction, target):
  """Mean squared ("l2") or absolute ("l1") error."""
  difference = prediction - target
  return jnp.mean(difference**2) if name == "l2" else jnp.mean(jnp.abs(difference))


def second_scales(quant, table):
  """The second-basis scales of evolving layers and of those that keep both bases: two lists of [cout]."""
  evolving, kept = [], []
  for path, rule in table.items():
    if rule.bases == 2:
      leaf = quant
      for name in path.split("/"):
        leaf = leaf[name]
      (evolving if rule.weights == "evolving" else kept).append(leaf["scale2"])
  return evolving, kept


def mean_scale(scales):
  """Mean over layers of mean|scale| (BinaryDM v5, Eq. 9, per layer and by magnitude)."""
  return sum(jnp.mean(jnp.abs(s)) for s in scales) / len(scales)


def make_examples(model, schedule, target, label_dropout, batch, key):
  """All that is random in a step, drawn for the global batch: a dict of arrays with one row an example.

  Args:
    batch: {"image": float32 [batch, h, w, c] in [-1, 1], "label": int32 [batch]}.
    label_dropout: part of the labels that become the null class.
  Returns:
    {"x_t", "timesteps", "target"}, with "labels" for a class-conditional model and "dropout_keys" for one with dropout.
  """
  draw_key, dropout_key, label_key = jax.random.split(key, 3)
  x_t, timesteps, wanted = draw(schedule, target, batch["image"], draw_key)
  examples = {"x_t": x_t, "timesteps": timesteps, "target": wanted}
  if model.num_classes:
    examples["labels"] = drop_labels(batch["label"], model.num_classes, label_dropout, label_key)
  if model.dropout:
    examples["dropout_keys"] = example_keys(dropout_key, len(x_t))
  return examples


def teacher_terms(model, loss):
  """terms(variables, frozen, examples, step) -> (named loss terms, further metrics) of plain diffusion training."""

  def terms(variables, frozen, examples, step):
    del frozen, step
    prediction, _ = model.apply(
        variables, examples["x_t"], examples["timesteps"], examples.get("labels"), None, examples.get("dropout_keys")
    )
    return {"simple": prediction_loss(loss, prediction, examples["target"])}, {}

  return terms


def student_terms(model, teacher, table, loss, gates_fn, distil, mimic):
  """The same for quantization-aware training with distillation.

  Args:
    model, teacher: the same network with and without rules.
    table: path -> LayerRule of the student.
    loss: "l2" or "l1".
    gates_fn: step -> quant.Gates, or None when nothing changes over time.
    distil: whether the LRM term is part of the loss.
    mimic: whether "nem" is, the mean squared difference of the teacher's and the student's predictions
      (noise-estimating mimicking of Q-DM, Li et al. 2023). Without either the teacher is not run.
  Returns:
    terms(variables, frozen, examples, step); of frozen it takes {"teacher": params, "projections": tuple}.
  """

  def terms(variables, frozen, examples, step):
    inputs = examples["x_t"], examples["timesteps"], examples.get("labels")
    gates = gates_fn(step) if gates_fn else None
    prediction, features = model.apply(variables, *inputs, gates, examples.get("dropout_keys"))
    values = {"simple": prediction_loss(loss, prediction, examples["target"])}
    if distil or mimic:
      imitated, targets = jax.lax.stop_gradient(teacher.apply({"params": frozen["teacher"]}, *inputs))
    if distil:
      values["lrm"] = lrm_loss(features, targets, frozen["projections"])
    if mimic:
      values["nem"] = prediction_loss("l2", prediction, imitated)
    metrics = {}
    evolving, kept = second_scales(variables.get("quant", {}), table)
    if evolving:
      # After the transition the second basis is gone and nothing is left to shrink.
      values["ebb"] = mean_scale(evolving) * gates.second
    if evolving or kept:
      alive = [scale * gates.second for scale in evolving] + kept
      metrics["second_scale"] = mean_scale(alive)
    return values, metrics

  return terms


def make_train_step(
  terms, examples_of, weights, optimizer, learning_rate, ema_decay, state, frozen, *, accumulate=1, skip=False
):
  """One compiled step: losses, gradients, optimizer, EMA. The state is donated.

  Args:
    terms: from `teacher_terms` or `student_terms`: means over the rows of the examples.
    examples_of: (batch, key) -> dict of arrays, as from `make_examples`.
    weights: name -> weight of each loss term.
    optimizer, learning_rate: from `make_optimizer`.
    ema_decay: warmed up as min(decay, (1 + n) / (10 + n)).
    state, frozen: what the step will be given (or abstract): their shardings say how the work is shared out.
      `frozen["key"]`, the data of the run's key, is an argument and not a constant so that runs by other seeds find the
      compiled program; the step's randomness is `fold_in(key, step)`.
    accumulate: see `make_gradient`.
    skip: what a loss or a gradient that is not finite does. True: the update is left out, and training goes on; False:
      the state stays as it is from then on, without asking the host.
  Returns:
    train_step(state, frozen, batch) -> (state, metrics of scalars).
  """
  shardings, fixed = (jax.tree.map(lambda x: x.sharding, tree) for tree in (state, frozen))
  mesh = state.step.sharding.mesh
  rows = over_batch(mesh)

  def loss_fn(variables, frozen, examples, step):
    values, metrics = terms(variables, frozen, examples, step)
    loss = sum(weights[name] * value for name, value in values.items())
    return loss, {"loss": loss, **values, **metrics}

  specs = [jax.tree.map(lambda s: s.spec, tree) for tree in (shardings.variables, fixed)]
  gradient_of = make_gradient(loss_fn, mesh, *specs, accumulate)

  def train_step(state, frozen, batch):
    key = jax.random.wrap_key_data(frozen["key"])
    examples = examples_of(batch, jax.random.fold_in(key, state.step))
    examples = jax.lax.with_sharding_constraint(examples, rows)
    gradients, metrics = gradient_of(state.variables, frozen, examples, state.step)
    norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables)
    variables = optax.apply_updates(state.variables, updates)
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, variables)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    new = TrainState(state.step + 1, variables, ema, opt_state, state.skipped, state.ok)
    if skip:
      left = state.replace(step=state.step + 1, skipped=state.skipped + 1)
    else:
      finite &= state.ok
      left = state.replace(ok=jnp.zeros_like(state.ok))
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, left)
    # The optimizer's schedule counts its own updates.
    rate = learning_rate(state.step - state.skipped)
    return new, {**metrics, "grad_norm": norm, "learning_rate": rate}

  return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
