"""A classifier of one's own images as a feature network: trained, written, read, measured with; and wrong files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from binarydm_jax.data import open_source
from binarydm_jax.evaluation import classifier, features, reference, train_classifier
from binarydm_jax.evaluation.samples import evaluate_samples
from binarydm_jax.training.validation import check_features, load_features
from configs import base

pytestmark = pytest.mark.slow  # a minute of compilation
SIZE = 8


def two_kinds(count, rng):
  """RGB images, bright above (label 0) or below (label 1), with noise: uint8 [count, 8, 8, 3] and labels."""
  labels = np.arange(count) % 2
  images = rng.integers(0, 120, (count, SIZE, SIZE, 3)).astype(np.uint8)
  images[labels == 0, : SIZE // 2] += 100
  images[labels == 1, SIZE // 2 :] += 100
  return images, labels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(path of a trained file, its metadata, its SHA-256, `config.data`)."""
  folder = tmp_path_factory.mktemp("classifier")
  images, labels = two_kinds(200, np.random.default_rng(0))
  np.savez(folder / "data.npz", images=images, labels=labels)
  data = base.get_config().data
  data.update(dict(source=f"npz:{folder / 'data.npz'}", image_size=SIZE, channels=3, flip=True))
  return folder / "made.safetensors", *train_classifier.make(data, folder / "made.safetensors", 30, 32), data


def test_it_learns_and_says_how_well(made):
  """What any network can tell apart it tells apart, on images that it has not seen; the file says of how many."""
  path, metadata, sha256, _ = made
  assert metadata["test_accuracy"] >= 0.9 and metadata["training_loss"] < 0.6
  assert (metadata["train_images"], metadata["test_images"], metadata["num_classes"]) == (180, 20, 2)
  assert classifier.read_metadata(path.read_bytes()) == json.loads(json.dumps(metadata))
  network = features.load("classifier", path)
  images, labels = two_kinds(60, np.random.default_rng(1))
  assert train_classifier.accuracy(network, images, labels) >= 0.9
  assert network.sha256 == sha256 and network.name == "classifier"
  assert (network.dim, network.image_shape) == (64, (SIZE, SIZE, 3))
  assert network.takes((8, 8, 3)) and not network.takes((8, 8, 1))


def test_features_are_the_layer_before_the_classes(made):
  """logits = classes(silu(features)), and they do not depend on the batch."""
  network = features.load("classifier", made[0])
  images = two_kinds(20, np.random.default_rng(2))[0]
  outputs = network.outputs(images, batch_size=8)
  assert outputs.features.shape == (20, 64) and outputs.spatial is None
  last = network.params["classes"]
  logits = np.asarray(jax.nn.silu(outputs.features)) @ last["kernel"] + last["bias"]
  np.testing.assert_allclose(outputs.probabilities, jax.nn.softmax(logits), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(network.extract(images), outputs.features, rtol=1e-4, atol=1e-4)
  assert outputs.features.min() < 0 < outputs.features.max()


def test_same_command_same_file(made, tmp_path):
  """Digest and bytes."""
  path, _, sha256, data = made
  assert train_classifier.make(data, tmp_path / "again.safetensors", 30, 32)[1] == sha256
  assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_mirror():
  """About half of the images, each whole, left to right."""
  images = jnp.arange(64 * 2 * 3, dtype=jnp.float32).reshape(64, 2, 3, 1)
  mirrored = train_classifier.mirror(jax.random.key(0), images)
  same = jnp.all(mirrored == images, axis=(1, 2, 3))
  flipped = jnp.all(mirrored == images[:, :, ::-1], axis=(1, 2, 3))
  assert bool(jnp.all(same ^ flipped)) and 16 < int(same.sum()) < 48


def test_augment_shifts_by_at_most_a_pixel():
  """Each image is one of its nine shifts, but for the little noise."""
  images = jax.random.uniform(jax.random.key(1), (32, 6, 6, 1), minval=-1.0)
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
  shifts = np.stack([padded[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)])
  distance = np.abs(shifts - np.asarray(train_classifier.augment(jax.random.key(2), images))).max(axis=(2, 3, 4))
  assert distance.min(axis=0).max() < 6 * train_classifier.NOISE_STDDEV
  assert len(set(distance.argmin(axis=0))) > 4


def test_distance_under_it_orders_images(made):
  """Samples like the training images are nearer than one kind alone, and than noise; the network's digest stands beside
  the figures."""
  network = features.load("classifier", made[0])
  data = made[3]
  source = open_source(data.source, image_size=SIZE, channels=3, split="train")
  measured = reference.compute(network, source)
  rng = np.random.default_rng(4)
  images, labels = two_kinds(200, rng)
  noise = rng.integers(0, 256, images.shape).astype(np.uint8)
  found = [evaluate_samples(network, [batch], measured) for batch in (images, images[labels == 0], noise)]
  like, half, none = (result["fid"] for result in found)
  assert 0 < like < min(half, none)
  assert found[0]["feature_network"] == "classifier" and found[0]["feature_sha256"] == made[2]
  assert found[0]["sfid"] is None and found[0]["precision"] > found[2]["precision"]


def test_config_takes_it(made):
  """evaluation.classifier is its path; images of another shape are refused by name."""
  evaluation = base.get_config().evaluation
  evaluation.update(dict(feature_network="classifier", classifier=str(made[0])))
  assert load_features(evaluation).sha256 == made[2]
  check_features(evaluation, (SIZE, SIZE, 3), 180)
  with pytest.raises(ValueError, match=r"'classifier' takes images of \(8, 8, 3\), and these are \(16, 16, 3\)"):
    check_features(evaluation, (16, 16, 3), 180)
  evaluation.classifier = ""
  with pytest.raises(ValueError, match="needs evaluation.classifier, the path of its file; python -m"):
    check_features(evaluation, (SIZE, SIZE, 3), 180)


def test_unlabelled_and_few_images_are_named(tmp_path, made):
  np.savez(tmp_path / "plain.npz", images=two_kinds(20, np.random.default_rng(3))[0])
  data = ConfigDict(made[3])
  data.source = f"npz:{tmp_path / 'plain.npz'}"
  with pytest.raises(ValueError, match="has no labels: a classifier needs at least two classes"):
    train_classifier.make(data, tmp_path / "x", 1, 4)
  with pytest.raises(ValueError, match="--batch_size=181 is more than the 180 training images"):
    train_classifier.make(made[3], tmp_path / "x", 1, 181)
  assert not (tmp_path / "x").exists()


def damaged(made, tmp_path, how):
  """A file that is not what it should be."""
  path = tmp_path / "wrong.safetensors"
  network = features.load("classifier", made[0])
  params, metadata = dict(network.params), classifier.read_metadata(made[0].read_bytes())
  if how == "bytes":
    path.write_bytes(made[0].read_bytes()[:-4])
    return path
  if how == "foreign":
    return features.DIGITS_WEIGHTS
  if how == "shape":
    params["hidden"] = {"kernel": np.zeros((3, 64), np.float32), "bias": np.zeros(64, np.float32)}
  if how == "type":
    params["hidden"] = {name: value.astype(np.float16) for name, value in params["hidden"].items()}
  if how == "bfloat16":
    params["hidden"] = {name: value.astype(jnp.bfloat16) for name, value in params["hidden"].items()}
  if how == "missing":
    del params["hidden"]
  if how == "infinite":
    metadata["dim"] = float("inf")
  if how == "widths":
    metadata["widths"] = [-1]
  if how == "no width":
    metadata["widths"] = [0]
  if how == "nan":
    params["hidden"] = {name: np.full_like(value, np.nan) for name, value in params["hidden"].items()}
  classifier.write_weights(path, params, metadata)
  return path


@pytest.mark.parametrize("how, words", [
  ("bytes", "is not a safetensors file"), ("foreign", "does not say which classifier it holds"),
  ("shape", "is damaged: hidden/kernel are not those"), ("type", "is damaged: hidden/bias, hidden/kernel are not"),
  ("bfloat16", "has tensors of 'BF16', and not of float32"),
  ("missing", "is damaged: hidden/bias"), ("widths", "does not say which classifier"),
  ("infinite", "does not say which classifier"), ("no width", "does not say which classifier"),
  ("nan", "is damaged: hidden/bias, hidden/kernel are not finite"),
])  # fmt: skip
def test_wrong_files_are_named(made, tmp_path, how, words):
  path = damaged(made, tmp_path, how)
  with pytest.raises(ValueError, match=words) as caught:
    features.load("classifier", path)
  assert "\n" not in str(caught.value) and str(caught.value).startswith("evaluation.classifier: ")


def test_no_file(tmp_path):
  with pytest.raises(ValueError, match="evaluation.classifier: there is no file .*train_classifier makes one"):
    features.load("classifier", tmp_path / "none")
