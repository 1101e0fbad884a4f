"""Programs that run once: the same values, by another compilation, on the device and sharding that were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from binarydm_jax.compilation import QUICKLY, jit_once
from binarydm_jax.mesh import make_mesh, replicated
from binarydm_jax.training import stages
from binarydm_jax.training.problem import build
from tests import tiny


def test_the_compiler_knows_the_options(monkeypatch):
  """An option that XLA has dropped, or another device than a CPU, would show here."""
  seen, real = [], jax.jit
  monkeypatch.setattr(jax, "jit", lambda function, **kwargs: seen.append(kwargs) or real(function, **kwargs))
  mesh = make_mesh(jax.devices()[:1])
  out = jit_once(lambda x: jnp.sin(x) + 1, out_shardings=replicated(mesh))(jnp.arange(3.0))
  np.testing.assert_allclose(out, np.sin(np.arange(3.0)) + 1, rtol=1e-6)
  assert out.sharding.spec == PartitionSpec() and seen[0]["compiler_options"] == QUICKLY
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  jit_once(lambda x: x)
  assert seen[1]["compiler_options"] is None


def test_the_teachers_start_is_that_of_its_initializers():
  """One program gives the weights that flax gives layer by layer, but for rounding."""
  problem = build(tiny.get_config(**{"model.channel_mult": (1,)}), with_data=False)
  ours = stages.initial_teacher(problem)
  wanted = problem.teacher.lazy_init(stages.run_key(problem, stages.INIT), *problem.inputs())
  assert jax.tree.structure(ours) == jax.tree.structure(dict(wanted))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, dict(wanted))
