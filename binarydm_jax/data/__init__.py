"""Images for training and evaluation: where they come from (`sources`), how one becomes a square of the right size
(`images`), and the endless stream of batches that training reads (`pipeline`). Order depends on (seed, step) alone,
so a run resumes without any saved state; nothing here needs jax, TensorFlow or the rest of the package."""

from binarydm_jax.data.images import DataError
from binarydm_jax.data.pipeline import batches, read_all
from binarydm_jax.data.sources import Source, open_source

__all__ = ["DataError", "Source", "batches", "open_source", "read_all"]
