"""InceptionV3's published PyTorch weights -> parameters. The file is the user's; nothing is downloaded here.

`pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`,
both converted from TensorFlow's graph, or the same tensors as safetensors (which needs no torch).
"""

import pathlib

import flax.traverse_util
import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from binarydm_jax.evaluation.inception import InceptionV3
from binarydm_jax.files import sha256_of
from binarydm_jax.importers.mapping import CheckpointError, Entry, as_arrays, convert
from binarydm_jax.importers.torch_file import read_torch

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
# Our leaf -> theirs, under the same module.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The bias of the classes: the Inception Score of TensorFlow's graph is computed without it.
UNUSED = ("fc.bias",)


def shapes():
  """Path of each parameter, joined by "/" -> its shape."""
  images = jax.ShapeDtypeStruct((1, 299, 299, 3), np.uint8)
  tree = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
  return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def entries(paths):
  """An Entry for each parameter: "Mixed_5b/branch1x1/bn/var" is made of "Mixed_5b.branch1x1.bn.running_var"."""
  found = []
  for path in paths:
    *modules, leaf = path.split("/")
    found.append(Entry(path, (".".join([*modules, LEAVES[leaf]]),)))
  return found


def read(path):
  """(parameters of InceptionV3 as nested dicts of float32 arrays, SHA-256 of the file).

  Raises:
    CheckpointError: a ValueError of one line: no such file, unreadable, pickled code, or not these weights; then every
      tensor that is missing, left over or of another shape is named.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise CheckpointError(f"evaluation.inception_weights: there is no file {str(path)!r}; give the path of {PUBLISHED}")
  sha256 = sha256_of(path)
  if path.suffix == ".safetensors":
    try:
      content = load_safetensors(path.read_bytes())
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
      raise CheckpointError(f"{path} is not a readable checkpoint ({error})") from None
  else:
    content = read_torch(path)
  if not isinstance(content, dict) or not all(
    isinstance(name, str) and hasattr(value, "shape") for name, value in content.items()
  ):
    raise CheckpointError(f"{path} holds no state dict: a dictionary of tensors is needed")
  tensors = {
    name: value for name, value in content.items() if name not in UNUSED and not name.endswith(".num_batches_tracked")
  }
  wanted = shapes()
  return convert(as_arrays(tensors, path), entries(wanted), wanted, path), sha256
