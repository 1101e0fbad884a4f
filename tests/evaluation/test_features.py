"""The shipped feature network: what it promises, and that the distance under it orders images as an eye would."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
import scipy.ndimage
from safetensors import safe_open

from binarydm_jax.evaluation import features
from binarydm_jax.evaluation.classifier import write_weights
from binarydm_jax.evaluation.metrics import frechet_distance, moments
from binarydm_jax.evaluation.train_digits_classifier import load_digits_split


@pytest.fixture(scope="module")
def network():
  return features.load("digits_classifier")


@pytest.fixture(scope="module")
def digits():
  return load_digits_split()


def to_uint8(images):
  return np.clip(np.round(images), 0, 255).astype(np.uint8)


def test_network_describes_itself(network):
  assert network.name == "digits_classifier"
  assert network.sha256 == hashlib.sha256(features.DIGITS_WEIGHTS.read_bytes()).hexdigest()
  assert (network.dim, network.image_shape) == (64, (8, 8, 1))
  assert 20_000 <= sum(leaf.size for leaf in jax.tree.leaves(network.params)) <= 60_000
  with safe_open(features.DIGITS_WEIGHTS, framework="numpy") as file:
    metadata = json.loads(file.metadata()["training"])
  assert metadata["seed"] == 0
  assert metadata["script"].endswith("train_digits_classifier")


def test_params_are_those_of_the_module(network):
  expected = jax.eval_shape(network.module.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]

  def describe(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

  assert describe(network.params) == describe(expected)


def test_split_covers_all_digits_once(digits):
  (train_images, train_labels), (test_images, test_labels) = digits
  assert train_images.shape == (1500, 8, 8, 1)
  assert test_images.shape == (297, 8, 8, 1)
  assert train_images.dtype == test_images.dtype == np.uint8
  assert (train_images.min(), train_images.max()) == (0, 255)
  assert len(train_labels) == 1500 and len(test_labels) == 297


def test_accuracy_on_test_digits(network, digits):
  images, labels = digits[1]
  predicted = network.classify(images)
  assert predicted.shape == labels.shape
  assert np.mean(predicted == labels) >= 0.98


def test_features_do_not_depend_on_batches(network, digits):
  images = digits[1][0][:70]
  whole = network.extract(images)
  assert whole.shape == (70, 64)
  assert whole.dtype == np.float32
  np.testing.assert_array_equal(network(images), whole)
  for batch_size in (32, 71):
    np.testing.assert_allclose(network.extract(images, batch_size), whole, rtol=1e-4, atol=1e-4)


def test_one_compiled_shape(network, digits):
  traced = []

  def forward(params, images):
    traced.append(images.shape)
    return network.forward(network.module, params, images)

  jitted = jax.jit(forward)
  counting = dataclasses.replace(network, forward=lambda module, params, images: jitted(params, images))
  for count in (1, 32, 33, 100):
    assert counting.extract(digits[0][0][:count], batch_size=32).shape == (count, 64)
  assert traced == [(32, 8, 8, 1)]


def test_every_feature_varies_and_is_smooth(network, digits):
  extracted = network.extract(digits[0][0])
  assert extracted.std(axis=0).min() > 1.0
  # Nothing is cut off: each unit takes many values, on both sides of its mean.
  assert min(len(np.unique(column)) for column in extracted.T) > 1400


def test_distance_orders_images_sensibly(network, digits):
  images = digits[0][0]
  reference = moments(network.extract(images))
  rng = np.random.default_rng(0)

  def distance(other):
    return frechet_distance(reference, moments(network.extract(other)))

  # Every other image: the data are in the order of their writers, whose hands differ.
  halves = frechet_distance(moments(network.extract(images[::2])), moments(network.extract(images[1::2])))
  test = distance(digits[1][0])
  gaussian_images = distance(to_uint8(rng.normal(127.5, 64.0, images.shape)))
  direction = rng.normal(size=images.shape)
  noised = [distance(to_uint8(images + stddev * direction)) for stddev in (0, 8, 16, 32, 64, 128)]
  blurred = [
    distance(to_uint8(scipy.ndimage.gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0))))
    for sigma in (0.0, 0.4, 0.5, 0.75, 1.0, 1.5)
  ]
  five_classes = distance(images[digits[0][1] < 5])

  assert 0.0 < halves < 20.0
  assert halves < test < 50.0
  # Missing half of the classes shows, though every image is perfect.
  assert five_classes > 5.0 * test
  assert gaussian_images > 50.0 * halves
  for degraded in (noised, blurred):
    assert degraded[0] == pytest.approx(0.0, abs=1e-6)
    assert np.all(np.diff(degraded) > 0.5)
    assert degraded[-1] > 5.0 * test


@pytest.mark.parametrize(
  "images, message",
  [
    (np.zeros((2, 8, 8, 1), np.float32), "takes uint8 .* got float32"),
    (np.zeros((2, 32, 32, 3), np.uint8), r"\[n, 8, 8, 1\], got \(2, 32, 32, 3\)"),
    (np.zeros((8, 8, 1), np.uint8), r"got \(8, 8, 1\)"),
    (np.zeros((0, 8, 8, 1), np.uint8), "no images"),
  ],
)
def test_wrong_images_are_named(network, images, message):
  for method in (network.extract, network.classify):
    with pytest.raises(ValueError, match=message):
      method(images)


def test_outputs_are_features_and_probabilities(network, digits):
  images, labels = digits[1]
  outputs = network.outputs(images[:40], batch_size=16)
  np.testing.assert_allclose(outputs.features, network.extract(images[:40]), rtol=1e-4, atol=1e-4)
  assert outputs.spatial is None and network.spatial_dim is None
  assert outputs.probabilities.shape == (40, 10) and outputs.probabilities.dtype == np.float32
  np.testing.assert_allclose(outputs.probabilities.sum(axis=1), 1, rtol=1e-6)
  assert network.takes((8, 8, 1)) and not network.takes((8, 8, 3))


def test_wrong_batch_size_is_named(network):
  with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
    network.extract(np.zeros((1, 8, 8, 1), np.uint8), batch_size=0)


def test_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match="'clip'; there are: digits_classifier, classifier, inception, none"):
    features.load("clip")
  assert features.load("none") is None


def test_inception_without_weights_says_what_it_needs():
  with pytest.raises(ValueError, match="needs evaluation.inception_weights, the path of pt_inception"):
    features.load("inception")


def test_other_weights_are_refused(network, tmp_path, monkeypatch):
  path = tmp_path / "other.safetensors"
  digests = [write_weights(path, network.params, {"seed": 1, "a": 2, "b": 3}) for _ in range(3)]
  assert len(set(digests)) == 1
  assert [entry.name for entry in tmp_path.iterdir()] == ["other.safetensors"]
  monkeypatch.setattr(features, "DIGITS_WEIGHTS", path)
  with pytest.raises(ValueError, match=f"SHA-256 {digests[0]}, expected {features.DIGITS_SHA256}"):
    features.load("digits_classifier")
