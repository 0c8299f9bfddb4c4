"""Forward operators."""

from deepinv_astro.physics.adi import ADI, TransmissionOrder
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
    "Calibration",
    "CalibrationReport",
    "Free",
    "TransmissionOrder",
    "free_angles",
    "free_center",
    "free_gain",
    "free_psf",
]
