"""Training without ground truth: what a recipe is made of, the loop, and what it makes."""

from deepinv_astro.training.adaptation import (
    Adaptation,
    AdaptationStep,
    adapt,
    with_visible_change,
)
from deepinv_astro.training.loop import Loop, Share, Validation
from deepinv_astro.training.noise_levels import NoiseLevels
from deepinv_astro.training.recipe import Recipe
from deepinv_astro.training.reobservation import Reobservation
from deepinv_astro.training.restoration import Restoration, noise_level
from deepinv_astro.training.ring_gains import RingGains, fit_ring_gains
from deepinv_astro.training.schedule import Schedule
from deepinv_astro.training.star_calibration import StarCalibration
from deepinv_astro.training.survey import Stars, SurveyTasks, SurveyTraining
from deepinv_astro.training.survey_recipe import Precision, SurveyRecipe
from deepinv_astro.training.tasks import (
    Observation,
    Part,
    consistency,
    observe,
    recorrupted,
    risk,
    splitting,
    truth,
    unsure,
    values,
)
from deepinv_astro.training.trainer import Training

__all__ = [
    "Adaptation",
    "AdaptationStep",
    "Loop",
    "NoiseLevels",
    "Observation",
    "Part",
    "Precision",
    "Recipe",
    "Reobservation",
    "Restoration",
    "RingGains",
    "Schedule",
    "Share",
    "StarCalibration",
    "Stars",
    "SurveyRecipe",
    "SurveyTasks",
    "SurveyTraining",
    "Training",
    "Validation",
    "adapt",
    "consistency",
    "fit_ring_gains",
    "noise_level",
    "observe",
    "recorrupted",
    "risk",
    "splitting",
    "truth",
    "unsure",
    "values",
    "with_visible_change",
]
