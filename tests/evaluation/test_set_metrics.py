"""Streaming moments, Inception Score, KID, precision and recall: by hand, properties, independent formulas, errors."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binarydm_jax.evaluation.inception_score import InceptionScore, inception_score
from binarydm_jax.evaluation.kernel_distance import kernel_distance
from binarydm_jax.evaluation.metrics import frechet_distance, moments
from binarydm_jax.evaluation.neighbours import precision_recall
from binarydm_jax.evaluation.streaming_moments import MomentsAccumulator


def accumulated(batches):
  accumulator = MomentsAccumulator()
  for batch in batches:
    accumulator.update(batch)
  return accumulator.result()


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exp / exp.sum(axis=1, keepdims=True)


def assert_moments_close(a, b, rtol=1e-12):
  assert a.count == b.count and a.mean.dtype == a.cov.dtype == np.float64
  np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=rtol * np.abs(b.mean).max())
  np.testing.assert_allclose(a.cov, b.cov, rtol=0, atol=rtol * np.abs(b.cov).max())


# --- moments ----------------------------------------------------------------------------------------------------------


def test_streaming_moments_by_hand():
  result = accumulated([np.array([[0, 0]], np.float32), np.array([[2, 0], [4, 6]], np.float32)])
  np.testing.assert_allclose(result.mean, [2, 2], rtol=1e-15)
  np.testing.assert_allclose(result.cov, [[4, 6], [6, 12]], rtol=1e-15)
  assert result.count == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e3, 1e6]))
def test_order_and_batches_do_not_matter(seed, offset):
  """Any cut, any order, merged or not: the moments of all rows at once, also far from zero and in growing features."""
  rng = np.random.default_rng(seed)
  features = offset + rng.normal(size=(3000, 5)) * 10.0 ** rng.uniform(-1, 1, 5) + np.arange(3000)[:, None] / 300
  expected = moments(features)
  cuts = np.sort(rng.integers(0, 3000, 8))
  batches = np.split(features, cuts)
  assert_moments_close(accumulated(batches), expected, 1e-12)
  assert_moments_close(accumulated(batches[::-1]), expected, 1e-12)
  assert_moments_close(accumulated([features[rng.permutation(3000)]]), expected, 1e-12)
  halves = MomentsAccumulator(), MomentsAccumulator()
  for i, batch in enumerate(batches):
    halves[i % 2].update(batch)
  halves[0].merge(halves[1])
  halves[0].merge(MomentsAccumulator())
  assert_moments_close(halves[0].result(), expected, 1e-12)


def test_result_may_be_taken_on_the_way():
  rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  accumulator = MomentsAccumulator()
  accumulator.update(rows[:20])
  first = accumulator.result()
  accumulator.update(rows[20:])
  assert_moments_close(first, moments(rows[:20]))
  assert_moments_close(accumulator.result(), moments(rows))


def test_streaming_errors():
  accumulator = MomentsAccumulator()
  with pytest.raises(ValueError, match="n = 0"):
    accumulator.result()
  accumulator.update(np.zeros((5, 5)))
  with pytest.raises(ValueError, match="n = 5 samples of d = 5 .* at least 6"):
    accumulator.result()
  with pytest.raises(ValueError, match="batch of 4 features follows batches of 5"):
    accumulator.update(np.zeros((1, 4)))
  with pytest.raises(ValueError, match=r"1 of 2 samples .* row 6"):
    accumulator.update(np.array([[0.0] * 5, [np.nan] * 5]))
  with pytest.raises(ValueError, match=r"\[n, d\]"):
    accumulator.update(np.zeros(5))
  other = MomentsAccumulator()
  other.update(np.zeros((9, 2)))
  with pytest.raises(ValueError, match="moments of 2 and of 5 features cannot be merged"):
    accumulator.merge(other)


# --- Inception Score --------------------------------------------------------------------------------------------------


def test_inception_score_by_hand():
  """Certain and spread over c classes: c. All alike: 1. Zeros in p cost nothing."""
  assert inception_score(np.eye(4)).mean == pytest.approx(4, rel=1e-14)
  assert inception_score(np.tile([0.5, 0.5, 0.0], (6, 1))) == (pytest.approx(1, rel=1e-14), 0, 1)
  # Splits of 2: {a, b} -> 2, {a, a} -> 1, the rest {b} -> 1.
  score = inception_score(np.eye(2)[[0, 1, 0, 0, 1]], split_size=2)
  assert score == (pytest.approx(4 / 3), pytest.approx(np.std([2, 1, 1])), 3)


def test_inception_score_is_adms():
  """Their definition, KL of each row in float64, in consecutive splits, whatever the batches are."""
  p = softmax(np.random.default_rng(0).normal(size=(137, 20)) * 3)
  scores = []
  for start in range(0, 137, 50):
    part = p[start : start + 50]
    scores.append(np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), axis=1))))
  score = InceptionScore(50)
  for batch in np.split(p, [3, 60, 61, 130]):
    score.update(batch)
  assert score.result() == (pytest.approx(np.mean(scores), rel=1e-12), pytest.approx(np.std(scores), rel=1e-9), 3)
  assert score.count == 137


@pytest.mark.parametrize("wrong", [np.full((2, 3), np.nan), np.ones((2, 3)), np.ones(3) / 3, [[1.5, -0.5]]])
def test_inception_score_errors(wrong):
  with pytest.raises(ValueError, match="each row of sum 1"):
    inception_score(wrong)


def test_inception_score_of_nothing():
  with pytest.raises(ValueError, match="at least one sample"):
    InceptionScore().result()
  with pytest.raises(ValueError, match="split_size is 0"):
    InceptionScore(0)


# --- KID --------------------------------------------------------------------------------------------------------------


def test_kernel_distance_by_hand():
  """d = 1, x in {0, 1}, y in {1, 2}: k(0,1) = 1, k(1,2) = 27, and across 1, 1, 8, 27."""
  value = kernel_distance(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]), num_subsets=3)
  assert value == (pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4), pytest.approx(0, abs=1e-12), 2)


def test_kernel_distance_by_loops():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(7, 3)), rng.normal(size=(6, 3)) + 0.3
  kernel = lambda a, b: (a @ b / 3 + 1) ** 3
  rng, values = np.random.RandomState(5), []
  for _ in range(4):
    a, b = x[rng.choice(7, 5, replace=False)], y[rng.choice(6, 5, replace=False)]
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i, j in itertools.permutations(range(5), 2)) / 20
    values.append(within - 2 * sum(kernel(i, j) for i in a for j in b) / 25)
  result = kernel_distance(x, y, num_subsets=4, subset_size=5, seed=5)
  assert result == (pytest.approx(np.mean(values), rel=1e-11), pytest.approx(np.std(values), rel=1e-9), 5)


def test_kernel_distance_has_no_bias():
  """Two halves of one distribution: zero within the standard error, and sometimes below it."""
  rng = np.random.default_rng(1)
  values = [kernel_distance(*rng.normal(size=(2, 40, 8)), num_subsets=1).mean for _ in range(200)]
  assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5 and min(values) < 0


@pytest.mark.parametrize(
  "samples, reference, message",
  [
    (np.zeros((4, 2)), np.zeros((4, 3)), "cannot be compared"),
    (np.zeros((1, 2)), np.zeros((4, 2)), "at least 1 subset of 2 samples"),
    (np.full((4, 2), np.nan), np.zeros((4, 2)), "features of 4 of 4 samples are NaN"),
  ],
)
def test_kernel_distance_errors(samples, reference, message):
  with pytest.raises(ValueError, match=message):
    kernel_distance(samples, reference)


# --- precision and recall ---------------------------------------------------------------------------------------------


def by_definition(samples, reference, k):
  """All distances at once, in float64."""
  samples, reference = samples.astype(np.float64), reference.astype(np.float64)
  squared = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1)
  # Itself is the nearest of all, at place 0.
  radius = lambda a: np.sort(squared(a, a), axis=1)[:, k]
  inside = lambda a, b: (squared(a, b) <= radius(b)).any(axis=1).mean()
  return inside(samples, reference), inside(reference, samples)


def test_precision_recall_by_hand():
  """On a line, k = 1: reference 0, 1, 5 with radii 1, 1, 4; samples 2, 2.5, 20, 40 with radii 0.5, 0.5, 17.5, 20."""
  reference, samples = np.array([[0.0], [1.0], [5.0]]), np.array([[2.0], [2.5], [20.0], [40.0]])
  # 2 and 2.5 lie in the balls around 1 (closed) or 5; 5 alone lies in a sample's ball, that of 20.
  assert precision_recall(samples, reference, k=1) == (0.5, 1 / 3)
  assert precision_recall(reference, samples, k=1) == (1 / 3, 0.5)


@pytest.mark.parametrize("n, m, k, block", [(300, 200, 3, (1024, 8)), (37, 300, 3, (16, 2)), (130, 65, 5, (32, 1))])
def test_blocks_do_not_matter(n, m, k, block):
  rng = np.random.default_rng(n)
  samples = (5 + rng.normal(size=(n, 6))).astype(np.float32)
  reference = (5.4 + 0.8 * rng.normal(size=(m, 6))).astype(np.float32)
  result = precision_recall(samples, reference, k, block)
  assert result == pytest.approx(by_definition(samples, reference, k), rel=1e-12)
  assert 0.1 < min(result) < 1


def test_float64_decides_where_float32_cannot():
  """Pairs far apart; every fifth sample lies exactly on a ball (and counts), the rest a hair outside of it."""
  rng = np.random.default_rng(0)
  # Integers: squared distances are exact in float64; in float32 they are off by the squared norms' 1e-7, about 1e3.
  centres = rng.integers(-9000, 9000, (60, 64)).astype(np.float32)
  steps = rng.integers(-9, 10, (60, 64)).astype(np.float32)
  steps[:, 0] = 5
  samples = centres - steps
  samples[np.arange(60) % 5 > 0, 0] -= 1  # one unit further
  reference = np.concatenate([centres, centres + steps])
  assert precision_recall(samples, reference, k=1).precision == 0.2
  assert precision_recall(reference, reference) == (1, 1)


def test_collapsed_samples():
  """One sample again and again: its ball is a point; it is precise where it lies in the data, and recalls itself."""
  reference = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
  assert precision_recall(np.tile(reference[:1], (20, 1)), reference) == (1, 1 / 50)
  assert precision_recall(np.tile(reference[:1] + 100, (20, 1)), reference) == (0, 0)


@pytest.mark.parametrize(
  "samples, reference, message",
  [
    (np.zeros((9, 2)), np.zeros((9, 3)), "cannot be compared"),
    (np.zeros((3, 2)), np.zeros((9, 2)), "need more than 3 rows, got 3 samples and 9"),
    (np.zeros((9, 2)), np.full((9, 2), np.inf), "features of 9 of 9 samples are NaN or infinite"),
  ],
)
def test_precision_recall_errors(samples, reference, message):
  with pytest.raises(ValueError, match=message):
    precision_recall(samples, reference)


# --- all of them ------------------------------------------------------------------------------------------------------


def fixed_features():
  """Two sets from RandomState, whose stream is frozen: [400, 16] and [300, 16] float32, [400, 16] probabilities."""
  rng = np.random.RandomState(0)
  mix = rng.standard_normal((16, 16))
  samples = (np.maximum(rng.standard_normal((400, 16)) @ mix, 0) * 0.9).astype(np.float32)
  reference = np.maximum(rng.standard_normal((300, 16)) @ mix + 0.3, 0).astype(np.float32)
  return samples, reference, softmax(samples.astype(np.float64))


def test_fixed_features_give_these_figures():
  """Golden: also what torch-fidelity 0.4.0 gives for the same features (the score on unshuffled splits)."""
  samples, reference, probabilities = fixed_features()
  fid = frechet_distance(accumulated(np.split(samples, [7, 200])), moments(reference))
  assert fid == pytest.approx(5.857006785710439, rel=1e-9)
  score = inception_score(probabilities, split_size=100)
  assert (score.mean, score.std) == pytest.approx((4.457665163187297, 0.3331179426758745), rel=1e-9)
  assert precision_recall(samples, reference) == pytest.approx((0.9625, 238 / 300), rel=1e-12)
  kid = kernel_distance(samples, reference, num_subsets=10, subset_size=100)
  assert (kid.mean, kid.std) == pytest.approx((37.88771650996567, 21.707720597057428), rel=1e-9)
