"""Training state, optimizer and learning-rate schedule."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """All that training changes.

  Attributes:
    step: int32 scalar, steps done.
    variables: {"params": latent weights, "quant": scales and steps (student only)}, float32.
    ema: exponential moving average of `variables`.
    opt_state: optax.
    skipped: int32 scalar, steps so far whose loss or gradient was not finite and whose update was left out (`skip`).
    ok: bool scalar, False from the first such step on where they are not skipped; the rest is frozen before it.
  """

  step: jax.Array
  variables: dict
  ema: dict
  opt_state: optax.OptState
  skipped: jax.Array
  ok: jax.Array


class Begin(NamedTuple):
  """What a stage goes on from.

  Attributes:
    step: steps done; 0 for a new stage.
    state: TrainState.
    pending: metrics (dicts of numbers) of the steps since the last log line.
    replaced: examples so far that stood in for one that could not be read.
    skipped: steps skipped up to the last log line; in_a_row: those at its end.
    signs: of the student at its last row of diagnostics, see `diagnostics.student_signs`; () for the teacher.
    signs_of: the step of that row.
  """

  step: int
  state: TrainState
  pending: tuple = ()
  replaced: int = 0
  skipped: int = 0
  signs: Any = ()
  signs_of: int = 0
  in_a_row: int = 0


def make_optimizer(steps, learning_rate, warmup_steps, weight_decay, clip_norm, quant_factor=1.0):
  """AdamW with linear warm-up and cosine decay to 0.

  Args:
    steps: of the whole run, warm-up included.
    learning_rate: the peak.
    weight_decay: on kernels alone: not on scales, steps, norms, biases and embeddings.
    clip_norm: global gradient norm; 0 for none.
    quant_factor: learning rate of the collection `quant` over that of the weights.
  Returns:
    (optimizer over {"params", "quant"}, schedule: step -> learning rate).
  """
  last = max(steps, warmup_steps + 1)
  schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, last)

  def is_kernel(variables):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", variables)

  def scale_quant(variables):
    factors = {name: quant_factor if name == "quant" else 1.0 for name in variables}
    return {name: jax.tree.map(lambda u, f=factors[name]: u * f, tree) for name, tree in variables.items()}

  return optax.chain(
      optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
      optax.adamw(schedule, weight_decay=weight_decay, mask=is_kernel),
      optax.stateless(lambda updates, params: scale_quant(updates)),
  ), schedule


def create_state(variables, optimizer):
  """The state before the first step; `ema` starts as a copy (donation must not alias)."""
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      variables=variables,
      ema=jax.tree.map(jnp.copy, variables),
      opt_state=optimizer.init(variables),
      skipped=jnp.zeros((), jnp.int32),
      ok=jnp.array(True),
  )
