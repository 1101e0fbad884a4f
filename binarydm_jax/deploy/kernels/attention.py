"""Attention of quantized operands as a JAX operation of the CPU."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.deploy.kernels import library


def attention_runs():
  """Whether `attend` can run here: with AVX2, unless the kernels are off or could not be built."""
  return library.status()[0] is not None and bool(library.loaded()[0].binarydm_attention_runs())


def attend(q, k, v, steps, zero_points=None, *, qk_bits, av_bits):
  """softmax(q k^T) v of operands that are rounded to multiples of their steps, as `quant.step_size.lsq` does.

  Both products are exact sums of integers, softmax is float32. Only a head's few rows of it are ever held.

  Args:
    q: float32 [batch, n, heads, d].
    k, v: float32 [batch, m, heads, d].
    steps: float32 [4]: of q, k, the softmax and v.
    zero_points: float32 [4], of the same, see `quant.step_size.levels`; None: signed codes.
    qk_bits, av_bits: 2 to 8, of q and k, of the softmax and v.
  Returns:
    float32 [batch, n, heads, d].
  Raises:
    RuntimeError: it cannot run here.
  """
  if not attention_runs():
    raise RuntimeError("attention of codes needs AVX2 and the native kernels")
  if zero_points is None:
    zero_points = [2.0 ** (bits - 1) for bits in (qk_bits, qk_bits, av_bits, av_bits)]
  call = jax.ffi.ffi_call("binarydm_attention", jax.ShapeDtypeStruct(q.shape, jnp.float32))
  return call(
    *(jnp.asarray(x, jnp.float32) for x in (q, k, v, steps, zero_points)),
    qk_bits=np.int64(qk_bits), av_bits=np.int64(av_bits), threads=np.int64(library.threads()),
  )  # fmt: skip
