"""Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019, arXiv:1904.06991), in blocks on the device.

As ADM's suite defines them: k = 3 neighbours, each ball closed. ADM compares distances in float16, which moves its
figures in the third decimal; here they are those of exact distances: products of float32 decide wherever their
rounding cannot matter, float64 decides the rest.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.evaluation.metrics import check_features, check_finite

K = 3
# Rows of a block of distances, and the most rows' worth of columns: at most 32 MiB in float32.
ROWS, MOST = 1024, 8
# More neighbours than k are kept and measured again in float64: rounding may exchange near ones.
_SPARE = 5
# Bound of the rounding error of a squared distance, relative to the sum of both squared norms. Measured on 2,048
# features: 2e-6 where they are spread as Inception's are, 1.2e-5 where a few dominate.
_TOLERANCE = 5e-5


class PrecisionRecall(NamedTuple):
  """precision: part of the samples inside the reference's balls; recall: part of the reference inside the samples'."""

  precision: float
  recall: float


def precision_recall(samples, reference, k: int = K, block=(ROWS, MOST)) -> PrecisionRecall:
  """Precision and recall of samples [n, d] against reference [m, d].

  The ball of a row reaches to its k-th nearest other row of its own set. Memory: a copy of both sets in float32 and
  some blocks of distances, of block[0] rows and at most block[0] block[1]
  columns. ValueError for other shapes, values that are not finite, or n, m <= k.
  """
  samples, reference = check_features(samples), check_features(reference)
  if samples.shape[1] != reference.shape[1]:
    raise ValueError(
      f"features {samples.shape} and {reference.shape} cannot be compared; use one feature network for both"
    )
  if k < 1 or min(len(samples), len(reference)) <= k:
    raise ValueError(
      f"k = {k} neighbours need more than {k} rows, got {len(samples)} samples and {len(reference)} reference images"
    )
  for rows in (samples, reference):
    check_finite(rows)
  # Near the origin: squared distances are differences of squared norms, which should not be larger than need be.
  centre = reference.mean(axis=0, dtype=np.float64)
  a, b = _Blocked(samples, centre, block), _Blocked(reference, centre, block)
  return PrecisionRecall(*_both_covered(a, _squared_radii(a, k), b, _squared_radii(b, k)))


class _Blocked:
  """A set of features: exact rows on the host, centred and padded float32 rows with squared norms on the device."""

  def __init__(self, features, centre, block):
    self.exact, self.count = features, len(features)
    # Columns divide the padded set evenly: little is computed for padding.
    self.rows = min(block[0], _round_up(self.count, 128))
    num_rows = -(-self.count // self.rows)
    self.columns = self.rows * -(-num_rows // -(-num_rows // block[1]))
    padded = np.zeros((_round_up(self.count, self.columns), features.shape[1]), np.float32)
    for start in range(0, self.count, self.rows):  # in parts: no second copy in float64
      part = slice(start, min(start + self.rows, self.count))
      padded[part] = features[part] - centre
    self.features = jnp.asarray(padded)
    self.norms = _squared_norms(self.features)


@jax.jit  # as one program: the squares are not held
def _squared_norms(features):
  return jnp.sum(jnp.square(features), axis=1)


def _round_up(n, multiple):
  return -(-n // multiple) * multiple


def _block(a, a_norms, b, b_norms, row, column, shape):
  """Squared distances [rows, columns] of a[row:] to b[column:], and the sums of their squared norms."""
  take = jax.lax.dynamic_slice_in_dim
  # Full float32 products: a TPU's default of bfloat16 would leave three digits.
  products = jnp.matmul(take(a, row, shape[0]), take(b, column, shape[1]).T, precision="highest")
  norms = take(a_norms, row, shape[0])[:, None] + take(b_norms, column, shape[1])[None, :]
  return jnp.maximum(norms - 2.0 * products, 0.0), norms


@functools.partial(jax.jit, static_argnames="shape")
def _nearer(features, norms, count, row, column, distances, indices, *, shape):
  """The nearest neighbours so far (squared distances and indices, [rows, kept]) after one more block of columns."""
  squared, _ = _block(features, norms, features, norms, row, column, shape)
  rows, columns = row + jnp.arange(shape[0]), column + jnp.arange(shape[1])
  hidden = (rows[:, None] == columns[None, :]) | (columns >= count)[None, :]  # itself, padding
  negative, found = jax.lax.top_k(jnp.where(hidden, -jnp.inf, -squared), min(distances.shape[1], shape[1]))
  nearest, chosen = jax.lax.top_k(jnp.concatenate([-distances, negative], axis=1), distances.shape[1])
  return -nearest, jnp.take_along_axis(jnp.concatenate([indices, columns[found]], axis=1), chosen, axis=1)


def _squared_radii(a, k):
  """Exact squared distance of each row to its k-th nearest other row, [count] float64."""
  kept = min(k + _SPARE, a.count - 1)
  radii = np.empty(a.count)
  for row in range(0, a.count, a.rows):
    distances, indices = jnp.full((a.rows, kept), jnp.inf), jnp.zeros((a.rows, kept), jnp.int32)
    for column in range(0, a.count, a.columns):
      distances, indices = _nearer(
        a.features, a.norms, a.count, row, column, distances, indices, shape=(a.rows, a.columns)
      )
    indices = np.asarray(indices)[: a.count - row]
    for start in range(0, len(indices), 256):
      part = indices[start : start + 256]
      exact = _exact(a.exact[row + start : row + start + len(part), None], a.exact[part])
      radii[row + start : row + start + len(part)] = np.partition(exact, k - 1, axis=1)[:, k - 1]
  return radii


@functools.partial(jax.jit, static_argnames="shape")
def _inside(a, a_norms, a_radii, b, b_norms, b_radii, row, column, *, shape):
  """One block of both directions at once: rows of a in balls of b, rows of b in balls of a.

  Returns surely and possibly, [2, rows] bool, of a; the same, [2, columns], of b.
  """
  squared, norms = _block(a, a_norms, b, b_norms, row, column, shape)
  take = jax.lax.dynamic_slice_in_dim
  slack = _TOLERANCE * norms
  found = []
  for radii, axis in ((take(b_radii, column, shape[1])[None, :], 1), (take(a_radii, row, shape[0])[:, None], 0)):
    margin = radii - squared
    found.append(jnp.stack([jnp.any(margin > slack, axis=axis), jnp.any(margin >= -slack, axis=axis)]))
  return found


def _both_covered(a, a_radii, b, b_radii):
  """(part of a's rows in a ball of b's, part of b's rows in a ball of a's); radii are squared, float64."""
  on_device = []
  for rows, radii in ((a, a_radii), (b, b_radii)):
    padded = np.full(len(rows.features), -np.inf, np.float32)  # no ball around padding
    padded[: rows.count] = radii
    on_device.append(jnp.asarray(padded))
  status = [np.zeros((2, len(rows.features)), bool) for rows in (a, b)]
  for row in range(0, a.count, a.rows):
    for column in range(0, b.count, b.columns):
      found = _inside(
        a.features, a.norms, on_device[0], b.features, b.norms, on_device[1], row, column, shape=(a.rows, b.columns)
      )
      for rows, start, block in zip(status, (row, column), found):
        rows[:, start : start + block.shape[1]] |= np.asarray(block)
  return _decided(a, b, b_radii, status[0]), _decided(b, a, a_radii, status[1])


def _decided(a, b, squared_radii, status):
  """Part of a's rows inside; those that are possibly but not surely so are measured again in float64."""
  sure, possible = status[:, : a.count]
  total = int(sure.sum())
  for i in np.flatnonzero(possible & ~sure):
    total += any(
      np.any(_exact(a.exact[i], b.exact[start : start + 1024]) <= squared_radii[start : start + 1024])
      for start in range(0, b.count, 1024)
    )
  return total / a.count


def _exact(x, y):
  """Squared distances along the last axis in float64; the same bits for (x, y) and (y, x)."""
  return np.square(x.astype(np.float64) - y).sum(axis=-1)
