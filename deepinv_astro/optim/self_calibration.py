r"""Image and calibration of one sequence together, without a network."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.optim.adi_calibration import (
    Evidence,
    SkyPrior,
    SpeckleExpansion,
    expand_evidence,
)
from deepinv_astro.optim.adi_tangents import CalibratedADI, covariance_root
from deepinv_astro.optim.calibration import Term, calibrate
from deepinv_astro.optim.marginal import Marginal
from deepinv_astro.optim.missing import without_dead_pixels
from deepinv_astro.optim.temporal import TemporalModel
from deepinv_astro.physics import ADI, Calibration, CalibrationReport
from deepinv_astro.physics.calibration import UNINFORMED

_logger = logging.getLogger(__name__)

#: Makes the image ``(1, C, H, W)`` of a sequence ``(1, C, T, h, w)``.
Solver = Callable[[Tensor, ADI], Tensor]

#: Places about the star where the scatter of the score is measured.
PLACES = 5

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
    #: The calibrated operator.
    physics: ADI
    #: Values, errors, and what stayed at the prior.
    report: CalibrationReport
    #: Fisher information on the whitened coordinates, of the sequence and of calibration frames.
    information: Tensor
    #: What an uncertain calibration adds to the standard deviation of the image, ``(1, C, H, W)``.
    image_std: Tensor
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

    The scatter of :math:`s` is measured once for each kind of parameter, by the score of the same
    sky turned to other places about the star, where there is none: :math:`s` and :math:`F` are divided
    by its standard deviation over the expected one, and by the square.

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
        prior = SkyPrior.about(image, residual, physics, speckles, self.smoothness)
        evidence = expand_evidence(self.model, theta, image, speckles, prior, signs)
        return _Point(image, residual + physics.A(image), speckles, prior, evidence)

    def information(self, evidence: Evidence) -> Tensor:
        """On whitened coordinates, with the scatter that was measured; of the sequence alone."""
        scaled = evidence.information / (self.spread[:, None] * self.spread)
        return self.root.T @ scaled @ self.root

    def measure_spread(self, point: _Point, u: Tensor) -> None:
        r"""Scatter of the score over what the information expects, for each kind of parameter.

        With the sky of ``point`` turned to other places about the star, where there is none: the
        same brightness and structure, the same residual. The mean of :math:`(v_k^\top s)^2 / f_k` over
        the eigenvectors of the information and the places.
        """
        self.spread.fill_(1.0)
        none = point.evidence.probes[0, :0]
        found: list[list[Tensor]] = [[] for _ in self.calibration.free]
        for k in range(PLACES):
            turn = 360.0 * (k + 1) / (PLACES + 1)
            model = CalibratedADI(self.model.physics, self.model.calibration, turn)
            evidence = expand_evidence(
                model, self.theta(u), point.image, point.speckles, point.prior, none
            )
            information, score = self.information(evidence), self.root.T @ evidence.score
            for own, ratios in zip(self.kinds, found, strict=True):
                values, vectors = torch.linalg.eigh(information[own, own])
                some = values > 1e-3 * values[-1]
                ratios.append((vectors.T @ score[own])[some].square() / values[some])
        for own, ratios in zip(self.kinds, found, strict=True):
            self.spread[own] = torch.cat(ratios).mean().clamp_min(LEAST_SPREAD).sqrt()

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
        point = self._solve(solver, u, signs)
        while len(history) < max_iter:
            if len(history) == 1:  # no longer far off
                self.measure_spread(point, u)
            u, step = self.step(point, u)
            history.append(step)
            _logger.debug("alternation %d: %s", len(history), step)
            if callback is not None:
                callback(len(history), step)
            point = self._solve(solver, u, signs)
            if step.move < tol:
                break
        return self._result(point, u, tuple(history), history[-1].move < tol)

    def _solve(self, solver: Solver, u: Tensor, signs: Tensor) -> _Point:
        image = solver(self.y, self.model.at(self.theta(u)))
        return self.at(image, u, signs)

    def _result(
        self, point: _Point, u: Tensor, history: tuple[CalibrationStep, ...], converged: bool
    ) -> SelfCalibration:
        information = self.information(point.evidence) + self.frames
        kept = self.calibration.report(information, self.threshold).kept_directions
        self.calibration.keep(kept)
        self.calibration.u.copy_(self.calibration.projector.double() @ u)
        report = self.calibration.report(information, self.threshold)
        root = covariance_root(report.covariance).to(point.image)
        errors = torch.einsum("jchw,jk->kchw", point.evidence.response, root)
        return SelfCalibration(
            point.image,
            self.model.at(report.values),
            report,
            information,
            errors.square().sum(0, keepdim=True).sqrt(),
            history,
            converged,
        )
