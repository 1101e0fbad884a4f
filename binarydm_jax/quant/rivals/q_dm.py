"""Q-DM (Li et al., NeurIPS 2023): activations normalised by statistics of their timestep, so that one step fits all.

Timestep-aware quantization (TaQ) answers the oscillation of activations over timesteps, which a batch mixes in
training: attention features are normalised and smoothed before they are quantized. The other half, noise-estimating
mimicking (NeM), is the loss term of `distill.prediction`. The equations were not at hand: this is made from the paper's
abstract and from what later papers say of it. Compare it with the paper before you report it as Q-DM.

Changed: mean and deviation are those of the example (one timestep each), over all its features, so that no prediction
depends on what else is in the batch; after the quantizer they are put back, so that the layer, trained in full
precision, sees values of the scale that it knows. Every quantized input is treated so, not attention's alone. Left out:
the smoothing. The one method here that does not begin as the baseline: codes are of normalised values from the start.
"""

import jax.numpy as jnp

EPSILON = 1e-6


def normalise(x):
  """((x - mean) / deviation, mean, deviation), over all features of each example, in float32.

  Args:
    x: float [batch, ...].
  Returns:
    float32 [batch, ...]; mean and deviation are [batch, 1, ...].
  """
  x = x.astype(jnp.float32)
  axes = tuple(range(1, x.ndim))
  mean = jnp.mean(x, axes, keepdims=True)
  deviation = jnp.sqrt(jnp.mean((x - mean) ** 2, axes, keepdims=True) + EPSILON)
  return (x - mean) / deviation, mean, deviation
