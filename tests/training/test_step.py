"""The compiled training step: loss terms, gates without recompilation, EMA, optimizer, the non-finite flag."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from binarydm_jax import quant
from binarydm_jax.training import feed, sharding, stages
from binarydm_jax.training.problem import build
from binarydm_jax.training.state import create_state, make_optimizer
from binarydm_jax.training.step import make_train_step, mean_scale, student_terms
from tests import tiny

# Three blocks: this is about the step, and compiling it is nearly all of the time.
SMALL = {"model.channel_mult": (1,), "model.num_res_blocks": 0}


def teacher_params(problem):
  """Weights that are nowhere zero, so that every layer matters; by numpy, which has nothing to compile."""
  shapes = jax.eval_shape(problem.teacher.init, jax.random.key(0), *problem.inputs())["params"]
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    values = rng.standard_normal(leaf.shape)
    if path[-1].key == "kernel":
      values /= np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      values = 0.05 * values + (path[-1].key == "scale")
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def student_run(steps, **flat):
  """The student's steps on one device, traced once; (problem, first state in numpy, frozen, last state, metrics)."""
  problem = build(tiny.get_config(**SMALL, **flat))
  mesh = sharding.make_mesh(jax.devices()[:1])
  state, frozen = stages.prepare_student(problem, teacher_params(problem), mesh)
  first = jax.tree.map(np.array, state)  # a copy: the state is donated
  chex.clear_trace_counter()
  # The step that training runs, its terms traced once.
  with mock.patch.object(stages, "student_terms", lambda *args: chex.assert_max_traces(student_terms(*args), n=1)):
    step = stages.student_train_step(problem, state, frozen)
  stream, metrics = feed.network_batches(problem, "student", mesh, 0), []
  for _ in range(steps):
    state, m = step(state, frozen, next(stream))
    metrics.append(jax.device_get(m))
  return problem, first, frozen, state, metrics


@pytest.fixture(scope="module")
def baseline():
  """One step of the method without gates and distillation."""
  return student_run(1, method="baseline")


def test_everything_that_changes_over_time_in_one_compilation():
  """binarydm_v5 with progressive initialisation: the middle block is on first, then the others, then attention; the
  regularizer is there before half of the steps and gone after, with its gradient; every term is logged, and the step is
  traced once."""
  fields = {"quant.progressive": "blocks", "student.weight_decay": 0.0}
  problem, first, _, state, metrics = student_run(6, method="binarydm_v5", **fields)
  assert int(state.step) == 6
  on = [int(problem.gates_fn(jnp.int32(i)).blocks.sum()) for i in range(5)]
  assert on == [1, 3, 3, 3, 3]
  attention = [float(problem.gates_fn(jnp.int32(i)).attention) for i in range(5)]
  assert attention == [0] * 2 + [1] * 3
  assert set(metrics[0]) == {"loss", "simple", "lrm", "ebb", "second_scale", "grad_norm", "learning_rate"}
  assert not state.variables["quant"].keys() ^ first.variables["quant"].keys()
  assert [float(m["ebb"]) > 0 for m in metrics] == [True] * 3 + [False] * 3
  for m in metrics:
    np.testing.assert_allclose(m["loss"], m["simple"] + 1e-4 * m["lrm"] + 9e-2 * m["ebb"], rtol=1e-5)
  assert float(problem.final_gates().second) == 0
  # After the transition the student computes with one basis exactly: s2 may be anything.
  x, t = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.array([3, 700])
  predict = jax.jit(lambda variables: problem.student.apply(variables, x, t, gates=problem.final_gates())[0])
  spoilt = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf + 7.0 if path[-1].key == "scale2" else leaf, state.variables
  )
  np.testing.assert_array_equal(predict(state.variables), predict(spoilt))


def test_fade_is_a_part_of_the_steps():
  """quant.fade reaches the step's gates: of 40 steps the ten before the transition."""
  problem = build(tiny.get_config(**{"method": "ebb", "student.steps": 40, "quant.fade": 0.25}), with_data=False)
  shares = [float(problem.gates_fn(jnp.int32(step)).second) for step in (0, 10, 15, 19, 20)]
  np.testing.assert_allclose(shares, [1, 1, 0.5, 0.1, 0], rtol=1e-6)


@pytest.mark.slow
def test_seeds_share_a_program(baseline):
  """The seed is data: a run by another finds the compiled step in the cache."""
  texts, keys = [], []
  for seed in (0, 1):
    problem = build(tiny.get_config(method="baseline", seed=seed, **SMALL))
    mesh = sharding.make_mesh(jax.devices()[:1])
    _, _, _, state, _ = baseline
    frozen = stages._frozen(problem, None, (), mesh)
    batch = next(feed.network_batches(problem, "student", mesh, 0))
    step = stages.student_train_step(problem, state, frozen)
    texts.append(step.lower(state, frozen, batch).as_text())
    keys.append(frozen["key"].tolist())
  assert texts[0] == texts[1] and keys[0] != keys[1]


def test_ebb_regularizer_by_hand():
  """The mean over layers of mean |s2|, not the mean over channels."""
  scales = [jnp.array([1.0, -3.0]), jnp.array([4.0])]
  assert float(mean_scale(scales)) == 3.0


def test_baseline_runs_no_teacher_and_has_no_gates(baseline):
  """Without LRM, progressive initialisation and EBB nothing of them is computed."""
  problem, *_, metrics = baseline
  assert problem.gates_fn is None and not problem.distil
  assert set(metrics[0]) == {"loss", "simple", "grad_norm", "learning_rate"}


def test_calibration_starts_from_the_teacher_and_the_first_batch(baseline):
  """Scales are the teacher's mean magnitudes; activation steps come from what reaches the layer."""
  problem, state, frozen, *_ = baseline
  params, mesh = teacher_params(problem), sharding.make_mesh(jax.devices()[:1])
  conv = params["middle"]["res"]["conv1"]["kernel"]
  learned = state.variables["quant"]["middle"]["res"]["conv1"]
  np.testing.assert_allclose(learned["scale1"], np.abs(conv).mean((0, 1, 2)), rtol=1e-5)
  # The embedding projection's input is silu(time embedding): float layers, so it can be computed apart.
  batch = next(feed.network_batches(problem, "student", mesh, 0))
  from binarydm_jax.models.embedding import timestep_embedding
  from binarydm_jax.training.step import draw

  _, timesteps, _ = draw(problem.schedule, "eps", batch["image"], feed.run_key(problem, feed.CALIBRATION))
  h = timestep_embedding(timesteps, 8) @ params["time_embed_0"]["kernel"] + params["time_embed_0"]["bias"]
  h = jax.nn.silu(jax.nn.silu(h) @ params["time_embed_1"]["kernel"] + params["time_embed_1"]["bias"])
  step = state.variables["quant"]["middle"]["res"]["emb"]["step"]
  np.testing.assert_allclose(step, 2 * np.abs(h).mean() / np.sqrt(7), rtol=1e-4)
  assert frozen["projections"] == ()


def quadratic_terms(variables, frozen, rows, step):
  """A loss with gradient 2 w + mean of the rows, to follow the optimizer by hand."""
  w = variables["params"]["kernel"]
  return {"simple": jnp.sum(w**2) + jnp.sum(rows.mean(0) * w)}, {}


def quadratic_frozen():
  """What a step is given that it does not train: the run's key."""
  return sharding.put_replicated({"key": jax.random.key_data(jax.random.key(0))}, sharding.make_mesh(jax.devices()[:1]))


def quadratic_step(optimizer, rate, ema_decay, params, **options):
  """(train_step, state) of `quadratic_terms` on one device; a batch is an array [rows, 2]."""
  state = sharding.put_replicated(create_state({"params": params}, optimizer), sharding.make_mesh(jax.devices()[:1]))
  rows_of = lambda batch, key: batch
  step = make_train_step(
      quadratic_terms, rows_of, {"simple": 1.0}, optimizer, rate, ema_decay, state, quadratic_frozen(), **options
  )
  return step, state


def test_first_step_by_hand():
  """AdamW's first step is lr * sign(gradient) + lr * decay * w, at the warm-up's rate; EMA decay 1/10 at n = 0."""
  optimizer, rate = make_optimizer(10, 0.1, 0, weight_decay=0.5, clip_norm=0.0)
  params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([1.0])}
  step, state = quadratic_step(optimizer, rate, 0.9999, params)
  state, metrics = step(state, quadratic_frozen(), jnp.zeros((1, 2)))
  new = np.array([1.0 - 0.1 * 1 - 0.1 * 0.5 * 1.0, -2.0 + 0.1 * 1 + 0.1 * 0.5 * 2.0])
  np.testing.assert_allclose(state.variables["params"]["kernel"], new, rtol=1e-5)
  np.testing.assert_allclose(state.ema["params"]["kernel"], 0.1 * np.array([1.0, -2.0]) + 0.9 * new, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(4 + 16), rtol=1e-6)
  assert float(metrics["learning_rate"]) == pytest.approx(0.1)


def test_weight_decay_is_on_kernels_alone():
  """With zero gradients kernels shrink; biases and scales do not move."""
  optimizer, _ = make_optimizer(10, 0.1, 0, weight_decay=0.5, clip_norm=1.0)
  variables = {"params": {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}, "quant": {"a": {"scale1": jnp.ones(2)}}}
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, variables), optimizer.init(variables), variables)
  new = optax.apply_updates(variables, updates)
  np.testing.assert_allclose(new["params"]["a"]["kernel"], 0.95, rtol=1e-6)
  np.testing.assert_array_equal(new["params"]["a"]["bias"], 1.0)
  np.testing.assert_array_equal(new["quant"]["a"]["scale1"], 1.0)


def test_learning_rate_factor_of_scales():
  """quant.learning_rate_factor multiplies the updates of `quant` and no others."""
  variables = {"params": {"kernel": jnp.ones(2)}, "quant": {"scale1": jnp.ones(2)}}
  gradients = jax.tree.map(jnp.ones_like, variables)
  optimizer, _ = make_optimizer(10, 0.1, 0, weight_decay=0.0, clip_norm=0.0, quant_factor=0.25)
  updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
  np.testing.assert_allclose(updates["params"]["kernel"], -0.1, rtol=1e-5)
  np.testing.assert_allclose(updates["quant"]["scale1"], -0.025, rtol=1e-5)


def test_clip_norm_and_schedule():
  """Gradients are scaled to the norm before Adam; the rate rises linearly and falls to 0 by a cosine."""
  optimizer, rate = make_optimizer(110, 1.0, 10, weight_decay=0.0, clip_norm=1.0)
  assert [float(rate(i)) for i in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1.0, 0.5, 0.0], abs=1e-6)
  state = optimizer.init({"params": {"kernel": jnp.zeros(2)}})
  gradients = {"params": {"kernel": jnp.array([30.0, 40.0])}}
  _, state = optimizer.update(gradients, state, {"params": {"kernel": jnp.ones(2)}})
  first_moment = optax.tree.get(state, "mu")["params"]["kernel"]
  np.testing.assert_allclose(first_moment, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


NAN, ZERO = jnp.array([[jnp.nan, 0.0]]), jnp.zeros((1, 2))


def test_non_finite_values_freeze_the_state():
  """From the first NaN on nothing changes but the flag, whatever the later batches are."""
  optimizer, rate = make_optimizer(10, 0.1, 0, weight_decay=0.0, clip_norm=0.0)
  step, state = quadratic_step(optimizer, rate, 0.99, {"kernel": jnp.array([1.0, -2.0])})
  state, _ = step(state, quadratic_frozen(), ZERO)
  good = jax.device_get(state)
  for batch in (NAN, ZERO):
    state, _ = step(state, quadratic_frozen(), batch)
    assert not bool(state.ok) and int(state.step) == 1
    frozen = jax.device_get(state)
    chex.assert_trees_all_equal(frozen.replace(ok=good.ok), good)


def test_non_finite_values_are_skipped_and_counted():
  """With `skip` the update of a NaN is left out, as if the step had not been but for its number."""
  optimizer, rate = make_optimizer(10, 0.1, 0, weight_decay=0.0, clip_norm=0.0)
  results, rates = [], []
  for batches in ((ZERO, NAN, NAN, ZERO), (ZERO, ZERO)):
    step, state = quadratic_step(optimizer, rate, 0.0, {"kernel": jnp.array([1.0, -2.0])}, skip=True)
    for batch in batches:
      state, metrics = step(state, quadratic_frozen(), batch)
    results.append(jax.device_get(state))
    rates.append(float(metrics["learning_rate"]))
  skipping, plain = results
  assert rates[0] == rates[1] == pytest.approx(float(rate(1)))  # what the optimizer used
  assert (int(skipping.skipped), int(skipping.step), int(plain.skipped)) == (2, 4, 0)
  chex.assert_trees_all_equal(skipping.variables, plain.variables)
  chex.assert_trees_all_equal(skipping.opt_state, plain.opt_state)


def test_gradient_accumulation_by_hand():
  """Three parts of six rows: the mean of the rows, so the same gradient; a device has its parts in their order."""
  optimizer, rate = make_optimizer(10, 0.1, 0, weight_decay=0.0, clip_norm=0.0)
  rows = jnp.arange(12.0).reshape(6, 2)
  for parts in (1, 3):
    step, state = quadratic_step(optimizer, rate, 0.0, {"kernel": jnp.array([1.0, -2.0])}, accumulate=parts)
    _, metrics = step(state, quadratic_frozen(), rows)
    np.testing.assert_allclose(metrics["grad_norm"], np.hypot(2 + 5, -4 + 6), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 1 + 4 + 5 - 2 * 6, rtol=1e-6)


def test_scales_stay_positive_in_the_quantizers():
  """However far an update throws a scale below zero, the prediction stays finite and the next gradient raises it."""
  layer = quant.QuantDense(3, rules=quant.LayerRule("multi_basis", act_bits=4))
  x = jax.random.normal(jax.random.key(0), (5, 4))
  variables = jax.jit(layer.init)(jax.random.key(1), x)
  sunk = {"params": variables["params"], "quant": jax.tree.map(lambda s: s - 10.0, variables["quant"])}
  target = x @ variables["params"]["kernel"]
  gradients = jax.jit(jax.grad(lambda v: jnp.mean((layer.apply(v, x) - target) ** 2)))(sunk)
  assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
  assert all(bool((g <= 0).all()) for g in jax.tree.leaves(gradients["quant"]))
