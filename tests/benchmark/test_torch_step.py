"""The training step written in PyTorch computes what ours does: an independent witness of both."""

import jax
import numpy as np
import optax
import pytest

from binarydm_jax.benchmark import torch_problem, train
from binarydm_jax.training.feed import STUDENT, run_key
from binarydm_jax.training.problem import build
from binarydm_jax.training.step import draw
from tests import tiny

pytestmark = pytest.mark.slow  # a minute of compilation
torch = pytest.importorskip("torch")
from binarydm_jax.benchmark.torch_train import TorchStep  # noqa: E402

# Up- and down-sampling, attention, layers of one basis and of two, 4-bit activations; all quantized from the start.
CONFIG = {
  "quant.progressive": "none", "quant.overrides": ("middle/*=one_basis/4", "output_1/*=one_basis/4"),
  "distill.projection": "random", "distill.weight": 0.5,
  "student.batch_size": 2, "student.warmup_steps": 0, "student.weight_decay": 0.1, "student.ema_decay": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def ours():
  """What PyTorch is told and given, and what our step makes of the same: prediction, metrics, the state after it."""
  problem = build(tiny.get_config(**CONFIG), with_data=False)
  assert {rule.bases for rule in problem.table.values() if rule.weights != "float"} == {1, 2}
  step = train.OurStep(problem)
  key = jax.random.fold_in(run_key(problem, STUDENT), 0)
  drawn = draw(problem.schedule, "eps", step.batch["image"], jax.random.split(key)[0])
  told = torch_problem.describe(problem, step.state.variables, step.frozen)
  prediction, _ = jax.jit(problem.student.apply)(step.state.variables, *drawn[:2])
  metrics = jax.device_get(step())
  return told, drawn, prediction, metrics, step.state


def to_torch(drawn):
  x_t, timesteps, target = (torch.from_numpy(np.array(a)) for a in drawn)
  return x_t.permute(0, 3, 1, 2), timesteps, target.permute(0, 3, 1, 2)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_step(ours, memory_format):
  """Prediction, losses, the clipped gradients of every weight, scale and step, AdamW's update, averages."""
  told, drawn, wanted, metrics, state = ours
  x_t, timesteps, target = to_torch(drawn)
  step = TorchStep(told, memory_format)
  with torch.no_grad():
    prediction, _ = step.student(x_t, timesteps)
    losses = step.losses(x_t, timesteps, target)
  np.testing.assert_allclose(prediction.permute(0, 2, 3, 1), wanted, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(losses, [metrics[name] for name in ("loss", "simple", "lrm")], rtol=1e-4)
  assert metrics["lrm"] > 1e-3 and metrics["grad_norm"] > 1  # so that both count: distillation and clipping

  step.update(x_t, timesteps, target)
  trees = (state.variables, state.ema, optax.tree.get(state.opt_state, "mu"))
  after, averages, moments = map(torch_problem.torch_parameters, trees)
  averaged = dict(zip(map(id, step.parameters), step.average))
  unequal = 0
  for name, parameter in step.student.named_parameters():
    # The first moment is a tenth of the clipped gradient.
    moment = step.optimizer.state[parameter]["exp_avg"].numpy().reshape(moments[name].shape)
    scale = np.abs(moments[name]).max()
    assert scale > 0, name
    np.testing.assert_allclose(moment / scale, moments[name] / scale, atol=2e-4, err_msg=name)
    moved = after[name] - told["student"][name]
    theirs = parameter.detach().numpy().reshape(moved.shape) - told["student"][name]
    unequal += np.sum(np.abs(moved - theirs) > 0.02 * told["learning_rate"])
    average = averaged[id(parameter)].numpy().reshape(moved.shape) - told["student"][name]
    unequal += np.sum(np.abs(averages[name] - told["student"][name] - average) > 0.02 * told["learning_rate"])
  # Adam's first update is nearly the gradient's sign, which rounding decides where the gradient is all but zero.
  assert unequal < 1e-3 * sum(value.size for value in after.values())
