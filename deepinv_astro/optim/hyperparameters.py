r"""Choice of the strength of a prior by an unbiased estimate of the risk, under a frozen covariance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """A strength chosen among candidates.

    :param tuple candidates: strengths tried, in increasing order.
    :param tuple risks: estimated risk of each, up to a common constant.
    :param float choice: the candidate of least risk.
    """

    candidates: tuple[float, ...]
    risks: tuple[float, ...]
    choice: float

    @classmethod
    def of(cls, candidates: Sequence[float], risks: Tensor) -> Selection:
        """The least of some risks ``(candidates,)``; a choice at an end of the range is logged as a warning."""
        best = int(risks.argmin())
        if len(candidates) > 1 and best in (0, len(candidates) - 1):
            _logger.warning(
                "the least risk is at an end of the candidates, %g: widen the range",
                candidates[best],
            )
        return cls(tuple(candidates), tuple(risks.tolist()), candidates[best])


def sign_flipped(residual: Tensor, generator: torch.Generator) -> Tensor:
    r"""Noise with the spatial covariance of a residual: its temporal eigenmodes with random signs.

    .. math::

        b = U \operatorname{diag}(s)\, U^\top (r - \bar r), \qquad s_k = \pm 1,

    with :math:`U` the eigenvectors of the temporal covariance of each image and wavelength and
    :math:`\bar r` the temporal mean. Over the signs,
    :math:`E \sum_t b_t b_t^\top = \sum_t (r_t - \bar r)(r_t - \bar r)^\top` exactly.

    :param torch.Tensor residual: ``(B, C, T, h, w)``; where it is NaN the noise is zero.
    :param torch.Generator generator: draws the signs.
    :return: (:class:`torch.Tensor`) one draw, shape of ``residual``.

    |sep|

    :Examples:

        >>> import torch
        >>> r = torch.tensor([1.0, -1.0, 0.0, 0.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 1, 2)
        >>> b = sign_flipped(r, torch.Generator().manual_seed(0))
        >>> b[0, 0, :, 0, 1].abs().round()
        tensor([1., 1., 0., 0.])
    """
    centred = residual - residual.nanmean(2, keepdim=True)
    valid = centred.isfinite()
    rows = torch.where(valid, centred, 0).flatten(-2)
    modes = torch.linalg.eigh((rows @ rows.mT).double())[1].to(rows)
    shape = modes.shape[:2] + modes.shape[-1:]
    signs = torch.randint(2, shape, generator=generator, device=generator.device).to(rows) * 2 - 1
    flipped = (modes * signs[..., None, :]) @ (modes.mT @ rows)
    return flipped.view_as(residual) * valid


def estimate_risks(
    reconstruct: Callable[[Tensor, float], Tensor],
    y: Tensor,
    physics: LinearPhysics,
    likelihood: Callable[[Tensor], tuple[Tensor, Tensor]],
    candidates: Sequence[float],
    probes: Sequence[Tensor],
    step: float = 0.1,
) -> Tensor:
    r"""Risk in the data space, whitened by a frozen covariance (SURE with correlated noise; Eldar 2009).

    With the quadratic cost :math:`J(r) = \frac12 \|r\|_P^2`, its gradient :math:`g(r) = P r`, and
    noise probes
    :math:`b` of covariance :math:`\Sigma`,

    .. math::

        R(\kappa) = 2 J(y - A x_\kappa) + \frac2\tau \left\langle b,\;
        g(y - A x_\kappa(y)) - g(y - A x_\kappa(y + \tau b)) \right\rangle

    is, up to a constant and the error of the finite difference, an unbiased estimate of
    :math:`E\|A (x_\kappa - x)\|_P^2`.

    The covariance must be a FROZEN pilot, the same for all candidates and in ``reconstruct``. With
    a covariance that is refitted on the residual of each candidate, the whitened residual has the
    same size whatever the image, and the risk selects :math:`x = 0` or is flat.

    :param Callable reconstruct: maps data and a strength to an image, with the covariance frozen.
    :param torch.Tensor y: ``(B, C, T, h, w)``.
    :param deepinv.physics.LinearPhysics physics: the operator :math:`A`.
    :param Callable likelihood: maps a residual to its cost ``(B,)``, quadratic in the residual,
        and its gradient, e.g.
        :meth:`deepinv_astro.optim.nuisance.PatchLikelihood.of_residual`.
    :param Sequence candidates: strengths to try, positive and increasing.
    :param Sequence probes: draws of the noise, e.g. from :func:`sign_flipped`; the same are used
        for all candidates.
    :param float step: :math:`\tau`, relative to the noise.
    :return: (:class:`torch.Tensor`) risks ``(candidates,)`` in double precision, summed over the
        batch.
    :raises ValueError: if there is no candidate or no probe.
    """
    if not candidates or list(candidates) != sorted(candidates):
        raise ValueError(
            f"candidates must be one or more increasing strengths, got {list(candidates)}"
        )
    if not probes:
        raise ValueError("at least one probe of the noise is needed: see sign_flipped")
    risks = []
    for strength in candidates:
        cost, slope = likelihood(y - physics.A(reconstruct(y, strength)))
        divergence = 0.0
        for probe in probes:
            moved = y + step * probe
            change = slope - likelihood(y - physics.A(reconstruct(moved, strength)))[1]
            divergence += float((probe * change).double().sum()) / step
        risks.append(2 * float(cost.sum()) + 2 * divergence / len(probes))
    return torch.tensor(risks, dtype=torch.float64)


def select_strength(
    reconstruct: Callable[[Tensor, float], Tensor],
    y: Tensor,
    physics: LinearPhysics,
    likelihood: Callable[[Tensor], tuple[Tensor, Tensor]],
    candidates: Sequence[float],
    probes: Sequence[Tensor],
    step: float = 0.1,
) -> Selection:
    r"""The strength of least estimated risk; arguments as in :func:`estimate_risks`.

    :return: (:class:`Selection`) candidates, risks and choice.

    |sep|

    :Examples:

        White noise of variance one on three pixels, and the estimate :math:`y/(1+\kappa)`:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> y = torch.tensor([3.0, 0.0, 2.0]).view(1, 1, 1, 1, 3)
        >>> probe = torch.tensor([1.0, -1.0, 1.0]).view(1, 1, 1, 1, 3)
        >>> found = select_strength(
        ...     lambda data, strength: data / (1 + strength),
        ...     y,
        ...     Denoising(),
        ...     lambda r: (0.5 * r.square().sum().view(1), r),
        ...     [0.1, 0.3, 1.0],
        ...     [probe],
        ... )
        >>> found.choice
        0.3
    """
    return Selection.of(
        candidates, estimate_risks(reconstruct, y, physics, likelihood, candidates, probes, step)
    )
