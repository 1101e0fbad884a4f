"""Mean and covariance of features that arrive in batches and are not kept (Chan, Golub and LeVeque 1983)."""

import numpy as np

from binarydm_jax.evaluation.metrics import Moments, check_count, check_features, check_finite

# Rows gathered before they are merged: one product of matrices costs less than many updates of a [d, d] array.
_ROWS = 1024


class MomentsAccumulator:
  """`update` with batches of features in any order, `merge` with others of its kind, then `result`.

  Holds one [d, d] float64 array and about 1,024 rows. The sums are of deviations from a running mean, never of raw
  squares, and everything is counted from the first row: features far from zero lose no digits, and the order of the
  batches changes the result by rounding only (below 1e-12 of the largest entry).
  """

  def __init__(self):
    self.count = 0
    # Float32, so that taking it from float32 features near it is exact in float64.
    self._origin = None
    # Of the rows merged so far, counted from the origin: mean [d], and sum of (x - mean)(x - mean)^T [d, d].
    self._mean = self._scatter = None
    self._merged = 0
    self._waiting, self._num_waiting = [], 0

  def update(self, features):
    """Adds features [n, d]. ValueError for another shape or dimension, or values that are not finite."""
    features = check_features(features)
    if self.count and features.shape[1] != self.dim:
      raise ValueError(f"a batch of {features.shape[1]} features follows batches of {self.dim}; use one network")
    check_finite(features, self.count)
    if not len(features):
      return
    if self._origin is None:
      self._origin = features[0].astype(np.float32).astype(np.float64)
    self.count += len(features)
    self._waiting.append(features - self._origin)
    self._num_waiting += len(features)
    if self._num_waiting >= _ROWS:
      self._flush()

  @property
  def dim(self):
    """Number of features; None before the first batch."""
    return None if self._origin is None else self._origin.size

  def merge(self, other):
    """Adds all that `other` has seen; `other` stays as it was, apart from rows that it had not summed yet."""
    self._flush()
    other._flush()
    if not other._merged:
      return
    if self.count and self.dim != other.dim:
      raise ValueError(f"moments of {other.dim} and of {self.dim} features cannot be merged; use one feature network")
    if self._origin is None:
      self._origin = other._origin
    self._add(other._merged, other._mean + (other._origin - self._origin), other._scatter)
    self.count += other.count

  def result(self) -> Moments:
    """Moments of all rows, as `metrics.moments` gives them. ValueError where there are too few of them."""
    check_count(self.count, self.dim or 0)
    self._flush()
    cov = self._scatter / (self._merged - 1)
    return Moments(mean=self._origin + self._mean, cov=(cov + cov.T) / 2.0, count=self.count)

  def _flush(self):
    """Merges the rows that wait."""
    if not self._num_waiting:
      return
    rows = np.concatenate(self._waiting)
    self._waiting, self._num_waiting = [], 0
    mean = rows.mean(axis=0)
    rows -= mean
    self._add(len(rows), mean, rows.T @ rows)

  def _add(self, count, mean, scatter):
    """Merges rows that are summed already; their mean's offset adds n m / (n + m) of its outer square."""
    if not self._merged:
      self._merged, self._mean, self._scatter = count, mean.copy(), scatter.copy()
      return
    total = self._merged + count
    offset = mean - self._mean
    self._scatter += scatter
    self._scatter += np.outer(offset * (self._merged * count / total), offset)
    self._mean += offset * (count / total)
    self._merged = total
