"""Reconstructors: classical and learned; one published method per file."""

from deepinv_astro.models.annular import AnnularPCA
from deepinv_astro.models.calibrated import Calibrated
from deepinv_astro.models.combine import temporal_mean, temporal_median
from deepinv_astro.models.derotate import derotate, turn
from deepinv_astro.models.ipca import IterativePCA
from deepinv_astro.models.median import MedianADI
from deepinv_astro.models.pca import PCA

__all__ = [
    "PCA",
    "AnnularPCA",
    "Calibrated",
    "IterativePCA",
    "MedianADI",
    "derotate",
    "temporal_mean",
    "temporal_median",
    "turn",
]
