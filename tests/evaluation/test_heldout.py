"""The held-out loss with stand-ins for the network whose error is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import make_schedule
from binarydm_jax.evaluation.heldout import bucket_means, bucket_starts, heldout_loss

SCHEDULE = make_schedule("linear", 16, 1e-2, 0.3)
SIGNAL = jnp.asarray(np.sqrt(SCHEDULE.alphas_cumprod), jnp.float32)
NOISE = jnp.asarray(np.sqrt(1 - SCHEDULE.alphas_cumprod), jnp.float32)
WHITE = np.full((4, 2, 2, 1), 255, np.uint8)
LABELS = np.arange(4, dtype=np.int32)


class White:
  """Knows that every image is white (x0 = 1), so it can predict exactly; `error(timesteps, labels)` is added."""

  def __init__(self, target="eps", error=None, num_classes=0):
    self.target, self.error, self.num_classes = target, error, num_classes

  def apply(self, variables, x, timesteps, labels=None, gates=None):
    assert (labels is None) == (not self.num_classes)
    a, s = SIGNAL[timesteps][:, None, None, None], NOISE[timesteps][:, None, None, None]
    eps = (x - a) / s
    output = {"eps": eps, "x0": jnp.ones_like(x), "v": a * eps - s}[self.target]
    if self.error:
      output = output + self.error(timesteps, labels)[:, None, None, None]
    return output, ()


def losses(model, images=WHITE, labels=LABELS, target="eps", **kwargs):
  return heldout_loss(model, {}, None, images, labels, SCHEDULE, target, **{"repeats": 4, **kwargs})


def loss(*args, **kwargs):
  return losses(*args, **kwargs)[0]


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_perfect_prediction_costs_nothing(target):
  assert loss(White(target), target=target) < 1e-10


def test_constant_error_is_its_square():
  assert loss(White(error=lambda t, labels: jnp.full(t.shape, 0.5))) == pytest.approx(0.25, rel=1e-5)


def test_every_stratum_once():
  """16 draws over 16 timesteps with squared error 2^t: only if each t occurs once is the sum 2^16 - 1."""
  value = loss(White(error=lambda t, labels: jnp.sqrt(2.0**t)))
  assert value * 16 == pytest.approx(2**16 - 1, rel=1e-6)


def test_buckets_by_hand():
  """With an error of 2^t the bucket that holds the timesteps a .. b has the mean of their powers."""
  mean, buckets = losses(White(error=lambda t, labels: jnp.sqrt(2.0**t)))
  starts = bucket_starts(16)
  np.testing.assert_array_equal(starts, [0, 2, 4, 5, 7, 8, 10, 12, 13, 15])
  ends = [*starts[1:], 16]
  np.testing.assert_allclose(buckets, [np.mean(2.0 ** np.arange(a, b)) for a, b in zip(starts, ends)], rtol=1e-5)
  assert np.average(buckets, weights=np.diff([*starts, 16])) == pytest.approx(mean, rel=1e-6)


def test_bucket_means():
  """The mean of equally full buckets is the mean of all; a bucket without a draw has none."""
  timesteps = np.random.default_rng(0).permutation(1000)
  values = np.random.default_rng(1).random(1000)
  means = bucket_means(values, timesteps, 1000)
  assert means.mean() == pytest.approx(values.mean(), rel=1e-12)
  assert means[3] == pytest.approx(values[(timesteps >= 300) & (timesteps < 400)].mean(), rel=1e-12)
  np.testing.assert_array_equal(bucket_means([1.0, 3.0, 5.0], [0, 1, 3], 4, 4), [1, 3, np.nan, 5])
  np.testing.assert_array_equal(bucket_starts(1000), np.arange(0, 1000, 100))


def test_every_image_is_used_equally_and_meets_its_label():
  """The squared error is 4^label: the mean is (1 + 4 + 16 + 64) / 4 only if every label has its share."""
  model = White(error=lambda t, labels: 2.0**labels, num_classes=4)
  assert loss(model) == pytest.approx(85 / 4, rel=1e-5)
  # Black images (x0 = -1) are wrong by 2 a / s where images meet their own labels; label 1 is black here.
  images = WHITE.copy()
  images[1] = 0
  spotted = White(error=lambda t, labels: jnp.where(labels == 1, 2 * SIGNAL[t] / NOISE[t], 0.0), num_classes=4)
  assert loss(spotted, images) < 1e-8


@pytest.mark.parametrize("batch_size", [1, 5, 16, 256])
def test_batch_size_does_not_matter(batch_size):
  """A prediction of zero has the noise's own square as its error; the last batch may be incomplete."""
  model = White(error=lambda t, labels: 0.1 * t)
  images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1)).astype(np.uint8)  # 12 draws
  arguments = dict(images=images, labels=LABELS[:3])
  assert loss(model, **arguments, batch_size=batch_size) == pytest.approx(loss(model, **arguments), rel=1e-6)


def test_deterministic_and_fresh_noise_for_every_draw():
  """Twice the same figure; a network that answers zero pays the mean square of normal noise, about 1."""

  class Zero:
    num_classes = 0

    def apply(self, variables, x, timesteps, labels, gates):
      return jnp.zeros_like(x), ()

  images = np.zeros((64, 4, 4, 1), np.uint8)
  a, b = (loss(Zero(), images, np.zeros(64, np.int32)) for _ in range(2))
  assert a == b
  assert a == pytest.approx(1, abs=0.1)  # 4,096 values: standard error 0.022; repeated noise would be far off
