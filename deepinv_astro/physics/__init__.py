"""Forward operators."""

from deepinv_astro.physics.adi import ADI, TransmissionOrder
from deepinv_astro.physics.blur import Blur, Boundary, PixelSampling
from deepinv_astro.physics.calibration import Calibration, CalibrationReport
from deepinv_astro.physics.correlated_noise import LowRankNoise, StationaryNoise
from deepinv_astro.physics.detector import DetectorNoise, Saturation
from deepinv_astro.physics.free_parameters import (
    Free,
    free_angles,
    free_center,
    free_gain,
    free_psf,
)
from deepinv_astro.physics.noise import GaussianModel, HeteroscedasticNoise, Per
from deepinv_astro.physics.patch_noise import PatchNoise, tile_index

__all__ = [
    "ADI",
    "Blur",
    "Boundary",
    "Calibration",
    "CalibrationReport",
    "DetectorNoise",
    "Free",
    "GaussianModel",
    "HeteroscedasticNoise",
    "LowRankNoise",
    "PatchNoise",
    "Per",
    "PixelSampling",
    "Saturation",
    "StationaryNoise",
    "TransmissionOrder",
    "free_angles",
    "free_center",
    "free_gain",
    "free_psf",
    "tile_index",
]
