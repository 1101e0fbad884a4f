"""A config small enough to run the whole job in a test: the digits, a U-Net of a few thousand weights, few steps."""

from configs import base


def get_config(**flat):
  """The config; `flat` overrides fields, as in get_config(**{"student.steps": 4})."""
  config = base.get_config()
  config.model.update(
      dict(
          model_channels=8,
          channel_mult=(1, 2),
          num_res_blocks=1,
          attention_resolutions=(),  # the middle block has attention
          num_heads=2,
          norm_groups=4,
      )
  )
  for stage in ("teacher", "student"):
    config[stage].update(dict(steps=6, batch_size=8, learning_rate=1e-3, warmup_steps=2))
  config.log.update(dict(every=2, samples=4))
  config.checkpoint.every = 2
  config.sample.update(dict(steps=4, num_images=6, batch_size=48))
  config.evaluation.update(dict(num_samples=96, feature_network="digits_classifier", timesteps_per_image=1))
  config.update_from_flattened_dict(flat)
  return config
