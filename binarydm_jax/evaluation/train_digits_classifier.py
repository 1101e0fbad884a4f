"""Trains the shipped feature network on scikit-learn's digits; under a minute on two CPU cores, same bits every time.

  python -m binarydm_jax.evaluation.train_digits_classifier [--output=FILE]

Expect 98.65 % on the 297 test images. Weights of another platform differ in the last bits: the file shipped is
the definition, and `features.DIGITS_SHA256` holds its digest.
"""

import argparse
import hashlib
import json
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from safetensors.numpy import save as save_safetensors

from binarydm_jax.data import open_source, read_all
from binarydm_jax.evaluation import features

SEED = 0
NUM_TRAIN = 1500
NUM_STEPS = 1500
BATCH_SIZE = 100
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
# Small, so that the features stay sensitive to noise in samples: a network trained to ignore it could not measure it.
NOISE_STDDEV = 0.05


def load_digits_split():
  """-> (train images [1500, 8, 8, 1] uint8, labels [1500]), (test images [297, 8, 8, 1] uint8, labels [297])."""
  # The split of `data.open_source`: the classifier must not have seen what a held-out figure is measured on.
  return tuple(
    read_all(open_source("digits", image_size=8, channels=1, split=split)) for split in ("train", "test")
  )


def augment(key, images):
  """images [n, 8, 8, 1] in [-1, 1] -> each shifted by -1, 0 or 1 pixel along both axes, with a little noise."""
  shift_key, noise_key = jax.random.split(key)
  offsets = jax.random.randint(shift_key, (images.shape[0], 2), 0, 3)
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)

  def crop(image, offset):
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

  return jax.vmap(crop)(padded, offsets) + NOISE_STDDEV * jax.random.normal(noise_key, images.shape)


def train(module: nn.Module, images, labels, num_steps: int):
  """images [n, 8, 8, 1] uint8, labels [n] int32 -> (params, loss [num_steps]) after AdamW on a cosine schedule."""
  images = features.normalize(images)
  base_key = jax.random.key(SEED)
  params = module.init(base_key, images[:1])["params"]
  schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, num_steps // 20, num_steps)
  optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

  @jax.jit
  def step(params, opt_state, index):
    pick_key, augment_key = jax.random.split(jax.random.fold_in(base_key, index))
    picked = jax.random.choice(pick_key, images.shape[0], (BATCH_SIZE,), replace=False)
    batch = augment(augment_key, images[picked])

    def loss_fn(params):
      logits, _ = module.apply({"params": params}, batch)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels[picked]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  labels, opt_state, losses = jnp.asarray(labels), optimizer.init(params), []
  # A Python loop, not lax.scan: XLA's CPU convolutions take about twice as long inside a while loop.
  for index in range(num_steps):
    params, opt_state, loss = step(params, opt_state, index)
    losses.append(loss)
  return params, np.asarray(losses)


def write_weights(path, params, metadata) -> str:
  """Writes params and metadata (a dict) to `path` as safetensors, whole or not at all. -> SHA-256 of the file."""
  tensors = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep="/").items()}
  # One entry of JSON: safetensors does not promise the order of several, and the digest must not depend on it.
  content = save_safetensors(tensors, metadata={"training": json.dumps(metadata, sort_keys=True)})
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
  return hashlib.sha256(content).hexdigest()


def main(argv=None):
  parser = argparse.ArgumentParser(description="Trains the feature network for the embedded 8x8 digits.")
  parser.add_argument("--output", type=pathlib.Path, default=features.DIGITS_WEIGHTS, help="safetensors file to write")
  args = parser.parse_args(argv)
  (train_images, train_labels), (test_images, test_labels) = load_digits_split()
  module = features.DigitsClassifier()
  params, losses = train(module, train_images, train_labels, NUM_STEPS)
  logits, _ = module.apply({"params": params}, features.normalize(test_images))
  accuracy = float(np.mean(np.argmax(logits, axis=-1) == test_labels))
  metadata = {
    "script": "binarydm_jax.evaluation.train_digits_classifier",
    "seed": SEED,
    "num_steps": NUM_STEPS,
    "test_accuracy": round(accuracy, 4),
    "test_images": len(test_labels),
  }
  sha256 = write_weights(args.output, params, metadata)
  print(f"training loss, last 100 steps: {float(np.mean(losses[-100:])):.4f}")
  print(f"test accuracy: {accuracy:.4f} of {len(test_labels)} images")
  print(f"wrote {args.output}, SHA-256 {sha256}")
  if sha256 != features.DIGITS_SHA256:
    print("these are not the weights that features.py pins; set DIGITS_SHA256 there if they are to replace them")


if __name__ == "__main__":
  main()
