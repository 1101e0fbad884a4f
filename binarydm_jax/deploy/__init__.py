"""What a binarized model costs (`cost`), the packed 1-bit file (`packed`), and the program that runs it (`runtime`)."""

from binarydm_jax.deploy.cost import Cost, model_cost
from binarydm_jax.deploy.packed import PackedError, export
from binarydm_jax.deploy.runtime import Model, load

__all__ = ["Cost", "Model", "PackedError", "export", "load", "model_cost"]
