r"""Reconstruction with the marginal likelihood of speckles in time: the default method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.optim.bounded import minimize_bounded
from deepinv_astro.optim.radial import radial_profile
from deepinv_astro.optim.regions import Regions, annular_regions, separation
from deepinv_astro.optim.smoothness import edge_preserving
from deepinv_astro.optim.temporal import TemporalLikelihood, TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur

#: Called after each iteration with the name of the stage, the iteration and the cost.
Progress = Callable[[str, int, float], None]


@dataclass(frozen=True)
class MarginalResult:
    """What :class:`Marginal` found.

    :param torch.Tensor image: sky ``(B, C, H, W)``, flux per pixel in data units.
    :param tuple likelihoods: the likelihood of each sequence, with the final profile of the variance.
    :param torch.Tensor filled: the sequences, missing data replaced by their expectation.
    :param tuple warm: for each sequence, whether the white pilot was kept as a start.
    """

    image: Tensor
    likelihoods: tuple[TemporalLikelihood, ...]
    filled: Tensor
    warm: tuple[bool, ...]


class Marginal(Reconstructor):
    r"""Image of what surrounds a star, by the marginal likelihood of the speckles in time.

        .. math::

            \min_{x \ge 0}\; J(x) + \kappa_s \sum_p w_p \left(\sqrt{|\nabla x|_p^2 + \varepsilon_p^2} - \varepsilon_p\right)
            + \kappa_1 \sum_p w_p x_p

        with :math:`J` of :class:`deepinv_astro.optim.temporal.TemporalLikelihood`: in each region of the detector the
        covariance of the speckles in time is unknown and integrated out. The weights are measured on the data: :math:`w` is
        the robust radial standard deviation of the *null gradient* :math:`A_-^\top \partial J/\partial R`, where :math:`A_-`
        has the angles' signs flipped, so that the sky does not add up and the speckles do; :math:`\varepsilon` is a quarter
        of the temporal standard deviation. This makes :math:`\kappa_s, \kappa_1` pure numbers that hold for any data unit,
        star and brightness. Where the image is brighter than the noise by far, :math:`w` decreases as
        :math:`1 / (1 + (Hx)_p / (10\,\sigma_p))`.

        Stages: a convex pilot with white noise, kept as a start if it explains most of the variance (bright objects, which
        the log-determinant alone would shrink to nothing); a pilot with the marginal likelihood; then the final solve.

        :param float smoothness: :math:`\kappa_s`.
        :param float sparsity: :math:`\kappa_1`.
        :param float nu: strength of the prior on the covariance.
        :param Callable regions: makes the regions: :func:`annular_regions`, :func:`tiled_regions`, :func:`both_regions`.
        :param tuple iterations: most iterations of the three stages.

        The sequence may hold NaN: missing data are replaced by their expectation given the frames in which the pixel was
        seen, at each stage, and exert no force on the image. Pixels that are missing in half of the frames are left out.

        |sep|

        :Examples:

            >>> import torch
            >>> from deepinv_astro.physics import ADI
    from deepinv_astro.physics.functional.psf import blur
            >>> _ = torch.manual_seed(0)
            >>> physics = ADI((1, 16, 15), torch.linspace(0, 80, 9))
            >>> x = torch.zeros(1, 1, 16, 15)
            >>> x[0, 0, 12, 5] = 30.0
            >>> y = physics.A(x) + torch.randn(1, 1, 9, 16, 15)
            >>> estimate = Marginal(iterations=(5, 10, 20))(y, physics)
            >>> divmod(int(estimate.argmax()), 15)
            (12, 5)
    """

    def __init__(
        self,
        smoothness: float = 0.1,
        sparsity: float = 0.2,
        nu: float = 1e-3,
        regions: Regions = annular_regions,
        iterations: tuple[int, int, int] = (40, 50, 120),
    ):
        super().__init__()
        self.smoothness, self.sparsity, self.nu = smoothness, sparsity, nu
        self.regions, self.iterations = regions, iterations

    def forward(self, y: Tensor, physics: ADI, references: Tensor | None = None) -> Tensor:
        """Reconstruct sequences.

        :param torch.Tensor y: sequences ``(B, C, T, h, w)``; NaN where nothing was measured.
        :param ADI physics: their operator.
        :param torch.Tensor references: frames of other stars, without object, ``(B, C, T', h, w)``, or ``None``.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``.
        """
        return self.reconstruct(y, physics, references).image

    def reconstruct(
        self,
        y: Tensor,
        physics: ADI,
        references: Tensor | None = None,
        callback: Progress | None = None,
    ) -> MarginalResult:
        """Reconstruct sequences, and tell how.

        :param torch.Tensor y: sequences ``(B, C, T, h, w)``; NaN where nothing was measured.
        :param ADI physics: their operator.
        :param torch.Tensor references: frames without object ``(B, C, T', h, w)``, or ``None``.
        :param Callable callback: called with stage, iteration and cost.
        :return: (:class:`MarginalResult`)
        :raises ValueError: if shapes do not fit, or nothing was measured.
        """
        with torch.no_grad():
            problems = [
                _Problem(
                    self,
                    y[n : n + 1],
                    physics.sample(n),
                    None if references is None else references[n : n + 1],
                )
                for n in range(len(y))
            ]
            images = [problem.solve(callback or _silent) for problem in problems]
        return MarginalResult(
            torch.cat(images),
            tuple(problem.likelihood for problem in problems),
            torch.cat([p.filled(image) for p, image in zip(problems, images, strict=True)]),
            tuple(problem.warm for problem in problems),
        )


def _silent(stage: str, iteration: int, cost: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Strength:
    r"""Dimensionless strengths of the smoothness, :math:`\kappa_s`, and of the sparsity, :math:`\kappa_1`."""

    smoothness: float
    sparsity: float


#: Strengths of the white pilot.
WHITE = Strength(0.05, 0.15)

#: A pilot is kept as a start if the logarithm of the variance profile falls by this much somewhere.
EXPLAINED = 3.0

#: The weights fall where the blurred image exceeds this many temporal standard deviations.
BRIGHT = 10.0


class _Problem:
    """One sequence with its operator: the stages of :class:`Marginal`."""

    def __init__(self, method: Marginal, y: Tensor, physics: ADI, references: Tensor | None):
        self.method, self.physics = method, physics
        self.flipped = physics.variant(angles=-physics.angles)
        self.model = TemporalModel.for_sequence(y, physics, method.regions, method.nu, references)
        self.sky_distance = separation(physics.img_size[1:], physics.sky_center).to(y.device)
        self.y, self.missing = y, ~torch.isfinite(y)
        self.expected = y  # residual where data are missing
        self.warm = False
        self.blank = torch.zeros(1, *physics.img_size, dtype=y.dtype, device=y.device)
        self._refresh(self.blank)

    def solve(self, progress: Progress) -> Tensor:
        """The three stages."""
        method = self.method
        final = Strength(method.smoothness, method.sparsity)
        white = self._stage(
            "white pilot", self.blank, WHITE, method.iterations[0], progress, self._white
        )
        after = self.model.variance(self._residual(white))
        self.warm = float((self.likelihood.variance / after).log().abs().max()) >= EXPLAINED
        if self.warm:
            self._refresh(white)
        first = final if self.warm else Strength(final.smoothness, 1.5 * final.sparsity)
        start = white if self.warm else self.blank
        marginal = self.likelihood.of_residual
        pilot = self._stage("pilot", start, first, method.iterations[1], progress, marginal)
        self.expected = self.model.fill(self.y - self.physics.A(pilot))
        return self._stage("image", pilot, final, method.iterations[2], progress, marginal)

    def filled(self, image: Tensor) -> Tensor:
        """The sequence, missing data replaced by the sky and their expectation."""
        return torch.where(self.missing, self.physics.A(image) + self.expected, self.y)

    def _refresh(self, image: Tensor) -> None:
        """Statistics of the residual of an image."""
        self.expected = self.model.fill(self.y - self.physics.A(image))
        self.likelihood = self.model(self._residual(image))

    def _residual(self, image: Tensor) -> Tensor:
        return torch.where(self.missing, self.expected, self.y - self.physics.A(image))

    def _white(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Half the energy of the scaled residual without its temporal mean, and its gradient."""
        moving = residual - residual.mean(2, keepdim=True)
        gradient = moving / self.likelihood.variance[:, :, None]
        return 0.5 * (moving * gradient).double().sum(), gradient

    def _stage(
        self,
        name: str,
        start: Tensor,
        strength: Strength,
        iterations: int,
        progress: Progress,
        data: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Minimise data term and penalties from a start, with weights measured there."""
        noise = self._on_sky(self.likelihood.variance).sqrt()
        epsilon = 0.25 * noise
        null = self.flipped.A_adjoint(data(self._residual(start))[1].masked_fill(self.missing, 0.0))
        weight = radial_profile(null, self.sky_distance, 0.6 * self.model.fwhm, "scale")
        weight = weight / (1 + self._blurred(start) / (BRIGHT * noise))

        def cost_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
            cost, slope = data(self._residual(x))
            smooth, smooth_slope = edge_preserving(x, epsilon, strength.smoothness * weight)
            sparse = strength.sparsity * (weight * x).double().sum()
            gradient = smooth_slope + strength.sparsity * weight
            gradient -= self.physics.A_adjoint(slope.masked_fill(self.missing, 0.0))
            return cost.sum() + smooth.double() + sparse, gradient

        found = minimize_bounded(
            cost_and_gradient,
            start,
            max_iter=iterations,
            callback=lambda iteration, cost: progress(name, iteration, cost),
        )
        return found.x

    def _on_sky(self, detector: Tensor) -> Tensor:
        """Radial profile on the detector, given at the separations of the sky image."""
        step = 0.6 * self.model.fwhm
        return radial_profile(detector, self.model.distance, step, "mean", at=self.sky_distance)

    def _blurred(self, image: Tensor) -> Tensor:
        """H x: what one frame would show, on the sky grid."""
        return blur(image, self.physics.filter)
