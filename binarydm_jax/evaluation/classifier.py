"""A small classifier of one's own images as a feature network: `train_classifier` makes its file, `read` reads it.

The file is safetensors; its metadata says what network it is and how it was trained.
"""

import functools
import hashlib
import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from binarydm_jax.files import write_atomically

FORMAT = "binarydm_jax classifier 1"
METADATA = "training"
MADE_BY = "python -m binarydm_jax.evaluation.train_classifier"


class ImageClassifier(nn.Module):
  """A conv net: images [n, h, w, c] in [-1, 1] -> (logits [n, num_classes], features [n, dim]), float32.

  Each level after the first halves the resolution. The features are the last hidden layer before its activation: no
  unit is cut off at zero, and their distribution is closer to the Gaussian that the Frechet distance assumes.
  """

  num_classes: int
  widths: tuple[int, ...] = (32, 64, 128)
  dim: int = 64

  @nn.compact
  def __call__(self, images):
    """images [n, h, w, c] float32 -> (logits [n, num_classes], features [n, dim]), as the class says."""
    # Full float32 products everywhere: TPU's default of bfloat16 would shift the distances from those of a CPU.
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding="SAME", precision="highest")
    x = images
    for level, width in enumerate(self.widths):
      x = conv(width, strides=2 if level else 1, name=f"conv_{level}a")(x)
      x = nn.silu(nn.GroupNorm(num_groups=8, name=f"norm_{level}a")(x))
      x = conv(width, name=f"conv_{level}b")(x)
      x = nn.silu(nn.GroupNorm(num_groups=8, name=f"norm_{level}b")(x))
    features = nn.Dense(self.dim, precision="highest", name="hidden")(x.reshape(x.shape[0], -1))
    logits = nn.Dense(self.num_classes, precision="highest", name="classes")(nn.silu(features))
    return logits, features


def write_weights(path, params, metadata) -> str:
  """Writes params and metadata (a dict) to `path` as safetensors, whole or not at all. -> SHA-256 of the file."""
  tensors = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep="/").items()}
  # One entry of JSON: safetensors does not promise the order of several, and the digest must not depend on it.
  content = save_safetensors(tensors, metadata={METADATA: json.dumps(metadata, sort_keys=True)})
  write_atomically(path, content)
  return hashlib.sha256(content).hexdigest()


def read_metadata(content):
  """What `write_weights` was given, from the bytes of its file; {} where they say nothing of the kind."""
  size = int.from_bytes(content[:8], "little")
  return json.loads(json.loads(content[8 : 8 + size]).get("__metadata__", {}).get(METADATA, "{}"))


def read(path):
  """(ImageClassifier, its parameters, image shape (h, w, c), SHA-256 of the file).

  Raises:
    ValueError: one line: no such file, or not one that `train_classifier` has written.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"evaluation.classifier: there is no file {str(path)!r}; {MADE_BY} makes one")
  content = path.read_bytes()
  try:
    tensors = load_safetensors(content)
    metadata = read_metadata(content)
  except KeyError as error:
    raise ValueError(f"evaluation.classifier: {str(path)!r} has tensors of {error}, and not of float32") from None
  except (SafetensorError, ValueError, AttributeError) as error:
    raise ValueError(f"evaluation.classifier: {str(path)!r} is not a safetensors file ({error})") from None
  try:
    if metadata["format"] != FORMAT:
      raise KeyError("format")
    widths, image_shape = (tuple(map(int, metadata[name])) for name in ("widths", "image_shape"))
    module = ImageClassifier(int(metadata["num_classes"]), widths, int(metadata["dim"]))
    height, width, channels = image_shape
    images = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  except (KeyError, TypeError, ValueError, ArithmeticError):
    raise ValueError(
        f"evaluation.classifier: {str(path)!r} does not say which classifier it holds; {MADE_BY} makes one that does"
    ) from None
  wanted = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
  found = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype == np.float32}
  if found != wanted or len(tensors) != len(found):
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    raise ValueError(f"evaluation.classifier: {str(path)!r} is damaged: {', '.join(wrong[:3]) or 'the types'} are not"
                     " those of its network")  # fmt: skip
  if broken := sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all()):
    raise ValueError(f"evaluation.classifier: {str(path)!r} is damaged: {', '.join(broken[:3])} are not finite")
  return module, traverse_util.unflatten_dict(tensors, sep="/"), image_shape, hashlib.sha256(content).hexdigest()
