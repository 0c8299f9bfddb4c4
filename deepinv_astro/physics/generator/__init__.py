"""Random parameters of operators: ``step(batch_size, seed)`` returns a dictionary."""

from deepinv_astro.physics.generator.angles import (
    PARANAL_LATITUDE,
    AngleTrackGenerator,
    parallactic_angles,
)
from deepinv_astro.physics.generator.gain import GainGenerator
from deepinv_astro.physics.generator.psf import Normal, PSFGenerator, Uniform

__all__ = [
    "PARANAL_LATITUDE",
    "AngleTrackGenerator",
    "GainGenerator",
    "Normal",
    "PSFGenerator",
    "Uniform",
    "parallactic_angles",
]
