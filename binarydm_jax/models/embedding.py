"""Sinusoidal timestep embeddings of ADM and of DDPM."""

import math

import jax.numpy as jnp


def timestep_embedding(timesteps, dim, sines_first=False, max_period=10_000):
  """timesteps [batch] -> float32 [batch, dim], sinusoids of geometric frequencies (Ho et al. 2020).

  Args:
    sines_first: False: cosines then sines, frequencies max_period^(-i / half) (ADM, latent diffusion). True: sines then
      cosines, frequencies max_period^(-i / (half - 1)) (DDPM).
  """
  half = dim // 2
  last = half - 1 if sines_first else half
  frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / last)
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies
  parts = [jnp.cos(angles), jnp.sin(angles)]
  embedding = jnp.concatenate(parts[::-1] if sines_first else parts, axis=-1)
  return jnp.pad(embedding, ((0, 0), (0, dim % 2)))
