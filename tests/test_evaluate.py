"""The reference of an evaluation, of the training images or of a published file, kept in the workdir; the commit."""

import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from binarydm_jax import evaluate
from binarydm_jax.evaluate import get_reference
from binarydm_jax.evaluation.features import Outputs


class Network:
  """Three features and two spatial ones of an image: its first pixels."""

  name, sha256, dim, spatial_dim, image_shape = "inception", "ab", 3, 2, None
  calls = 0

  def outputs(self, images, batch_size):
    self.calls += 1
    pixels = images.reshape(len(images), -1).astype(np.float32)
    return Outputs(pixels[:, :3], pixels[:, 3:5], None)

  def takes(self, image_shape):
    return True


class Images:
  """Random images as a data source."""

  name = "noise (train)"

  def __init__(self, count):
    self.images = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    return {"image": self.images[i]}


def problem(count, reference="", most=0):
  fields = SimpleNamespace(reference=reference, reference_images=most, batch_size=8)
  return SimpleNamespace(config=SimpleNamespace(evaluation=fields), train_data=Images(count))


def test_measured_once(tmp_path):
  """Moments of the training images; read back by the next evaluation, measured again for other images."""
  network = Network()
  first = get_reference(problem(40), tmp_path, network)
  pixels = Images(40).images.reshape(40, -1)[:, :3].astype(np.float64)
  np.testing.assert_allclose(first.moments.mean, pixels.mean(0))
  np.testing.assert_allclose(first.moments.cov, np.cov(pixels.T))
  calls = network.calls
  again = get_reference(problem(40), tmp_path, network)
  assert network.calls == calls
  np.testing.assert_array_equal(again.moments.mean, first.moments.mean)
  assert get_reference(problem(40, most=20), tmp_path, network).protocol["count"] == 20
  assert network.calls > calls


def test_published_file(tmp_path):
  """An ADM reference gives its own moments; another network's does not pass for it."""
  path = tmp_path / "VIRTUAL_noise.npz"
  moments = dict(mu=np.arange(3.0), sigma=np.eye(3), mu_s=np.arange(2.0), sigma_s=np.eye(2))
  np.savez(path, arr_0=Images(30).images, **moments)
  network = Network()
  reference = get_reference(problem(40, str(path)), tmp_path, network)
  np.testing.assert_array_equal(reference.moments.mean, moments["mu"])
  np.testing.assert_array_equal(reference.spatial.cov, moments["sigma_s"])
  assert len(reference.features) == 30 and reference.halves is None
  network.name = "digits_classifier"
  with pytest.raises(ValueError, match="evaluation.feature_network is 'digits_classifier'; set it to 'inception'"):
    get_reference(problem(40, str(path)), tmp_path, network)


def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
  """What a figure is cited with; edited files are said, and a folder that is no checkout has none, even inside one."""
  git = lambda *arguments: subprocess.run(
    ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *arguments], check=True, capture_output=True
  )
  (tmp_path / "inner").mkdir()
  (tmp_path / "file").write_text("a")
  git("init")
  git("add", "file")
  git("commit", "-m", "x")
  monkeypatch.setattr(evaluate, "PROJECT", tmp_path)
  clean = evaluate.commit()
  assert re.fullmatch("commit [0-9a-f]{40}", clean)
  (tmp_path / "file").write_text("b")
  assert evaluate.commit() == f"{clean}-dirty"
  monkeypatch.setattr(evaluate, "PROJECT", tmp_path / "inner")
  assert evaluate.commit() == ""
