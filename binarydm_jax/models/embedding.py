"""Sinusoidal timestep embedding of DDPM / ADM."""

import math

import jax.numpy as jnp


def timestep_embedding(timesteps, dim, max_period=10_000):
  """timesteps [batch] -> float32 [batch, dim]: cosines then sines of geometric frequencies (Ho et al. 2020)."""
  half = dim // 2
  frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies
  embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  return jnp.pad(embedding, ((0, 0), (0, dim % 2)))
