"""Trains a feature network on labelled images, for data that no published network was made for.

  python -m binarydm_jax.evaluation.train_classifier --config=configs/cifar10_study.py --output=runs/cifar16.safetensors

It sees the training split of `config.data` alone, and says how many images of the other it gets right. The file is then
evaluation.classifier, with evaluation.feature_network="classifier"; its SHA-256 stands beside every distance. On one
platform the same command gives the same bits.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from tqdm import trange

from binarydm_jax.command_line import CONFIG, parse_flags, set_up_jax
from binarydm_jax.data import open_splits, read_all
from binarydm_jax.evaluation import classifier, features

SEED = 0
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
# Small, so that the features stay sensitive to noise in samples: a network trained to ignore it could not measure it.
NOISE_STDDEV = 0.05
SOURCE_FIELDS = ("image_size", "channels", "train_split", "test_split", "holdout", "skip_unreadable")


def augment(key, images):
  """images [n, h, w, c] in [-1, 1] -> each shifted by -1, 0 or 1 pixel along both axes, with a little noise."""
  shift_key, noise_key = jax.random.split(key)
  offsets = jax.random.randint(shift_key, (images.shape[0], 2), 0, 3)
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)

  def crop(image, offset):
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

  return jax.vmap(crop)(padded, offsets) + NOISE_STDDEV * jax.random.normal(noise_key, images.shape)


def mirror(key, images):
  """images [n, h, w, c] -> about half of them mirrored, left to right."""
  flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
  return jnp.where(flipped, images[:, :, ::-1], images)


def train(module, images, labels, num_steps, batch_size, flip=False, steps=range):
  """AdamW on a cosine schedule.

  Args:
    module: images [n, h, w, c] in [-1, 1] -> (logits, features).
    images: uint8 [n, h, w, c]. labels: int [n].
    flip: whether images are mirrored at random.
    steps: num_steps -> the numbers of the steps, such as tqdm.trange.
  Returns:
    (params, loss float32 [num_steps]).
  """
  base_key = jax.random.key(SEED)
  images = features.normalize(images)
  params = module.init(base_key, images[:1])["params"]
  schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, num_steps // 20, num_steps)
  optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
  labels = jnp.asarray(labels)

  @jax.jit
  def step(params, opt_state, index):
    key = jax.random.fold_in(base_key, index)
    pick_key, augment_key = jax.random.split(key)
    picked = jax.random.choice(pick_key, images.shape[0], (batch_size,), replace=False)
    batch = augment(augment_key, images[picked])
    if flip:
      batch = mirror(jax.random.fold_in(key, 1), batch)

    def loss_fn(params):
      logits, _ = module.apply({"params": params}, batch)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels[picked]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  opt_state, losses = optimizer.init(params), []
  # A Python loop, not lax.scan: XLA's CPU convolutions take about twice as long inside a while loop.
  for index in steps(num_steps):
    params, opt_state, loss = step(params, opt_state, index)
    losses.append(loss)
  return params, np.asarray(losses)


def open_labelled(data):
  """((images uint8 [n, h, w, c], labels int32 [n]), the same of the test split, number of classes) of `config.data`.

  Raises:
    ValueError: the images have no labels.
  """
  fields = {name: data[name] for name in SOURCE_FIELDS}
  train_data, test_data = open_splits(data.source, data_dir=data.data_dir or None, **fields)
  if train_data.num_classes < 2:
    raise ValueError(f"data.source {data.source!r} has no labels: a classifier needs at least two classes")
  return read_all(train_data), read_all(test_data), train_data.num_classes


def accuracy(network, images, labels):
  """Part of the images, uint8 [n, h, w, c], that a FeatureNetwork gets right."""
  return float(np.mean(network.classify(images) == labels))


def make(data, output, num_steps, batch_size, steps=range):
  """Trains on `data` (`config.data`), writes the file `output`, and returns its metadata and its SHA-256.

  Raises:
    ValueError: no labels, or fewer training images than a batch has.
  """
  (images, labels), (test_images, test_labels), num_classes = open_labelled(data)
  if len(images) < batch_size:
    raise ValueError(f"--batch_size={batch_size} is more than the {len(images)} training images: lower it")
  module = classifier.ImageClassifier(num_classes)
  params, losses = train(module, images, labels, num_steps, batch_size, data.flip, steps)
  metadata = dict(
      format=classifier.FORMAT, num_classes=num_classes, widths=module.widths, dim=module.dim,
      image_shape=images.shape[1:], source=data.source, seed=SEED, num_steps=num_steps, batch_size=batch_size,
      flip=data.flip, train_images=len(labels), test_images=len(test_labels),
      training_loss=round(float(np.mean(losses[-100:])), 4),
  )  # fmt: skip
  network = features.FeatureNetwork("classifier", "", module.dim, images.shape[1:], module, params)
  metadata["test_accuracy"] = round(accuracy(network, test_images, test_labels), 4)
  return metadata, classifier.write_weights(output, params, metadata)


def main(argv):
  if len(argv) > 1:
    sys.exit(f"error: unknown argument {argv[1]!r}; options begin with --")
  given = flags.FLAGS
  set_up_jax()
  try:
    metadata, sha256 = make(CONFIG.value.data, given.output, given.steps, given.batch_size, trange)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print("training loss, last 100 steps: {training_loss}".format(**metadata))
  print("held-out accuracy: {test_accuracy} of {test_images} images".format(**metadata))
  print(f"wrote {given.output}, SHA-256 {sha256}")


if __name__ == "__main__":
  # Here, since importing the functions above must define no flags.
  flags.DEFINE_string("output", None, "safetensors file to write.")
  flags.DEFINE_integer("steps", 3000, "Of training.", lower_bound=1)
  flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=1)
  flags.mark_flags_as_required(["config", "output"])
  app.run(main, flags_parser=parse_flags)
