"""Networks, one definition for teacher (`rules=None`) and student (`rules=table`), and the frozen first stages."""

from binarydm_jax.models.autoencoder import Autoencoder, posterior_sample
from binarydm_jax.models.unet import UNet

__all__ = ["Autoencoder", "UNet", "posterior_sample"]
