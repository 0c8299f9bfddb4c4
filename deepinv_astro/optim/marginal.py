r"""Reconstruction with the marginal likelihood of speckles in time: the default method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.optim.bounded import Minimum, minimize_bounded
from deepinv_astro.optim.missing import without_dead_pixels
from deepinv_astro.optim.radial import null_scale, radial_profile
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
    :param tuple likelihoods: the likelihood of each sequence, with the final profile of the
        variance.
    :param torch.Tensor filled: the sequences, missing data replaced by their expectation.
    :param torch.Tensor gradient_noise: radial standard deviation :math:`w` of the null gradient at
        the image, positive, ``(B, C, H, W)``.
    """

    image: Tensor
    likelihoods: tuple[TemporalLikelihood, ...]
    filled: Tensor
    gradient_noise: Tensor


class Marginal(Reconstructor):
    r"""Image of what surrounds a star, by the marginal likelihood of the speckles in time.

    .. math::

        \min_{x \ge 0}\; J(x) + \sum_p \tilde w_p \left[ \kappa_s \left(\sqrt{|\nabla x|_p^2 + \varepsilon_p^2}
        - \varepsilon_p\right) + \kappa_1 \phi_p\, x_p \right]

    with :math:`J` of :class:`deepinv_astro.optim.temporal.TemporalLikelihood`: in each region of
    the detector the covariance of the speckles in time is unknown and integrated out.

    Everything else is measured on the data, so that :math:`\kappa_s, \kappa_1` are pure numbers
    that hold for any unit, star and brightness. :math:`w` is the robust radial standard deviation
    of the
    *null gradient* :math:`A_-^\top \partial J/\partial R`, where :math:`A_-` has the angles' signs
    flipped: the sky does not add up in it, the speckles do. A penalty proportional to :math:`w`
    would ask for the same significance at each separation and let the largest noise, close to the
    star, through; a constant one would hide what is faint far from it. The weight is their
    geometric mean,
    :math:`\tilde w_p = \sqrt{w_p\, \mathrm{median}(w)}`. :math:`\varepsilon` is a quarter of the
    temporal standard deviation :math:`\sigma`. The solver's variables are scaled by :math:`1/w`.

    Two stages: a pilot with :math:`\phi = 1`; then the image, with weights measured on the pilot's
    residual and :math:`\phi_p = 1.5 / (1 + ((Hx)_p / 0.3\,\sigma_p)^2)`, which frees what is bright
    beside the speckles from the sparsity that would bias it.

    :param float smoothness: :math:`\kappa_s`.
    :param float sparsity: :math:`\kappa_1`.
    :param float nu: strength of the prior on the covariance.
    :param Callable regions: makes the regions:
        :func:`~deepinv_astro.optim.regions.annular_regions`,
        :func:`~deepinv_astro.optim.regions.tiled_regions` or
        :func:`~deepinv_astro.optim.regions.both_regions`.
    :param tuple iterations: most iterations of the two stages.
    :param Callable solver: called as :func:`~deepinv_astro.optim.bounded.minimize_bounded`
        (default), e.g. :func:`~deepinv_astro.optim.projected.minimize_projected` with a
        ``tolerance``, to stop early.

    The sequence may hold NaN: missing data are replaced, at each stage, by their expectation given
    the frames in which the pixel was seen, and exert no force on the image. Pixels that are
    missing in half of the frames, or never change, are left out.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> _ = torch.manual_seed(0)
        >>> physics = ADI((1, 16, 15), torch.linspace(0, 80, 9))
        >>> x = torch.zeros(1, 1, 16, 15)
        >>> x[0, 0, 12, 5] = 30.0
        >>> y = physics.A(x) + torch.randn(1, 1, 9, 16, 15)
        >>> estimate = Marginal(iterations=(10, 20))(y, physics)
        >>> divmod(int(estimate.argmax()), 15)
        (12, 5)
    """

    def __init__(
        self,
        smoothness: float = 0.2,
        sparsity: float = 0.22,
        nu: float = 1e-3,
        regions: Regions = annular_regions,
        iterations: tuple[int, int] = (150, 150),
        solver: Callable[..., Minimum] = minimize_bounded,
    ):
        super().__init__()
        self.smoothness, self.sparsity, self.nu = smoothness, sparsity, nu
        self.regions, self.iterations, self.solver = regions, iterations, solver

    def forward(self, y: Tensor, physics: ADI, references: Tensor | None = None) -> Tensor:
        """Reconstruct sequences.

        :param torch.Tensor y: sequences ``(B, C, T, h, w)``; NaN where nothing was measured.
        :param ADI physics: their operator.
        :param torch.Tensor references: frames of other stars, without object, ``(B, C, T', h,
            w)``, or ``None``.
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
        problems = self._problems(y, physics, references)
        with torch.no_grad():
            images = [problem.solve(callback or _silent) for problem in problems]
        return _result(problems, images)

    def at(
        self, image: Tensor, y: Tensor, physics: ADI, references: Tensor | None = None
    ) -> MarginalResult:
        """What :meth:`reconstruct` tells, for a given image.

        :param torch.Tensor image: sky ``(B, C, H, W)``.
        :param torch.Tensor y: sequences ``(B, C, T, h, w)``; NaN where nothing was measured.
        :param ADI physics: their operator.
        :param torch.Tensor references: frames without object ``(B, C, T', h, w)``, or ``None``.
        :return: (:class:`MarginalResult`)
        """
        problems = self._problems(y, physics, references)
        for problem, own in zip(problems, image.split(1), strict=True):
            problem.expect(own)
        return _result(problems, list(image.split(1)))

    def _problems(self, y: Tensor, physics: ADI, references: Tensor | None) -> list[_Problem]:
        if references is not None and len(references) != len(y):
            raise ValueError(
                f"{len(y)} sequences have {len(references)} sets of references: give one for each"
            )
        given = [None] * len(y) if references is None else references.split(1)
        operators = _operators(physics, len(y))
        with torch.no_grad():
            return [
                _Problem(self, own, *pair, more)
                for own, pair, more in zip(y.split(1), operators, given, strict=True)
            ]


def _result(problems: list[_Problem], images: list[Tensor]) -> MarginalResult:
    solved = list(zip(problems, images, strict=True))
    with torch.no_grad():
        return MarginalResult(
            torch.cat(images),
            tuple(problem.likelihood for problem in problems),
            torch.cat([problem.filled(image) for problem, image in solved]),
            torch.cat([problem.gradient_noise(image)[0] for problem, image in solved]),
        )


def _operators(physics: ADI, count: int) -> list[tuple[ADI, ADI]]:
    """The operator of each sequence, and the one with the signs of the angles flipped.

    Where all sequences have the same it is the operator itself, whose tables are made once.
    """
    parameters = [value for value in physics.buffers(recurse=False) if value.ndim > 1]
    if all(len(value) == 1 for value in parameters):
        return [(physics, physics.variant(angles=-physics.angles))] * count
    own = [physics.sample(n) for n in range(count)]
    return [(one, one.variant(angles=-one.angles)) for one in own]


def _silent(stage: str, iteration: int, cost: float) -> None:
    """Progress that nobody watches."""


#: Sparsity of the second stage where nothing is seen, relative to the first.
RAISED = 1.5

#: Blurred image, in temporal standard deviations, where the sparsity has fallen to a half.
BRIGHT = 0.3


class _Problem:
    """One sequence with its operator: the stages of :class:`Marginal`."""

    def __init__(
        self, method: Marginal, y: Tensor, physics: ADI, flipped: ADI, references: Tensor | None
    ):
        self.method, self.physics, self.flipped = method, physics, flipped
        self.model = TemporalModel.for_sequence(y, physics, method.regions, method.nu, references)
        self.sky_distance = separation(physics.img_size[1:], physics.sky_center).to(y.device)
        self.y = without_dead_pixels(y)
        self.missing = ~torch.isfinite(self.y)
        self.whole = not bool(self.missing.any())
        self.blank = torch.zeros(1, *physics.img_size, dtype=y.dtype, device=y.device)
        self.expected = self.model.fill(self.y)  # residual where data are missing
        self.likelihood = self.model(self._residual(self.blank))
        self.noise = self._on_sky(self.likelihood.variance).sqrt()

    def solve(self, progress: Progress) -> Tensor:
        """The two stages."""
        pilot_iterations, image_iterations = self.method.iterations
        pilot = self._stage("pilot", self.blank, 1.0, pilot_iterations, progress)
        self.expect(pilot)
        seen = blur(pilot, self.physics.filter) / (BRIGHT * self.noise)
        free = RAISED / (1 + seen.square())
        return self._stage("image", pilot, free, image_iterations, progress)

    def expect(self, image: Tensor) -> None:
        """Take for the missing data what is expected there, given an image."""
        self.expected = self.model.fill(self.y - self.physics.A(image))

    def filled(self, image: Tensor) -> Tensor:
        """The sequence, missing data replaced by the sky and their expectation."""
        return torch.where(self.missing, self.physics.A(image) + self.expected, self.y)

    def _residual(self, image: Tensor) -> Tensor:
        residual = self.y - self.physics.A(image)
        return residual if self.whole else torch.where(self.missing, self.expected, residual)

    def _cost_and_slope(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Cost of an image, and its gradient in the residual, zero where data are missing."""
        cost, slope = self.likelihood.of_residual(self._residual(image))
        return cost, slope if self.whole else slope.masked_fill(self.missing, 0.0)

    def _stage(
        self,
        name: str,
        start: Tensor,
        free: Tensor | float,
        iterations: int,
        progress: Progress,
    ) -> Tensor:
        """Minimise likelihood and penalties from a start, with weights measured there."""
        noise_of_gradient, middle = self.gradient_noise(start)
        smooth_weight, sparse_weight = self._weights(noise_of_gradient, middle)
        sparse_weight = sparse_weight * free
        epsilon = self._edge()

        def cost_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
            cost, slope = self._cost_and_slope(x)
            smooth, gradient = edge_preserving(x, epsilon, smooth_weight)
            gradient += sparse_weight
            gradient -= self.physics.A_adjoint(slope)
            return cost.sum() + smooth.double() + (sparse_weight * x).double().sum(), gradient

        found = self.method.solver(
            cost_and_gradient,
            start,
            scale=1 / noise_of_gradient,
            max_iter=iterations,
            callback=lambda iteration, cost: progress(name, iteration, cost),
        )
        return found.x

    def _weights(self, noise_of_gradient: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of smoothness and sparsity: the geometric mean of the noise and its median."""
        weight = (noise_of_gradient * middle).sqrt()
        return self.method.smoothness * weight, self.method.sparsity * weight

    def _edge(self) -> Tensor:
        """Step between neighbours above which the smoothness gives way."""
        return 0.25 * self.noise

    def gradient_noise(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Radial standard deviation of the null gradient, bounded where nothing is seen, and its median."""
        slope = self._cost_and_slope(image)[1]
        noise = null_scale(slope, self.flipped, self.sky_distance, 0.6 * self.model.fwhm)
        seen = noise.masked_fill(~(noise > 0), torch.nan).flatten(2)
        middle = seen.nanmedian(-1).values[..., None, None]
        return torch.maximum(noise.nan_to_num(0.0), 1e-3 * middle), middle

    def _on_sky(self, detector: Tensor) -> Tensor:
        """Radial profile on the detector, given at the separations of the sky image."""
        step = 0.6 * self.model.fwhm
        return radial_profile(detector, self.model.distance, step, "mean", at=self.sky_distance)
