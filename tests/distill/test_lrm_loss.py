"""The LRM loss by hand, its gradient, and that it compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.distill import lrm_loss, lrm_terms

STUDENT = (jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3), jnp.array([[1.0, 0.0], [0.0, 5.0]]).reshape(1, 2, 1, 2))
TEACHER = (jnp.array([0.0, 2.0, 1.0]).reshape(1, 1, 1, 3), jnp.array([[0.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2))
PROJECTIONS = (jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), jnp.array([[0.6], [0.8]]))


def test_terms_by_hand():
  """Differences (1, 0, 2) -> (1, 2): 5 / 2. Differences (1, 0), (0, 3) -> 0.6, 2.4: (0.36 + 5.76) / 2."""
  np.testing.assert_allclose(lrm_terms(STUDENT, TEACHER, PROJECTIONS), [2.5, 3.06], rtol=1e-6)
  assert float(lrm_loss(STUDENT, TEACHER, PROJECTIONS)) == pytest.approx(2.78, rel=1e-6)


def test_no_projection_is_the_plain_mse():
  """(1 + 0 + 4) / 3 and (1 + 9) / 4, averaged over the blocks."""
  assert float(lrm_loss(STUDENT, TEACHER, ())) == pytest.approx((5 / 3 + 10 / 4) / 2, rel=1e-6)


def test_gradient_by_hand():
  """d/dF of mean((D E)^2) / M is 2 D E E^T / (rows r M)."""
  gradient = jax.grad(lrm_loss)(STUDENT, TEACHER, PROJECTIONS)
  np.testing.assert_allclose(gradient[0].reshape(-1), [2 * 1 / 4, 0, 2 * 2 / 4], rtol=1e-6)
  np.testing.assert_allclose(
      gradient[1].reshape(2, 2), np.array([[0.6 * 0.6, 0.6 * 0.8], [2.4 * 0.6, 2.4 * 0.8]]) * 2 / 4, rtol=1e-6)


def test_what_the_projection_drops_has_no_gradient():
  """Channels outside the span of E may differ freely."""
  student = (STUDENT[0].at[..., 1].set(50.0),)
  value, gradient = jax.value_and_grad(lrm_loss)(student, TEACHER[:1], PROJECTIONS[:1])
  assert float(value) == 2.5 and float(gradient[0][0, 0, 0, 1]) == 0


def test_jit_and_float32_from_bfloat16():
  """Compiled it is the same; bfloat16 features are compared in float32."""
  assert float(jax.jit(lrm_loss)(STUDENT, TEACHER, PROJECTIONS)) == pytest.approx(2.78, rel=1e-6)
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (STUDENT, TEACHER))
  value = lrm_loss(*low, PROJECTIONS)
  assert value.dtype == jnp.float32 and float(value) == pytest.approx(2.78, rel=1e-6)


def test_a_missing_block_is_an_error():
  """Student and teacher must have the same blocks."""
  with pytest.raises(ValueError):
    lrm_loss(STUDENT, TEACHER[:1], PROJECTIONS)
