"""Training without ground truth: what a recipe is made of, the loop, and what it makes."""

from deepinv_astro.training.loop import Loop, Share, Validation
from deepinv_astro.training.recipe import Recipe
from deepinv_astro.training.restoration import Restoration, noise_level
from deepinv_astro.training.schedule import Schedule
from deepinv_astro.training.trainer import Training

__all__ = [
    "Loop",
    "Recipe",
    "Restoration",
    "Schedule",
    "Share",
    "Training",
    "Validation",
    "noise_level",
]
