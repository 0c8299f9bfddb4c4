"""What an operator can and cannot see."""

from deepinv_astro.identifiability.adi import mode_visibility, visibility
from deepinv_astro.identifiability.gain import power_law, wiener_error
from deepinv_astro.identifiability.projections import remove_components, remove_mean
from deepinv_astro.identifiability.ruler import Identifiability, identify
from deepinv_astro.identifiability.spectrum import Spectrum
from deepinv_astro.identifiability.virtual import Gram, Through, draw_maps

__all__ = [
    "Gram",
    "Identifiability",
    "Spectrum",
    "Through",
    "draw_maps",
    "identify",
    "mode_visibility",
    "power_law",
    "remove_components",
    "remove_mean",
    "visibility",
    "wiener_error",
]
