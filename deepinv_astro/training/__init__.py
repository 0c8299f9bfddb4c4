"""Training without ground truth: what a recipe is made of, the loop, and what it makes."""

from deepinv_astro.training.recipe import Recipe
from deepinv_astro.training.restoration import Restoration, noise_level
from deepinv_astro.training.trainer import Training, Validation

__all__ = ["Recipe", "Restoration", "Training", "Validation", "noise_level"]
