"""All metrics in one call: each is that of its own function; what is lacking says why; errors are one line."""

import dataclasses
import json

import numpy as np
import pytest

from binarydm_jax.data import open_source, read_all
from binarydm_jax.evaluation import features, reference
from binarydm_jax.evaluation.inception_score import inception_score
from binarydm_jax.evaluation.kernel_distance import kernel_distance
from binarydm_jax.evaluation.metrics import frechet_distance, moments
from binarydm_jax.evaluation.neighbours import precision_recall
from binarydm_jax.evaluation.samples import evaluate_samples
from tests.evaluation.test_reference import Means, Source

METRICS = {"fid", "sfid", "inception_score", "inception_score_std", "precision", "recall", "kid", "kid_std"}


@pytest.fixture(scope="module")
def network():
  return features.load("digits_classifier")


@pytest.fixture(scope="module")
def real(network):
  return reference.compute(network, open_source("digits", image_size=8, channels=1, split="train"), keep=200)


@pytest.fixture(scope="module")
def digits():
  return read_all(open_source("digits", image_size=8, channels=1, split="test"))[0]


def test_each_metric_is_its_own_function(network, real, digits):
  seen = []
  batches = iter(np.split(digits, [100, 101, 230]))
  result = evaluate_samples(
    network, batches, real, batch_size=128, split_size=100, kid_subsets=5, kid_subset_size=50, progress=seen.append
  )
  outputs = network.outputs(digits)
  assert result["fid"] == pytest.approx(frechet_distance(moments(outputs.features), real.moments), rel=1e-6)
  score = inception_score(outputs.probabilities, 100)
  assert (result["inception_score"], result["inception_score_std"]) == pytest.approx(score[:2], rel=1e-6)
  assert (result["precision"], result["recall"]) == precision_recall(outputs.features, real.features)
  kid = kernel_distance(outputs.features, real.features, 5, 50)
  assert (result["kid"], result["kid_std"], result["kid_subset_size"]) == pytest.approx(kid, rel=1e-3, abs=1e-6)
  assert result["sfid"] is None and result["missing"] == {"sfid": "digits_classifier has no spatial features"}
  assert (result["num_samples"], result["num_reference"], result["num_reference_features"]) == (297, 1500, 200)
  assert (result["feature_network"], result["feature_sha256"]) == ("digits_classifier", network.sha256)
  assert seen == [100, 1, 129, 67] and json.loads(json.dumps(result)) == result
  # Held-out digits are good samples by every one of them.
  assert result["fid"] < 50 and result["inception_score"] > 7 and min(result["precision"], result["recall"]) > 0.6


def test_noise_is_bad_by_all(network, real, digits):
  noise = np.random.default_rng(0).integers(0, 256, digits.shape).astype(np.uint8)
  good, bad = (evaluate_samples(network, [images], real, kid_subsets=5) for images in (digits, noise))
  assert bad["fid"] > 10 * good["fid"] and bad["kid"] > 10 * good["kid"]
  assert bad["inception_score"] < good["inception_score"]
  assert bad["precision"] < 0.5 * good["precision"] and bad["recall"] < 0.5 * good["recall"]


def test_spatial_features():
  found = reference.compute(Means(), Source(), keep=20)
  result = evaluate_samples(Means(), [Source(seed=1).images], found, kid_subsets=2)
  a, b = (Means().outputs(Source(seed=seed).images, 50).spatial for seed in (1, 0))
  assert result["sfid"] == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-9)
  assert result["missing"] == {} and all(result[name] is not None for name in METRICS)
  assert result["inception_score"] == pytest.approx(1)


def test_what_is_lacking_says_why():
  found = reference.compute(Means(), Source(), keep=0)
  found = dataclasses.replace(found, spatial=None, moments=found.moments._replace(count=None))
  network = Means()
  network.outputs = lambda images, batch_size: Means().outputs(images, batch_size)._replace(probabilities=None)
  result = evaluate_samples(network, [Source().images], found)
  assert {name for name in METRICS if result[name] is not None} == {"fid"}
  assert result["missing"] == dict(
    sfid="the reference has no moments of spatial features",
    inception_score="inception gives no class probabilities",
    precision="the reference has no features of single images",
    recall="the reference has no features of single images",
    kid="the reference has no features of single images",
  )
  assert result["num_reference"] is None and result["num_reference_features"] == 0
  few = evaluate_samples(Means(), [Source().images], reference.compute(Means(), Source(), keep=1))
  assert few["missing"]["precision"] == "the reference has features of 1 images, k is 3"
  assert few["missing"]["kid"] == "the reference has features of 1 images"


@pytest.mark.parametrize(
  "batches, message",
  [
    ([], "there are no samples"),
    ([Source(3).images], "n = 3 samples of d = 3"),
    ([Source(9).images, Source(9, side=5).images], "batch 1 has images of 5x5x3, the first one of 4x4x3"),
    ([Source(9, side=5).images], "samples are of 5x5x3, the reference images of 4x4x3"),
  ],
)
def test_wrong_samples(batches, message):
  with pytest.raises(ValueError, match=message) as error:
    evaluate_samples(Means(), batches, reference.compute(Means(), Source()))
  assert "\n" not in str(error.value)


def test_features_that_are_not_numbers():
  class Broken(Means):
    def outputs(self, images, batch_size):
      outputs = super().outputs(images, batch_size)
      outputs.features[-1, 0] = np.nan
      return outputs

  with pytest.raises(ValueError, match="features of 1 of 10 samples are NaN or infinite .first: row 9.; look at"):
    evaluate_samples(Broken(), [Source(10).images], reference.compute(Means(), Source()))


def test_another_network(network, real):
  with pytest.raises(ValueError, match="was measured with digits_classifier .SHA-256 ffe7cf8e.* with inception .abab"):
    evaluate_samples(Means(), [Source().images], real)
  other = dataclasses.replace(network, sha256="0" * 64)
  with pytest.raises(ValueError, match="measure the reference again"):
    evaluate_samples(other, [], real)
