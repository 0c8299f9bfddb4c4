"""Likelihoods of the nuisance, priors and solvers; one published method per file."""

from deepinv_astro.optim.calibration import (
    CalibrationFit,
    CalibrationLikelihood,
    Term,
    calibrate,
    fisher_information,
)
from deepinv_astro.optim.calibration_frames import CalibrationFrames
from deepinv_astro.optim.detection import Detection, PointSource, PointSourceSearch
from deepinv_astro.optim.fourier_marginal import FourierMarginal, taper
from deepinv_astro.optim.hyperparameters import Selection, select_strength
from deepinv_astro.optim.marginal import Marginal, MarginalResult
from deepinv_astro.optim.nuisance import PatchCovariance, PatchLikelihood
from deepinv_astro.optim.patches import Patches
from deepinv_astro.optim.rexpaco import REXPACO
from deepinv_astro.optim.self_calibration import CalibrationStep, SelfCalibration, self_calibrate
from deepinv_astro.optim.temporal import FrozenMetric, TemporalLikelihood, TemporalModel

__all__ = [
    "REXPACO",
    "CalibrationFit",
    "CalibrationFrames",
    "CalibrationLikelihood",
    "CalibrationStep",
    "Detection",
    "FourierMarginal",
    "FrozenMetric",
    "Marginal",
    "MarginalResult",
    "PatchCovariance",
    "PatchLikelihood",
    "Patches",
    "PointSource",
    "PointSourceSearch",
    "Selection",
    "SelfCalibration",
    "TemporalLikelihood",
    "TemporalModel",
    "Term",
    "calibrate",
    "fisher_information",
    "select_strength",
    "self_calibrate",
    "taper",
]
