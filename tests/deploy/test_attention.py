"""Attention as one function: what the module's two quantized products and their softmax give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.deploy import attention
from binarydm_jax.models.attention import attend
from binarydm_jax.quant import LayerRule


class Attention(nn.Module):
  rules: dict

  @nn.compact
  def __call__(self, q, k, v):
    return attend(q, k, v, self.rules, None)


@pytest.mark.parametrize("n, m", [(4, 6), (128, 160)], ids=["at once", "by head"])
@pytest.mark.parametrize("bits, dtype", [(4, jnp.float32), (8, jnp.bfloat16), (32, jnp.float32)])
def test_equals_the_module(n, m, bits, dtype):
  """Self- and cross-attention, quantized or not: the same numbers up to the rounding of sums."""
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (2, size, 3, 8)).astype(dtype) for key, size in zip(keys, (n, m, m)))
  rule = LayerRule(act_bits=bits)
  plain = Attention({"qk": rule, "av": rule})
  learned = quant.calibrate(plain, {}, q, k, v)
  assert bool(learned) == (bits != 32)
  fused = Attention({"qk": quant.PackedAttention(rule, "xla", attention.run), "av": rule})
  wanted, out = (jax.jit(model.apply)({"quant": learned}, q, k, v) for model in (plain, fused))
  assert out.shape == (2, n, 24) and out.dtype == dtype
  tolerance = 1e-4 if dtype == jnp.float32 else 0.05
  close = np.isclose(np.asarray(out, np.float32), np.asarray(wanted, np.float32), rtol=0, atol=tolerance)
  # A sum in another order may decide one rounding to a code.
  assert close.mean() > (0.995 if dtype == jnp.float32 else 0.95)
  assert float(jnp.std(wanted.astype(jnp.float32))) > 0.05
  assert (n * m >= attention.BY_HEAD_FROM) == (n == 128)
