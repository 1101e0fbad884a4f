"""BI-DiffSR (Chen et al., NeurIPS 2024, arXiv 2406.05723): shift and RPReLU, one of K each by the timestep's range.

TaR and TaA (Eq. 8): x + b^(i) before the quantizer and RPReLU^(i) after the layer, i = floor(K t / T), K = 5 as in
their code, t from 0 on. Changed: TaR's result goes into the LSQ quantizer, whose codes have several bits, not into a
sign (Eq. 5); `shift` is -b, so that it subtracts as ReActNet's does; slopes start at 1 (PyTorch's PReLU at 0.25). Left
out, for they change the network: consistent-pixel down- and up-sampling (Eq. 1, 2), channel-shuffle fusion (Eq. 3, 4),
the identity shortcut around each convolution; weights are BinaryDM's baseline, with learned scales, instead of Eq. 6.
"""

import jax.numpy as jnp

RANGES = 5


def timestep_range(timesteps, num_timesteps):
  """floor(K t / T), kept in 0 .. K - 1: int32 [batch].

  Args:
    timesteps: integer or float [batch], from 0 to num_timesteps - 1.
  """
  index = jnp.floor(RANGES * timesteps.astype(jnp.float32) / num_timesteps)
  return jnp.clip(index, 0, RANGES - 1).astype(jnp.int32)


def select(table, timesteps, num_timesteps, ndim):
  """The row of each example's range, to broadcast against [batch, ..., c]: [batch, 1, ..., c] of `ndim` axes.

  Args:
    table: float32 [K, c].
  """
  own = timestep_range(timesteps, num_timesteps)[:, None] == jnp.arange(RANGES)
  # A masked sum, exact, instead of a gather, whose gradient (a scatter) takes far longer to compile.
  rows = jnp.sum(jnp.where(own[..., None], table, 0), axis=1)
  return rows.reshape(len(rows), *(1,) * (ndim - 2), rows.shape[-1])
