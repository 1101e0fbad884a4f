"""The JSON description inside a packed file: written from a model, read back and checked before anything is built."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np

from binarydm_jax import quant
from binarydm_jax.diffusion import SCHEDULES, TARGETS, Schedule, make_schedule
from binarydm_jax.models import Autoencoder, UNet
from binarydm_jax.models.autoencoder import KINDS
from binarydm_jax.models.blocks import LAYOUTS
from binarydm_jax.quant import LayerRule

REMAINDERS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "uint8": "U8"}
# How a network is computed is not part of what it is.
_HOW = ("rules", "dtype", "remat", "parent", "name")
MODEL_FIELDS = tuple(f.name for f in dataclasses.fields(UNet) if f.name not in _HOW)
# Those of LayerRule that every layer states; the others are there where they are not the default.
RULE_FIELDS = ("weights", "weight_bits", "act_bits")
MORE_RULE_FIELDS = {f.name: f.default for f in dataclasses.fields(LayerRule) if f.name not in RULE_FIELDS}
# Beyond any network; they keep a hostile file from asking for more than its own size.
MOST_CHANNELS, MOST_PIXELS, MOST_LEVELS, MOST_TIMESTEPS, MOST_BLOCKS = 2**16, 2**14, 16, 100_000, 64


@dataclasses.dataclass(frozen=True)
class Description:
  """What a packed file says of itself, checked.

  Attributes:
    model: UNet without rules.
    table: path -> LayerRule.
    shapes: path -> kernel shape, () for a product of activations.
    remainder: "float32" or "bfloat16".
    schedule, target, input_shape, first_stage: see `packed.PackedFile`.
    json: the whole dict.
  """

  model: UNet
  table: dict
  shapes: dict
  remainder: str
  schedule: Schedule
  target: str
  input_shape: tuple
  first_stage: dict | None
  json: dict


def describe(model, table, layers, diffusion, input_shape, first_stage, remainder, **about):
  """The description as JSON text; arguments as in `packed.export`."""
  return json.dumps(
      dict(
          model={name: getattr(model, name) for name in MODEL_FIELDS},
          layers={layer.path: dict(_stated(table[layer.path]), shape=layer.kernel_shape) for layer in layers},
          diffusion=dict(diffusion),
          input_shape=list(input_shape),
          first_stage=first_stage,
          remainder=remainder,
          **about,
      ),
      separators=(",", ":"),
  )


def _stated(rule):
  """The fields of a LayerRule as a file has them."""
  fields = dataclasses.asdict(rule)
  return {name: value for name, value in fields.items()
          if name in RULE_FIELDS or value != MORE_RULE_FIELDS[name]}


def parse(text):
  """The Description of JSON text.

  Raises:
    ValueError (and whatever JSON's parser raises): it is not one, or holds what cannot be.
  """
  description = json.loads(text)
  rows = _dict(description["layers"], "layers")
  model = _model(_dict(description["model"], "model"), len(rows))
  table, shapes = {}, {}
  for path, row in rows.items():
    row = _dict(row, f"layer {path!r}")
    least = {*RULE_FIELDS, "shape"}
    if not least <= set(row) <= {*least, *MORE_RULE_FIELDS} or type(row["weights"]) is not str:
      raise ValueError(f"layer {path!r} has other fields than a rule's and shape, or lacks some of them")
    for name in ("weight_bits", "act_bits"):
      _integer(row[name], 1, 32, f"layer {path!r}: {name}")
    _integer(row.get("num_timesteps", 0), 0, MOST_TIMESTEPS, f"layer {path!r}: num_timesteps")
    table[path] = LayerRule(**{name: value for name, value in row.items() if name != "shape"})
    shapes[path] = _integers(row["shape"], 1, MOST_CHANNELS * MOST_LEVELS, f"layer {path!r}: shape", most=4)
    if table[path].weights != "float" and len(shapes[path]) < 2:
      raise ValueError(f"layer {path!r} has quantized weights of shape {shapes[path]}")
  input_shape = _integers(description["input_shape"], 1, MOST_PIXELS, "input_shape", most=3)
  if len(input_shape) != 3:
    raise ValueError(f"input_shape {input_shape} is not (h, w, c)")
  remainder = description["remainder"]
  if not isinstance(remainder, str) or remainder not in REMAINDERS:
    raise ValueError(f"remainder {remainder!r} is not one of {', '.join(REMAINDERS)}")
  schedule, target = _diffusion(_dict(description["diffusion"], "diffusion"))
  first_stage = _first_stage(description["first_stage"], input_shape)
  return Description(model, table, shapes, remainder, schedule, target, input_shape, first_stage, description)


def kernel_parts(path, rule, shape):
  """name -> (shape, dtype) of what stands for the kernel of one layer with quantized weights."""
  size, channels = math.prod(shape), (shape[-1],)
  if rule.weights == "lsq":
    return {f"{path}/codes": ((quant.packed_size(size, rule.weight_bits),), np.dtype(np.uint8)),
            f"{path}/weight_step": (channels, np.dtype(np.float32))}
  parts = {}
  for basis in range(1, rule.bases + 1):
    parts[f"{path}/signs{basis}"] = ((quant.packed_size(size),), np.dtype(np.uint8))
    parts[f"{path}/scale{basis}"] = (channels, np.dtype(np.float32))
  return parts


def _dict(value, what):
  if not isinstance(value, dict):
    raise ValueError(f"{what} is no object")
  return value


def _integer(value, least, most, what):
  if type(value) is not int or not least <= value <= most:
    raise ValueError(f"{what} is {value!r:.40}, not a whole number in {least} .. {most}")
  return value


def _integers(value, least, most_value, what, most):
  if not isinstance(value, list) or len(value) > most:
    raise ValueError(f"{what} is no list of at most {most} numbers")
  return tuple(_integer(n, least, most_value, what) for n in value)


def _number(value, least, most, what):
  if type(value) not in (int, float) or not least <= value <= most:
    raise ValueError(f"{what} is {value!r:.40}, not a number in {least} .. {most}")
  return value


def _model(fields, num_layers):
  """The UNet of checked fields; a network of more blocks than the file has layers is not begun."""
  if set(fields) != set(MODEL_FIELDS):
    raise ValueError(f"model has other fields than {', '.join(MODEL_FIELDS)}")
  read = {}
  for field in dataclasses.fields(UNet):
    name = field.name
    if name not in MODEL_FIELDS:
      continue
    value = fields[name]
    if name == "layout":
      if not isinstance(value, str) or value not in LAYOUTS:
        raise ValueError(f"model.layout {value!r:.40} is not one of {', '.join(LAYOUTS)}")
    elif name == "dropout":
      _number(value, 0, 1, "model.dropout")
    elif type(field.default) is bool:
      if type(value) is not bool:
        raise ValueError(f"model.{name} is {value!r:.40}, not true or false")
    elif isinstance(field.default, tuple):
      value = _integers(value, 1, MOST_CHANNELS, f"model.{name}", most=MOST_LEVELS)
    elif name in ("num_res_blocks", "transformer_depth"):
      _integer(value, 0, num_layers, f"model.{name}")
    else:
      # Rows of an embedding may be many; all others are channels or parts of them.
      _integer(value, 0, 2**24 if name == "num_classes" else MOST_CHANNELS, f"model.{name}")
    read[name] = value
  if not read["channel_mult"]:
    raise ValueError("model.channel_mult is empty")
  if len(read["channel_mult"]) * (2 * read["num_res_blocks"] + 1) > num_layers:
    raise ValueError(f"model has more blocks than its {num_layers} layers")
  return UNet(**read)


def _diffusion(fields):
  """(Schedule, target)."""
  if set(fields) != {"schedule", "num_timesteps", "beta_start", "beta_end", "target"}:
    raise ValueError("diffusion has other fields than schedule, num_timesteps, beta_start, beta_end, target")
  for name, known in (("schedule", SCHEDULES), ("target", TARGETS)):
    if not isinstance(fields[name], str) or fields[name] not in known:
      raise ValueError(f"diffusion.{name} {fields[name]!r:.40} is not one of {', '.join(known)}")
  count = _integer(fields["num_timesteps"], 1, MOST_TIMESTEPS, "diffusion.num_timesteps")
  start, end = (_number(fields[name], 0, 1, f"diffusion.{name}") for name in ("beta_start", "beta_end"))
  return make_schedule(fields["schedule"], count, start, end), fields["target"]


def _first_stage(fields, input_shape):
  """None, or an Autoencoder's fields, a positive scale factor and a SHA-256."""
  if fields is None:
    return None
  known = {f.name: f.default for f in dataclasses.fields(Autoencoder) if f.name not in ("parent", "name")}
  if set(_dict(fields, "first_stage")) != {*known, "scale_factor", "sha256"}:
    raise ValueError(f"first_stage has other fields than {', '.join(known)}, scale_factor, sha256")
  read = {}
  for name, default in known.items():
    if type(default) is int:
      most = MOST_BLOCKS if name == "num_res_blocks" else 2**24  # each is traced
      read[name] = _integer(fields[name], 1, most, f"first_stage.{name}")
    elif isinstance(default, tuple):
      read[name] = _integers(fields[name], 1, MOST_CHANNELS, f"first_stage.{name}", most=MOST_LEVELS)
    elif not isinstance(fields[name], str) or fields[name] not in KINDS:
      raise ValueError(f"first_stage.{name} {fields[name]!r:.40} is not one of {', '.join(KINDS)}")
    else:
      read[name] = fields[name]
  factor = _number(fields["scale_factor"], 1e-30, 1e30, "first_stage.scale_factor")
  if not isinstance(fields["sha256"], str):
    raise ValueError("first_stage.sha256 is no text")
  if read["latent_channels"] != input_shape[-1]:
    raise ValueError(f"first_stage.latent_channels is {read['latent_channels']}, and the network has {input_shape[-1]}")
  return {**read, "scale_factor": float(factor), "sha256": fields["sha256"]}
