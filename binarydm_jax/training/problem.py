"""From a config to the objects that every mode works with; all checks happen here, before anything is compiled."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from binarydm_jax import quant
from binarydm_jax.data import open_source
from binarydm_jax.diffusion import Schedule, make_schedule
from binarydm_jax.models.unet import EDGES, UNet
from binarydm_jax.training import sharding
from binarydm_jax.training.methods import Method, resolve_method
from binarydm_jax.training.validation import check_config, check_features, check_model, check_sampling


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a config stands for.

  Attributes:
    config: the ConfigDict.
    train_data, test_data: sources.
    schedule: of the diffusion.
    method: its parts, resolved.
    teacher, student: the same UNet without and with rules.
    layers: LayerInfo of every quantizable layer.
    table: path -> LayerRule of the student.
    gates_fn: step -> Gates, or None when nothing changes over time.
  """

  config: Any
  train_data: Any
  test_data: Any
  schedule: Schedule
  method: Method
  teacher: UNet
  student: UNet
  layers: list
  table: dict
  gates_fn: Any

  @property
  def image_shape(self):
    data = self.config.data
    return (data.image_size, data.image_size, data.channels)

  @property
  def distil(self):
    """Whether the loss has the LRM term."""
    return self.method.projection != "off" and self.config.distill.weight > 0

  def inputs(self):
    """Abstract (x, timesteps, labels) of the UNet, a batch of one."""
    return model_inputs(self.image_shape, self.config.model.class_conditional)

  def final_gates(self):
    """The gates of a finished student (None when nothing changes over time)."""
    return self.gates_fn(jnp.int32(self.config.student.steps)) if self.gates_fn else None


def model_inputs(image_shape, class_conditional, batch=1):
  """Abstract (x, timesteps, labels) of a UNet."""
  labels = jax.ShapeDtypeStruct((batch,), jnp.int32) if class_conditional else None
  return jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32), labels


def build_model(fields, image_shape, num_classes):
  """The full-precision UNet of `config.model`."""
  return UNet(
      out_channels=image_shape[-1],
      model_channels=fields.model_channels,
      channel_mult=tuple(fields.channel_mult),
      num_res_blocks=fields.num_res_blocks,
      attention_resolutions=tuple(fields.attention_resolutions),
      num_heads=fields.num_heads,
      num_head_channels=fields.num_head_channels,
      scale_shift=fields.scale_shift,
      dropout=fields.dropout,
      num_classes=num_classes if fields.class_conditional else 0,
      norm_groups=fields.norm_groups,
  )


def build_rules(fields, weights):
  """The Rules of `config.quant`, with the method's `weights`."""
  rules = quant.preset(
      weights, fields.act_bits, fields.weight_bits, EDGES, edge_bits=8 if fields.edges == "8bit" else 32
  )
  return rules.before(*(quant.parse_override(text) for text in fields.overrides))


def build_gates(fields, steps, progressive, table, block_names, layers):
  """step -> Gates, or None when neither progressive initialisation nor an evolving basis is in use."""
  evolving = any(rule.weights == "evolving" for rule in table.values())
  if progressive == "none" and not evolving:
    return None
  resolutions = {layer.block: layer.resolution for layer in layers}
  rings = quant.progressive_rings(progressive, [resolutions[name] for name in block_names])
  # Both must have happened when training ends: what is exported was trained.
  done = (max(rings) + 1) * fields.interval
  if max(rings) and done >= steps:
    raise ValueError(
        f"quant.interval {fields.interval} lets the last ring begin at step {done}, and student.steps is {steps}:"
        " lower the interval or train longer"
    )
  transition = round(fields.transition * steps) if evolving else None
  if evolving and transition >= steps:
    raise ValueError(f"quant.transition {fields.transition} keeps the second basis to the last step; set it below 1")
  return functools.partial(quant.gates_at, rings=rings, interval=fields.interval, transition=transition)


def build(config):
  """Checks the config and builds the Problem.

  Raises:
    ValueError: one line that names the field and the mend.
  """
  check_config(config)
  data = config.data
  for stage in ("teacher", "student"):
    sharding.check_batch(f"{stage}.batch_size", config[stage].batch_size, sharding.make_mesh())
  method = resolve_method(
      config.method, config.quant.weights, config.distill.projection, config.quant.progressive
  )
  rules = build_rules(config.quant, method.weights)
  schedule = make_schedule(
      config.diffusion.schedule, config.diffusion.num_timesteps, config.diffusion.beta_start, config.diffusion.beta_end
  )
  check_model(config.model, data.image_size)
  check_sampling(config.sample, schedule)
  open_split = functools.partial(
      open_source,
      data.source,
      image_size=data.image_size,
      channels=data.channels,
      train_split=data.train_split,
      test_split=data.test_split,
      holdout=data.holdout,
      skip_unreadable=data.skip_unreadable,
      data_dir=data.data_dir or None,
  )
  train_data, test_data = open_split(split="train"), open_split(split="test")
  if config.model.class_conditional and not train_data.num_classes:
    raise ValueError(f"model.class_conditional needs labels, and data.source {data.source!r} has none; set it to False")
  image_shape = (data.image_size, data.image_size, data.channels)
  check_features(config.evaluation, image_shape, len(train_data))
  teacher = build_model(config.model, image_shape, train_data.num_classes)
  x, timesteps, labels = model_inputs(image_shape, config.model.class_conditional)
  layers = quant.inspect_layers(teacher, x, timesteps, labels)
  table = rules.resolve(layers)
  return Problem(
      config,
      train_data,
      test_data,
      schedule,
      method,
      teacher,
      teacher.clone(rules=table),
      layers,
      table,
      build_gates(config.quant, config.student.steps, method.progressive, table, teacher.block_names, layers),
  )
