"""TDQ (So et al., NeurIPS 2023, arXiv 2306.02316): the step of an activation quantizer is a function of the timestep.

A small network of the encoded timestep gives the step. From the paper: a geometric Fourier encoding, sines and cosines
of t / t_max^(2 i / d), He's initialisation, an output that begins near the static step. A step knows nothing but t, so
a program could keep one number a timestep instead.

Changed: the step is LSQ's learned one times softplus(u + c) / softplus(c), u the network's output, c = log(e - 1); the
last layer starts at 0, so that the factor is exactly 1 at all timesteps in the beginning (the paper sets the mean of
the output by a bias). The paper's widths were not at hand: 16 values of encoding, two hidden layers of 16, ReLU, which
is 2.2 KiB a quantizer in the file, where a table of 1,000 timesteps has 3.9.
"""

import math

import jax
import jax.numpy as jnp

ENCODING, HIDDEN, MAX_PERIOD = 16, 16, 10_000.0
# The last row of each is the bias.
SHAPES = ((ENCODING + 1, HIDDEN), (HIDDEN + 1, HIDDEN), (HIDDEN + 1, 1))
_UNIT = math.log(math.e - 1)  # softplus of it is 1


def encode(timesteps):
  """Sines, then cosines, of t / 10,000^(2 i / 16), i = 0 .. 7: float32 [batch, 16]."""
  half = ENCODING // 2
  frequencies = MAX_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def step_factor(timesteps, layers):
  """What the static step is multiplied by at each timestep, above 0: float32 [batch].

  Args:
    timesteps: integer or float [batch].
    layers: the matrices of the network, of SHAPES, float32.
  """
  *hidden, last = layers
  h = encode(timesteps)
  for layer in hidden:
    h = jax.nn.relu(h @ layer[:-1] + layer[-1])
  unit = jnp.float32(_UNIT)
  return jax.nn.softplus((h @ last[:-1] + last[-1])[:, 0] + unit) / jax.nn.softplus(unit)
