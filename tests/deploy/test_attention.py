"""Attention as one function: what the module's two quantized products and their softmax give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax import quant
from binarydm_jax.deploy import attention, kernels
from binarydm_jax.models.attention import attend
from binarydm_jax.quant import LayerRule


class Attention(nn.Module):
  rules: dict

  @nn.compact
  def __call__(self, q, k, v):
    return attend(q, k, v, self.rules, None)


@pytest.mark.parametrize("n, m", [(4, 6), (128, 160)], ids=["at once", "by head"])
@pytest.mark.parametrize(
  "bits, activation, dtype",
  [(4, "lsq", jnp.float32), (8, "lsq", jnp.bfloat16), (32, "lsq", jnp.float32), (4, "asymmetric", jnp.float32),
   (8, "asymmetric", jnp.float32)],
)  # fmt: skip
def test_equals_the_module(n, m, bits, activation, dtype):
  """Self- and cross-attention, quantized or not, by XLA and by the kernel where there is one: the same numbers up to
  the rounding of sums."""
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (2, size, 3, 8)).astype(dtype) for key, size in zip(keys, (n, m, m)))
  rule = LayerRule(act_bits=bits, activation=activation)
  plain = Attention({"qk": rule, "av": rule})
  learned = jax.jit(lambda *inputs: quant.calibrate(plain, {}, *inputs))(q, k, v)
  assert bool(learned) == (bits != 32)
  if activation == "asymmetric":  # the softmax needs no level below zero, or hardly one where few values tell
    assert learned["av"]["zero_point_a"] <= 2 ** (bits - 5) and learned["qk"]["zero_point_a"] > 2 ** (bits - 3)
  wanted = jax.jit(plain.apply)({"quant": learned}, q, k, v)
  for run in (attention.run, *[attention.run_native] * kernels.attention_runs()):
    fused = Attention({"qk": quant.PackedAttention(rule, "any", run), "av": rule})
    out = jax.jit(fused.apply)({"quant": learned}, q, k, v)
    assert out.shape == (2, n, 24) and out.dtype == dtype
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    close = np.isclose(np.asarray(out, np.float32), np.asarray(wanted, np.float32), rtol=0, atol=tolerance)
    # A sum in another order may decide one rounding to a code.
    assert close.mean() > (0.995 if dtype == jnp.float32 else 0.95), run
  assert float(jnp.std(wanted.astype(jnp.float32))) > 0.05
  assert (n * m >= attention.BY_HEAD_FROM) == (n == 128)


needs_native = pytest.mark.skipif(not kernels.attention_runs(), reason="no native attention here")


@needs_native
def test_native_by_hand():
  """Two keys, weights 3/4 and 1/4 of a step of 1/4: 3 v0 + v1, each value rounded to its step."""
  q, k = jnp.ones((1, 1, 1, 1)), jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
  v = jnp.array([[1.1, -7.0], [0.4, 2.0]]).reshape(1, 2, 1, 2)
  q, k = (jnp.concatenate([x, jnp.zeros_like(x)], -1) for x in (q, k))
  # The logits differ by log 3: one step times one step.
  steps = jnp.array([1.0, np.log(3.0), 0.25, 0.5])
  out = kernels.attend(q, k * np.log(3.0), v, steps, qk_bits=4, av_bits=4)
  np.testing.assert_allclose(out.reshape(-1), 0.25 * (3 * np.array([1.0, -4.0]) + np.array([0.5, 2.0])), rtol=1e-6)


@needs_native
def test_native_zero_points_by_hand():
  """No levels below zero for q, k and the softmax, one for v: -7 is clipped to it, 3/4 of a step of 1/16 is 12."""
  q, k = jnp.ones((1, 1, 1, 1)), jnp.array([1.0, -5.0]).reshape(1, 2, 1, 1)
  v = jnp.array([[1.1, -7.0], [0.4, 2.0]]).reshape(1, 2, 1, 2)
  q, k = (jnp.concatenate([x, jnp.zeros_like(x)], -1) for x in (q, k))
  steps, zero_points = jnp.array([1.0, np.log(3.0), 1 / 16, 0.5]), jnp.array([0.0, 0.0, 0.0, 1.0])
  out = kernels.attend(q, k * np.log(3.0), v, steps, zero_points, qk_bits=4, av_bits=4)
  np.testing.assert_allclose(out.reshape(-1), (12 * np.array([1.0, -0.5]) + 4 * np.array([0.5, 2.0])) / 16, rtol=1e-6)


@needs_native
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 17, 3, 7), (1, 33, 16, 2, 40), (0, 4, 4, 1, 8)], ids=str)
def test_native_shapes(shape):
  """Any number of queries, keys, heads and channels, any image of the batch, against XLA; steps below the floor."""
  batch, n, m, heads, d = shape
  keys = jax.random.split(jax.random.key(1), 3)
  q, k, v = (jax.random.normal(key, (batch, size, heads, d)) for key, size in zip(keys, (n, m, m)))
  products = ({"step_a": jnp.float32(0.2), "step_b": jnp.float32(0.3)},
              {"step_a": jnp.float32(2**-7), "step_b": jnp.float32(0)})
  programs = [jax.jit(run, static_argnums=(5, 6)) for run in (attention.run, attention.run_native)]
  wanted, out = (run(q, k, v, *products, 5, 8) for run in programs)
  assert out.shape == wanted.shape == (batch, n, heads, d)
  np.testing.assert_allclose(out, wanted, atol=1e-8)  # values are of the size of 127 steps of 1e-8
  products[1]["step_b"] = jnp.float32(0.02)
  wanted, out = (run(q, k, v, *products, 5, 8) for run in programs)
  np.testing.assert_allclose(out, wanted, atol=0.02)
  assert not batch or float(jnp.abs(wanted).max()) > 0.05


@needs_native
def test_more_keys_than_the_kernel_takes(monkeypatch):
  """XLA's then, as for widths that the kernel does not have."""
  monkeypatch.setattr(attention, "MOST_KEYS", 3)
  monkeypatch.setattr(attention.kernels, "attend", None)
  x = jax.random.normal(jax.random.key(0), (1, 4, 1, 8))
  products = [{"step_a": jnp.float32(0.2), "step_b": jnp.float32(0.3)}] * 2
  np.testing.assert_array_equal(*(run(x, x, x, *products, 8, 8) for run in (attention.run, attention.run_native)))


@needs_native
def test_native_refuses():
  """Widths that it does not have; the kernels switched off."""
  x, steps = jnp.ones((1, 4, 1, 8)), jnp.ones(4)
  with pytest.raises(Exception, match="operands have 2 to 8 bits"):
    jax.block_until_ready(kernels.attend(x, x, x, steps, qk_bits=9, av_bits=4))
  with pytest.raises(Exception, match="operands have other shapes"):
    jax.block_until_ready(kernels.attend(x, x[..., :4], x, steps, qk_bits=4, av_bits=4))


@needs_native
def test_native_off(monkeypatch):
  monkeypatch.setenv("BINARYDM_KERNEL", "off")
  assert not kernels.attention_runs()
  x = jnp.ones((1, 4, 1, 8))
  with pytest.raises(RuntimeError, match="needs AVX2 and the native kernels"):
    kernels.attend(x, x, x, jnp.ones(4), qk_bits=4, av_bits=4)
