"""Networks, one definition for teacher (`rules=None`) and student (`rules=table`)."""

from binarydm_jax.models.unet import UNet

__all__ = ["UNet"]
