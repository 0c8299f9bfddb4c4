r"""What a training on a survey is made of, and by how much of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from enum import Enum

from deepinv_astro.training.schedule import Schedule
from deepinv_astro.training.star_calibration import StarCalibration

__all__ = ["Precision", "SurveyRecipe"]

_PARTS = ("consistency", "risk", "unsure", "recorrupted", "splitting", "truth", "again")
#: Tables of the operators of a task and what their gradients keep, for each pixel of each frame.
_BYTES = 330


class Precision(str, Enum):
    """Numbers of the networks; operators and likelihoods are in single precision."""

    SINGLE = "float32"
    MIXED = "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyRecipe(Schedule):
    r"""Training of a reconstructor :math:`f` of sequences, whose truths nobody knows.

    .. math::

        \min_f \; \mathbb E_{\text{star}} \Big[ w_{\mathrm{MC}}\, \ell_{\mathrm{MC}}
        + w_{\mathrm{SURE}}\, \ell_{\mathrm{SURE}}
        + w_{\mathrm{UNSURE}}\, \max_\eta \ell_{\mathrm{UNSURE}} + w_{\mathrm{R2R}}\, \ell_{\mathrm{R2R}}
        + w_{\mathrm{split}}\, \ell_{\mathrm{split}} + w_{\mathrm{true}}\, \ell_{\mathrm{true}}
        + w_{\mathrm{again}}\, \ell_{\mathrm{again}} \Big] \Big/ \sum w

    with the losses of the functions named below, all in the metric :math:`W` of the speckles of
    each star. For each star of a batch one of them is drawn, with a probability proportional to its
    weight: all recipes with the same number of steps cost nearly the same.

    :param float consistency: weight of :func:`~deepinv_astro.training.consistency`, no risk.
    :param float risk: of :func:`~deepinv_astro.training.risk`, SURE.
    :param float unsure: of :func:`~deepinv_astro.training.unsure`, the risk for noise whose level in each ring about
        the star is not known; the levels are those of all stars.
    :param float recorrupted: of :func:`~deepinv_astro.training.recorrupted`, R2R.
    :param float splitting: of :func:`~deepinv_astro.training.splitting`, frames held out.
    :param float truth: of :func:`~deepinv_astro.training.truth`, for references.
    :param float again: of :class:`~deepinv_astro.training.Reobservation`, equivariance and
        multi-operator consistency; from ``again_after`` on.
    :param float again_after: share of the steps after which stars are observed again, once the
        network knows something of them.
    :param int again_every: steps between two stars observed again.
    :param int again_kept: how many of the latest are kept.
    :param float center_std: error of the position of each star on the detector, pixels. If positive, it is
        fitted to the star's own sequence first, :class:`~deepinv_astro.training.StarCalibration`.
    :param float angle_std: the same for the angle of each frame, degrees.
    :param float gain_std: the same for the gain of each frame.
    :param int draws: splits, probes and noises of each star, made once.
    :param int rings: of ``unsure``.
    :param int block: most frames of a block of :func:`~deepinv_astro.training.splitting`.
    :param int window: stars whose operators are held in memory, and half as many of those held out: some 35 MB
        for each with 24 frames of 65 x 65, 160 MB with 61 of 101 x 101. They
        change by one in two steps. See :meth:`window_for`.
    :param str precision: of the networks, ``"float32"`` or ``"bfloat16"``.
    :param schedule: ``batch`` (stars of a step) and the other fields of :class:`Schedule`.
    :raises ValueError: if a number is out of range or all weights are zero; the message names it.

    |sep|

    :Examples:

        >>> from deepinv_astro.training import SurveyRecipe
        >>> SurveyRecipe(again=0.0).weights()
        {'splitting': 1.0}
    """

    consistency: float = 0.0
    risk: float = 0.0
    unsure: float = 0.0
    recorrupted: float = 0.0
    splitting: float = 1.0
    truth: float = 0.0
    again: float = 0.0
    again_after: float = 0.5
    again_every: int = 4
    again_kept: int = 64
    center_std: float = 0.0
    angle_std: float = 0.0
    gain_std: float = 0.0
    draws: int = 2
    rings: int = 4
    block: int = 3
    window: int = 64
    precision: str = Precision.SINGLE.value
    steps: int = 600
    learning_rate: float = 2e-3
    averaging: float = 0.99
    validate_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("again_every", "again_kept", "draws", "rings", "block", "window")
        self.check_weights(*_PARTS, "center_std", "angle_std", "gain_std")
        if not 0 <= self.again_after <= 1:
            raise ValueError(f"`again_after` must be in [0, 1], got {self.again_after}")
        if not set(self.weights()) - {"again"}:
            raise ValueError(f"one weight of {', '.join(_PARTS[:-1])} must be positive")
        object.__setattr__(self, "precision", Precision(self.precision).value)

    def calibration(self) -> StarCalibration | None:
        """
        What is fitted to each star before anything is learned from it.

        :return: (:class:`StarCalibration`) none if the operators are known.
        """
        free = {"center": self.center_std, "angles": self.angle_std, "gain": self.gain_std}
        return StarCalibration(**free) if any(free.values()) else None

    @staticmethod
    def window_for(shapes: Iterable[tuple[int, ...]], gigabytes: float = 4.0) -> int:
        """
        A window that fits in memory.

        :param shapes: sizes of the sequences, such as ``(T, h, w)``.
        :param float gigabytes: what the operators may take, those of stars held out included.
        :return: (int) number of stars, from 4 to 64.

        >>> (
        ...     SurveyRecipe.window_for([(24, 65, 65)]),
        ...     SurveyRecipe.window_for([(61, 101, 101), (9, 9, 9)]),
        ... )
        (64, 12)
        """
        most = max(math.prod(shape) for shape in shapes)
        return max(4, min(64, int(gigabytes * 1e9 / (1.5 * _BYTES * most))))

    def weights(self) -> dict[str, float]:
        """
        The parts that have a weight.

        :return: (dict) from name to weight.
        """
        return {name: getattr(self, name) for name in _PARTS if getattr(self, name)}
