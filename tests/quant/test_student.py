"""binarize: keyword arguments, and what it refuses with one line."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant

FLOAT = quant.LayerRule()


class Forgetful(nn.Module):
  """Hands its rules to one of two layers."""

  rules: Any = None

  @nn.compact
  def __call__(self, x, *, double=False):
    x = quant.QuantDense(2, rules=self.rules, name="first")(x)
    x = quant.QuantDense(2, name="second")(x)
    return 2 * x if double else x


class Plain(nn.Module):
  rules: Any = None

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name="dense")(x)


class Ruleless(nn.Module):
  @nn.compact
  def __call__(self, x):
    return quant.QuantDense(2, name="dense")(x)


KERNELS = {name: {"kernel": jnp.eye(2), "bias": jnp.ones(2)} for name in ("first", "second")}
BASELINE = quant.preset("baseline", act_bits=4)


@pytest.mark.parametrize("model, params, rules, error, match", [
  (Forgetful(), KERNELS, BASELINE, ValueError, "'second' stayed in full precision: give it `rules=self.rules`"),
  (Forgetful(), {"params": KERNELS}, BASELINE, ValueError, r"give variables\['params'\]"),
  (Forgetful(), KERNELS, FLOAT, TypeError, "rules is a LayerRule: give `quant.preset"),
  (Forgetful({}), KERNELS, BASELINE, ValueError, "Forgetful already has rules"),
  (Plain(), {}, BASELINE, ValueError, "Plain has no quantizable layer: use quant.QuantDense"),
  (Ruleless(), {}, BASELINE, TypeError, "Ruleless has no attribute `rules`: add"),
  (Forgetful(), KERNELS, BASELINE.before(quant.Rule("third", FLOAT)), ValueError, "'third' matched no layer"),
])
def test_what_binarize_refuses(model, params, rules, error, match):
  with pytest.raises(error, match=match) as caught:
    quant.binarize(model, params, rules, jnp.ones((1, 2)))
  assert "\n" not in str(caught.value)


def test_keyword_arguments_stay_python_values():
  """A rule that leaves a layer in float does not ask that it be given the table."""
  rules = BASELINE.before(quant.Rule("second", FLOAT))
  student, variables = quant.binarize(Forgetful(), KERNELS, rules, jnp.ones((1, 2)), double=True)
  assert jax.tree.map(jnp.shape, variables["quant"]) == {"first": {"scale1": (2,), "step": ()}}
  np.testing.assert_allclose(student.apply(variables, jnp.ones((1, 2)), double=True),
                             2 * student.apply(variables, jnp.ones((1, 2))))


def test_donated_variables_leave_the_params_that_were_given():
  _, variables = quant.binarize(Forgetful(), KERNELS, BASELINE.before(quant.Rule("second", FLOAT)), jnp.ones((1, 2)))
  jax.tree.map(lambda leaf: leaf.delete(), variables)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(KERNELS))
