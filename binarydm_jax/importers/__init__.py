"""Published PyTorch checkpoints -> parameter trees. torch is needed only here, and only for files that are not
safetensors; pickled code is refused, never run."""

from binarydm_jax.importers.load import load_autoencoder, load_scale_factor, load_unet
from binarydm_jax.importers.mapping import CheckpointError, convert, restore
from binarydm_jax.importers.names import autoencoder_entries, unet_entries
from binarydm_jax.importers.stated_diffusion import check_diffusion

__all__ = [
  "CheckpointError",
  "autoencoder_entries",
  "check_diffusion",
  "convert",
  "load_autoencoder",
  "load_scale_factor",
  "load_unet",
  "restore",
  "unet_entries",
]
