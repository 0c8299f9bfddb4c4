"""What training minimises without ground truth."""

from deepinv_astro.loss.calibration import CalibrationLoss
from deepinv_astro.loss.covariances import (
    CovarianceFamily,
    PoissonGaussian,
    RegionVariances,
    StationaryKernel,
)
from deepinv_astro.loss.equivariance import EquivariantLoss
from deepinv_astro.loss.fitted_noise import FittedNoise
from deepinv_astro.loss.frame_splitting import (
    FrameSplit,
    FrameSplittingLoss,
    FrameSplittingModel,
    draw_split,
    frame_subset,
    temporal_metric,
)
from deepinv_astro.loss.multi_operator import MultiOperatorLoss, exchanged, with_parameters
from deepinv_astro.loss.recorrupted import (
    RecorruptedLoss,
    RecorruptedModel,
    RecorruptedPair,
    recorrupt,
)
from deepinv_astro.loss.score import (
    ScoreDenoiser,
    ScoreMatchingLoss,
    closed_form_multipliers,
)
from deepinv_astro.loss.splitting import (
    BernoulliMask,
    EquivariantSplittingLoss,
    Split,
    SplitModel,
    VirtualOperator,
)
from deepinv_astro.loss.sure import (
    SUREGaussianLoss,
    SUREPoissonGaussianLoss,
    without_temporal_mean,
)
from deepinv_astro.loss.unsure import (
    NoiseEstimate,
    UNSURELoss,
    corrected_variance,
    estimate_noise,
)

__all__ = [
    "BernoulliMask",
    "CalibrationLoss",
    "CovarianceFamily",
    "EquivariantLoss",
    "EquivariantSplittingLoss",
    "FittedNoise",
    "FrameSplit",
    "FrameSplittingLoss",
    "FrameSplittingModel",
    "MultiOperatorLoss",
    "NoiseEstimate",
    "PoissonGaussian",
    "RecorruptedLoss",
    "RecorruptedModel",
    "RecorruptedPair",
    "RegionVariances",
    "SUREGaussianLoss",
    "SUREPoissonGaussianLoss",
    "ScoreDenoiser",
    "ScoreMatchingLoss",
    "Split",
    "SplitModel",
    "StationaryKernel",
    "UNSURELoss",
    "VirtualOperator",
    "closed_form_multipliers",
    "corrected_variance",
    "draw_split",
    "estimate_noise",
    "exchanged",
    "frame_subset",
    "recorrupt",
    "temporal_metric",
    "with_parameters",
    "without_temporal_mean",
]
