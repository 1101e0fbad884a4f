"""Convolutions of 1-bit weights with activations of 8, 4, 3, 2 or 1 bits on the CPU, and attention of such activations:
C++ (src/), built on first use (`build`), as JAX operations (`interface`, `attention`); `library` chooses the path."""

from binarydm_jax.deploy.kernels.attention import attend, attention_runs
from binarydm_jax.deploy.kernels.interface import conv, integer_conv, packed_bytes, prepack
from binarydm_jax.deploy.kernels.library import paths, status

__all__ = ["attend", "attention_runs", "conv", "integer_conv", "packed_bytes", "paths", "prepack", "status"]
