"""All metrics of a set of samples against a reference, in one pass over the images."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from binarydm_jax.evaluation.inception_score import SPLIT_SIZE, InceptionScore
from binarydm_jax.evaluation.kernel_distance import NUM_SUBSETS, SUBSET_SIZE, kernel_distance
from binarydm_jax.evaluation.metrics import check_count, frechet_distance
from binarydm_jax.evaluation.neighbours import K, precision_recall
from binarydm_jax.evaluation.reference import Reference
from binarydm_jax.evaluation.streaming_moments import MomentsAccumulator


def check_reference(network, reference: Reference):
  """ValueError where the reference was measured with another network."""
  known = reference.protocol
  if (known["network"], known["sha256"]) != (network.name, network.sha256):
    raise ValueError(
      f"the reference was measured with {known['network']} (SHA-256 {str(known['sha256'])[:8]}...), the samples would"
      f" be with {network.name} ({network.sha256[:8]}...); measure the reference again"
    )


def evaluate_samples(
  network,
  image_batches: Iterable[np.ndarray],
  reference: Reference,
  *,
  batch_size: int = 64,
  k: int = K,
  split_size: int = SPLIT_SIZE,
  kid_subsets: int = NUM_SUBSETS,
  kid_subset_size: int = SUBSET_SIZE,
  progress=None,
) -> dict[str, Any]:
  """Measures samples that come in batches and are not kept; features are, where the reference has features too.

  Args:
    network: a FeatureNetwork, the one of the reference.
    image_batches: uint8 [n, h, w, c] each, all images of one size: that of the reference.
    reference: of the real images.
    batch_size: images a call of the network.
    k, split_size, kid_subsets, kid_subset_size: of precision and recall, the Inception Score and KID.
    progress: called with the number of images after each batch.
  Returns:
    JSON values: fid, sfid, inception_score, inception_score_std, precision, recall, kid, kid_std, each a float or None;
    missing: {name of a metric that is None: why}; num_samples, num_reference (None if a published file does not say),
    num_reference_features, kid_subset_size, feature_network, feature_sha256.
  Raises:
    ValueError: one line: another network, images of mixed or other sizes, features that are not finite, no more
      samples than features.
  """
  check_reference(network, reference)
  pooled, spatial, score = MomentsAccumulator(), MomentsAccumulator(), InceptionScore(split_size)
  features, shape = [], None
  for number, images in enumerate(image_batches):
    images = np.asarray(images)
    shape = _check_shape(images.shape[1:], number, shape, reference.protocol["image_shape"])
    outputs = network.outputs(images, batch_size)
    pooled.update(outputs.features)
    if outputs.spatial is not None:
      spatial.update(outputs.spatial)
    if outputs.probabilities is not None:
      score.update(outputs.probabilities)
    if reference.features is not None:
      features.append(outputs.features)
    if progress:
      progress(len(images))
  if not pooled.count:
    raise ValueError("there are no samples to measure; pass at least one batch of images")
  check_count(pooled.count, network.dim)
  values = dict.fromkeys(
    ("fid", "sfid", "inception_score", "inception_score_std", "precision", "recall", "kid", "kid_std")
  )
  missing = {}
  values["fid"] = frechet_distance(pooled.result(), reference.moments)
  if not spatial.count:
    missing["sfid"] = f"{network.name} has no spatial features"
  elif reference.spatial is None:
    missing["sfid"] = "the reference has no moments of spatial features"
  else:
    values["sfid"] = frechet_distance(spatial.result(), reference.spatial)
  if score.count:
    values["inception_score"], values["inception_score_std"], _ = score.result()
  else:
    missing["inception_score"] = f"{network.name} gives no class probabilities"
  kept, subset_size = 0, None
  if reference.features is None:
    missing |= dict.fromkeys(("precision", "recall", "kid"), "the reference has no features of single images")
  else:
    kept = len(reference.features)
    features = np.concatenate(features)
    if kept > k:
      values["precision"], values["recall"] = precision_recall(features, reference.features, k)
    else:
      missing |= dict.fromkeys(("precision", "recall"), f"the reference has features of {kept} images, k is {k}")
    if kept > 1:
      values["kid"], values["kid_std"], subset_size = kernel_distance(
        features, reference.features, kid_subsets, kid_subset_size
      )
    else:
      missing["kid"] = f"the reference has features of {kept} images"
  return values | dict(
    missing=missing,
    num_samples=pooled.count,
    num_reference=reference.moments.count,
    num_reference_features=kept,
    kid_subset_size=subset_size,
    feature_network=network.name,
    feature_sha256=network.sha256,
  )


def _check_shape(shape, number, first, real):
  """The shape (h, w, c) of a batch's images; ValueError where the first batch, or the real images, have another."""
  size = lambda shape: "x".join(map(str, shape))
  if first is not None and shape != first:
    raise ValueError(
      f"batch {number} has images of {size(shape)}, the first one of {size(first)}; samples must be of one size"
    )
  if real is not None and list(shape) != list(real):
    raise ValueError(f"samples are of {size(shape)}, the reference images of {size(real)}; resize one of them")
  return shape
