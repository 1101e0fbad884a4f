"""Rows of diagnostics.jsonl: signs, histograms, scales and steps by hand, and the file of an interrupted run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.training import diagnostics, loop, sharding
from binarydm_jax.training.problem import build
from binarydm_jax.training.state import Begin, TrainState
from tests import tiny
from tests.training.fakes import Compiled, Memory

TABLE = {
    "input_0/one": quant.LayerRule("one_basis", act_bits=4),
    "output_0/two": quant.LayerRule("evolving", act_bits=4),
    "time_embed_0": quant.LayerRule("lsq", 2, 32),
    "out_conv": quant.LayerRule(),
}
ONE = jnp.array([[1.0, -2.0, 0.0], [-1.0, 2.0, 4.0]])
TWO = jnp.array([[3.0], [1.0], [-3.0], [-1.0]])


def variables(one=ONE, two=TWO):
  """Weights and scales of TABLE's layers."""
  return {
      "params": {
          "input_0": {"one": {"kernel": one, "bias": jnp.zeros(3)}},
          "output_0": {"two": {"kernel": two}},
          "time_embed_0": {"kernel": jnp.array([[-2.0, -0.2], [0.4, 1.0]])},
          "out_conv": {"kernel": jnp.ones((2, 2))},
      },
      "quant": {
          "input_0": {"one": {"scale1": jnp.array([1.0, 2.0, 3.0]), "step": jnp.float32(0.25)}},
          "output_0": {"two": {"scale1": jnp.array([2.0]), "scale2": jnp.array([1.0]), "step": jnp.float32(-1.0)}},
          "time_embed_0": {"weight_step": jnp.array([1.0, 0.5])},
      },
  }


def test_flips_by_hand():
  """Of ten signs (not a multiple of eight) three differ; 0 counts as +1."""
  before = jnp.array([1.0, -1, 1, -1, 0, -1, 1, 1, 1, -1])
  after = jnp.array([1.0, 1, 1, -1, 2, -1, 1, 1, -1, 1])
  bits = diagnostics.sign_bits(before.reshape(2, 5))
  assert bits.dtype == jnp.uint8 and bits.shape == (2,)
  assert int(diagnostics.count_flips(bits, diagnostics.sign_bits(after))) == 3
  assert int(diagnostics.count_flips(bits, diagnostics.sign_bits(-before))) == 9  # -0 >= 0 as well


def test_histogram_by_hand():
  """In units of the mean magnitude; the end bins take what lies outside."""
  counts = diagnostics.histogram(jnp.array([[1.0, -1.0], [1.0, -1.0]]))
  width = 2 * diagnostics.LIMIT / diagnostics.BINS
  places = [int((value + diagnostics.LIMIT) / width + 1e-6) for value in (-1, 1)]
  assert counts.sum() == 4 and [int(counts[i]) for i in places] == [2, 2]
  outlier = diagnostics.histogram(jnp.array([100.0] + [1.0] * 99 + [-60.0]))
  assert int(outlier[-1]) == 1 and int(outlier[0]) == 1 and outlier.sum() == 101
  assert diagnostics.histogram(jnp.zeros(5)).sum() == 5


@pytest.mark.parametrize("second", [1.0, 0.0])
@pytest.mark.parametrize("rule", ["one_basis", "multi_basis", "evolving", "lsq"])
def test_quantized_kernel_is_what_the_layer_multiplies_with(rule, second):
  """The identity as input gives the weights back."""
  rule = quant.LayerRule(rule, 3)
  layer = quant.QuantDense(5, use_bias=False, rules=rule)
  values = layer.init(jax.random.key(0), jnp.eye(4))
  gate = quant.LayerGate(*map(jnp.float32, (1, 1, second)))
  weights = diagnostics.quantized_kernel(values["params"]["kernel"], values["quant"], rule, jnp.float32(second))
  np.testing.assert_allclose(layer.apply(values, jnp.eye(4), gate), weights, rtol=1e-6)


def test_row_by_hand():
  """Two of six and one of four signs flipped in 500 steps; layers by part, histograms by kind of weights."""
  before = diagnostics.student_signs(variables(), TABLE)
  assert set(before) == {"input_0/one", "output_0/two"}
  later = variables(one=ONE.at[0].multiply(-1.0), two=TWO.at[0].set(-3.0))  # of 1, -2 and 0 the 0 does not flip
  gates = quant.Gates(jnp.zeros(3), jnp.float32(0), jnp.float32(0.5))
  signs, numbers = diagnostics.measure(before, later, gates, TABLE)
  jax.tree.map(np.testing.assert_array_equal, signs, diagnostics.student_signs(later, TABLE))
  parts = diagnostics.part_names(TABLE, ("input_0", "middle", "output_0"))
  sizes = {"input_0/one": 6, "output_0/two": 4, "time_embed_0": 4, "out_conv": 4}
  row = diagnostics.make_row(numbers, 500, sizes, TABLE, parts)
  assert row["flips_per_1000_steps"] == pytest.approx({"all": 0.6, "encoder": 2 / 3, "decoder": 0.5}, rel=1e-5)
  assert {kind: sum(counts) for kind, counts in row["histograms"]["counts"].items()} == {
      "one basis": 6, "evolving basis": 4, "2-bit steps": 4}
  # A step below zero is floored as the quantizer floors it.
  assert row["activation_steps"] == {"encoder": {"input_0/one/step": 0.25}, "decoder": {"output_0/two/step": 1e-8}}
  assert row["scale1"] == {"input_0/one": 2.0, "output_0/two": 2.0}
  assert row["scale2"] == {"output_0/two": 0.5} and row["weight_step"] == {"time_embed_0": 0.75}
  assert diagnostics.make_row(numbers, 0, sizes, TABLE, parts)["flips_per_1000_steps"] == {}
  json.dumps(row, allow_nan=False)


def test_nothing_quantized_is_an_empty_row():
  table = {"out_conv": quant.LayerRule()}
  signs, numbers = diagnostics.measure({}, {"params": variables()["params"]}, None, table)
  row = diagnostics.make_row(numbers, 5, {"out_conv": 4}, table, diagnostics.part_names(table, ("middle",)))
  assert signs == {} and row["histograms"]["counts"] == {} and row["flips_per_1000_steps"] == {}


class Stopped(Exception):
  """Stands for whatever ends a run."""


def run(problem, workdir, stop_at=None):
  """The student's loop around a step that costs nothing: all variables drift by the step's noise, in numpy."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda *x: problem.student.init(jax.random.key(0), *x), *problem.inputs())
  first = jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), dict(shapes))

  def train_step(state, frozen, batch):
    if state.step + 1 == stop_at:
      raise Stopped
    noise = np.random.default_rng(state.step)
    drift = lambda x: (x + noise.normal(0, 0.5, x.shape)).astype(np.float32)
    variables = jax.tree.map(drift, state.variables)
    metrics = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0}
    return TrainState(state.step + 1, variables, (), (), 0, True), metrics

  workdir.mkdir(exist_ok=True)
  checkpoints = Memory(workdir)
  state = TrainState(0, first, (), (), 0, True)
  mesh = sharding.make_mesh()
  signs = sharding.put(diagnostics.student_signs(first, problem.table), sharding.replicated(mesh))
  begin, step = checkpoints.begin(Begin(0, state, signs=signs)), Compiled(train_step)
  loop.run_stage(problem, "student", workdir, problem.student, step, begin, {}, mesh, checkpoints)


def test_interrupted_run_writes_the_same_rows(tmp_path, monkeypatch):
  """A stop between two checkpoints, and one before the first; rows at checkpoints and at the last step, from one
  compilation; the host reads the device at log steps, where those rows are taken."""
  problem = build(tiny.get_config(**{
      "model.channel_mult": (1,), "student.steps": 7, "log.every": 1, "checkpoint.every": 2, "method": "binarydm_v5"}))
  traces, measure = [], diagnostics.measure
  monkeypatch.setattr(diagnostics, "measure", lambda *args: traces.append(1) or measure(*args))
  run(problem, tmp_path / "whole")
  assert len(traces) == 1
  for stop_at in (2, 6, None):
    try:
      run(problem, tmp_path / "parts", stop_at)
    except Stopped:
      pass
    else:
      assert stop_at is None
    if stop_at == 6:
      # As if it had been killed after a row that no checkpoint holds.
      with open(tmp_path / "parts" / "diagnostics.jsonl", "a") as file:
        file.write('{"stage": "student", "step": 6}\n{"stage": "stu')
  whole, parts = ((tmp_path / name / "diagnostics.jsonl").read_text() for name in ("whole", "parts"))
  rows = [json.loads(line) for line in whole.splitlines()]
  assert [row["step"] for row in rows] == [0, 2, 4, 6, 7]
  assert rows[0]["flips_per_1000_steps"] == {} and rows[1]["flips_per_1000_steps"]["all"] > 0
  assert sum(rows[-1]["scale2"].values()) == 0 < sum(rows[0]["scale2"].values())  # EBB's transition
  assert whole == parts


def test_no_rows_if_they_are_not_wanted(tmp_path, monkeypatch):
  """log.diagnostics turns them off, and the device is then read once a log step; with them once more a row."""
  reads, real = [], jax.device_get
  monkeypatch.setattr(loop.jax, "device_get", lambda x: reads.append(1) or real(x))
  counts = []
  for wanted in (False, True):
    problem = build(tiny.get_config(**{"model.channel_mult": (1,), "student.steps": 6, "log.every": 3,
                                       "checkpoint.every": 6, "log.diagnostics": wanted}))
    reads.clear()
    run(problem, tmp_path / str(wanted))
    counts.append(len(reads))
    assert (tmp_path / str(wanted) / "diagnostics.jsonl").exists() == wanted
  assert counts == [2, 2 + 2]  # two log steps; rows of step 0 and of step 6
