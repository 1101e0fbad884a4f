"""Feature networks: fixed maps from images to vectors, under which two sets of images are compared.

`digits_classifier` ships with the package, so that the embedded digits need no download; `inception` is the network of
the FID papers, from weights that the user has; `classifier` is one that `train_classifier` has trained on images of the
user's. A distance means something only between sets measured with the same network, so each is known by the SHA-256 of
its weights file.
"""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load as load_safetensors

from binarydm_jax.evaluation import classifier, inception, inception_weights

DIGITS_WEIGHTS = pathlib.Path(__file__).with_name("digits_classifier.safetensors")
# Pinned: other weights would give other distances under the same name.
DIGITS_SHA256 = "ffe7cf8e76e676957cb8f9ea5e1f84410f9945439b27e02740bc105fff3b3705"


class DigitsClassifier(nn.Module):
  """A conv net for 8x8 digits: images [n, 8, 8, 1] in [-1, 1] -> (logits [n, 10], features [n, 64]), float32.

  The features are the last hidden layer before its activation: no unit is cut off at zero, and their distribution is
  closer to the Gaussian that the Frechet distance assumes. SiLU throughout, so they are smooth in the image.
  """

  num_classes: int = 10
  dim: int = 64

  @nn.compact
  def __call__(self, images):
    """images [n, 8, 8, 1] float32 -> (logits [n, num_classes], features [n, dim]), as the class says."""
    # Full float32 products everywhere: TPU's default of bfloat16 would shift the distances from those of a CPU.
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding="SAME", precision="highest")
    x = nn.silu(conv(24, name="conv_in")(images))
    x = nn.silu(conv(48, strides=(2, 2), name="conv_4x4")(x))
    x = nn.silu(conv(48, strides=(2, 2), name="conv_2x2")(x))
    features = nn.Dense(self.dim, precision="highest", name="hidden")(x.reshape(x.shape[0], -1))
    logits = nn.Dense(self.num_classes, precision="highest", name="classes")(nn.silu(features))
    return logits, features


def normalize(images):
  """images [...] uint8 -> float32 in [-1, 1], the input range of the networks here."""
  return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


class Outputs(NamedTuple):
  """What a network says about n images, float32.

  features: [n, d], for FID, KID, precision and recall. spatial: [n, s], for sFID, or None where the network has no such
  layer. probabilities: [n, classes], for the Inception Score, or None.
  """

  features: Any
  spatial: Any
  probabilities: Any


@functools.partial(jax.jit, static_argnums=0)
def _classifier_forward(module, params, images):
  """images [n, h, w, c] uint8 -> Outputs."""
  logits, features = module.apply({"params": params}, normalize(images))
  return Outputs(features, None, jax.nn.softmax(logits))


@functools.partial(jax.jit, static_argnums=0)
def _inception_forward(module, params, images):
  """images [n, h, w, 1 or 3] uint8 -> Outputs."""
  pooled, spatial, logits = module.apply({"params": params}, images)
  return Outputs(pooled, spatial, jax.nn.softmax(logits))


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
  """A network with its weights; `outputs` gives all that it says of uint8 images, a call or `extract` the features.

  name: what `load` takes. sha256: of the weights file, to be written beside every distance. dim, spatial_dim: features
  per image (spatial_dim None: no spatial features). image_shape: (H, W, C) of the images it takes, or None for grey or
  RGB images of any one size. forward: (module, params, images [n, H, W, C]) -> Outputs.
  """

  name: str
  sha256: str
  dim: int
  image_shape: tuple[int, int, int] | None
  module: nn.Module = dataclasses.field(repr=False)
  params: Any = dataclasses.field(repr=False)
  forward: Any = dataclasses.field(default=_classifier_forward, repr=False)
  spatial_dim: int | None = None

  def outputs(self, images, batch_size: int = 256) -> Outputs:
    """images [n, H, W, C] uint8 -> Outputs as numpy. ValueError for another dtype or image shape.

    Runs in batches of one shape: one compilation for each size of images.
    """
    images = np.asarray(images)
    self._check(images)
    if batch_size < 1:
      raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    found = []
    for start in range(0, len(images), batch_size):
      batch = images[start : start + batch_size]
      # The last batch is filled up and cut again: one shape, one compilation.
      padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
      results = jax.device_get(self.forward(self.module, self.params, np.pad(batch, padding)))
      found.append([None if result is None else result[: len(batch)] for result in results])
    return Outputs(*(None if parts[0] is None else np.concatenate(parts) for parts in zip(*found, strict=True)))

  def extract(self, images, batch_size: int = 256) -> np.ndarray:
    """images [n, H, W, C] uint8 -> features [n, dim] float32. ValueError as in `outputs`."""
    return self.outputs(images, batch_size).features

  __call__ = extract

  def classify(self, images, batch_size: int = 256) -> np.ndarray:
    """images [n, H, W, C] uint8 -> the likeliest class of each, [n] int64. ValueError as in `outputs`."""
    return self.outputs(images, batch_size).probabilities.argmax(axis=-1)

  def takes(self, image_shape) -> bool:
    """Whether the network is made for images of this shape (H, W, C)."""
    if self.image_shape is None:
      return len(image_shape) == 3 and min(image_shape) > 0 and image_shape[2] in (1, 3)
    return tuple(image_shape) == self.image_shape

  def _check(self, images):
    """ValueError where images are not uint8 [n >= 1, H, W, C] that the network takes."""
    if images.dtype != np.uint8:
      raise ValueError(
        f"{self.name} takes uint8 images in [0, 255], got {images.dtype}; convert [-1, 1] floats x by "
        "np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)"
      )
    if images.ndim != 4 or not self.takes(images.shape[1:]):
      shape = "H, W, 1 or 3" if self.image_shape is None else ", ".join(map(str, self.image_shape))
      raise ValueError(
        f"{self.name} takes images [n, {shape}], got {images.shape}; choose a feature network for this image size"
      )
    if images.shape[0] == 0:
      raise ValueError(f"{self.name} got no images; pass at least one")


def _load_digits_classifier(weights_path):
  """Reads the shipped weights -> FeatureNetwork. ValueError where the file is not the one that this version shipped."""
  content = DIGITS_WEIGHTS.read_bytes()
  sha256 = hashlib.sha256(content).hexdigest()
  if sha256 != DIGITS_SHA256:
    raise ValueError(
      f"{DIGITS_WEIGHTS} has SHA-256 {sha256}, expected {DIGITS_SHA256}; restore the shipped file, or "
      "after retraining it on purpose set DIGITS_SHA256 in features.py"
    )
  params = traverse_util.unflatten_dict(load_safetensors(content), sep="/")
  module = DigitsClassifier()
  return FeatureNetwork("digits_classifier", sha256, module.dim, (8, 8, 1), module, params)


def _load_inception(weights_path):
  """Reads the user's weights -> FeatureNetwork. ValueError where there are none, or the file holds something else."""
  if not weights_path:
    raise ValueError(
      "feature network 'inception' needs evaluation.inception_weights, the path of"
      f" {inception_weights.PUBLISHED}; nothing is downloaded"
    )
  params, sha256 = inception_weights.read(weights_path)
  # Once on the device: not sent again with every batch.
  return FeatureNetwork(
    "inception", sha256, inception.DIM, None, inception.InceptionV3(), jax.device_put(params), _inception_forward,
    inception.SPATIAL_DIM,
  )  # fmt: skip


def _load_classifier(weights_path):
  """Reads a file of `train_classifier` -> FeatureNetwork. ValueError where there is none, or it is something else."""
  if not weights_path:
    raise ValueError(
      f"feature network 'classifier' needs evaluation.classifier, the path of its file; {classifier.MADE_BY} makes one"
    )
  module, params, image_shape, sha256 = classifier.read(weights_path)
  return FeatureNetwork("classifier", sha256, module.dim, image_shape, module, params)


_LOADERS = {
  "digits_classifier": _load_digits_classifier, "classifier": _load_classifier, "inception": _load_inception,
  "none": lambda _: None,
}  # fmt: skip
NAMES = tuple(_LOADERS)


def load(name: str, weights_path=None) -> FeatureNetwork | None:
  """The feature network of this name; None for "none".

  weights_path: of InceptionV3's weights (`inception_weights`) or of a `classifier`; the others take none.
  ValueError for an unknown name, listing those that there are (`NAMES`), and for weights that are missing or wrong.
  """
  if name not in _LOADERS:
    raise ValueError(f"unknown feature network {name!r}; there are: {', '.join(NAMES)}")
  return _LOADERS[name](weights_path)
