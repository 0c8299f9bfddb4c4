"""What an operator can and cannot see."""

from deepinv_astro.identifiability.adi import (
    angular_harmonics,
    measured_mode_visibility,
    mode_visibility,
    visibility,
)
from deepinv_astro.identifiability.gain import power_law, wiener_error
from deepinv_astro.identifiability.pca import PCAThroughput, pca_throughput
from deepinv_astro.identifiability.projections import remove_components, remove_mean
from deepinv_astro.identifiability.ruler import Identifiability, identify
from deepinv_astro.identifiability.spectrum import Spectrum
from deepinv_astro.identifiability.virtual import Gram, Through, draw_maps

__all__ = [
    "Gram",
    "Identifiability",
    "PCAThroughput",
    "Spectrum",
    "Through",
    "angular_harmonics",
    "draw_maps",
    "identify",
    "measured_mode_visibility",
    "mode_visibility",
    "pca_throughput",
    "power_law",
    "remove_components",
    "remove_mean",
    "visibility",
    "wiener_error",
]
