r"""Image and calibration of one sequence together, without a network."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.optim.adi_calibration import (
    Evidence,
    SkyPrior,
    SpeckleExpansion,
    core,
    expand_evidence,
)
from deepinv_astro.optim.adi_tangents import CalibratedADI, covariance_root
from deepinv_astro.optim.calibration import Term, calibrate
from deepinv_astro.optim.marginal import Marginal
from deepinv_astro.optim.missing import without_dead_pixels
from deepinv_astro.optim.temporal import TemporalModel
from deepinv_astro.physics import ADI, Calibration, CalibrationReport
from deepinv_astro.physics.calibration import UNINFORMED
from deepinv_astro.physics.functional.psf import blur

_logger = logging.getLogger(__name__)

#: Makes the image ``(1, C, H, W)`` of a sequence ``(1, C, T, h, w)``.
Solver = Callable[[Tensor, ADI], Tensor]

#: Eigenvectors of each kind of parameter by which the scatter of the score is measured.
EIGENVECTORS = 12

#: Least of its variance over what is expected.
LEAST_SPREAD = 0.1

#: Most halvings of a step.
HALVINGS = 5

#: Error of the expanded likelihood that does not matter.
NEGLIGIBLE = 0.5


class CalibrationStep(NamedTuple):
    """One alternation of :func:`self_calibrate`."""

    #: Parameters after it, in their units, ``(n,)``.
    theta: Tensor
    #: Rise of the log-likelihood.
    rise: float
    #: Largest move of a parameter, in posterior standard deviations.
    move: float
    #: Fraction of the step of Fisher scoring that was taken.
    length: float


@dataclass(frozen=True, eq=False)
class SelfCalibration:
    """What :func:`self_calibrate` found."""

    #: Sky ``(1, C, H, W)``, reconstructed with the calibrated operator.
    image: Tensor
    #: The same with the operator as it was before.
    first: Tensor
    #: The calibrated operator.
    physics: ADI
    #: Values, errors, and what stayed at the prior.
    report: CalibrationReport
    #: Fisher information on the whitened coordinates, of the sequence and of calibration frames.
    information: Tensor
    #: What an uncertain calibration adds to the standard deviation of the image, ``(1, C, H, W)``.
    image_std: Tensor
    #: The same for the flux of a point source: the sum over the core of the PSF, ``(1, C, H, W)``.
    flux_std: Tensor
    #: The alternations.
    history: tuple[CalibrationStep, ...]
    #: Whether the last one moved little.
    converged: bool


def self_calibrate(
    y: Tensor,
    physics: ADI,
    calibration: Calibration,
    *,
    solver: Solver | None = None,
    terms: Sequence[Term] = (),
    smoothness: float = 0.2,
    probes: int = 4,
    threshold: float = UNINFORMED,
    max_iter: int = 8,
    tol: float = 0.25,
    generator: torch.Generator | None = None,
    callback: Callable[[int, CalibrationStep], None] | None = None,
) -> SelfCalibration:
    r"""Reconstruct a sequence and calibrate its operator, in turns.

    1. The image :math:`x` with the operator :math:`A_\theta` as it is, by ``solver``.
    2. A step of Fisher scoring on the likelihood of :math:`\theta` with the sky integrated out
       (:func:`~deepinv_astro.optim.adi_calibration.expand_evidence`): in whitened coordinates,

       .. math::

           (F + \Lambda)\, \Delta u = s - \Lambda (u - u_0), \qquad
           \Lambda = I + F_\mathrm{frames},

       with the sky that follows, shortened until the likelihood rises by at least half of what its
       expansion says. Directions of which posterior over prior standard deviation exceeds
       ``threshold`` are held at the prior.

    The scatter of :math:`s` is measured once for each kind of parameter: what reads it off the
    residual is turned about the star by quarter turns and mirrored, to seven places where the sky has
    nothing. :math:`s` and :math:`F` are divided by its standard deviation over the expected one, and by
    the square.

    Never a step on the misfit at the reconstructed image alone: that would prefer a PSF that is too
    sharp and explain errors of the image by the instrument.

    :param torch.Tensor y: sequence ``(1, C, T, h, w)``; NaN where nothing was measured.
    :param ADI physics: its operator; not changed.
    :param deepinv_astro.physics.Calibration calibration: what is free of it; left at the answer.
    :param Callable solver: makes images; default :class:`~deepinv_astro.optim.Marginal` with 60
        iterations in each stage. :class:`~deepinv_astro.optim.REXPACO` is another.
    :param list[Term] terms: calibration frames. They are fitted first; the posterior that they
        leave, in Laplace's approximation, is the prior for the sequence.
    :param float smoothness: strength of the sky's smoothness while it is integrated out.
    :param int probes: random vectors for the determinant.
    :param float threshold: see :class:`~deepinv_astro.physics.CalibrationReport`.
    :param int max_iter: most alternations.
    :param float tol: stop when no parameter moves by more than this many posterior standard
        deviations.
    :param torch.Generator generator: draws the probes; default seeded with 0.
    :param Callable callback: called after each alternation with its number and what it did.
    :return: (:class:`SelfCalibration`)
    :raises ValueError: if there is more than one sequence.

    |sep|

    :Examples:

        The star is half a pixel from where it was thought to be:

        >>> import torch
        >>> from deepinv_astro.physics import free_center
        >>> _ = torch.manual_seed(0)
        >>> u = torch.arange(-4.0, 5)
        >>> psf = torch.exp(-(u[:, None] ** 2 + u**2) / 3)
        >>> truth = ADI((1, 16, 15), torch.linspace(0, 160, 9), psf / psf.sum(), (8.5, 7.0))
        >>> x = torch.zeros(1, 1, 16, 15)
        >>> x[0, 0, 12, 5] = 900.0
        >>> y = truth.A(x) + torch.randn(1, 1, 9, 16, 15)
        >>> physics = truth.variant(center=torch.tensor([8.0, 7.0]))
        >>> found = self_calibrate(y, physics, Calibration(free_center((8.0, 7.0), 0.5)))
        >>> bool((found.report.values - torch.tensor([8.5, 7.0])).abs().max() < 0.1)
        True
    """
    if len(y) != 1:
        raise ValueError(f"one sequence at a time can be calibrated, got a batch of {len(y)}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be 1 or more, got {max_iter}")
    generator = generator or torch.Generator().manual_seed(0)
    shape = (probes, *physics.img_size)
    signs = torch.randint(2, shape, generator=generator, device=generator.device).to(y) * 2 - 1
    with torch.no_grad():
        problem = _Problem(y, physics, calibration, terms, smoothness, threshold)
        make = solver or Marginal(iterations=(60, 60))
        return problem.alternate(make, signs, max_iter, tol, callback)


class _Point(NamedTuple):
    """An image, and the likelihood about it."""

    image: Tensor
    sequence: Tensor
    speckles: SpeckleExpansion
    prior: SkyPrior
    evidence: Evidence


class _Problem:
    """One sequence, its operator, and what calibration frames said before."""

    def __init__(
        self,
        y: Tensor,
        physics: ADI,
        calibration: Calibration,
        terms: Sequence[Term],
        smoothness: float,
        threshold: float,
    ):
        self.y, self.calibration = without_dead_pixels(y), calibration
        self.smoothness, self.threshold = smoothness, threshold
        self.model = CalibratedADI(physics, copy.deepcopy(calibration))
        self.root = calibration.root.double()
        ends = [0, *itertools.accumulate(len(spec.labels) for spec in calibration.free)]
        self.kinds = [slice(*pair) for pair in itertools.pairwise(ends)]
        n = len(calibration.mean)
        self.frames = torch.zeros(n, n, dtype=torch.float64, device=self.root.device)
        if terms:
            with torch.enable_grad():
                self.frames = calibrate(calibration, terms, threshold=threshold).information
        self.known = calibration.u.detach().double().clone() if terms else self.frames[0] * 0
        self.precision = self.frames + torch.eye(n).to(self.frames)
        self.spread = torch.ones_like(self.known)

    def theta(self, u: Tensor) -> Tensor:
        return self.calibration.mean.double() + self.root @ u

    def at(self, image: Tensor, u: Tensor, signs: Tensor) -> _Point:
        theta = self.theta(u)
        physics = self.model.at(theta)
        temporal = TemporalModel.for_sequence(self.y, physics)
        residual = temporal.fill(self.y - physics.A(image))
        speckles = SpeckleExpansion(temporal(residual), residual, physics.filter)
        prior = SkyPrior.about(image, residual, physics, speckles, self.smoothness, temporal.fwhm)
        evidence = expand_evidence(self.model, theta, image, speckles, prior, signs)
        return _Point(image, residual + physics.A(image), speckles, prior, evidence)

    def information(self, evidence: Evidence) -> Tensor:
        """On whitened coordinates, with the scatter that was measured; of the sequence alone."""
        scaled = evidence.information / (self.spread[:, None] * self.spread)
        return self.root.T @ scaled @ self.root

    def measure_spread(self, point: _Point, u: Tensor) -> None:
        r"""Scatter of the score over what the information expects, for each kind of parameter.

        The mean, over places about the star and the best known eigenvectors :math:`v` of the
        information, of :math:`\langle E v, w \rangle^2 / \langle E v, M E v \rangle` with the filters
        :math:`E` of the score moved there.
        """
        physics = self.model.at(self.theta(u))
        self.spread.fill_(1.0)
        information, filters = self.information(point.evidence), point.evidence.filters(physics)
        star = physics.center[0].mean(0)
        for own in self.kinds:
            values, vectors = torch.linalg.eigh(information[own, own])
            some = vectors[:, values > 1e-3 * values[-1]][:, -EIGENVECTORS:]
            if some.shape[1]:
                read = torch.einsum(
                    "jk,j...->k...", (self.root[:, own] @ some).to(filters), filters
                )
                ratio = scatter(point.speckles, read, star)
                self.spread[own] = ratio.clamp_min(LEAST_SPREAD).sqrt()

    def cost(self, point: _Point, u: Tensor, move: Tensor) -> float:
        """Minus the log-likelihood at ``u`` + ``move``, the determinant bounded by its tangent."""
        evidence = point.evidence
        physics = self.model.at(self.theta(u + move))
        delta, symmetries = evidence.follow(self.root @ move)
        seen = physics.A(point.image + delta) + symmetries
        total = point.speckles.cost(point.sequence - seen)
        total += 0.5 * float((delta * point.prior(delta)).double().sum())
        inverse, z = evidence.probes
        if len(z):
            bent = point.speckles(physics.A(inverse))
            total += 0.5 * float((bent * physics.A(z)).double().sum()) / len(z)
        return total

    def shorten(self, point: _Point, u: Tensor, wanted: Tensor) -> tuple[float, float]:
        """Fraction of a step after which the likelihood rises as its expansion says, and its rise."""
        start = self.cost(point, u, 0 * wanted)
        slope = float(point.evidence.score @ (self.root @ wanted))
        bend = float((self.root @ wanted) @ point.evidence.information @ (self.root @ wanted)) / 2
        for k in range(HALVINGS + 1):
            length = 0.5**k
            rise = start - self.cost(point, u, wanted * length)
            expected = slope * length - bend * length**2
            if rise > expected - abs(expected) / 2 - NEGLIGIBLE:
                break
        return length, rise

    def step(self, point: _Point, u: Tensor) -> tuple[Tensor, CalibrationStep]:
        """Fisher scoring along the informed directions."""
        information = self.information(point.evidence) + self.frames
        report = self.calibration.report(information, self.threshold)
        self.calibration.keep(report.kept_directions)
        moving = report.directions[:, ~report.kept].double()
        u = moving @ (moving.T @ u)
        score = self.root.T @ (point.evidence.score / self.spread)
        score = score - self.precision @ (u - self.known)
        normal = moving.T @ (information + torch.eye(len(u)).to(u)) @ moving
        wanted = moving @ torch.linalg.solve(normal, moving.T @ score)
        length, rise = self.shorten(point, u, wanted)
        u = u + length * wanted
        std = torch.where(report.kept.all(), 1.0, report.posterior_std.double())
        move = float((self.root @ wanted / std).abs().max()) if moving.shape[1] else 0.0
        return u, CalibrationStep(self.theta(u), rise, move, length)

    def alternate(
        self,
        solver: Solver,
        signs: Tensor,
        max_iter: int,
        tol: float,
        callback: Callable[[int, CalibrationStep], None] | None,
    ) -> SelfCalibration:
        history: list[CalibrationStep] = []
        u = self.calibration.u.detach().double().clone()
        point, converged = self._solve(solver, u, signs), False
        first = point.image
        while len(history) < max_iter and not converged:
            if len(history) == 1:  # no longer far off
                self.measure_spread(point, u)
            u, step = self.step(point, u)
            history.append(step)
            _logger.debug("alternation %d: %s", len(history), step)
            if callback is not None:
                callback(len(history), step)
            converged = step.move < tol and (len(history) > 1 or step.move == 0)
            if converged:  # what was found about the point before holds
                image = solver(self.y, self.model.at(self.theta(u)))
                point = point._replace(image=image)
            else:
                point = self._solve(solver, u, signs)
        if len(history) == 1 and not converged:
            self.measure_spread(point, u)
        return self._result(point, first, u, tuple(history), converged)

    def _solve(self, solver: Solver, u: Tensor, signs: Tensor) -> _Point:
        image = solver(self.y, self.model.at(self.theta(u)))
        return self.at(image, u, signs)

    def _result(
        self,
        point: _Point,
        first: Tensor,
        u: Tensor,
        history: tuple[CalibrationStep, ...],
        converged: bool,
    ) -> SelfCalibration:
        information = self.information(point.evidence) + self.frames
        kept = self.calibration.report(information, self.threshold).kept_directions
        self.calibration.keep(kept)
        self.calibration.u.copy_(self.calibration.projector.double() @ u)
        report = self.calibration.report(information, self.threshold)
        root = covariance_root(report.covariance).to(point.image)
        errors = torch.einsum("jchw,jk->kchw", point.evidence.response, root)
        physics = self.model.at(report.values)
        fluxes = blur(errors, core(physics.filter))
        return SelfCalibration(
            point.image,
            first,
            physics,
            report,
            information,
            errors.square().sum(0, keepdim=True).sqrt(),
            fluxes.square().sum(0, keepdim=True).sqrt(),
            history,
            converged,
        )


def scatter(speckles: SpeckleExpansion, filters: Tensor, star: Tensor) -> Tensor:
    """Mean square of what filters read elsewhere about the star, over what is expected."""
    ratios = []
    for moved in quarter_turns(filters, star):
        found = (moved * speckles.score).double().sum((1, 2, 3, 4))
        expected = (moved * speckles(moved)).double().sum((1, 2, 3, 4))
        ratios.append(found.square() / expected.clamp_min(torch.finfo(torch.float64).tiny))
    return torch.stack(ratios).mean()


def quarter_turns(sequences: Tensor, star: Tensor) -> Iterator[Tensor]:
    """Frames turned about the star by quarter turns, and mirrored: seven others; zero from beyond the edge.

    :param torch.Tensor sequences: ``(N, C, T, h, w)``.
    :param torch.Tensor star: row and column, rounded to a pixel.

    |sep|

    :Examples:

        >>> import torch
        >>> frame = torch.zeros(1, 1, 1, 3, 4)
        >>> frame[..., 0, 2] = 1.0
        >>> turned = list(quarter_turns(frame, torch.tensor([1.0, 2.0])))
        >>> len(turned), [tuple(t[0, 0, 0].nonzero()[0].tolist()) for t in turned[:3]]
        (7, [(1, 1), (2, 2), (1, 3)])
    """
    height, width = sequences.shape[-2:]
    rows, columns = (
        torch.arange(size, device=sequences.device) - round(float(at))
        for size, at in zip((height, width), star, strict=True)
    )
    row, column = (part.flatten() for part in torch.meshgrid(rows, columns, indexing="ij"))
    padded = torch.nn.functional.pad(sequences.flatten(-2), (0, 1))
    for mirror in (False, True):
        r, c = (row, -column) if mirror else (row, column)
        for turns in range(4):
            if turns or mirror:
                down, across = r - rows[0], c - columns[0]
                inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
                place = torch.where(inside, down * width + across, height * width)
                yield padded[..., place].view_as(sequences)
            r, c = c, -r
