"""The distance of features with stand-ins for the networks whose features are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from binarydm_jax.diffusion import make_schedule
from binarydm_jax.evaluation.block_distance import MOST_IMAGES, block_distance, middle_timesteps

SCHEDULE = make_schedule("linear", 16, 1e-2, 0.3)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1)).astype(np.uint8)
LABELS = np.array([1, 2, 6], np.int32)
TIMESTEPS = np.array([2, 10])


class Network:
  """Three blocks: a constant map, the input plus something that depends on the timestep, the label's number."""

  def __init__(self, constant=3.0, per_step=0.0, per_label=1.0, num_classes=7):
    self.values, self.num_classes = (constant, per_step, per_label), num_classes

  def apply(self, variables, x, timesteps, labels=None, gates=None):
    constant, per_step, per_label = self.values
    labels = jnp.zeros(len(x)) if labels is None else labels
    wide = lambda v: v[:, None, None, None]
    features = (jnp.full((len(x), 2, 2, 4), constant), x + per_step * wide(timesteps), per_label * wide(labels))
    return x, tuple(f.astype(jnp.bfloat16) if i == 0 else f for i, f in enumerate(features))


def distances(student, teacher=None, images=IMAGES, labels=LABELS, **kwargs):
  parts = ((network, {}, None) for network in (teacher or Network(), student))
  return block_distance(*parts, images, labels, SCHEDULE, TIMESTEPS, **kwargs)


def test_a_network_is_at_no_distance_from_itself():
  distance, norm = distances(Network())
  np.testing.assert_array_equal(distance, 0)
  assert (norm > 0).all()


def test_by_hand():
  """16 values that are 0.5 apart: 2; 4 values, t / 2 apart: t, on the mean 6; labels 1, 2, 6: mean 3, doubled."""
  distance, norm = distances(Network(3.5, 0.5, 3.0))
  np.testing.assert_allclose(distance, [2, 6, 6], rtol=1e-5)
  np.testing.assert_allclose(norm[[0, 2]], [12, 3], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batch_size_does_not_matter(batch_size):
  """Neither for the noise nor for a last batch that is incomplete."""
  whole, some = (distances(Network(1.0, 0.5, 3.0), batch_size=n) for n in (6, batch_size))
  np.testing.assert_allclose(whole, some, rtol=1e-6)


def test_most_images_and_no_classes():
  images = np.zeros((MOST_IMAGES + 5, 2, 2, 1), np.float32)
  distance, norm = distances(Network(4.0, num_classes=0), Network(num_classes=0), images, np.zeros(len(images), int))
  np.testing.assert_allclose(distance, [4, 0, 0], atol=1e-6)
  assert norm[2] == 0


def test_timesteps_are_the_middles():
  np.testing.assert_array_equal(middle_timesteps(1000), [100, 300, 500, 700, 900])
  np.testing.assert_array_equal(middle_timesteps(2, 3), [0, 1, 1])
