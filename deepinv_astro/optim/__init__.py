"""Likelihoods of the nuisance, priors and solvers; one published method per file."""

from deepinv_astro.optim.detection import Detection, PointSource, PointSourceSearch
from deepinv_astro.optim.marginal import Marginal, MarginalResult
from deepinv_astro.optim.temporal import FrozenMetric, TemporalLikelihood, TemporalModel

__all__ = [
    "Detection",
    "FrozenMetric",
    "Marginal",
    "MarginalResult",
    "PointSource",
    "PointSourceSearch",
    "TemporalLikelihood",
    "TemporalModel",
]
