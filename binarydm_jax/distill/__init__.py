"""Low-rank representation mimicking (LRM): projections fitted once on the teacher's features, and the loss."""

from binarydm_jax.distill.losses import lrm_loss, lrm_terms
from binarydm_jax.distill.projections import PROJECTIONS, fit_projections, rank

__all__ = ["PROJECTIONS", "fit_projections", "lrm_loss", "lrm_terms", "rank"]
