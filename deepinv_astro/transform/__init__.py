"""Transformations of the sky, as deepinv's transforms with exact adjoints and right inverses."""

from deepinv_astro.transform.base import Keep, LinearTransform, LogUniform
from deepinv_astro.transform.scale import Scale, ScaleEIRecipe, scale_ei_recipe

__all__ = [
    "Keep",
    "LinearTransform",
    "LogUniform",
    "Scale",
    "ScaleEIRecipe",
    "scale_ei_recipe",
]
