"""Likelihoods of the nuisance, priors and solvers; one published method per file."""

from deepinv_astro.optim.detection import Detection, PointSource, PointSourceSearch
from deepinv_astro.optim.hyperparameters import Selection, select_strength
from deepinv_astro.optim.marginal import Marginal, MarginalResult
from deepinv_astro.optim.nuisance import PatchCovariance, PatchLikelihood
from deepinv_astro.optim.patches import Patches
from deepinv_astro.optim.rexpaco import REXPACO
from deepinv_astro.optim.temporal import FrozenMetric, TemporalLikelihood, TemporalModel

__all__ = [
    "REXPACO",
    "Detection",
    "FrozenMetric",
    "Marginal",
    "MarginalResult",
    "PatchCovariance",
    "PatchLikelihood",
    "Patches",
    "PointSource",
    "PointSourceSearch",
    "Selection",
    "TemporalLikelihood",
    "TemporalModel",
    "select_strength",
]
