"""The loss terms of teacher and student, and the one jitted training step that serves both."""

import jax
import jax.numpy as jnp
import optax

from binarydm_jax.diffusion import q_sample, training_target
from binarydm_jax.distill import lrm_loss
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


def _labels(model, batch, part, key):
  """Labels for the model, some of them dropped; None for an unconditional one."""
  # A key of its own, folded in, leaves the other draws as they are without it.
  return drop_labels(batch["label"], model.num_classes, part, jax.random.fold_in(key, 1)) if model.num_classes else None


def teacher_terms(model, schedule, target, loss, label_dropout=0.0):
  """terms(variables, frozen, batch, key, step) -> (named loss terms, further metrics) of plain diffusion training."""

  def terms(variables, frozen, batch, key, step):
    del frozen, step
    draw_key, dropout_key = jax.random.split(key)
    x_t, timesteps, wanted = draw(schedule, target, batch["image"], draw_key)
    labels = _labels(model, batch, label_dropout, key)
    prediction, _ = model.apply(variables, x_t, timesteps, labels, train=True, rngs={"dropout": dropout_key})
    return {"simple": prediction_loss(loss, prediction, wanted)}, {}

  return terms


def student_terms(model, teacher, table, schedule, target, loss, gates_fn, distil, label_dropout=0.0):
  """The same for quantization-aware training with distillation.

  Args:
    model, teacher: the same network with and without rules.
    table: path -> LayerRule of the student.
    gates_fn: step -> quant.Gates, or None when nothing changes over time.
    distil: whether the LRM term is part of the loss (else the teacher is not run).
    label_dropout: part of the labels that become the null class.
  Returns:
    terms(variables, frozen, batch, key, step); frozen is {"teacher": params, "projections": tuple}.
  """

  def terms(variables, frozen, batch, key, step):
    draw_key, dropout_key = jax.random.split(key)
    x_t, timesteps, wanted = draw(schedule, target, batch["image"], draw_key)
    labels = _labels(model, batch, label_dropout, key)
    gates = gates_fn(step) if gates_fn else None
    prediction, features = model.apply(
        variables, x_t, timesteps, labels, gates, train=True, rngs={"dropout": dropout_key}
    )
    values = {"simple": prediction_loss(loss, prediction, wanted)}
    if distil:
      _, targets = teacher.apply({"params": frozen["teacher"]}, x_t, timesteps, labels)
      values["lrm"] = lrm_loss(features, jax.lax.stop_gradient(targets), frozen["projections"])
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


def make_train_step(terms, weights, optimizer, learning_rate, ema_decay, base_key):
  """One compiled step: losses, gradients, optimizer, EMA. The state is donated.

  Args:
    terms: from `teacher_terms` or `student_terms`.
    weights: name -> weight of each loss term.
    optimizer, learning_rate: from `make_optimizer`.
    ema_decay: warmed up as min(decay, (1 + n) / (10 + n)).
    base_key: of the run; the step's randomness is `fold_in(base_key, step)`.
  Returns:
    train_step(state, frozen, batch) -> (state, metrics of scalars).
  """

  def loss_fn(variables, frozen, batch, key, step):
    values, metrics = terms(variables, frozen, batch, key, step)
    loss = sum(weights[name] * value for name, value in values.items())
    return loss, {"loss": loss, **values, **metrics}

  def train_step(state, frozen, batch):
    key = jax.random.fold_in(base_key, state.step)
    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.variables, frozen, batch, key, state.step)
    norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables)
    variables = optax.apply_updates(state.variables, updates)
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, variables)
    ok = state.ok & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    new = TrainState(state.step + 1, variables, ema, opt_state, ok)
    # From the first non-finite value on nothing changes any more, without asking the host.
    new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state.replace(ok=ok))
    return new, {**metrics, "grad_norm": norm, "learning_rate": learning_rate(state.step)}

  return jax.jit(train_step, donate_argnums=0)
