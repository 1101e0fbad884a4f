"""INSTA-BNN (Lee et al., ICCV 2023, arXiv 2204.07439): a threshold that follows the statistics of each instance.

The paper's INSTA-Th moves the threshold of each channel by a learned multiple of E[x^3] over the instance's pixels, x
standing behind a batch norm, so that the third moment tells how mean, variance and skewness differ from the batch's.
The equations were not at hand: this is made from the paper's abstract, the captions of its figures and summaries of
it. Compare it with the paper before you report it as INSTA-BNN.

Changed: these networks have no batch norm, so x is normalised by mean and deviation over all features of its example
(per channel nothing of them would be left); a learned constant is added, as in ReActNet; x minus the threshold goes
into the LSQ quantizer, whose codes have several bits. Both learned vectors start at 0. A layer whose input has no
pixels, [batch, c], has the constant alone. Left out: INSTA-PReLU (the preset has ReActNet's static one) and the
squeeze-and-excitation block of INSTA-Th+.
"""

import jax.numpy as jnp

from binarydm_jax.quant.rivals.q_dm import normalise


def third_moment(x):
  """Mean over pixels of z^3, z = x normalised over its example: float32 [batch, 1, ..., c].

  Args:
    x: float [batch, ..., c], at least three axes; pixels are all between the first and the last.
  """
  z, _, _ = normalise(x)
  return jnp.mean(z**3, axis=tuple(range(1, x.ndim - 1)), keepdims=True)


def threshold(x, shift, moment):
  """shift + moment E[z^3], the threshold of each example and channel: float32 [batch, 1, ..., c].

  Args:
    x: as in `third_moment`.
    shift, moment: float32 [c], in units of x.
  """
  return shift + moment * third_moment(x)
