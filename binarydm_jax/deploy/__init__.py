"""What a binarized model costs (`cost`), and the packed 1-bit file (`packed`)."""

from binarydm_jax.deploy.cost import Cost, model_cost
from binarydm_jax.deploy.packed import PackedError, export, load

__all__ = ["Cost", "PackedError", "export", "load", "model_cost"]
