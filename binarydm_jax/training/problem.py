"""From a config to the objects that every mode works with; all checks happen here, before anything is compiled."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from binarydm_jax import quant
from binarydm_jax.data import open_splits
from binarydm_jax.diffusion import Schedule, make_schedule
from binarydm_jax.first_stage import checkpoint_of
from binarydm_jax.models import Autoencoder, UNet
from binarydm_jax.models.unet import EDGES
from binarydm_jax.training import sharding
from binarydm_jax.training.methods import Method, resolve_method
from binarydm_jax.training.validation import (
  check_clipping,
  check_config,
  check_features,
  check_first_stage,
  check_method,
  check_model,
  check_sampling,
)


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a config stands for.

  Attributes:
    config: the ConfigDict.
    train_data, test_data: sources of images (None if they were not asked for).
    first_stage: the Autoencoder of latent diffusion, or None.
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
  first_stage: Autoencoder | None
  schedule: Schedule
  method: Method
  teacher: UNet
  student: UNet
  layers: list
  table: dict
  gates_fn: Any

  @property
  def image_shape(self):
    """Of the data, (h, w, c)."""
    data = self.config.data
    return (data.image_size, data.image_size, data.channels)

  @property
  def input_shape(self):
    """Of what the UNet sees: images, or latents."""
    return input_shape(self.image_shape, self.first_stage)

  @property
  def distil(self):
    """Whether the loss has the LRM term."""
    return self.method.projection != "off" and self.config.distill.weight > 0

  @property
  def mimic(self):
    """Whether the loss has the term of the teacher's prediction."""
    return self.method.prediction == "on" and self.config.distill.prediction_weight > 0

  def inputs(self):
    """Abstract (x, timesteps, labels) of the UNet, a batch of one."""
    return self.teacher.abstract_inputs(self.input_shape)

  def final_gates(self):
    """The gates of a finished student (None when nothing changes over time)."""
    return self.gates_fn(jnp.int32(self.config.student.steps)) if self.gates_fn else None


def input_shape(image_shape, first_stage):
  """Shape of what a UNet sees, for images of a shape and an Autoencoder or None."""
  if first_stage is None:
    return image_shape
  h, w, _ = image_shape
  return (h // first_stage.factor, w // first_stage.factor, first_stage.latent_channels)


def build_first_stage(fields, image_channels):
  """The Autoencoder of `config.first_stage`, or None."""
  if fields.kind == "none":
    return None
  return Autoencoder(
      fields.kind,
      image_channels,
      fields.channels,
      tuple(fields.channel_mult),
      fields.num_res_blocks,
      tuple(fields.attention_resolutions),
      fields.latent_channels,
      fields.codebook_size,
      fields.norm_groups,
  )


def compute_dtype(compute):
  """The `dtype` of a UNet by `config.compute`."""
  return jnp.bfloat16 if compute.dtype == "bfloat16" else None


def build_model(fields, compute, channels, num_classes):
  """The full-precision UNet of `config.model`, for inputs of so many channels."""
  return UNet(
      out_channels=channels,
      model_channels=fields.model_channels,
      channel_mult=tuple(fields.channel_mult),
      num_res_blocks=fields.num_res_blocks,
      attention_resolutions=tuple(fields.attention_resolutions),
      num_heads=fields.num_heads,
      num_head_channels=fields.num_head_channels,
      scale_shift=fields.scale_shift,
      resblock_updown=fields.resblock_updown,
      dropout=fields.dropout,
      num_classes=num_classes if fields.class_conditional else 0,
      null_class=fields.null_class,
      context_dim=fields.context_dim,
      transformer_depth=fields.transformer_depth,
      norm_groups=fields.norm_groups,
      layout=fields.layout,
      dtype=compute_dtype(compute),
      remat=compute.remat,
  )


def build_rules(fields, method, num_timesteps):
  """The Rules of `config.quant`, with the parts of a Method; `num_timesteps` of the diffusion."""
  rules = quant.preset(
      method.weights, fields.act_bits, fields.weight_bits, EDGES, 8 if fields.edges == "8bit" else 32,
      method.activation, method.response, num_timesteps,
  )  # fmt: skip
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
  if evolving and fields.fade > fields.transition:
    raise ValueError(f"quant.fade {fields.fade} begins before the first step: quant.transition is {fields.transition}")
  if evolving:
    blocks = {layer.block for layer in layers if table[layer.path].weights == "evolving"} & set(block_names)
    first = min((rings[block_names.index(block)] for block in blocks), default=0) * fields.interval
    if first and first >= transition:
      raise ValueError(
          f"quant.interval {fields.interval} with quant.progressive {progressive!r} binarizes blocks of evolving bases"
          f" from step {first} on, and quant.transition drops the second at step {transition}: lower the interval"
      )
  fade = round(fields.fade * steps)
  return functools.partial(quant.gates_at, rings=rings, interval=fields.interval, transition=transition, fade=fade)


def open_data(data):
  """(train, test) sources of `config.data`."""
  return open_splits(
      data.source,
      image_size=data.image_size,
      channels=data.channels,
      train_split=data.train_split,
      test_split=data.test_split,
      holdout=data.holdout,
      skip_unreadable=data.skip_unreadable,
      data_dir=data.data_dir or None,
  )


def count_classes(model, data_source, train_data):
  """Classes of the network: the config's, or the data's."""
  if not model.class_conditional:
    return 0
  found = train_data.num_classes if train_data else 0
  if train_data and not found:
    raise ValueError(f"model.class_conditional needs labels, and data.source {data_source!r} has none; set it to False")
  if found > (model.num_classes or found):
    raise ValueError(f"model.num_classes is {model.num_classes}, and data.source {data_source!r} has {found} classes")
  if 0 < found < model.num_classes and data_source.startswith("folder:"):
    raise ValueError(
        f"model.num_classes is {model.num_classes}, and data.source {data_source!r} has {found} folders of images:"
        " labels are positions among them, and would be other classes than the network's; add what is missing, or"
        " give an npz with labels"
    )
  return model.num_classes or found


def build(config, with_data=True, trains=("teacher", "student")):
  """Checks the config and builds the Problem.

  Args:
    config: ConfigDict.
    trains: the stages that are to be trained, whose batches must fit the devices.
    with_data: False leaves the data alone, unless the number of classes is to come from it.
  Raises:
    ValueError: one line that names the field and the mend.
  """
  check_config(config)
  data = config.data
  mesh = sharding.config_mesh(config.mesh)
  for stage in trains:
    if stage == "teacher" and config.teacher.checkpoint:
      continue  # it is read
    sharding.check_batch(f"{stage}.batch_size", config[stage].batch_size, mesh, config.compute.accumulate)
  method = resolve_method(
      config.method,
      **{name: config.quant[name] for name in ("weights", "progressive", "activation", "response")},
      **{name: config.distill[name] for name in ("projection", "prediction")},
  )
  check_method(config, method)
  rules = build_rules(config.quant, method, config.diffusion.num_timesteps)
  schedule = make_schedule(
      config.diffusion.schedule, config.diffusion.num_timesteps, config.diffusion.beta_start, config.diffusion.beta_end
  )
  check_sampling(config, schedule, trains)
  check_first_stage(config.first_stage, data)
  first_stage = build_first_stage(config.first_stage, data.channels)
  image_shape = (data.image_size, data.image_size, data.channels)
  shape = input_shape(image_shape, first_stage)
  check_model(config.model, shape[0], "data.image_size" if first_stage is None else "the size of the latents")
  if first_stage is not None:
    check_clipping(config.sample)
  if with_data and first_stage is not None:
    checkpoint_of(config)
  train_data = test_data = None
  if with_data or (config.model.class_conditional and not config.model.num_classes):
    train_data, test_data = open_data(data)
  num_classes = count_classes(config.model, data.source, train_data)
  if train_data:
    check_features(config.evaluation, image_shape, len(train_data))
  teacher = build_model(config.model, config.compute, shape[-1], num_classes)
  layers = quant.inspect_layers(teacher, *teacher.abstract_inputs(shape))
  table = rules.resolve(layers)
  return Problem(
      config,
      train_data,
      test_data,
      first_stage,
      schedule,
      method,
      teacher,
      teacher.clone(rules=table),
      layers,
      table,
      build_gates(config.quant, config.student.steps, method.progressive, table, teacher.block_names, layers),
  )
