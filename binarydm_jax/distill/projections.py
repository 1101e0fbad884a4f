"""Channel projections E_i [c, r] for LRM (BinaryDM, Eq. 10-12), fitted once on the teacher's features of one batch."""

import functools

import jax
import jax.numpy as jnp

PROJECTIONS = ("randomized_pca", "pca", "random", "none")
OVERSAMPLING = 8
POWER_ITERATIONS = 2


def rank(channels, reduction):
  """round(c / K), at least 2, at most c."""
  return min(channels, max(2, round(channels / reduction)))


def _rows(features):
  """[batch, ..., c] -> centred float32 [rows, c]. Eq. 11 does not centre; principal components need it."""
  rows = features.astype(jnp.float32).reshape(-1, features.shape[-1])
  return rows - rows.mean(0)


def pca(features, r):
  """The first r eigenvectors of the c x c covariance, in descending order of variance: [c, r]."""
  rows = _rows(features)
  _, vectors = jnp.linalg.eigh(rows.T @ rows / len(rows))
  return vectors[:, ::-1][:, :r]


def randomized_pca(features, r, key):
  """The same subspace by a randomized range finder (Halko, Martinsson & Tropp 2011, Algorithms 4.4 and 5.3).

  A Gaussian test matrix of r + 8 columns, two power iterations with QR, and an exact decomposition inside the range
  found: two products of [rows, c] and [c, r + 8] an iteration, and no c x c matrix.
  """
  rows = _rows(features)
  channels = rows.shape[-1]
  width = min(channels, r + OVERSAMPLING)

  def apply_covariance(q):
    return rows.T @ (rows @ q) / len(rows)

  q = jax.random.normal(key, (channels, width))
  for _ in range(POWER_ITERATIONS + 1):
    q, _ = jnp.linalg.qr(apply_covariance(q))
  _, vectors = jnp.linalg.eigh(q.T @ apply_covariance(q))
  return q @ vectors[:, ::-1][:, :r]


def random_projection(channels, r, key):
  """A random orthonormal [c, r], from no data (Johnson & Lindenstrauss 1984)."""
  return jnp.linalg.qr(jax.random.normal(key, (channels, r)))[0]


@functools.partial(jax.jit, static_argnames=("method", "reduction"))
def fit_projections(features, key, method="randomized_pca", reduction=4):
  """One projection a block.

  Args:
    features: tuple of [batch, ..., c_i], the teacher's; sharded over the batch they give the global covariance.
    key: for the random methods.
    method: "randomized_pca", "pca", "random", or "none" (no reduction: the loss is a plain feature MSE).
    reduction: K; block i keeps round(c_i / K) channels, at least 2.
  Returns:
    Tuple of float32 [c_i, r_i] with orthonormal columns; () for "none".
  Raises:
    ValueError: unknown method.
  """
  if method not in PROJECTIONS:
    raise ValueError(f"distill.projection {method!r} is not one of {', '.join(PROJECTIONS)}")
  if method == "none":
    return ()
  projections = []
  # An accelerator would multiply in bfloat16, and the columns would not be orthonormal.
  with jax.default_matmul_precision("float32"):
    for i, feature in enumerate(features):
      channels = feature.shape[-1]
      r, block_key = rank(channels, reduction), jax.random.fold_in(key, i)
      if method == "pca":
        projections.append(pca(feature, r))
      elif method == "randomized_pca":
        projections.append(randomized_pca(feature, r, block_key))
      else:
        projections.append(random_projection(channels, r, block_key))
  return tuple(projections)
