"""BinaryDM in JAX: diffusion models on one bit a weight.

`binarydm_jax.quant` is usable alone; `python -m binarydm_jax.main` runs the whole job.
"""

__version__ = "0.1.0"
