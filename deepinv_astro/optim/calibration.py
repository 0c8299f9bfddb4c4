r"""Calibration of an operator from measurements: likelihoods that see no image, and their solver."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepinv_astro.physics.calibration import UNINFORMED, Calibration, CalibrationReport

#: In prior standard deviations: longer steps leave the region where the information is valid.
LONGEST_STEP = 0.5


class CalibrationLikelihood(nn.Module):
    r"""Minus the logarithm of :math:`p(y \mid \theta, z)`, with the image integrated out.

    Subclasses hold their own nuisance parameters :math:`z` in the single learned vector
    ``nuisance``, in coordinates where the (broad) prior is :math:`\mathcal N(0, I)`, and define
    two functions of the operator's values and of :math:`z`:

    - :meth:`cost`, minus the logarithm of the likelihood, one number for each measurement;
    - :meth:`features`, a vector :math:`\phi` whose Jacobian gives the Fisher information,
      :math:`F = (\partial\phi)^\top (\partial\phi)`.

    :param int size: number of nuisance parameters.
    """

    def __init__(self, size: int):
        super().__init__()
        self.nuisance = nn.Parameter(torch.zeros(size))

    def cost(self, values: Mapping[str, Tensor], y: Tensor, nuisance: Tensor) -> Tensor:
        """Minus the log-likelihood of each measurement of ``y``, ``(B,)``."""
        raise NotImplementedError

    def features(self, values: Mapping[str, Tensor], y: Tensor, nuisance: Tensor) -> Tensor:
        """A vector whose Jacobian, squared, is the Fisher information of all of ``y``."""
        raise NotImplementedError


class Term(NamedTuple):
    """Measurements and their likelihood."""

    likelihood: CalibrationLikelihood
    y: Tensor


@dataclass(frozen=True, eq=False)
class CalibrationFit:
    """Where :func:`calibrate` stopped."""

    #: Values, errors, and what stayed at the prior.
    report: CalibrationReport
    #: Fisher information on the whitened coordinates, nuisances integrated out, ``(n, n)``.
    information: Tensor
    #: Minus the logarithm of the posterior.
    cost: float
    #: Steps taken.
    iterations: int


def calibrate(
    calibration: Calibration,
    terms: Sequence[Term],
    *,
    threshold: float = UNINFORMED,
    max_iter: int = 100,
    tol: float = 1e-6,
) -> CalibrationFit:
    r"""Fit the free parameters of an operator to measurements.

    .. math::

        \min_{u, z}\; \sum_i -\ln p_i(y_i \mid \theta(u), z_i) + \tfrac12 \|u\|^2 + \tfrac12 \|z\|^2

    by Fisher scoring with Levenberg's damping, in double precision. First with all directions free;
    those that the data do not inform (:meth:`Calibration.report
    <deepinv_astro.physics.Calibration.report>`) are then held at the prior mean, and the rest is
    fitted again. ``calibration`` and the nuisances of the likelihoods are changed in place.

    :param deepinv_astro.physics.Calibration calibration: the free parameters, where the search
        starts.
    :param list[Term] terms: measurements with their likelihoods.
    :param float threshold: largest ratio of the posterior to the prior standard deviation at which
        a direction may move.
    :param int max_iter: most steps of each of the two fits.
    :param float tol: stop when a step promises to lower the cost by less.
    :return: (:class:`CalibrationFit`) report, information, cost.
    :raises ValueError: if there are no terms, or if the cost is not finite at the start.

    |sep|

    :Examples:

        A PSF of 1.5 px known to be 1.8 px, from one stamp of a star:

        >>> import torch
        >>> from deepinv_astro.optim import CalibrationFrames, Term, calibrate
        >>> from deepinv_astro.physics import Calibration, Free
        >>> def psf(width):
        ...     r = torch.arange(-7, 8).to(width)
        ...     h = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * width**2))
        ...     return h / h.sum()
        >>> stamp = 50 * psf(torch.tensor(1.5)).roll(1, 0) + 3
        >>> calibration = Calibration(Free("filter", torch.tensor(1.8), std=0.36, link=psf))
        >>> fit = calibrate(
        ...     calibration, [Term(CalibrationFrames(1, noise=0.01), stamp[None, None])]
        ... )
        >>> round(float(fit.report.values), 3), bool(fit.report.posterior_std < 0.01)
        (1.5, True)
    """
    if not terms:
        raise ValueError("give one term or more: measurements with their likelihoods")
    problem = _Problem(calibration, terms)
    problem.calibration.keep(problem.calibration.root[:, :0])
    start = torch.cat([c.detach().double() for c in _coordinates(calibration, terms)])
    free, _, steps = problem.minimize(start, max_iter, tol)
    size = len(calibration.u)
    information = problem.marginal_information(free)
    problem.move(free)
    kept = problem.calibration.report(information, threshold).kept_directions
    problem.calibration.keep(kept)
    found, cost, more = problem.minimize(free, max_iter, tol)
    with torch.no_grad():
        # held directions of u have no effect: put them where the prior wants them
        found[:size] = problem.calibration.projector @ found[:size]
        problem.move(found)
        calibration.keep(kept)
        for target, value in zip(
            _coordinates(calibration, terms), problem.split(found), strict=True
        ):
            target.copy_(value)
    return CalibrationFit(
        problem.calibration.report(information, threshold), information, cost, steps + more
    )


def fisher_information(calibration: Calibration, terms: Sequence[Term]) -> Tensor:
    r"""Fisher information of measurements on the whitened coordinates, where they are now.

    .. math::

        F = F_{uu} - F_{uz} (F_{zz} + I)^{-1} F_{zu}

    with the nuisances :math:`z` of the likelihoods integrated out; the prior of :math:`u` is not
    included. Directions that the calibration holds have no information.

    :param deepinv_astro.physics.Calibration calibration: the free parameters.
    :param list[Term] terms: measurements with their likelihoods.
    :return: (:class:`torch.Tensor`) ``(n, n)``, double precision.
    """
    problem = _Problem(calibration, terms)
    return problem.marginal_information(
        torch.cat([c.detach().double() for c in _coordinates(calibration, terms)])
    )


def _coordinates(calibration: Calibration, terms: Sequence[Term]) -> list[Tensor]:
    return [calibration.u, *(term.likelihood.nuisance for term in terms)]


class _Problem:
    """Cost, gradient and information of all coordinates (u, z_1, z_2, ...), in double precision."""

    def __init__(self, calibration: Calibration, terms: Sequence[Term]):
        self.calibration: Calibration = copy.deepcopy(calibration).double()
        self.terms = [Term(copy.deepcopy(t.likelihood).double(), t.y.double()) for t in terms]
        self.sizes = [c.numel() for c in _coordinates(calibration, terms)]

    def split(self, point: Tensor) -> list[Tensor]:
        return list(point.split(self.sizes))

    def move(self, point: Tensor) -> None:
        with torch.no_grad():
            self.calibration.u.copy_(point[: self.sizes[0]])

    def cost(self, point: Tensor) -> Tensor:
        u, *nuisances = self.split(point)
        values = self.calibration.at(u)
        total = point.square().sum() / 2
        for term, nuisance in zip(self.terms, nuisances, strict=True):
            total = total + term.likelihood.cost(values, term.y, nuisance).sum()
        return total

    def gradient(self, point: Tensor) -> Tensor:
        leaf = point.clone().requires_grad_()
        return torch.autograd.grad(self.cost(leaf), leaf)[0]

    def information(self, point: Tensor) -> Tensor:
        """Of all coordinates, without the priors."""
        total = torch.zeros(len(point), len(point)).to(point)
        first = self.sizes[0]
        for k, term in enumerate(self.terms):
            end = first + self.sizes[k + 1]
            mine = torch.cat([torch.arange(self.sizes[0]), torch.arange(first, end)])

            def features(part: Tensor, term: Term = term) -> Tensor:
                u, nuisance = part[: self.sizes[0]], part[self.sizes[0] :]
                return term.likelihood.features(self.calibration.at(u), term.y, nuisance).flatten()

            jacobian = _jacobian(features, point[mine])
            total[mine[:, None], mine] += jacobian.T @ jacobian
            first = end
        return total

    def marginal_information(self, point: Tensor) -> Tensor:
        whole, n = self.information(point), self.sizes[0]
        nuisance = whole[n:, n:] + torch.eye(len(point) - n).to(point)
        cross = whole[:n, n:]
        return whole[:n, :n] - cross @ torch.linalg.solve(nuisance, cross.T)

    def minimize(self, start: Tensor, max_iter: int, tol: float) -> tuple[Tensor, float, int]:
        point, damping = start, 1e-3
        with torch.no_grad():
            cost = float(self.cost(point))
        if not cost < torch.inf:
            raise ValueError(f"the cost is {cost} at the start: check the measurements for NaN")
        for step in range(max_iter):
            gradient = self.gradient(point)
            curvature = self.information(point) + torch.eye(len(point)).to(point)
            while damping < 1e12:
                damped = curvature + damping * curvature.diagonal().diag()
                move = -torch.linalg.solve(damped, gradient)
                move = move / max(float(move.abs().max()) / LONGEST_STEP, 1.0)
                with torch.no_grad():
                    trial = float(self.cost(point + move))
                if trial <= cost:
                    break
                damping *= 4
            promised = -float(gradient @ move) / 2  # of a quadratic
            if damping >= 1e12 or promised < tol:
                return point, cost, step
            point, cost, damping = point + move, trial, max(damping / 8, 1e-9)
        return point, cost, max_iter


def _jacobian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    r"""Jacobian :math:`J` of few inputs and many outputs: :math:`J^\top w` is differentiated in :math:`w`."""
    leaf = point.clone().requires_grad_()
    out = function(leaf)
    w = torch.zeros_like(out, requires_grad=True)
    (transposed,) = torch.autograd.grad(out, leaf, w, create_graph=True)
    columns = [
        torch.autograd.grad(entry, w, retain_graph=True, materialize_grads=True)[0]
        for entry in transposed
    ]
    return torch.stack(columns, 1).detach()
