"""Forward operators."""

from deepinv_astro.physics.adi import ADI, TransmissionOrder
from deepinv_astro.physics.blur import Blur, Boundary, PixelSampling
from deepinv_astro.physics.calibration import (
    Calibration,
    CalibrationReport,
    Free,
    free_angles,
    free_center,
    free_gain,
    free_psf,
)

__all__ = [
    "ADI",
    "Blur",
    "Boundary",
    "Calibration",
    "CalibrationReport",
    "Free",
    "PixelSampling",
    "TransmissionOrder",
    "free_angles",
    "free_center",
    "free_gain",
    "free_psf",
]
