"""Checks of a config: each raises ValueError with one line that names the field and the mend."""

from pathlib import Path

from binarydm_jax.diffusion import SAMPLERS, SPACINGS, TARGETS, sampling_timesteps, solver_timesteps
from binarydm_jax.distill import PROJECTIONS
from binarydm_jax.evaluation import adm_reference, features
from binarydm_jax.models.autoencoder import KINDS
from binarydm_jax.models.blocks import LAYOUTS
from binarydm_jax.models.unet import REMAT
from binarydm_jax.quant.rules import ACTIVATIONS, INTEGER_ACTIVATIONS, RESPONSES, WEIGHT_PRESETS

CHOICES = {
  "data.channels": (1, 3),
  "model.layout": tuple(LAYOUTS),
  "first_stage.kind": ("none", *KINDS),
  "compute.dtype": ("float32", "bfloat16"),
  "compute.remat": tuple(REMAT),
  "guard.non_finite": ("stop", "skip"),
  "diffusion.target": TARGETS,
  "diffusion.loss": ("l2", "l1"),
  "quant.weights": ("method", *WEIGHT_PRESETS),
  "quant.activation": ("method", *ACTIVATIONS),
  "quant.response": ("method", *RESPONSES),
  "quant.edges": ("float", "8bit"),
  "quant.progressive": ("method", "none", "blocks", "levels"),
  "distill.projection": ("method", *PROJECTIONS, "off"),
  "distill.prediction": ("method", "on", "off"),
  "export.remainder": ("float32", "bfloat16"),
  "sample.backend": ("auto", "xla", "cpu", "float"),
  "sample.sampler": tuple(SAMPLERS),
  "sample.spacing": SPACINGS,
  "evaluation.feature_network": features.NAMES,
}
AT_LEAST_ONE = (
  "data.image_size",
  "model.model_channels",
  "model.num_heads",
  "model.norm_groups",
  "model.transformer_depth",
  "first_stage.channels",
  "first_stage.num_res_blocks",
  "first_stage.latent_channels",
  "first_stage.codebook_size",
  "first_stage.norm_groups",
  "first_stage.batch_size",
  "diffusion.num_timesteps",
  "quant.calibration_batches",
  "quant.interval",
  "distill.reduction",
  "teacher.batch_size",
  "student.batch_size",
  "student.steps",
  "log.every",
  "log.samples",
  "checkpoint.every",
  "checkpoint.keep",
  "compute.accumulate",
  "mesh.fsdp",
  "sample.num_images",
  "sample.batch_size",
  "evaluation.num_samples",
  "evaluation.heldout_images",
  "evaluation.timesteps_per_image",
  "evaluation.batch_size",
)
AT_LEAST_ZERO = (
  "data.threads",
  "data.workers",
  "data.prefetch",
  "evaluation.reference_images",
  "guard.divergence",
  "mesh.data",
  "mesh.min_size",
  "model.num_res_blocks",
  "model.num_head_channels",
  "model.num_classes",
  "model.context_dim",
  "first_stage.scale_factor",
  "quant.tau",
  "quant.learning_rate_factor",
  "distill.weight",
  "distill.prediction_weight",
  "teacher.steps",
  "teacher.warmup_steps",
  "teacher.weight_decay",
  "teacher.clip_norm",
  "student.warmup_steps",
  "student.weight_decay",
  "student.clip_norm",
  "log.samples_every",
  "sample.steps",
)
FRACTIONS = (
  "data.holdout",
  "model.dropout",
  "quant.transition",
  "quant.fade",
  "sample.eta",
  "sample.dynamic_threshold",
  "student.ema_decay",
  "teacher.ema_decay",
  "student.label_dropout",
  "teacher.label_dropout",
)


def field(config, path):
  """config.a.b for "a.b"."""
  for name in path.split("."):
    config = config[name]
  return config


def check_config(config):
  """Values that are wrong whatever the data and the network are."""
  for path, choices in CHOICES.items():
    if field(config, path) not in choices:
      raise ValueError(f"{path} {field(config, path)!r} is not one of {', '.join(map(str, choices))}")
  for paths, least in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
    for path in paths:
      if not field(config, path) >= least:
        raise ValueError(f"{path} is {field(config, path)}; it must be at least {least}")
  for path in FRACTIONS:
    if not 0 <= field(config, path) <= 1:
      raise ValueError(f"{path} is {field(config, path)}; it must lie between 0 and 1")
  for stage in ("teacher", "student"):
    if not config[stage].learning_rate > 0:
      raise ValueError(f"{stage}.learning_rate is {config[stage].learning_rate}; it must be above 0")
  if config.model.dropout == 1:
    raise ValueError("model.dropout is 1.0; it must lie below 1")
  if not 0 <= config.seed < 2**32:
    raise ValueError(f"seed is {config.seed}; it must lie in 0 .. 2**32 - 1")
  for path in ("log.samples_every", "checkpoint.every"):
    if field(config, path) % config.log.every:
      raise ValueError(
          f"{path} {field(config, path)} is not a multiple of log.every {config.log.every}: the host waits for the"
          " device at log steps only"
      )
  check_conditioning(config)
  sampler = config.sample.sampler
  if sampler != "ddpm" and not config.sample.steps:
    raise ValueError(f"sample.steps is 0: {sampler} needs a number of steps (0 means all timesteps, for ddpm)")
  if sampler != "ddim" and config.sample.eta:
    raise ValueError(f"sample.eta is {config.sample.eta}, and {sampler} has none: set it to 0, or the sampler to ddim")


def check_method(config, method):
  """Parts of a Method that need others."""
  if method.activation != "lsq" and config.quant.act_bits == 32:
    raise ValueError(
        f"quant.activation {method.activation!r} (of method {config.method!r}) changes what is quantized, and"
        " quant.act_bits is 32: take 8, 4, 3 or 2, or quant.activation=lsq"
    )
  if config.export.stablehlo and (method.activation not in INTEGER_ACTIVATIONS or method.response != "none"):
    raise ValueError(
        f"export.stablehlo is for layers in integers, and method {config.method!r} has activation"
        f" {method.activation!r}, response {method.response!r}: set it to False"
    )


def check_conditioning(config):
  """Fields that need classes, or the null class, in a network that has none."""
  model = config.model
  for name in ("num_classes", "null_class", "context_dim"):
    if model[name] and not model.class_conditional:
      raise ValueError(f"model.{name} is {model[name]}, and model.class_conditional is False: set it to True")
  if model.transformer_depth != 1 and not model.context_dim:
    raise ValueError(f"model.transformer_depth is {model.transformer_depth}; without model.context_dim it must be 1")
  for stage in ("teacher", "student"):
    if config[stage].label_dropout and not model.null_class:
      raise ValueError(f"{stage}.label_dropout needs model.null_class: set it to True, or the dropout to 0")


def check_clipping(sample):
  """Of latents: what is meant for images."""
  for name in ("clip", "dynamic_threshold"):
    if sample[name]:
      raise ValueError(
          f"sample.{name} is {sample[name]}: it keeps images in [-1, 1], and latents go beyond; set it to"
          f" {type(sample[name])()}"
      )


def check_sampling(config, schedule, trains):
  """Refuses guidance without a null class that a stage of `trains`, or the run's own teacher, has trained, and steps
  that the schedule does not have or that the sampler cannot use."""
  sample, teacher = config.sample, config.teacher
  if sample.guidance != 1 and not config.model.null_class:
    raise ValueError(
        f"sample.guidance is {sample.guidance}; it needs model.null_class and teacher.label_dropout, else set it to 1"
    )
  own = {"teacher": teacher.steps and not teacher.checkpoint, "student": "student" in trains}
  for stage in own:
    if sample.guidance != 1 and own[stage] and not config[stage].label_dropout:
      raise ValueError(
          f"sample.guidance is {sample.guidance}, and {stage}.label_dropout 0: the null class is not trained; set that"
          " to 0.1, or the guidance to 1"
      )
  if sample.sampler in ("ddim", "ddpm"):
    if sample.steps:
      sampling_timesteps(schedule, sample.steps, sample.spacing)
    return
  solver_timesteps(schedule, sample.steps, sample.spacing, sample.sampler)


def load_features(evaluation):
  """The FeatureNetwork of `config.evaluation`, or None. ValueError where its weights are missing or wrong."""
  paths = {"inception": evaluation.inception_weights, "classifier": evaluation.classifier}
  return features.load(evaluation.feature_network, paths.get(evaluation.feature_network))


def check_features(evaluation, image_shape, num_train):
  """A feature network that is made for other images, or too few samples or real images for its covariance."""
  network = load_features(evaluation)
  if network is None:
    for name in ("reference", "inception_weights"):
      if evaluation[name]:
        raise ValueError(
            f"evaluation.{name} has no use, since evaluation.feature_network is 'none': set it to 'inception', or empty"
            f" evaluation.{name}"
        )
    return
  if not network.takes(image_shape):
    raise ValueError(
        f"evaluation.feature_network {network.name!r} takes images of {network.image_shape}, and these are"
        f" {image_shape}; set it to 'none'"
    )
  dim = max(network.dim, network.spatial_dim or 0)
  if evaluation.num_samples <= dim:
    raise ValueError(f"evaluation.num_samples {evaluation.num_samples} must be more than {dim}, the feature dimension")
  if evaluation.reference:
    if not Path(evaluation.reference).expanduser().is_file():
      raise ValueError(f"evaluation.reference {evaluation.reference!r} is not a file: give an ADM reference .npz")
    adm_reference.check(evaluation.reference, network, image_shape)
  elif min(num_train, evaluation.reference_images or num_train) <= dim:
    raise ValueError(
        f"data.source has {num_train} training images; evaluation.feature_network {network.name!r} needs more than"
        f" {dim} of them (evaluation.reference_images): set it to 'none'"
    )


def check_first_stage(fields, data):
  """Shapes of an Autoencoder that cannot be, and images that it cannot encode."""
  if fields.kind == "none":
    if fields.cache or fields.checkpoint:
      raise ValueError("first_stage.kind is 'none', so its checkpoint and cache have no use: set it, or empty them")
    return
  mult = tuple(fields.channel_mult)
  if not mult or min(mult) < 1:
    raise ValueError(f"first_stage.channel_mult {mult} needs at least one level, each 1 or more")
  factor = 2 ** (len(mult) - 1)
  if data.image_size % factor:
    raise ValueError(f"data.image_size {data.image_size} is not divisible by {factor}, the first stage's down-sampling")
  for level, width in enumerate(mult):
    if width * fields.channels % fields.norm_groups:
      raise ValueError(
          f"first_stage.norm_groups {fields.norm_groups} does not divide {width * fields.channels} channels"
          f" (level {level})"
      )
  for ds in fields.attention_resolutions:
    if ds not in [2**level for level in range(len(mult))]:
      raise ValueError(f"first_stage.attention_resolutions holds {ds}; the down-sampling factors end at {factor}")


def check_model(model, size, what="data.image_size"):
  """Shapes of a UNet that cannot be; `size` is the height of its input, `what` names it."""
  deepest = 2 ** (len(model.channel_mult) - 1)
  if not model.channel_mult or min(model.channel_mult) < 1:
    raise ValueError(f"model.channel_mult {tuple(model.channel_mult)} needs at least one level, each 1 or more")
  if size % deepest:
    raise ValueError(
        f"{what} {size} is not divisible by {deepest}, the down-sampling of {len(model.channel_mult)}"
        " levels; change it or shorten model.channel_mult"
    )
  possible = [2**level for level in range(len(model.channel_mult))]
  for factor in model.attention_resolutions:
    if factor not in possible:
      raise ValueError(f"model.attention_resolutions holds {factor}; the down-sampling factors are {possible}")
  for level, mult in enumerate(model.channel_mult):
    channels = mult * model.model_channels
    if channels % model.norm_groups:
      raise ValueError(f"model.norm_groups {model.norm_groups} does not divide {channels} channels (level {level})")
    has_attention = 2**level in model.attention_resolutions or level == len(model.channel_mult) - 1
    name = "num_head_channels" if model.num_head_channels else "num_heads"
    if has_attention and channels % model[name]:
      raise ValueError(f"model.{name} {model[name]} does not divide {channels} channels (level {level})")
