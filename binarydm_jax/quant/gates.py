"""Change over time as data: step -> which blocks are binarized yet and how much of the second basis is left."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LayerGate:
  """What of a layer's quantization is in force at this step; arrays, so that change never recompiles.

  Attributes:
    on: scalar, 1 once the layer is quantized (progressive initialisation), else 0; None: quantized.
    attention: scalar, 1 once attention's q, k, softmax and v are quantized, else 0; None: as soon as `on` says.
    second: scalar, what is left of an evolving second basis: from 1 before the transition of EBB to 0 after it; None:
      all.
    timesteps: [batch], from 0 to num_timesteps - 1, for rules that depend on them (`LayerRule.timed`), else None.
  """

  on: jax.Array | None = None
  attention: jax.Array | None = None
  second: jax.Array | None = None
  timesteps: jax.Array | None = None


@flax.struct.dataclass
class Gates:
  """Arrays that enter the compiled step.

  Attributes:
    blocks: [M], 1 for the blocks that are binarized.
    attention: scalar, 1 once attention's activations are quantized.
    second: scalar, from 1 to 0, what is left of an evolving second basis.
  """

  blocks: jax.Array
  attention: jax.Array
  second: jax.Array

  def layer(self, block, timesteps=None):
    """The LayerGate of block number `block`."""
    return LayerGate(self.blocks[block], self.attention, self.second, timesteps)


def progressive_rings(order, resolutions):
  """Which ring each of the M blocks belongs to; ring r is binarized at r * interval (BinaryDM v1).

  Args:
    order: "none": all in ring 0. "blocks": the middle block first, blocks M/2 - i and M/2 + i in ring i (the text).
      "levels": by resolution, the middle block first, then the deepest level (the released code).
    resolutions: [M], relative resolution of each block, in block order.
  Returns:
    A tuple of M integers, from 0 on without gaps.
  """
  count = len(resolutions)
  middle = count // 2
  if order == "none":
    return (0,) * count
  if order == "blocks":
    return tuple(abs(i - middle) for i in range(count))
  if order == "levels":
    ladder = sorted({r for i, r in enumerate(resolutions) if i != middle})
    return tuple(0 if i == middle else 1 + ladder.index(r) for i, r in enumerate(resolutions))
  raise ValueError(f"progressive order {order!r} is not one of none, blocks, levels")


def gates_at(step, rings, interval=1, transition=None, fade=0):
  """The gates of training step `step` (0 is the first).

  Args:
    step: integer array (traced).
    rings: from `progressive_rings`.
    interval: steps a ring.
    transition: step from which an evolving second basis is gone; None keeps it.
    fade: steps before the transition in which its share falls linearly from 1 to 0; 0 is the paper's, all at once.
  """
  rings = jnp.asarray(rings)
  last = jnp.max(rings)
  # Attention's activation quantizers are one ring of their own, after the last block; with one ring they wait for none.
  attention = step >= jnp.where(last > 0, last + 1, 0) * interval
  second = jnp.float32(1.0)
  if transition is not None:
    second = jnp.clip((transition - step) / max(fade, 1), 0, 1).astype(jnp.float32)
  return Gates((step >= rings * interval).astype(jnp.float32), attention.astype(jnp.float32), second)
