"""The Frechet distance between two sets of features (Heusel et al. 2017, arXiv:1706.08500), in float64 numpy."""

from typing import NamedTuple

import numpy as np

# Rounding leaves eigenvalues of a singular covariance this far below zero, relative to the largest; more is a mistake.
_NEGATIVE_TOLERANCE = 1e-8


class Moments(NamedTuple):
  """What the Frechet distance needs of a set of features.

  mean: [d] float64. cov: [d, d] float64. count: of rows; None where a published file does not say.
  """

  mean: np.ndarray
  cov: np.ndarray
  count: int | None


def check_count(n, d):
  """ValueError where n samples are too few for a covariance of d features (n < 2 or n <= d)."""
  if n < 2:
    raise ValueError(f"a covariance needs at least 2 samples, got n = {n}; pass more samples")
  if n <= d:
    raise ValueError(
      f"n = {n} samples of d = {d} features give a singular covariance; pass at least {d + 1} samples, better {10 * d}"
    )


def check_features(features):
  """features -> np.ndarray as it is; ValueError where it is not [n, d] with d >= 1."""
  features = np.asarray(features)
  if features.ndim != 2 or features.shape[1] == 0:
    raise ValueError(f"features must be [n, d] with d >= 1, got shape {features.shape}; flatten each sample to one row")
  return features


def check_finite(features, first_row=0):
  """ValueError where a row of features [n, d] is not finite; rows are numbered from `first_row`."""
  bad_rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
  if bad_rows.size:
    raise ValueError(
      f"features of {bad_rows.size} of {len(features)} samples are NaN or infinite (first: row"
      f" {first_row + bad_rows[0]}); look at the samples they were computed from"
    )


def moments(features) -> Moments:
  """features [n, d] -> Moments in float64, the covariance divided by n - 1 as in the published FID code.

  ValueError where features are not [n, d], are not finite, or have n < 2 or n <= d rows: the sample covariance of n
  rows has rank n - 1 at most, and a distance between singular covariances measures n more than it measures the images.
  """
  features = check_features(features).astype(np.float64)
  n, d = features.shape
  check_count(n, d)
  check_finite(features)
  mean = features.mean(axis=0)
  centred = features - mean
  return Moments(mean=mean, cov=centred.T @ centred / (n - 1), count=n)


def frechet_distance(a: Moments, b: Moments) -> float:
  """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), squared feature units, never negative.

  tr (A B)^(1/2) is the sum of the singular values of F^T G for any factors A = F F^T and B = G G^T, because their
  squares are the eigenvalues of F^T B F, which are those of A B. Source: Heusel et al. 2017, equation 6 (Dowson and
  Landau 1982).
  ValueError where the dimensions differ, a value is not finite, or a covariance is not symmetric positive semidefinite.
  """
  mean_a, factor_a, trace_a = _unpack(a, "a")
  mean_b, factor_b, trace_b = _unpack(b, "b")
  if mean_a.shape != mean_b.shape:
    raise ValueError(
      f"moments of {mean_a.size} and of {mean_b.size} features cannot be compared; use one feature network for both"
    )
  # Singular values, not square roots of the eigenvalues of the product: the root would turn a rounding error of 1e-16
  # in a small eigenvalue into 1e-8.
  trace_root = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
  difference = mean_a - mean_b
  return float(max(difference @ difference + trace_a + trace_b - 2.0 * trace_root, 0.0))


def _unpack(value, name):
  """Moments -> mean [d], factor F of the covariance F F^T [d, d], trace of the covariance; checks all of it."""
  mean, cov = np.asarray(value.mean, dtype=np.float64), np.asarray(value.cov, dtype=np.float64)
  if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
    raise ValueError(f"moments {name}: mean {mean.shape} and cov {cov.shape} must be [d] and [d, d]; use moments()")
  if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise ValueError(f"moments {name} hold NaN or infinite values; recompute them with moments()")
  if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-8 * np.abs(cov).max(initial=0.0)):
    raise ValueError(f"moments {name}: the covariance is not symmetric; recompute it with moments()")
  # The mean of both triangles, since the factorizations read one of them only.
  return mean, _factor((cov + cov.T) / 2.0, name), np.trace(cov)


def _factor(cov, name):
  """F [d, d] with F F^T = cov. Cholesky where it succeeds: a tenth of the time of an eigendecomposition."""
  try:
    return np.linalg.cholesky(cov)
  except np.linalg.LinAlgError:
    pass  # singular, or not a covariance
  eigenvalues, vectors = np.linalg.eigh(cov)
  if eigenvalues[0] < -_NEGATIVE_TOLERANCE * np.abs(eigenvalues).max():
    raise ValueError(
      f"moments {name}: the covariance has the eigenvalue {eigenvalues[0]:.3g} < 0; recompute it with moments()"
    )
  return vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))
