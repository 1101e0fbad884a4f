"""Images for training and evaluation: where they come from (`sources`, `tfds_set`), how one becomes a square of the
right size (`images`), what takes the place of one that cannot be read (`examples`), latents on disk (`latents`, made by
`latent_writer`), and the endless stream of batches that training reads (`pipeline`), in processes of its own if asked
(`workers`). Order depends on (seed, step) alone, so a run resumes without any saved state; nothing here needs jax or
TensorFlow, nor the rest of the package but `files`."""

from binarydm_jax.data.images import DataError
from binarydm_jax.data.latent_writer import LatentWriter
from binarydm_jax.data.latents import Latents, open_latents
from binarydm_jax.data.pipeline import batches, read_all, spread
from binarydm_jax.data.sources import Source, open_source, open_splits

__all__ = [
  "DataError", "LatentWriter", "Latents", "Source", "batches", "open_latents", "open_source", "open_splits", "read_all",
  "spread",
]  # fmt: skip
