"""The packed U-Net: a safetensors file of sign bits, scales, steps and float remainder, with its description as JSON.

The tensors are those of `quant.pack`. Metadata: "format", "version" and "description".
"""

import dataclasses
import json
import math
import os
import struct
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from binarydm_jax import quant
from binarydm_jax.diffusion import TARGETS, Schedule, make_schedule
from binarydm_jax.files import write_atomically
from binarydm_jax.models import Autoencoder, UNet
from binarydm_jax.models.autoencoder import KINDS
from binarydm_jax.quant import LayerRule

FORMAT, VERSION = "binarydm_jax-packed", "2"
# How a network is computed is not part of what it is.
_HOW = ("rules", "dtype", "remat", "parent", "name")
MODEL_FIELDS = tuple(f.name for f in dataclasses.fields(UNet) if f.name not in _HOW)


class PackedError(ValueError):
  """A packed file that cannot be read; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class PackedModel:
  """A model read from a packed file.

  Attributes:
    model: a UNet whose weights are already dequantized and whose activations are quantized.
    variables: {"params", "quant"}, float32.
    schedule, target: of the diffusion.
    input_shape: (h, w, c) of images, or of latents.
    first_stage: None, or the fields of the Autoencoder that the latents belong to, and their "scale_factor"
      and the "sha256" of its weights.
    description: the file's JSON.
  """

  model: UNet
  variables: dict
  schedule: Schedule
  target: str
  input_shape: tuple
  first_stage: dict | None
  description: dict


def _flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")


def export(path, variables, model, table, layers, diffusion, input_shape, first_stage=None, **about):
  """Writes the packed file (temporary name, then rename).

  Args:
    path: of the file.
    variables: trained {"params", "quant"}.
    model: the UNet.
    table: rules as deployed, from `cost.deployed_table`.
    layers: from `quant.inspect_layers`.
    diffusion: dict of schedule, num_timesteps, beta_start, beta_end, target.
    input_shape: (h, w, c) of images, or of latents.
    first_stage: as in PackedModel; its weights stay in a file of their own.
    **about: further JSON for the description, such as method or class names.
  Returns:
    (payload bytes, header bytes) of the file on disk.
  """
  description = dict(
      model={name: getattr(model, name) for name in MODEL_FIELDS},
      layers={layer.path: dict(dataclasses.asdict(table[layer.path]), shape=layer.kernel_shape) for layer in layers},
      diffusion=dict(diffusion),
      input_shape=list(input_shape),
      first_stage=first_stage,
      **about,
  )
  metadata = {"format": FORMAT, "version": VERSION, "description": json.dumps(description)}
  write_atomically(path, save(quant.pack(variables, table), metadata=metadata))
  return file_sizes(path)


def file_sizes(path):
  """(payload bytes, header bytes) of a safetensors file; the header includes the 8 bytes of its own length."""
  with open(path, "rb") as file:
    header = 8 + struct.unpack("<Q", file.read(8))[0]
  return os.path.getsize(path) - header, header


def _expected(model, table, input_shape):
  """(name -> (shape, dtype) of every tensor that the file must hold, path -> kernel shape), from abstract shapes."""
  inputs = model.abstract_inputs(input_shape)
  shapes = jax.eval_shape(lambda *x: model.clone(rules=table).init(jax.random.key(0), *x), *inputs)
  params, learned = _flat(shapes["params"]), _flat(shapes.get("quant", {}))
  expected = {name: (tuple(leaf.shape), np.float32) for name, leaf in {**params, **learned}.items()}
  kernels = {path: expected[f"{path}/kernel"][0] for path in table if f"{path}/kernel" in expected}
  for path, rule in table.items():
    if rule.weights == "float":
      continue
    shape, _ = expected.pop(f"{path}/kernel")
    size = int(np.prod(shape, dtype=np.int64))
    if rule.weights == "lsq":
      expected[f"{path}/codes"] = ((quant.packed_size(size, rule.weight_bits),), np.uint8)
    for basis in range(1, rule.bases + 1):
      expected[f"{path}/signs{basis}"] = ((quant.packed_size(size),), np.uint8)
  return expected, kernels


def _read(path):
  """(description, tensors) of a safetensors file, nothing trusted yet but its framing."""
  try:
    with safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      if metadata.get("format") != FORMAT:
        raise PackedError(f"{path} is not a packed model: its metadata has no format {FORMAT!r}")
      if metadata.get("version") != VERSION:
        raise PackedError(f"{path} has format version {metadata.get('version')!r}; this program reads {VERSION!r}")
      return json.loads(metadata.get("description", "")), {name: file.get_tensor(name) for name in file.keys()}
  except FileNotFoundError:
    raise PackedError(f"{path} does not exist; --mode=export writes it") from None
  except PackedError:
    raise
  except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
    raise PackedError(f"{path} is not a readable packed model: {error}") from None


def load(path):
  """Reads and validates a packed file; nothing in it is executed.

  Returns:
    PackedModel.
  Raises:
    PackedError: missing, truncated or foreign file; another version; missing, extra or misshapen tensors; values
      that are not finite; scales that are not positive.
  """
  description, tensors = _read(path)
  try:
    fields = {name: _tuple(description["model"][name]) for name in MODEL_FIELDS}
    diffusion, input_shape = description["diffusion"], tuple(int(n) for n in description["input_shape"])
    rule_fields = [f.name for f in dataclasses.fields(LayerRule)]
    table = {p: LayerRule(**{f: row[f] for f in rule_fields}) for p, row in description["layers"].items()}
    model = UNet(**fields)
    first_stage = _first_stage(description["first_stage"], input_shape)
    schedule = make_schedule(*(diffusion[f] for f in ("schedule", "num_timesteps", "beta_start", "beta_end")))
    target = diffusion["target"]
    if target not in TARGETS or not schedule.num_timesteps:
      raise ValueError(f"target {target!r}, {schedule.num_timesteps} timesteps")
    expected, shapes = _expected(model, table, input_shape)
    for p, row in description["layers"].items():
      if tuple(row["shape"]) != shapes.get(p, ()):
        raise ValueError(f"layer {p!r} has shape {row['shape']}, not {shapes.get(p, ())}")
  except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, MemoryError) as error:
    raise PackedError(f"{path}: its description is not valid ({type(error).__name__}: {error})") from None
  if set(tensors) != set(expected):
    wrong = sorted(set(tensors) ^ set(expected))
    raise PackedError(f"{path}: {len(wrong)} tensors are missing or left over, the first is {wrong[0]!r}")
  for name, (shape, dtype) in expected.items():
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype != dtype:
      raise PackedError(f"{path}: {name} is {tensor.dtype}{tensor.shape}, not {np.dtype(dtype)}{shape}")
    if dtype == np.float32 and not np.isfinite(tensor).all():
      raise PackedError(f"{path}: {name} holds values that are not finite")
    if name.rsplit("/", 1)[-1] in ("scale1", "scale2", "weight_step", "step", "step_a", "step_b"):
      if (tensor <= 0).any():
        raise PackedError(f"{path}: {name} holds scales that are not positive")
  variables = quant.unpack(tensors, table, shapes)
  model = model.clone(rules=quant.dequantized(table))
  return PackedModel(model, variables, schedule, target, input_shape, first_stage, description)


def _first_stage(fields, input_shape):
  """The description's first stage, checked: None, or an Autoencoder's fields, a positive scale factor, a SHA-256."""
  if fields is None:
    return None
  fields = {name: _tuple(value) for name, value in fields.items()}
  factor = float(fields["scale_factor"])
  if not (factor > 0 and math.isfinite(factor)):
    raise ValueError(f"scale factor {factor}")
  if fields["kind"] not in KINDS or not isinstance(fields["sha256"], str):
    raise ValueError(f"first stage of kind {fields['kind']!r}")
  stage = Autoencoder(**{name: value for name, value in fields.items() if name not in ("scale_factor", "sha256")})
  if stage.latent_channels != input_shape[-1]:
    raise ValueError(f"first stage of {stage.latent_channels} channels")
  return {**fields, "scale_factor": factor}


def _tuple(value: Any):
  return tuple(value) if isinstance(value, list) else value
