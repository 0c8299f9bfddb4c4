r"""REXPACO: reconstruction of circumstellar objects under a patch covariance learned from the same data."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.optim.bounded import Callback, Minimum, minimize_bounded
from deepinv_astro.optim.hyperparameters import Selection, estimate_risks, sign_flipped
from deepinv_astro.optim.missing import without_dead_pixels
from deepinv_astro.optim.nuisance import (
    PatchCovariance,
    PatchLikelihood,
    PatchStatistics,
    TemporalMean,
    TemporalScale,
)
from deepinv_astro.optim.patches import Patches
from deepinv_astro.optim.profiled import ProfiledPatchLikelihood
from deepinv_astro.optim.radial import radial_profile
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.smoothness import edge_preserving
from deepinv_astro.physics.adi import ADI

_logger = logging.getLogger(__name__)

#: Distance in pixels of the knots of radial noise profiles.
PROFILE_STEP = 3.0

#: Cost ``(B,)`` of a residual and its gradient in the residual.
ResidualCost = Callable[[Tensor], tuple[Tensor, Tensor]]


class Refinement(str, Enum):
    """How image and statistics are found together."""

    ALTERNATE = "alternate"
    JOINT = "joint"


class Prior(NamedTuple):
    r"""Edge-preserving smoothness and sparsity in units of the local noise.

    .. math::

        \sum_p w_p \left[ \kappa_s \left( \sqrt{|\nabla x|_p^2 + \varepsilon_p^2} - \varepsilon_p \right)
        + \kappa_1 x_p \right]

    ``weight`` :math:`w` and ``epsilon`` :math:`\varepsilon` are maps ``(..., H, W)``;
    ``smoothness``
    :math:`\kappa_s` and ``sparsity`` :math:`\kappa_1` are numbers without unit.
    """

    weight: Tensor
    epsilon: Tensor
    smoothness: float
    sparsity: float

    def cost_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value (a scalar in double precision) and gradient in ``x``."""
        value, gradient = edge_preserving(x, self.epsilon, self.smoothness * self.weight)
        slope = self.sparsity * self.weight
        return value.double() + (slope * x).double().sum(), gradient + slope


class Step(NamedTuple):
    """One refinement: cost at its end, relative change of the image, iterations, mean shrinkage."""

    cost: float
    change: float
    iterations: int
    shrinkage: float


@dataclass(frozen=True)
class Reconstruction:
    """What :meth:`REXPACO.reconstruct` found.

    :param torch.Tensor image: ``(B, C, H, W)``.
    :param tuple statistics: for each image of the batch a tuple with :class:`PatchStatistics` for
        each channel.
    :param tuple history: likewise, a tuple of :class:`Step` for each channel.
    """

    image: Tensor
    statistics: tuple[tuple[PatchStatistics, ...], ...]
    history: tuple[tuple[tuple[Step, ...], ...], ...]


class REXPACO(Reconstructor):
    r"""Image of a disk under a patch covariance that is learned from the same data (Flasseur+ 2021, A&A 651, A62).

    .. math::

        \min_{x \ge 0} \; \frac12 \sum_n \sum_t \left\| r_{n,t} - \hat m_n \right\|^2_{\hat C_n^{-1}}
        + \kappa_s \sum_p w_p \left( \sqrt{|\nabla x|^2_p + \varepsilon_p^2} - \varepsilon_p \right)
        + \kappa_1 \sum_p w_p x_p , \qquad r = y - A x ,

    where :math:`\hat m_n` and :math:`\hat C_n` are the temporal mean and shrunk covariance of
    patch :math:`n` of the residual at the last image
    (:class:`deepinv_astro.optim.nuisance.PatchCovariance`). Image and statistics are refined in
    turn, or the covariance follows the image within each refinement (``"joint"``:
    :class:`deepinv_astro.optim.profiled.ProfiledPatchLikelihood`).

    The strengths :math:`\kappa` have no unit: :math:`w_p` is the robust standard deviation, at the
    separation of pixel
    :math:`p`, of the gradient of the likelihood seen through an operator that turns the wrong way,
    where no object can
    add up; :math:`\varepsilon_p` is a fraction of the temporal standard deviation there. Hence
    data in other units give the same image in these units. Images of a batch and wavelengths are
    independent.

    :param int n_refinements: number of times that the statistics are estimated.
    :param tuple patch: rows and columns of a patch; about two widths (FWHM) of the PSF.
    :param tuple stride: steps between patches; less than ``patch`` for overlapping ones.
    :param float smoothness: :math:`\kappa_s`.
    :param float sparsity: :math:`\kappa_1`.
    :param float epsilon: :math:`\varepsilon` in units of the local temporal standard deviation.
    :param Refinement refinement: ``"alternate"`` or ``"joint"``. The latter profiles the mean,
        needs patches of fewer pixels than there are frames, and takes up more of the speckles:
        raise the strengths.
    :param TemporalMean mean: ``"profiled"`` inside the cost, or ``"frozen"`` during each
        refinement, as published.
    :param TemporalScale scale: ``"constant"`` or ``"robust"`` scale factors in time.
    :param int max_iter: iterations of the quasi-Newton solver in each refinement.
    :param torch.device, str device: where the buffers live.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 12, 14), torch.linspace(0, 90, 10))
        >>> x = torch.zeros(1, 1, 12, 14)
        >>> x[0, 0, 9, 5] = 50.0
        >>> y = physics.A(x) + torch.randn(
        ...     1, 1, 10, 12, 14, generator=torch.Generator().manual_seed(0)
        ... )
        >>> image = REXPACO(n_refinements=3, patch=(4, 4))(y, physics)
        >>> divmod(int(image.argmax()), 14)
        (9, 5)
    """

    def __init__(
        self,
        n_refinements: int = 10,
        patch: tuple[int, int] = (9, 9),
        stride: tuple[int, int] | None = None,
        smoothness: float = 0.3,
        sparsity: float = 0.6,
        epsilon: float = 0.25,
        refinement: Refinement | str = Refinement.ALTERNATE,
        mean: TemporalMean | str = TemporalMean.PROFILED,
        scale: TemporalScale | str = TemporalScale.CONSTANT,
        max_iter: int = 10,
        device: torch.device | str = "cpu",
    ):
        super().__init__(device=device)
        if n_refinements < 1:
            raise ValueError(f"n_refinements must be at least 1, got {n_refinements}")
        for name, value in (("smoothness", smoothness), ("sparsity", sparsity)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        self.n_refinements = n_refinements
        self.patch, self.stride = patch, stride
        self.smoothness, self.sparsity, self.epsilon = smoothness, sparsity, epsilon
        self.refinement = Refinement(refinement)
        self.mean, self.scale = TemporalMean(mean), TemporalScale(scale)
        if self.refinement is Refinement.JOINT and self.scale is TemporalScale.ROBUST:
            raise ValueError(
                "joint refinement has no scale factors in time: use scale='constant' or alternate"
            )
        self.max_iter = max_iter

    def forward(self, y: Tensor, physics: ADI, callback: Callback | None = None) -> Tensor:
        """Image of a sequence.

        :param torch.Tensor y: ``(B, C, T, h, w)``; missing data are NaN.
        :param ADI physics: the operator.
        :param Callable callback: called after each iteration with its number and the cost.
        :return: (:class:`torch.Tensor`) ``(B, C, H, W)``, in the unit of the data per pixel.
        """
        return self.reconstruct(y, physics, callback).image

    def reconstruct(
        self, y: Tensor, physics: ADI, callback: Callback | None = None
    ) -> Reconstruction:
        """Image, statistics of the speckles and history; arguments as in :meth:`forward`."""
        expected = (physics.img_size[0], physics.frames, *physics.detector_size)
        if y.ndim != 5 or tuple(y.shape[1:]) != expected:
            raise ValueError(
                f"y must be of shape (B, C, T, h, w) = (B, *{expected}), got {tuple(y.shape)}"
            )
        images, statistics, history = [], [], []
        done = 0

        def count(_: int, cost: float) -> None:
            nonlocal done
            done += 1
            if callback is not None:
                callback(done, cost)

        with torch.no_grad():
            for n in range(y.shape[0]):
                found = [
                    self._refine(y[n : n + 1, c : c + 1], physics.sample(n).channel(c), count)
                    for c in range(y.shape[1])
                ]
                images.append(torch.cat([image for image, _, _ in found], 1))
                statistics.append(tuple(stats for _, stats, _ in found))
                history.append(tuple(tuple(steps) for _, _, steps in found))
        return Reconstruction(torch.cat(images), tuple(statistics), tuple(history))

    def select(
        self,
        y: Tensor,
        physics: ADI,
        factors: Sequence[float],
        generator: torch.Generator,
        n_probes: int = 1,
    ) -> Selection:
        r"""Choose a common factor of both strengths by the least estimated risk, with the statistics frozen.

        The statistics and the units of the prior are those of a pilot, the reconstruction with the
        present strengths. See :func:`deepinv_astro.optim.hyperparameters.estimate_risks`.

        :param torch.Tensor y: ``(B, C, T, h, w)``.
        :param ADI physics: the operator.
        :param Sequence factors: increasing factors of ``smoothness`` and ``sparsity`` to try, e.g.
            ``(0.5, 1, 2)``.
        :param torch.Generator generator: draws the probes.
        :param int n_probes: number of probes.
        :return: (:class:`deepinv_astro.optim.hyperparameters.Selection`) factors, risks summed
            over the batch, choice.
        """
        pilot = self.reconstruct(y, physics)
        total = torch.zeros(len(factors), dtype=torch.float64)
        with torch.no_grad():
            for n, c in itertools.product(range(y.shape[0]), range(y.shape[1])):
                one, data = (
                    physics.sample(n).channel(c),
                    without_dead_pixels(y[n : n + 1, c : c + 1]),
                )
                x = pilot.image[n : n + 1, c : c + 1]
                residual = data - one.A(x)
                likelihood = PatchLikelihood(
                    pilot.statistics[n][c], TemporalMean.PROFILED
                ).of_residual
                solve = self._frozen_solver(
                    likelihood, self.prior(likelihood, residual, one), one, x
                )
                probes = [sign_flipped(residual, generator) for _ in range(n_probes)]
                total += estimate_risks(solve, data, one, likelihood, factors, probes)
        return Selection.of(factors, total)

    def _frozen_solver(
        self, likelihood: ResidualCost, prior: Prior, physics: ADI, start: Tensor
    ) -> Callable[[Tensor, float], Tensor]:
        """The image as a function of the data and of a factor of the strengths; the covariance does not move."""

        def solve(data: Tensor, factor: float) -> Tensor:
            scaled = prior._replace(
                smoothness=factor * prior.smoothness, sparsity=factor * prior.sparsity
            )
            cost = penalised(likelihood, scaled, data, physics)
            return minimize_in_noise_units(
                cost, start, prior.weight, 2 * self.max_iter, ftol=1e-9
            ).x

        return solve

    def covariance(self, size: tuple[int, int]) -> PatchCovariance:
        """Model of the speckles on a detector of this size."""
        return PatchCovariance(Patches.grid(size, self.patch, stride=self.stride), scale=self.scale)

    def prior(self, cost: ResidualCost, residual: Tensor, physics: ADI) -> Prior:
        """Prior with weights in units of the noise of a residual; arguments as in :func:`noise_relative_maps`."""
        weight, std = noise_relative_maps(cost, residual, physics)
        return Prior(weight, self.epsilon * std, self.smoothness, self.sparsity)

    def _refine(
        self, y: Tensor, physics: ADI, callback: Callback
    ) -> tuple[Tensor, PatchStatistics, list[Step]]:
        y = without_dead_pixels(y)
        model = self.covariance(physics.detector_size)
        x = torch.zeros(1, *physics.img_size, dtype=y.dtype, device=y.device)
        steps = []
        for k in range(self.n_refinements):
            residual = y - physics.A(x)
            statistics = model.estimate(residual)
            likelihood: PatchLikelihood | ProfiledPatchLikelihood = PatchLikelihood(
                statistics, self.mean
            )
            if self.refinement is Refinement.JOINT:
                likelihood = ProfiledPatchLikelihood(statistics)
            prior = self.prior(likelihood.of_residual, residual, physics)
            cost = penalised(likelihood.of_residual, prior, y, physics)
            found = minimize_in_noise_units(cost, x, prior.weight, self.max_iter, callback=callback)
            change = float(
                (found.x - x).norm() / found.x.norm().clamp_min(torch.finfo(x.dtype).tiny)
            )
            x = found.x
            steps.append(
                Step(found.cost, change, found.iterations, float(statistics.shrinkage.mean()))
            )
            _logger.debug("refinement %d: %s", k + 1, steps[-1])
        return x, model.estimate(y - physics.A(x)), steps


def penalised(
    likelihood: ResidualCost, prior: Prior, y: Tensor, physics: ADI
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    r"""Cost :math:`J(y - A x)` + prior of an image, and its gradient, for a solver."""

    def cost_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = likelihood(y - physics.A(x))
        penalty, gradient = prior.cost_and_gradient(x)
        return value.sum() + penalty, gradient - physics.A_adjoint(slope)

    return cost_and_gradient


def minimize_in_noise_units(
    cost_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    weight: Tensor,
    max_iter: int,
    ftol: float = 1e-7,
    callback: Callback | None = None,
) -> Minimum:
    r"""Minimise a cost with :math:`x \ge 0` over :math:`z = w x`, in which the noise is of size one everywhere.

    A quasi-Newton method in :math:`x` would first have to learn how the noise varies over the
    field.
    """
    scale = weight.clamp_min(1e-2 * float(weight.max()))

    def scaled(z: Tensor) -> tuple[Tensor, Tensor]:
        cost, gradient = cost_and_gradient(z / scale)
        return cost, gradient / scale

    found = minimize_bounded(scaled, start * scale, max_iter=max_iter, ftol=ftol, callback=callback)
    return found._replace(x=found.x / scale)


def noise_relative_maps(
    cost: ResidualCost, residual: Tensor, physics: ADI
) -> tuple[Tensor, Tensor]:
    r"""Maps that make strengths dimensionless: noise of the gradient, and of the data, at each sky pixel.

    The gradient :math:`A_\mathrm{rev}^\top \partial J/\partial r` with reversed angles adds up no
    object, but has the noise of the true one. Its robust radial standard deviation is :math:`w_p`,
    in inverse units of the image.

    :param Callable cost: cost of a residual and its gradient.
    :param torch.Tensor residual: ``(B, C, T, h, w)``, NaN where missing.
    :param ADI physics: the operator; one set of parameters.
    :return: tuple of :math:`w` and of the temporal standard deviation at the separation of each
        sky pixel, both ``(B, C, H, W)``.
    """
    mirrored = physics.variant(angles=-physics.angles)
    sky = separation(physics.img_size[1:], physics.sky_center).to(residual.device)
    null = mirrored.A_adjoint(cost(residual)[1]).double()
    weight = radial_profile(null, sky, PROFILE_STEP, "scale")
    detector = separation(physics.detector_size, physics.center[0].mean(0)).to(residual.device)
    mean = residual.nanmean(2, keepdim=True)
    profile = radial_profile(
        (residual - mean).square().nanmean(2).double(), detector, PROFILE_STEP, "mean"
    )
    std = _at_separation(profile.sqrt(), detector, sky)
    floor = std.amax((-2, -1), keepdim=True) * 1e-6
    return weight.to(residual), std.clamp_min(floor).to(residual)


def _at_separation(profile: Tensor, distance: Tensor, wanted: Tensor) -> Tensor:
    """Read a radial map (..., h, w) at other separations; beyond its range, the nearest value."""
    order = distance.flatten().argsort()
    place = torch.searchsorted(distance.flatten()[order], wanted.flatten()).clamp_max(
        len(order) - 1
    )
    return profile.flatten(-2)[..., order[place]].unflatten(-1, tuple(wanted.shape))
