"""The network that `python -m binarydm_jax.benchmark train` times: 18.9 million parameters, 32 x 32, batch 4, W1A4."""

from configs import base


def get_config():
  config = base.get_config()
  config.data.update(dict(image_size=32, channels=3))
  config.model.update(dict(channel_mult=(1, 2, 2, 4), attention_resolutions=(8, 4, 2)))
  config.student.batch_size = 4
  return config
