"""The formulas of the compared methods by hand, each at values where a sign, a boundary or an axis could be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.quant.rivals import bi_diffsr, insta_bnn, q_dm, reactnet, tdq


def test_reactnet():
  """The shift is subtracted; RPReLU bends at gamma, where the lower branch holds, and is moved by zeta."""
  np.testing.assert_array_equal(reactnet.shift(jnp.float32([[3, 3]]), jnp.float32([1, -1])), [[2, 4]])
  y = jnp.float32([[-1, 1], [1, 2], [3, 5]])  # per channel below, at and above gamma = (1, 2)
  answer = reactnet.rprelu(y, jnp.float32([0.5, 3]), jnp.float32([1, 2]), jnp.float32([10, 20]))
  np.testing.assert_array_equal(answer, [[0.5 * -2 + 10, 3 * -1 + 20], [10, 20], [2 + 10, 3 + 20]])


def test_reactnet_starts_as_the_identity():
  """Slope 1, gamma = zeta = 0: every value comes back bit for bit, and so does its gradient."""
  y = jax.random.normal(jax.random.key(0), (5, 3))
  ones, zeros = jnp.ones(3), jnp.zeros(3)
  np.testing.assert_array_equal(reactnet.rprelu(y, ones, zeros, zeros), y)
  np.testing.assert_array_equal(jax.grad(lambda y: reactnet.rprelu(y, ones, zeros, zeros).sum())(y), np.ones((5, 3)))


def test_bi_diffsr_ranges():
  """floor(5 t / T): five equal ranges; the first timestep of each, the last before it, and floats between."""
  steps = [0, 199, 200, 399, 400, 599, 600, 799, 800, 999]
  np.testing.assert_array_equal(bi_diffsr.timestep_range(jnp.array(steps), 1000), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
  np.testing.assert_array_equal(bi_diffsr.timestep_range(jnp.float32([199.5, 200.0, 1000.0]), 1000), [0, 1, 4])
  np.testing.assert_array_equal(bi_diffsr.timestep_range(jnp.arange(3), 3), [0, 1, 3])  # T below K skips ranges


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_bi_diffsr_selects_by_example(ndim):
  """One row of the table an example, along the last axis; a gradient goes to the rows that were taken alone."""
  table = jnp.arange(10, dtype=jnp.float32).reshape(5, 2)
  rows = bi_diffsr.select(table, jnp.array([999, 0, 450]), 1000, ndim)
  assert rows.shape == (3, *(1,) * (ndim - 2), 2)
  np.testing.assert_array_equal(rows.reshape(3, 2), [[8, 9], [0, 1], [4, 5]])
  gradient = jax.grad(lambda table: bi_diffsr.select(table, jnp.array([999, 999, 450]), 1000, ndim).sum())(table)
  np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [1, 1], [0, 0], [2, 2]])


def test_q_dm_normalises_each_example():
  """Mean 0 and deviation 1 over all but the batch; an example of equal values stays finite."""
  x = jnp.float32([[[1, 3], [5, 7]], [[2, 2], [2, 2]]])
  z, mean, deviation = q_dm.normalise(x)
  np.testing.assert_allclose(mean.ravel(), [4, 2])
  np.testing.assert_allclose(deviation.ravel(), [5**0.5, 1e-3], rtol=1e-5)
  np.testing.assert_allclose(z[0], (np.float32([[1, 3], [5, 7]]) - 4) / 5**0.5, rtol=1e-5)
  np.testing.assert_array_equal(z[1], np.zeros((2, 2)))
  assert np.isfinite(jax.grad(lambda x: (q_dm.normalise(x)[0] ** 3).sum())(x)).all()


def test_insta_bnn_third_moment():
  """Of values normalised over the example, averaged over its pixels alone: one number an example and channel."""
  x = np.float32([[[[0.0, 1.0], [2.0, 3.0]]], [[[5.0, -5.0], [5.0, -5.0]]]])  # [2, 1, 2, 2]
  moment = insta_bnn.third_moment(jnp.asarray(x))
  z = np.array([-1.5, -0.5, 0.5, 1.5]) / 1.25**0.5
  np.testing.assert_allclose(moment[0, 0, 0], [(z[0] ** 3 + z[2] ** 3) / 2, (z[1] ** 3 + z[3] ** 3) / 2], rtol=1e-4)
  np.testing.assert_allclose(moment[1, 0, 0], [1, -1], rtol=1e-4)
  threshold = insta_bnn.threshold(jnp.asarray(x), jnp.float32([10, 20]), jnp.float32([1, 2]))
  np.testing.assert_allclose(threshold, np.float32([10, 20]) + np.float32([1, 2]) * moment, rtol=1e-6)


def test_tdq_encoding_and_factor():
  """Sines, then cosines of t / 10000^(i / 8); zeros in the last layer give exactly 1 at every timestep."""
  code = tdq.encode(jnp.array([0, 1000]))
  np.testing.assert_array_equal(code[0], [0] * 8 + [1] * 8)
  np.testing.assert_allclose(code[1, 1], np.sin(1000 / 10_000 ** (1 / 8)), atol=1e-4)
  np.testing.assert_allclose(code[1, 15], np.cos(1000 / 10_000 ** (7 / 8)), atol=1e-4)
  layers = [jnp.ones(shape) for shape in tdq.SHAPES[:2]] + [jnp.zeros(tdq.SHAPES[2])]
  np.testing.assert_array_equal(tdq.step_factor(jnp.array([0, 3, 999]), layers), [1, 1, 1])


def test_tdq_network_by_hand():
  """One unit of each layer: relu(2 sin t - 1), then relu(3 h + 1), then -h + 0.5, through softplus(. + c) / 1."""
  first, second, last = (np.zeros(shape, np.float32) for shape in tdq.SHAPES)
  first[0, 4], first[-1, 4] = 2, -1
  second[4, 7], second[-1, 7] = 3, 1
  last[7, 0], last[-1, 0] = -1, 0.5
  times = np.array([0.0, 1.5, 1.0], np.float32)
  h = np.maximum(3 * np.maximum(2 * np.sin(times) - 1, 0) + 1, 0)
  expected = np.log1p(np.exp(0.5 - h + np.log(np.e - 1)))
  got = tdq.step_factor(jnp.asarray(times), [jnp.asarray(layer) for layer in (first, second, last)])
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  assert (got > 0).all() and len(set(np.asarray(got))) == 3
