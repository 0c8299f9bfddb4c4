"""Transformations of the sky, as deepinv's transforms with exact adjoints and right inverses."""

from deepinv_astro.physics.functional.scaling import Antialias, Continuation, Kernel
from deepinv_astro.transform.amplitude import Amplitude
from deepinv_astro.transform.base import Keep, LinearTransform, LogUniform
from deepinv_astro.transform.chain import Chain, Choice, Stack
from deepinv_astro.transform.scale import Scale, ScaleEIRecipe, scale_ei_recipe
from deepinv_astro.transform.star import InclinationStretch, StarRotation, Stretch

__all__ = [
    "Amplitude",
    "Antialias",
    "Chain",
    "Choice",
    "Continuation",
    "InclinationStretch",
    "Keep",
    "Kernel",
    "LinearTransform",
    "LogUniform",
    "Scale",
    "ScaleEIRecipe",
    "Stack",
    "StarRotation",
    "Stretch",
    "scale_ei_recipe",
]
