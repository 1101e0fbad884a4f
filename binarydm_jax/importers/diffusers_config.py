"""Checks of diffusers' config.json: what changes a network's results without changing the shape of a tensor."""

from binarydm_jax.importers.mapping import CheckpointError
from binarydm_jax.models.blocks import LAYOUTS, ONE_PIXEL


def _check(config, expected, file):
  """Raises CheckpointError naming every field of `config` that is there and is not as expected."""
  wrong = [f"{name} is {config[name]!r}, not {want!r}" for name, want in expected.items()
           if name in config and config[name] != want]
  if wrong:
    raise CheckpointError(f"{file.parent / 'config.json'} describes another network: {'; '.join(wrong)}")


def check_unet_config(config, model, file):
  """Of a UNet2DModel, or of a UNet2DConditionModel where the two coincide."""
  layout = LAYOUTS[model.layout]
  kind = "UNet2DConditionModel" if model.context_dim else "UNet2DModel"
  expected = dict(
      _class_name=kind,
      flip_sin_to_cos=not layout.sines_first,
      freq_shift=1 if layout.sines_first else 0,
      downsample_padding=1 if layout.down_padding == ONE_PIXEL else 0,
      norm_eps=layout.norm_epsilon,
      norm_num_groups=model.norm_groups,
      layers_per_block=model.num_res_blocks,
      center_input_sample=False,
      mid_block_scale_factor=1,
      act_fn="silu",
      resnet_time_scale_shift="scale_shift" if model.scale_shift else "default",
      time_embedding_type="positional",
  )
  if not model.context_dim:
    # Channels a head; null is one head of all channels.
    single = not model.num_head_channels and model.num_heads == 1
    expected["attention_head_dim"] = None if single else model.num_head_channels
  _check(config, expected, file)


def check_autoencoder_config(config, model, file):
  """Of a VQModel or an AutoencoderKL."""
  kind = {"vq": "VQModel", "kl": "AutoencoderKL"}[model.kind]
  expected = dict(
      _class_name=kind, act_fn="silu", norm_num_groups=model.norm_groups, layers_per_block=model.num_res_blocks
  )
  _check(config, expected, file)
