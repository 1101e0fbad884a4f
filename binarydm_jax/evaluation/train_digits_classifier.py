"""Trains the shipped feature network on scikit-learn's digits; under a minute on two CPU cores, same bits every time.

  python -m binarydm_jax.evaluation.train_digits_classifier --output=FILE

Expect 99.66 % on the 297 test images. Weights of another platform differ in the last bits: the file shipped is
the definition, and `features.DIGITS_SHA256` holds its digest. `train_classifier` is the same for other images.
"""

import argparse
import pathlib

import numpy as np

from binarydm_jax.data import open_source, read_all
from binarydm_jax.evaluation import features
from binarydm_jax.evaluation.classifier import write_weights
from binarydm_jax.evaluation.train_classifier import SEED, train

NUM_STEPS = 1500
BATCH_SIZE = 100


def load_digits_split():
  """-> (train images [1500, 8, 8, 1] uint8, labels [1500]), (test images [297, 8, 8, 1] uint8, labels [297])."""
  # The split of `data.open_source`: the classifier must not have seen what a held-out figure is measured on.
  return tuple(
    read_all(open_source("digits", image_size=8, channels=1, split=split)) for split in ("train", "test")
  )


def main(argv=None):
  parser = argparse.ArgumentParser(description="Trains the feature network for the embedded 8x8 digits.")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="safetensors file to write")
  args = parser.parse_args(argv)
  (train_images, train_labels), (test_images, test_labels) = load_digits_split()
  module = features.DigitsClassifier()
  params, losses = train(module, train_images, train_labels, NUM_STEPS, BATCH_SIZE)
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
