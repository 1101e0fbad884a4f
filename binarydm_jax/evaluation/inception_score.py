"""The Inception Score (Salimans et al. 2016, arXiv:1606.03498), in float64, from class probabilities in batches."""

from typing import NamedTuple

import numpy as np

SPLIT_SIZE = 5000


class Score(NamedTuple):
  """mean and std: over the splits (std divides by their number, 0 for one split). splits: how many."""

  mean: float
  std: float
  splits: int


class InceptionScore:
  """`update` with probabilities in the order of the samples, then `result`.

  The score of a split is exp(mean over samples of KL(p(class | sample) || mean of p over the split)), computed as
  exp(mean of sum p log p - sum q log q), so that a split needs two sums and no sample is kept. Splits follow ADM's
  suite: consecutive runs of `split_size` samples, the last one shorter. (torch-fidelity shuffles, then cuts ten equal
  ones; on 50,000 samples in random order both cut ten splits of 5,000.)
  """

  def __init__(self, split_size: int = SPLIT_SIZE):
    if split_size < 1:
      raise ValueError(f"split_size is {split_size}; it must be at least 1")
    self.split_size = split_size
    self.count = 0
    self._scores = []
    self._in_split, self._sum, self._sum_plogp = 0, 0.0, 0.0

  def update(self, probabilities):
    """Adds probabilities [n, classes]. ValueError where rows do not sum to 1 or a value is negative or NaN."""
    p = np.asarray(probabilities, np.float64)
    # Rounding of a float32 softmax over 1,008 classes stays far below 1e-3.
    if p.ndim != 2 or not (p >= 0).all() or not (np.abs(p.sum(axis=1) - 1) < 1e-3).all():
      raise ValueError(f"probabilities {p.shape} must be [n, classes], each row of sum 1; apply a softmax")
    while len(p):
      part = p[: self.split_size - self._in_split]
      self._sum = self._sum + part.sum(axis=0)
      self._sum_plogp += _plogp(part).sum()
      self._in_split += len(part)
      self.count += len(part)
      if self._in_split == self.split_size:
        self._scores.append(self._split_score())
        self._in_split, self._sum, self._sum_plogp = 0, 0.0, 0.0
      p = p[len(part) :]

  def _split_score(self):
    return float(np.exp(self._sum_plogp / self._in_split - _plogp(self._sum / self._in_split).sum()))

  def result(self) -> Score:
    """The score of all samples so far. ValueError where there are none."""
    scores = self._scores + ([self._split_score()] if self._in_split else [])
    if not scores:
      raise ValueError("the Inception Score needs at least one sample; pass probabilities")
    return Score(float(np.mean(scores)), float(np.std(scores)), len(scores))


def _plogp(p):
  """p log p, 0 where p = 0."""
  return p * np.log(np.where(p > 0, p, 1.0))


def inception_score(probabilities, split_size: int = SPLIT_SIZE) -> Score:
  """Score of probabilities [n, classes], as in `InceptionScore`."""
  score = InceptionScore(split_size)
  score.update(probabilities)
  return score.result()
