"""Reconstructors: classical and learned; one published method per file."""

from deepinv_astro.models.annular import AnnularPCA
from deepinv_astro.models.calibrated import Calibrated
from deepinv_astro.models.combine import temporal_mean, temporal_median
from deepinv_astro.models.derotate import derotate, turn
from deepinv_astro.models.ipca import IterativePCA
from deepinv_astro.models.median import MedianADI
from deepinv_astro.models.normal_equations import NormalEquations
from deepinv_astro.models.pca import PCA
from deepinv_astro.models.pilot import MarginalPilot, WhitePilot, temporal_level
from deepinv_astro.models.unrolled import (
    DenoiserCorrection,
    PilotCorrection,
    PilotNetwork,
    SmallUNet,
    UnrolledADI,
)
from deepinv_astro.models.weights import (
    WeightsFile,
    load_weights,
    read_weights_card,
    save_weights,
)

__all__ = [
    "PCA",
    "AnnularPCA",
    "Calibrated",
    "DenoiserCorrection",
    "IterativePCA",
    "MarginalPilot",
    "MedianADI",
    "NormalEquations",
    "PilotCorrection",
    "PilotNetwork",
    "SmallUNet",
    "UnrolledADI",
    "WeightsFile",
    "WhitePilot",
    "derotate",
    "load_weights",
    "read_weights_card",
    "save_weights",
    "temporal_level",
    "temporal_mean",
    "temporal_median",
    "turn",
]
