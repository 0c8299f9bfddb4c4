"""What training minimises without ground truth."""

from deepinv_astro.loss.recorrupted import (
    RecorruptedLoss,
    RecorruptedModel,
    RecorruptedPair,
    recorrupt,
)
from deepinv_astro.loss.sure import (
    SUREGaussianLoss,
    SUREPoissonGaussianLoss,
    without_temporal_mean,
)

__all__ = [
    "RecorruptedLoss",
    "RecorruptedModel",
    "RecorruptedPair",
    "SUREGaussianLoss",
    "SUREPoissonGaussianLoss",
    "recorrupt",
    "without_temporal_mean",
]
