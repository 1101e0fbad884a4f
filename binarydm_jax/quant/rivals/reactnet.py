"""ReActNet (Liu et al., ECCV 2020, arXiv 2003.03488): a learned shift before the quantizer, a shifted PReLU after.

Changed: RSign is the sign of x - alpha; here x - alpha goes into the LSQ quantizer, whose codes have several bits.
RPReLU follows the bias and precedes the residual; in the paper's blocks it follows the shortcut, which would change
this U-Net. Both start as the identity (alpha = gamma = zeta = 0, slope 1, where the released code has PyTorch's 0.25),
since training starts from a full-precision network. Left out: the block's architecture (duplicated shortcuts, the
MobileNet stem), the distributional loss, the two stages of training.
"""

import jax.numpy as jnp


def shift(x, alpha):
  """x - alpha, what RSign takes the sign of.

  Args:
    x: float [batch, ..., c].
    alpha: float32, [c], or what broadcasts against x.
  Returns:
    Shape and dtype of x.
  """
  return x - alpha.astype(x.dtype)


def rprelu(y, slope, gamma, zeta):
  """y - gamma + zeta where y > gamma, else slope (y - gamma) + zeta.

  Args:
    y: float [batch, ..., c].
    slope, gamma, zeta: float32, [c], or what broadcasts against y.
  Returns:
    Shape and dtype of y.
  """
  slope, gamma, zeta = (value.astype(y.dtype) for value in (slope, gamma, zeta))
  moved = y - gamma
  return jnp.where(moved > 0, moved, slope * moved) + zeta
