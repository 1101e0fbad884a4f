"""Convolutions of 1-bit weights with activations of 8, 4, 3, 2 or 1 bits on the CPU: C++ (src/), built on first use
(`build`), as JAX operations (`interface`); `library` chooses the path for the processor."""

from binarydm_jax.deploy.kernels.interface import conv, integer_conv, packed_bytes, prepack
from binarydm_jax.deploy.kernels.library import paths, status

__all__ = ["conv", "integer_conv", "packed_bytes", "paths", "prepack", "status"]
