"""Dropout whose masks belong to examples, so that they do not depend on how a batch is shared out."""

import zlib

import jax
import jax.numpy as jnp


def example_keys(key, count):
  """One key for each of `count` examples of the global batch: a key array [count]."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def drop(x, rate, keys, path):
  """Sets a part `rate` of the values to 0 and scales the others by 1 / (1 - rate) (Srivastava et al. 2014).

  Args:
    x: float [batch, ...].
    rate: 0 <= rate < 1.
    keys: key array [batch] from `example_keys`, or None: nothing is dropped (evaluation).
    path: of the layer, names: layers draw different masks from the same keys.
  Returns:
    float [batch, ...].
  """
  if keys is None or not rate:
    return x
  layer = zlib.crc32("/".join(path).encode())

  def mask(key):
    return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:])

  return jnp.where(jax.vmap(mask)(keys), x / (1 - rate), 0).astype(x.dtype)
