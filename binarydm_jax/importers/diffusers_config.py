"""Checks of diffusers' config.json: what changes a network's results without changing the shape of a tensor."""

from binarydm_jax.importers.mapping import CheckpointError
from binarydm_jax.models.blocks import LAYOUTS, ONE_PIXEL

# What a field means where a file leaves it out.
UNET_DEFAULTS = dict(
  flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, norm_eps=1e-5, norm_num_groups=32, layers_per_block=2,
  center_input_sample=False, mid_block_scale_factor=1, act_fn="silu", resnet_time_scale_shift="default",
  time_embedding_type="positional", attention_head_dim=8, num_attention_heads=None, use_linear_projection=False,
  class_embed_type=None, only_cross_attention=False,
)  # fmt: skip
AUTOENCODER_DEFAULTS = dict(act_fn="silu", norm_num_groups=32, layers_per_block=1)


def _check(config, defaults, expected, file):
  """Raises CheckpointError naming every field of `config` that is not as expected."""
  found = {**defaults, **config}
  wrong = [f"{name} is {found[name]!r}, not {want!r}" for name, want in expected.items() if found[name] != want]
  if wrong:
    raise CheckpointError(f"{file.parent / 'config.json'} describes another network: {'; '.join(wrong)}")


def check_unet_config(config, model, file):
  """Of a UNet2DModel, or of a UNet2DConditionModel where the two coincide."""
  if model.context_dim and model.num_classes:
    raise CheckpointError(
        f"{file}: diffusers adds a class to the time embedding, this network attends to it; give latent diffusion's"
        " .ckpt, or leave model.context_dim at 0"
    )
  layout = LAYOUTS[model.layout]
  expected = dict(
      _class_name="UNet2DConditionModel" if model.context_dim else "UNet2DModel",
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
      class_embed_type=None,
  )
  if model.context_dim:
    # diffusers' name notwithstanding, attention_head_dim is a number of heads there.
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", UNET_DEFAULTS["attention_head_dim"])
    config = {**config, "num_attention_heads": heads}
    expected |= dict(num_attention_heads=model.num_heads, use_linear_projection=False, only_cross_attention=False)
  else:
    # Channels a head; null is one head of all channels.
    single = not model.num_head_channels and model.num_heads == 1
    if not single and not model.num_head_channels:
      raise CheckpointError(f"{file}: diffusers counts channels a head; set model.num_head_channels, not num_heads")
    expected["attention_head_dim"] = None if single else model.num_head_channels
  _check(config, UNET_DEFAULTS, expected, file)


def check_autoencoder_config(config, model, file):
  """Of a VQModel or an AutoencoderKL."""
  expected = dict(
      _class_name={"vq": "VQModel", "kl": "AutoencoderKL"}[model.kind],
      act_fn="silu",
      norm_num_groups=model.norm_groups,
      layers_per_block=model.num_res_blocks,
  )
  _check(config, AUTOENCODER_DEFAULTS, expected, file)
