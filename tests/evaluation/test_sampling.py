"""Images from a network: rounding, batches, labels, and that options reach the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import make_schedule
from binarydm_jax.evaluation.sampling import generate, make_sampler, to_uint8

SCHEDULE = make_schedule("linear", 20, 1e-2, 0.3)


class Label:
  """Predicts x0 = label / 10 for every pixel; `variables` is added."""

  num_classes = 3

  def apply(self, variables, x, timesteps, labels, gates):
    return jnp.zeros_like(x) + labels[:, None, None, None] / 10 + variables, ()


class Plain:
  """A smooth unconditional function."""

  num_classes = 0

  def apply(self, variables, x, timesteps, labels, gates):
    assert labels is None
    return jnp.tanh(x) * (0.3 + timesteps[:, None, None, None] / 40) * variables, ()


def test_to_uint8():
  """-1 -> 0, 1 -> 255, beyond is clipped, 127.5 goes to the even 128, and every grey level survives a round trip."""
  out = to_uint8(jnp.array([-1.0, 1.0, -3.0, 2.0, 0.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5]))
  assert out.dtype == jnp.uint8 and out.tolist() == [0, 255, 0, 255, 128, 0, 1]
  grey = np.arange(256)
  np.testing.assert_array_equal(to_uint8(jnp.asarray(grey / 127.5 - 1, jnp.float32)), grey)


def test_batches_do_not_matter_and_the_last_is_cut():
  """10 images in batches of 4 (the last one cut), of 10 and of 64 are the same; progress adds up to 10."""
  sampler = make_sampler(Plain(), SCHEDULE, "eps", (2, 2, 1), steps=4, eta=0.5, clip=False)
  seen = []
  out = generate(sampler, jnp.float32(1), 10, 7, 4, progress=seen.append)
  assert out.shape == (10, 2, 2, 1) and out.dtype == np.float32 and seen == [4, 4, 2]
  for batch_size in (10, 64):
    np.testing.assert_allclose(generate(sampler, jnp.float32(1), 10, 7, batch_size), out, rtol=1e-5, atol=1e-6)
  # Asking for fewer gives the first of them; another seed gives others.
  np.testing.assert_allclose(generate(sampler, jnp.float32(1), 3, 7, 4), out[:3], rtol=1e-5, atol=1e-6)
  assert np.abs(generate(sampler, jnp.float32(1), 10, 8, 4) - out).min() > 1e-5


@pytest.mark.parametrize("sampler, spacing", [("ddim", "leading"), ("ddpm", "linspace")])
def test_labels_are_balanced_across_batches(sampler, spacing):
  """Image i has label i % num_classes, also where batches do not hold whole rounds."""
  sample = make_sampler(Label(), SCHEDULE, "x0", (2, 2, 1), sampler, steps=5, spacing=spacing)
  out = generate(sample, jnp.float32(0), 10, 0, 4, num_classes=3)
  np.testing.assert_allclose(out[:, 0, 0, 0], [0, 0.1, 0.2, 0, 0.1, 0.2, 0, 0.1, 0.2, 0], atol=1e-5)


def test_options_reach_the_sampler():
  """eta, clip, steps, spacing and sampler each change the images; variables are an argument, not a constant."""
  base = dict(sampler="ddim", steps=4, eta=0.0, clip=False, spacing="ldm")
  changes = [{}, {"eta": 0.9}, {"clip": True}, {"steps": 5}, {"spacing": "leading"}, {"sampler": "ddpm"}]
  outputs = [
      generate(make_sampler(Plain(), SCHEDULE, "eps", (2, 2, 1), **{**base, **change}), jnp.float32(1), 4, 0, 4)
      for change in changes
  ]
  for i, a in enumerate(outputs):
    assert all(np.abs(a - b).max() > 1e-3 for b in outputs[:i])
  sample = make_sampler(Label(), SCHEDULE, "x0", (1, 1, 1), steps=2, spacing="leading")
  assert [float(generate(sample, jnp.float32(v), 1, 0, 1, 3)[0, 0, 0, 0]) for v in (0.2, 0.6)] == pytest.approx(
      [0.2, 0.6], abs=1e-5)


def test_gates_reach_the_model():
  """What is given as gates arrives there."""

  class Gated:
    num_classes = 0

    def apply(self, variables, x, timesteps, labels, gates):
      return jnp.full_like(x, gates), ()

  sample = make_sampler(Gated(), SCHEDULE, "x0", (1, 1, 1), steps=2, spacing="leading")
  out = generate(sample, {}, 2, 0, 2, gates=jax.numpy.float32(0.3))
  np.testing.assert_allclose(out, 0.3, atol=1e-5)
