"""Projections: against numpy's eigenvectors (as subspaces, whose sign and order do not matter), and their edges."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.distill import fit_projections, rank

KEY = jax.random.key(0)


def decaying(channels=24, base=0.7, shape=(4, 8, 8), seed=0, offset=3.0):
  """Features [*shape, channels] whose standard deviations fall by `base` along random orthogonal directions."""
  rng = np.random.default_rng(seed)
  directions, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
  values = rng.standard_normal((*shape, channels)) * base ** np.arange(channels)
  return (values @ directions.T + offset * rng.standard_normal(channels)).astype(np.float32)


def numpy_subspace(features, r):
  """Projection matrix [c, c] on the r leading principal directions, in float64."""
  rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
  _, vectors = np.linalg.eigh(np.cov(rows.T))
  top = vectors[:, -r:]
  return top @ top.T


def fit(features, method, reduction=4, key=KEY):
  return np.asarray(fit_projections((jnp.asarray(features),), key, method, reduction)[0])


@pytest.mark.parametrize("channels, reduction, expected", [
    (224, 4, 56), (896, 8, 112), (32, 2, 16), (30, 4, 8), (26, 4, 6), (4, 4, 2), (8, 8, 2), (1, 4, 1), (2, 1, 2),
])
def test_rank(channels, reduction, expected):
  """round(c / K), at least 2, at most c."""
  assert rank(channels, reduction) == expected


@pytest.mark.parametrize("method", ["pca", "randomized_pca", "random"])
def test_columns_are_orthonormal(method):
  e = fit(decaying(), method)
  assert e.shape == (24, 6) and e.dtype == np.float32
  np.testing.assert_allclose(e.T @ e, np.eye(6), atol=1e-5)


@pytest.mark.parametrize("method", ["pca", "randomized_pca"])
def test_variance_descends(method):
  """The projected variances are numpy's leading eigenvalues of the covariance, in descending order."""
  features = decaying()
  rows = features.reshape(-1, 24).astype(np.float64)
  expected = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1][:6]
  np.testing.assert_allclose((rows @ fit(features, method)).var(0), expected, rtol=1e-3)


def test_pca_is_numpys_subspace():
  features = decaying()
  e = fit(features, "pca")
  np.testing.assert_allclose(e @ e.T, numpy_subspace(features, 6), atol=1e-4)


def test_randomized_pca_spans_the_same_subspace():
  """With a decaying spectrum, in more channels than the 14 columns of the test matrix."""
  features = decaying(channels=48, shape=(8, 8, 8))
  e = fit(features, "randomized_pca", reduction=8)
  np.testing.assert_allclose(e @ e.T, numpy_subspace(features, 6), atol=1e-3)


@pytest.mark.parametrize("method", ["pca", "randomized_pca"])
def test_centred(method):
  """A constant added to a channel changes nothing, even where it is far larger than the variance."""
  features = decaying(offset=0.0)
  moved = features + 20 * np.linspace(-1, 1, 24, dtype=np.float32)
  a, b = fit(features, method), fit(moved, method)
  np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-3)


def test_channels_are_the_last_axis():
  """Variance that lives in channel 5 alone is found there, whatever the width and height are."""
  features = np.zeros((2, 3, 5, 8), np.float32)
  features[..., 5] = np.random.default_rng(0).standard_normal((2, 3, 5))
  assert abs(fit(features, "pca")[5, 0]) == pytest.approx(1, abs=1e-5)


def test_random_needs_no_data():
  """The same key gives the same projection for any features of that width; another key or block another one."""
  a, b = fit(decaying(seed=0), "random"), fit(np.full((2, 4, 4, 24), 7.0, np.float32), "random")
  np.testing.assert_array_equal(a, b)
  assert np.abs(a - fit(decaying(), "random", key=jax.random.key(1))).max() > 0.1
  blocks = fit_projections((jnp.zeros((1, 2, 2, 24)),) * 2, KEY, "random", 4)
  assert np.abs(blocks[0] - blocks[1]).max() > 0.1


@pytest.mark.parametrize("method", ["pca", "randomized_pca"])
@pytest.mark.parametrize("features", [
    np.zeros((2, 4, 4, 16), np.float32),  # a dead block
    np.arange(2 * 16, dtype=np.float32).reshape(2, 1, 1, 16),  # two rows, rank one
], ids=["constant", "two rows"])
def test_degenerate_features_still_give_orthonormal_columns(method, features):
  e = fit(features, method)
  np.testing.assert_allclose(e.T @ e, np.eye(4), atol=1e-5)


def test_one_projection_a_block():
  features = tuple(jnp.asarray(decaying(c)) for c in (8, 24, 16))
  assert [e.shape for e in fit_projections(features, KEY, "randomized_pca", 4)] == [(8, 2), (24, 6), (16, 4)]
  assert fit_projections(features, KEY, "none", 4) == ()


def test_unknown_projection_names_the_field():
  with pytest.raises(ValueError, match="distill.projection 'ica' is not one of randomized_pca, pca, random, none"):
    fit_projections((jnp.zeros((1, 2, 2, 4)),), KEY, "ica")


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from binarydm_jax.distill import fit_projections
assert len(jax.devices()) == 4
rng = np.random.default_rng(0)
# Every example has a mean and directions of its own: the covariance of one shard is not that of the batch.
values = rng.standard_normal((8, 4, 4, 16)) * 0.6 ** np.arange(16) + rng.standard_normal((8, 1, 1, 16))
x = values.astype(np.float32)
split = jax.device_put(x, NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch")))
assert len(split.sharding.device_set) == 4
for method in ("pca", "randomized_pca"):
  a, b = (np.asarray(fit_projections((f,), jax.random.key(0), method, 4)[0]) for f in (x, split))
  np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-4)
  shard = np.asarray(fit_projections((x[:2],), jax.random.key(0), method, 4)[0])
  assert np.abs(a @ a.T - shard @ shard.T).max() > 0.05
print("same")
"""


def test_a_sharded_batch_gives_the_global_covariance():
  """Four devices, two examples on each, fit what one device fits on all eight, and not what one shard would."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
  result = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, timeout=120)
  assert result.returncode == 0 and result.stdout.strip() == "same", result.stderr[-2000:]
