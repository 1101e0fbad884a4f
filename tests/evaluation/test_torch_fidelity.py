"""The same features and images through torch-fidelity, which launch/test.sh installs without its dependencies."""

import sys
from unittest import mock

import numpy as np
import pytest
import torch

from binarydm_jax.evaluation import features
from binarydm_jax.evaluation.inception_score import inception_score
from binarydm_jax.evaluation.kernel_distance import kernel_distance
from binarydm_jax.evaluation.metrics import frechet_distance, moments
from binarydm_jax.evaluation.neighbours import precision_recall
from tests.evaluation.test_inception import random_weights, relative_error
from tests.evaluation.test_set_metrics import fixed_features, softmax

# torch-fidelity reads data sets and crops images by torchvision; the formulas that are compared here need none of it.
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
  sys.modules[name] = mock.MagicMock()

from torch_fidelity import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import calculate_precision_recall_full  # noqa: E402

for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
  del sys.modules[name]

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def sets():
  samples, reference, _ = fixed_features()
  return samples, reference


def doubles(sets):
  return [torch.from_numpy(rows.astype(np.float64)) for rows in sets]


def test_fid(sets):
  theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, doubles(sets)), verbose=False)
  ours = frechet_distance(*map(moments, sets))
  assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=TOLERANCE)


def test_kid(sets):
  theirs = kid_features_to_metric(*doubles(sets), kid_subsets=10, kid_subset_size=100, verbose=False)
  ours = kernel_distance(*sets, num_subsets=10, subset_size=100)
  assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=TOLERANCE)
  assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=TOLERANCE)


def test_inception_score(sets):
  """On splits of the same samples; without its shuffle, where it differs from ADM's suite."""
  logits = doubles(sets)[0]
  ours = inception_score(softmax(logits.numpy()), split_size=40)
  theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
  assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=TOLERANCE)
  assert ours.std == pytest.approx(theirs["inception_score_std"], rel=TOLERANCE)
  shuffled = isc_features_to_metric(logits, splits=10, shuffle=True)
  assert ours.mean != pytest.approx(shuffled["inception_score_mean"], rel=TOLERANCE)


def test_precision_recall(sets):
  assert precision_recall(*sets) == pytest.approx(calculate_precision_recall_full(*doubles(sets)), rel=TOLERANCE)


def test_inception(tmp_path):
  torch.save(random_weights(), tmp_path / "weights.pth")
  images = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3)).astype(np.uint8)
  wanted = ["2048", "logits_unbiased"]
  theirs = FeatureExtractorInceptionV3("inception", wanted, feature_extractor_weights_path=tmp_path / "weights.pth")
  with torch.no_grad():
    # Contiguous: its own resize must not depend on the layout in memory.
    pooled, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    spatial = theirs_spatial(theirs, images)
  ours = features.load("inception", tmp_path / "weights.pth").outputs(images, batch_size=2)
  assert relative_error(ours.features, pooled.numpy()) < 1e-4
  assert relative_error(ours.spatial, spatial) < 1e-4
  np.testing.assert_allclose(ours.probabilities, torch.softmax(logits, 1).numpy(), atol=1e-4)


def theirs_spatial(network, images):
  """What ADM's suite takes, mixed_6/conv of TensorFlow's graph, by a hook on the layer that it was converted to."""
  found = []
  hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: found.append(output))
  network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
  hook.remove()
  return found[0].permute(0, 2, 3, 1)[..., :7].reshape(len(images), -1).numpy()
