"""The packed U-Net as a file: safetensors with sign bits, scales, steps and the remainder. See format.md."""

import dataclasses
import functools
import json
import os
import struct

import flax.traverse_util
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from binarydm_jax import quant
from binarydm_jax.deploy import description as description_lib
from binarydm_jax.deploy.description import REMAINDERS, SAFETENSORS_NAMES, Description
from binarydm_jax.files import write_atomically

FORMAT, VERSION = "binarydm_jax-packed", "3"


class PackedError(ValueError):
  """A packed file that cannot be read; the message, one line, names it and says why."""


def export(path, variables, model, table, layers, diffusion, input_shape, first_stage=None, remainder="float32",
           **about):
  """Writes the packed file (temporary name, then rename); the same model gives the same bytes.

  Args:
    path: of the file.
    variables: trained {"params", "quant"}.
    model: the UNet.
    table: rules as deployed, from `quant.deployed_table`.
    layers: from `quant.inspect_layers`.
    diffusion: dict of schedule, num_timesteps, beta_start, beta_end, target.
    input_shape: (h, w, c) of images, or of latents.
    first_stage: None, or the fields of the Autoencoder that the latents belong to, their "scale_factor" and the
      "sha256" of its weights, which stay in a file of their own.
    remainder: "float32" or "bfloat16", the type of what is not quantized.
    **about: further JSON for the description, such as method or class names.
  Returns:
    (payload bytes, header bytes) of the file on disk.
  """
  tensors = quant.pack(variables, table, REMAINDERS[remainder])
  text = description_lib.describe(model, table, layers, diffusion, input_shape, first_stage, remainder, **about)
  content = save(tensors, metadata={"format": FORMAT, "version": VERSION, "description": text})
  write_atomically(path, _with_sorted_header(content))
  return file_sizes(path)


def _with_sorted_header(content):
  """A safetensors file with the keys of its header in order: the library writes those of the metadata in any."""
  end = 8 + struct.unpack("<Q", content[:8])[0]
  header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
  header += b" " * (-len(header) % 8)  # tensors stay aligned
  return struct.pack("<Q", len(header)) + header + content[end:]


def file_sizes(path):
  """(payload bytes, header bytes) of a safetensors file; the header includes the 8 bytes of its own length."""
  with open(path, "rb") as file:
    header = 8 + struct.unpack("<Q", file.read(8))[0]
  return os.path.getsize(path) - header, header


@dataclasses.dataclass(frozen=True)
class PackedFile:
  """A packed file, read and checked.

  Attributes:
    description: Description.
    tensors: name -> numpy array, as `quant.pack` names them.
  """

  description: Description
  tensors: dict


@functools.lru_cache(maxsize=4)
def _parameters(model, rules, input_shape):
  """(name -> shape of all parameters and of what the rules add, names of the latter), from abstract shapes."""
  model = model.clone(rules=dict(rules))
  shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *model.abstract_inputs(input_shape))
  flat = [flax.traverse_util.flatten_dict(shapes.get(name, {}), sep="/") for name in ("params", "quant")]
  return {name: tuple(leaf.shape) for name, leaf in {**flat[0], **flat[1]}.items()}, frozenset(flat[1])


def _check_header(found, described):
  """Raises ValueError unless the file has the tensors that its description asks for.

  Args:
    found: name -> (shape, safetensors' name of the dtype).
    described: Description.
  """
  parts = {}
  for path, rule in described.table.items():
    if rule.weights != "float":
      parts.update(description_lib.kernel_parts(path, rule, described.shapes[path]))

  def check(expected):
    for name, (shape, dtype) in expected.items():
      if name in found and found[name] != (shape, SAFETENSORS_NAMES[dtype.name]):
        raise ValueError(f"{name} is {found[name][1]}{list(found[name][0])}, not {dtype.name}{list(shape)}")

  check(parts)  # before the network is traced, which takes longer
  missing = sorted(set(parts) - set(found))
  if missing:
    raise ValueError(f"{len(missing)} tensors are missing or left over, the first is {missing[0]!r}")
  try:
    parameters, learned = _parameters(described.model, tuple(described.table.items()), described.input_shape)
  except Exception as error:  # whatever tracing a network of impossible fields may raise
    raise ValueError(f"its network cannot be built ({type(error).__name__}: {error})") from None
  for path, shape in described.shapes.items():
    if parameters.get(f"{path}/kernel", ()) != shape:
      raise ValueError(f"layer {path!r} has shape {shape}, not {parameters.get(f'{path}/kernel', ())}")
  quantized = {f"{path}/kernel" for path, rule in described.table.items() if rule.weights != "float"}
  float32, remainder = REMAINDERS["float32"], REMAINDERS[described.remainder]
  expected = {name: (shape, float32 if name in learned else remainder)
              for name, shape in parameters.items() if name not in quantized} | parts
  wrong = sorted(set(found) ^ set(expected))
  if wrong:
    raise ValueError(f"{len(wrong)} tensors are missing or left over, the first is {wrong[0]!r}")
  check(expected)


def _check_values(tensors, table):
  for name, tensor in tensors.items():
    if tensor.dtype == np.uint8:
      continue
    if not np.isfinite(tensor.astype(np.float32)).all():
      raise ValueError(f"{name} holds values that are not finite")
    if name.rpartition("/")[2] in ("scale1", "scale2", "weight_step", *quant.packed_variables.STEPS):
      if (tensor <= 0).any():
        raise ValueError(f"{name} holds scales that are not positive")
  for name in (f"{path}/{leaf}" for path in table for leaf in quant.packed_variables.ZERO_POINTS):
    most = 2 ** (table[name.rpartition("/")[0]].act_bits - 1)
    if name in tensors and tensors[name] not in range(most + 1):
      raise ValueError(f"{name} is {tensors[name]}, not a whole number in 0 .. {most}")


def read(path):
  """Reads and checks a packed file; nothing in it is executed, and nothing allocated that it does not hold.

  Returns:
    PackedFile.
  Raises:
    PackedError: missing, truncated or foreign file; another version; missing, extra or misshapen tensors; a network
      that cannot be; values that are not finite; scales that are not positive; zero points that are none.
  """
  try:
    os.stat(path)
    with safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      if metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata has no format {FORMAT!r}")
      if metadata.get("version") != VERSION:
        raise ValueError(f"it has format version {metadata.get('version')!r:.40} and this program reads {VERSION!r}:"
                         " --mode=export writes it again")
      described = _describe(metadata.get("description", ""))
      found = {}
      for name in file.keys():
        tensor = file.get_slice(name)
        found[name] = tuple(tensor.get_shape()), tensor.get_dtype()
      _check_header(found, described)
      tensors = {name: file.get_tensor(name) for name in found}
    _check_values(tensors, described.table)
  except FileNotFoundError:
    raise PackedError(f"{path} does not exist; --mode=export writes it") from None
  except (SafetensorError, OSError, ValueError, MemoryError) as error:
    raise PackedError(f"{path} is not a readable packed model: {_one_line(error)}") from None
  return PackedFile(described, tensors)


def _describe(text):
  try:
    return description_lib.parse(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"its description is no JSON: {error}") from None
  except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
    raise ValueError(f"its description is not valid ({type(error).__name__}: {error})") from None


def _one_line(error):
  return " ".join(str(error).split())[:400]
