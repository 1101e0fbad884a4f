"""Label dropout of classifier-free guidance: which labels become the null class, and that the terms use it."""

import jax
import jax.numpy as jnp
import numpy as np

from binarydm_jax.diffusion import make_schedule
from binarydm_jax.training.step import drop_labels, make_examples, teacher_terms


def test_drop_labels():
  """About the part asked for becomes the null class, the rest stays; none, and all."""
  labels = jnp.arange(4000) % 5
  dropped = np.asarray(drop_labels(labels, 5, 0.25, jax.random.key(0)))
  assert 0.2 < np.mean(dropped == 5) < 0.3
  np.testing.assert_array_equal(dropped[dropped != 5], np.asarray(labels)[dropped != 5])
  assert drop_labels(labels, 5, 0.0, jax.random.key(0)) is labels
  assert (drop_labels(labels, 5, 1.0, jax.random.key(0)) == 5).all()


class FakeModel:
  """Predicts each example's label everywhere."""

  num_classes, dropout = 5, 0.0

  def apply(self, variables, x, timesteps, labels, gates, dropout_keys):
    assert gates is None and dropout_keys is None
    self.labels = labels
    return jnp.broadcast_to(labels[:, None, None, None].astype(jnp.float32), x.shape), ()


def test_terms_drop_labels_of_their_batch():
  """With a dropout of one the model sees the null class alone; with none, the batch's labels and the same noise."""
  batch = {"image": jnp.zeros((64, 2, 2, 1)), "label": jnp.zeros(64, jnp.int32)}
  model, schedule, losses = FakeModel(), make_schedule("linear"), []
  for part in (0.0, 1.0):
    examples = make_examples(model, schedule, "eps", part, batch, jax.random.key(3))
    values, _ = teacher_terms(model, "l2")({}, {}, examples, 0)
    assert set(np.asarray(model.labels)) == ({5} if part else {0})
    losses.append(float(values["simple"]))
  # Mean (label - noise)^2 of the same noise: 25 - 2 * 5 * mean(noise) more.
  noise_mean = (25 - (losses[1] - losses[0])) / 10
  assert abs(noise_mean) < 0.2


def test_labels_are_dropped_by_a_key_of_their_own():
  """Not by that of the noise, nor by that which the dropout of an example's features comes from."""
  batch = {"image": jnp.zeros((64, 2, 2, 1)), "label": jnp.zeros(64, jnp.int32)}
  model = FakeModel()
  model.dropout = 0.1
  key = jax.random.key(3)
  examples = make_examples(model, make_schedule("linear"), "eps", 0.5, batch, key)
  keys = jax.random.split(key, 3)
  dropped = [drop_labels(batch["label"], 5, 0.5, other) for other in keys]
  assert [bool((labels == examples["labels"]).all()) for labels in dropped] == [False, False, True]
