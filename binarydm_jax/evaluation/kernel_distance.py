"""Kernel Inception Distance (Binkowski et al. 2018, arXiv:1801.01401), in float64 numpy."""

from typing import NamedTuple

import numpy as np

from binarydm_jax.evaluation.metrics import check_features, check_finite

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020


class KernelDistance(NamedTuple):
  """mean and std: over the subsets (std divides by their number). subset_size: images of either set in each."""

  mean: float
  std: float
  subset_size: int


def kernel_distance(
  samples, reference, num_subsets: int = NUM_SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = SEED
) -> KernelDistance:
  """Unbiased squared maximum mean discrepancy under (x . y / d + 1)^3, averaged over random subsets.

  An estimate without bias of any number of samples; it may be slightly negative where the sets are alike. Subsets are
  drawn as torch-fidelity draws them (RandomState(seed), `samples` first), so both give one figure for the same
  features; its default seed is the one here. (ADM's suite has no KID.)

  Args:
    samples, reference: features [n, d] and [m, d].
    num_subsets: how many subsets of either set are drawn.
    subset_size: rows in a subset; the smaller set's size where that is less.
    seed: of the subsets.
  Raises:
    ValueError: other shapes, values that are not finite, fewer than 2 rows.
  """
  samples, reference = check_features(samples), check_features(reference)
  if samples.shape[1] != reference.shape[1]:
    raise ValueError(
      f"features {samples.shape} and {reference.shape} cannot be compared; use one feature network for both"
    )
  for rows in (samples, reference):
    check_finite(rows)
  size = min(subset_size, len(samples), len(reference))
  if size < 2 or num_subsets < 1:
    raise ValueError(
      f"KID needs at least 1 subset of 2 samples and 2 reference images, got {num_subsets} of {size}; pass more"
    )
  rng = np.random.RandomState(seed)  # its stream is frozen for good
  values = []
  for _ in range(num_subsets):
    x = samples[rng.choice(len(samples), size, replace=False)].astype(np.float64)
    y = reference[rng.choice(len(reference), size, replace=False)].astype(np.float64)
    # The distance is a small difference of large sums: float32 would leave two or three digits of it.
    within = _off_diagonal_sum(_kernel(x, x)) + _off_diagonal_sum(_kernel(y, y))
    values.append(within / (size * (size - 1)) - 2.0 * _kernel(x, y).mean())
  return KernelDistance(float(np.mean(values)), float(np.std(values)), size)


def _kernel(x, y):
  """x [n, d], y [m, d] -> (x y^T / d + 1)^3 [n, m]."""
  base = x @ y.T / x.shape[1] + 1.0
  return base * base * base  # many times faster than a power


def _off_diagonal_sum(matrix):
  return matrix.sum() - np.trace(matrix)
