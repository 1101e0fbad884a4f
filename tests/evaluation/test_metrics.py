"""The Frechet distance: values by hand, then properties, then parity with scipy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from binarydm_jax.evaluation.metrics import Moments, frechet_distance, moments


def gaussian(mean, cov):
  return Moments(np.asarray(mean, np.float64), np.asarray(cov, np.float64), 1000)


def random_moments(rng, dim, rank=None):
  factor = rng.normal(size=(dim, rank or 2 * dim))
  return gaussian(rng.normal(size=dim), factor @ factor.T / factor.shape[1])


def test_moments_by_hand():
  result = moments(np.array([[0, 0], [2, 0], [4, 6]], np.float32))
  np.testing.assert_array_equal(result.mean, [2.0, 2.0])
  np.testing.assert_array_equal(result.cov, [[4.0, 6.0], [6.0, 12.0]])
  assert result.count == 3
  assert result.mean.dtype == result.cov.dtype == np.float64


def test_moments_of_float32_features_far_from_zero_are_float64():
  features = (1e4 + np.random.default_rng(0).normal(size=(5000, 3))).astype(np.float32)
  np.testing.assert_allclose(moments(features).cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)


def test_one_dimension_by_hand():
  # (mean difference)^2 + (standard deviation difference)^2 = 3^2 + (2 - 5)^2.
  assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([4.0], [[25.0]])) == pytest.approx(18.0, rel=1e-12)


def test_diagonal_by_hand():
  a = gaussian([0.0, 1.0, 2.0], np.diag([1.0, 4.0, 9.0]))
  b = gaussian([1.0, 1.0, 0.0], np.diag([16.0, 4.0, 1.0]))
  # Means 1 + 0 + 4, standard deviations (1 - 4)^2 + 0 + (3 - 1)^2.
  assert frechet_distance(a, b) == pytest.approx(18.0, rel=1e-12)


def test_singular_covariances_by_hand():
  a = gaussian([0.0, 0.0], np.diag([4.0, 0.0]))
  b = gaussian([0.0, 0.0], np.diag([0.0, 9.0]))
  assert frechet_distance(a, b) == pytest.approx(13.0, rel=1e-12)
  assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)


def test_covariances_that_do_not_commute_by_hand():
  # For 2x2, tr (A B)^(1/2) = sqrt(tr(A B) + 2 sqrt(det A det B)): A B = [[2, 1], [4, 8]], det A = 4, det B = 3.
  a, b = gaussian([0.0, 0.0], np.diag([1.0, 4.0])), gaussian([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]])
  expected = 5.0 + 4.0 - 2.0 * np.sqrt(10.0 + 2.0 * np.sqrt(12.0))
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_properties(seed, dim, scale):
  rng = np.random.default_rng(seed)
  a, b = random_moments(rng, dim), random_moments(rng, dim)
  distance = frechet_distance(a, b)
  assert isinstance(distance, float)
  assert distance >= 0.0
  assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9, abs=1e-12)
  assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10 * np.trace(a.cov))
  # Only a shift between them: the squared length of the shift.
  assert frechet_distance(a, a._replace(mean=a.mean + 3.0)) == pytest.approx(9.0 * dim, rel=1e-9)
  # Features in other units: the distance in these units squared.
  scaled = [Moments(scale * m.mean, scale**2 * m.cov, m.count) for m in (a, b)]
  assert frechet_distance(*scaled) == pytest.approx(scale**2 * distance, rel=1e-9, abs=1e-11 * scale**2)
  # Rotating both changes nothing.
  rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
  rotated = [Moments(rotation @ m.mean, rotation @ m.cov @ rotation.T, m.count) for m in (a, b)]
  assert frechet_distance(*rotated) == pytest.approx(distance, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 200])
def test_parity_with_scipy(dim):
  rng = np.random.default_rng(dim)
  a, b = random_moments(rng, dim), random_moments(rng, dim)
  trace_root = np.trace(scipy.linalg.sqrtm(a.cov @ b.cov)).real
  expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2.0 * trace_root
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_ill_conditioned_covariance_stays_near_zero_against_itself():
  rng = np.random.default_rng(0)
  vectors = np.linalg.qr(rng.normal(size=(64, 64)))[0]
  cov = (vectors * np.logspace(0, -18, 64)) @ vectors.T
  a = gaussian(np.zeros(64), (cov + cov.T) / 2.0)
  assert frechet_distance(a, a) < 1e-12


@pytest.mark.parametrize(
  "features, message",
  [
    (np.zeros(5), r"\[n, d\]"),
    (np.zeros((5, 2, 2)), r"\[n, d\]"),
    (np.zeros((5, 0)), r"\[n, d\]"),
    (np.zeros((1, 3)), "n = 1"),
    (np.zeros((0, 3)), "n = 0"),
    (np.zeros((64, 64)), "n = 64 samples of d = 64 .* at least 65"),
    (np.array([[0.0], [1.0], [np.nan]]), "1 of 3 samples .* row 2"),
    (np.array([[0.0], [np.inf], [-np.inf]]), "2 of 3 samples .* row 1"),
  ],
)
def test_moments_errors(features, message):
  with pytest.raises(ValueError, match=message):
    moments(features)


@pytest.mark.parametrize(
  "wrong, message",
  [
    (gaussian([0.0], [[1.0]]), "of 2 and of 1 features"),
    (gaussian([0.0, 0.0], [[1.0]]), r"moments b: mean \(2,\) and cov \(1, 1\)"),
    (gaussian([0.0, np.nan], np.eye(2)), "moments b hold NaN"),
    (gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
    (gaussian([0.0, 0.0], np.diag([1.0, -0.1])), "eigenvalue -0.1 < 0"),
  ],
)
def test_distance_errors(wrong, message):
  with pytest.raises(ValueError, match=message):
    frechet_distance(gaussian([0.0, 0.0], np.eye(2)), wrong)
