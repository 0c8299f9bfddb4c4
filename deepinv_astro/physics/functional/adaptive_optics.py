r"""Long exposures through turbulence, with or without adaptive optics."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import j0, j1
from torch import Tensor

from deepinv_astro.physics.functional.pupil_psf import otf_psf, pupil_otf

__all__ = [
    "ResidualPhase",
    "adaptive_optics_psf",
    "residual_psd",
    "residual_variance",
    "structure_function",
]

Scalar = Tensor | float
Array = NDArray[np.float64]

#: Structure function of Kolmogorov's turbulence at one Fried parameter, 6.88, and from it the
#: constant of its spectrum, 0.0229.
KOLMOGOROV = 2 * (24 / 5 * math.gamma(6 / 5)) ** (5 / 6)
SPECTRUM = KOLMOGOROV * math.gamma(11 / 6) ** 2 / (4 * math.pi ** (11 / 3))
# How much finer the quadrature of the core is at frequency zero than at the cutoff, as a sinh.
_STRETCH = 3.0
# Below this width of the core, in cycles per diameter, that quadrature is too coarse.
_NARROWEST = 0.05


class ResidualPhase(NamedTuple):
    r"""Power spectrum of the phase that adaptive optics leave, of PSFAO (Fétick et al. 2019).

    .. math::

        W(f) = \begin{cases}
        \dfrac{A\, (\beta - 1)}{\pi \alpha^2\, N}
        \left( 1 + \dfrac{\varrho^2}{\alpha^2} \right)^{-\beta} + C & |f| \le f_c \\
        0.0229\; r_0^{-5/3}\, |f|^{-11/3} & |f| > f_c
        \end{cases}
        \qquad N = 1 - \left( 1 + \frac{f_c^2}{\alpha^2} \right)^{1 - \beta}

    a Moffat function inside the cutoff :math:`f_c` of the deformable mirror (half its actuators,
    in cycles per diameter), Kolmogorov's turbulence outside. Lengths are in pupil diameters,
    frequencies in cycles per diameter: a paper's :math:`r_0` in metres is divided by :math:`D`, its
    :math:`\alpha` in m\ :sup:`-1` multiplied by :math:`D`, its :math:`C` in rad² m² divided by
    :math:`D^2`. Each field is a number or a tensor, to broadcast; shape ``(C,)`` for channels.

    :param fried: Fried parameter :math:`r_0 / D` at the wavelength of the image.
    :param core_variance: :math:`A`, rad²; the variance of the core where ``ratio`` is 1.
    :param core_width: :math:`\alpha`, geometric mean of both axes; at least 0.05 on each. The
        structure function is exact to 0.02 % from 0.1 on, and to 0.1 % at
        0.05 for :math:`\beta < 2.5`.
    :param core_slope: :math:`\beta > 1`.
    :param plateau: :math:`C`, uniform part, rad² per (cycle per diameter)².
    :param ratio: of the widths :math:`\alpha` across and along the direction ``angle``, in
        :math:`\varrho^2 = q\, f_\text{along}^2 + f_\text{across}^2 / q`.
    :param angle: degrees from the column axis towards the row axis.

    |sep|

    :Examples:

        >>> residual = ResidualPhase(fried=0.02, core_variance=0.5, core_width=0.4, core_slope=1.6)
        >>> longer = residual.at(2.0)
        >>> round(longer.fried, 4), longer.core_variance
        (0.0459, 0.125)
    """

    fried: Scalar
    core_variance: Scalar = 0.0
    core_width: Scalar = 1.0
    core_slope: Scalar = 1.5
    plateau: Scalar = 0.0
    ratio: Scalar = 1.0
    angle: Scalar = 0.0

    def at(self, ratio: Scalar) -> ResidualPhase:
        r"""The same path differences seen at another wavelength, :math:`\lambda' = x \lambda`.

        .. math::

            r_0' = x^{6/5} r_0, \qquad A' = A / x^2, \qquad C' = C / x^2

        :param torch.Tensor, float ratio: :math:`x`; ``(C,)`` for several channels.
        :return: (:class:`ResidualPhase`).
        """
        return self._replace(
            fried=self.fried * ratio**1.2,
            core_variance=self.core_variance / ratio**2,
            plateau=self.plateau / ratio**2,
        )


def residual_psd(residual: ResidualPhase, cutoff: float, row: Tensor, column: Tensor) -> Tensor:
    r"""Power spectrum :math:`W(f)` of :class:`ResidualPhase`.

    :param ResidualPhase residual: its parameters.
    :param float cutoff: :math:`f_c` in cycles per diameter; the disc includes its edge.
    :param torch.Tensor row: frequencies along rows, in cycles per diameter, not all zero.
    :param torch.Tensor column: frequencies along columns, to broadcast with ``row``.
    :return: (:class:`torch.Tensor`) rad² per (cycle per diameter)².

    |sep|

    :Examples:

        >>> import torch
        >>> f = torch.tensor([0.5, 9.0, 11.0])
        >>> residual = ResidualPhase(0.1, 0.5, 0.4, 1.6)
        >>> [f"{w:.1e}" for w in residual_psd(residual, 10.0, torch.zeros(3), f).tolist()]
        ['1.4e-01', '2.9e-05', '1.6e-04']
    """
    p = ResidualPhase(*_like(residual, row))
    radius = torch.hypot(row, column).broadcast_to(torch.broadcast_shapes(row.shape, column.shape))
    halo = SPECTRUM * p.fried ** (-5 / 3) * radius.clamp_min(max(cutoff, 1e-9)) ** (-11 / 3)
    if cutoff == 0:
        return halo
    return torch.where(radius <= cutoff, _core_psd(p, cutoff, row, column) + p.plateau, halo)


def residual_variance(residual: ResidualPhase, cutoff: float) -> Tensor:
    r"""Variance of the residual phase, :math:`A + \pi f_c^2 C + \tfrac{6\pi}{5} 0.0229 (r_0 f_c)^{-5/3}`.

    Its negative exponential is about the Strehl ratio (Maréchal).

    :param ResidualPhase residual: parameters of the spectrum; exact where ``ratio`` is 1.
    :param float cutoff: :math:`f_c > 0` in cycles per diameter.
    :return: (:class:`torch.Tensor`) rad².
    :raises ValueError: if the cutoff is not positive: the variance is infinite.

    |sep|

    :Examples:

        >>> round(float(residual_variance(ResidualPhase(0.05, 0.3, 0.4, 1.6), 20.0)), 3)
        0.386
    """
    if cutoff <= 0:
        raise ValueError(f"without correction the variance is infinite, got cutoff={cutoff}")
    p = residual
    halo = 1.2 * math.pi * SPECTRUM * (torch.as_tensor(p.fried) * cutoff) ** (-5 / 3)
    return p.core_variance + math.pi * cutoff**2 * p.plateau + halo


def structure_function(residual: ResidualPhase, cutoff: float, size: int) -> Tensor:
    r"""Structure function of the residual phase, the mean square of its differences.

    .. math::

        D(\rho) = 2 \int W(f)\, [1 - \cos(2\pi f \cdot \rho)]\, d^2 f
        \;\xrightarrow{f_c \to 0}\; 6.88\, (\rho / r_0)^{5/3}

    The Moffat core by a quadrature that is finer towards frequency zero; the uniform part and the
    halo in closed form or as an integral over the radius, so that the halo does not end at
    the highest frequency of the grid.

    :param ResidualPhase residual: parameters of the spectrum; tensors of one leading shape.
    :param float cutoff: :math:`f_c` in cycles per diameter; 0 for turbulence without correction.
    :param int size: pixels :math:`n` across the pupil.
    :return: (:class:`torch.Tensor`) rad², ``(..., 2 n - 1, 2 n - 1)``, separation zero in the
        middle, in the precision of the parameters.
    :raises ValueError: if the cutoff is negative, a width or Fried parameter not positive, or
        the slope not above 1.

    |sep|

    :Examples:

        Seeing alone, half a diameter apart:

        >>> d = structure_function(ResidualPhase(fried=0.5), 0.0, 4)
        >>> round(float(d[3, 5]), 2)
        6.88
    """
    if cutoff < 0:
        raise ValueError(f"cutoff is in cycles per diameter and must not be negative, got {cutoff}")
    given = [v for v in residual if isinstance(v, Tensor)]
    like = given[0] if given else torch.empty(())
    p = ResidualPhase(*(v[..., None, None] for v in _like(residual, like)))
    _check(p)
    seeing, disc = (torch.from_numpy(t).to(like) for t in _fixed_parts(float(cutoff), size))
    halo = p.fried ** (-5 / 3) * seeing
    if cutoff == 0:
        return halo
    return halo + p.plateau * disc + _core_structure(p, cutoff, size)


def adaptive_optics_psf(
    shape: tuple[int, int],
    pupil: Tensor,
    sampling: Tensor | float,
    residual: ResidualPhase,
    cutoff: float,
    *,
    phase: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    r"""PSF of a long exposure behind adaptive optics (PSFAO, Fétick et al. 2019).

    .. math::

        \tilde h(\nu) = \tilde h_\text{static}(\nu)\; e^{-D(\nu) / 2}

    with the transfer function of the pupil and its static aberrations, and :math:`D` of
    :func:`structure_function`. Integrated over the pixels, unit sum over the stamp: the halo
    beyond it is not counted.

    :param tuple shape: rows and columns of the stamp.
    :param torch.Tensor pupil: ``(n, n)`` of
        :func:`~deepinv_astro.physics.functional.pupil.telescope_pupil`.
    :param torch.Tensor, float sampling: :math:`\lambda / D` in pixels; ``(C,)`` for several
        channels, with ``residual.at(wavelengths / wavelengths[0])``.
    :param ResidualPhase residual: spectrum of the residual phase.
    :param float cutoff: :math:`f_c`, half the number of actuators across the pupil; a constant of
        the instrument, 0 for no correction.
    :param torch.Tensor phase: static aberration in radians, ``(..., n, n)``.
    :param torch.Tensor offset: row and column of the star from ``(k // 2, l // 2)``, ``(..., 2)``.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)``, differentiable in all but the cutoff.
    :raises ValueError: as :func:`structure_function` and
        :func:`~deepinv_astro.physics.functional.pupil_psf.otf_psf`.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics.functional.pupil import telescope_pupil
        >>> residual = ResidualPhase(torch.tensor([0.02, 0.04]), 0.5, 0.4, 1.6)
        >>> psf = adaptive_optics_psf((41, 35), telescope_pupil(32), 2.0, residual, 10.0)
        >>> psf.shape, bool(psf[1].max() > psf[0].max())
        (torch.Size([2, 41, 35]), True)
    """
    spread = structure_function(residual, cutoff, pupil.shape[-1])
    otf = pupil_otf(pupil, phase) * torch.exp(-spread / 2)
    return otf_psf(shape, otf, sampling, offset=offset)


def _like(residual: ResidualPhase, like: Tensor) -> list[Tensor]:
    """Parameters as tensors in the precision and on the device of another."""
    return [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in residual]


def _check(p: ResidualPhase) -> None:
    for name in ("fried", "core_width", "ratio"):
        value = getattr(p, name)
        if not bool((value > 0).all()):
            raise ValueError(f"{name} must be positive, got {value.flatten().tolist()}")
    q = torch.as_tensor(p.ratio)
    narrow = torch.as_tensor(p.core_width) * torch.minimum(q, 1 / q).sqrt()
    if not bool((narrow >= _NARROWEST).all()):
        raise ValueError(
            f"core_width must be at least {_NARROWEST} cycles per diameter on both axes: what is "
            f"narrower is a jitter of the star, got {float(narrow.min()):g}"
        )
    if not bool((torch.as_tensor(p.core_slope) > 1).all()):
        raise ValueError(f"core_slope must be above 1 for a finite variance, got {p.core_slope}")


def _core_psd(p: ResidualPhase, cutoff: float, row: Tensor, column: Tensor) -> Tensor:
    """Moffat function, not cut."""
    turn = torch.deg2rad(torch.as_tensor(p.angle))
    along = column * torch.cos(turn) + row * torch.sin(turn)
    across = row * torch.cos(turn) - column * torch.sin(turn)
    alpha2 = p.core_width**2
    radius2 = p.ratio * along**2 + across**2 / p.ratio
    inside = 1 - (1 + cutoff**2 / alpha2) ** (1 - p.core_slope)
    height = p.core_variance * (p.core_slope - 1) / (math.pi * alpha2 * inside)
    return height * (1 + radius2 / alpha2) ** (-p.core_slope)


def _core_structure(p: ResidualPhase, cutoff: float, size: int) -> Tensor:
    """2 sum W (1 - cos) over the half plane of frequencies, as products of matrices."""
    like = torch.as_tensor(p.fried)
    f, weight, inside, nu = (torch.from_numpy(t).to(like) for t in _quadrature(float(cutoff), size))
    half = f >= 0  # W(-f) = W(f); the middle line of the half plane counts half
    w = weight[half] * torch.where(f[half] == 0, 1.0, 2.0)
    spectrum = _core_psd(p, cutoff, f[half][:, None], f) * inside[half]
    spectrum = spectrum * w[:, None] * weight
    rows, columns = 2 * math.pi * nu[:, None] * f[half], 2 * math.pi * nu[:, None] * f
    covariance = torch.cos(rows) @ spectrum @ torch.cos(columns).mT
    covariance = covariance - torch.sin(rows) @ spectrum @ torch.sin(columns).mT
    return 2 * (spectrum.sum(dim=(-2, -1), keepdim=True) - covariance)


@lru_cache(maxsize=8)
def _quadrature(cutoff: float, size: int) -> tuple[Array, Array, Array, Array]:
    """Frequencies of an axis, their weights, the share of each cell in the disc, separations.

    The steps follow a sinh; at the cutoff they are at most 0.3 cycles per diameter, which samples the
    cosines of the largest separations.
    """
    steps = max(64, math.ceil(_STRETCH / math.tanh(_STRETCH) * cutoff / 0.3))
    grid = np.arange(-steps - 1, steps + 2) / steps
    scale = cutoff / math.sinh(_STRETCH)
    f = scale * np.sinh(_STRETCH * grid)
    weight = scale * _STRETCH * np.cosh(_STRETCH * grid) / steps
    radius = np.hypot(f[:, None], f).clip(1e-12)
    # length along the radius of the cell that the circle may cross
    cell = np.hypot(weight[:, None] * f[:, None], weight * f) / radius
    inside = ((cutoff - radius) / cell.clip(1e-12) + 0.5).clip(0, 1)
    return f, weight, inside, _separations(size)


@lru_cache(maxsize=8)
def _fixed_parts(cutoff: float, size: int) -> tuple[Array, Array]:
    """Structure functions of the halo for a unit Fried parameter and of a unit plateau."""
    nu = _separations(size)
    rho = np.hypot(nu[:, None], nu)
    seeing = KOLMOGOROV * rho ** (5 / 3)
    x = 2 * math.pi * cutoff * rho
    if cutoff > 0:
        distinct, place = np.unique(x, return_inverse=True)
        low = 4 * math.pi * SPECTRUM * cutoff ** (-5 / 3) * _low_part(distinct)
        seeing = seeing - low[place.reshape(x.shape)]
    jinc = 2 * j1(x.clip(1e-9)) / x.clip(1e-9)
    return seeing, 2 * math.pi * cutoff**2 * (1 - jinc)


def _low_part(x: Array) -> Array:
    r"""Integral of :math:`t^{-8/3} [1 - J_0(x t)]` over t from 0 to 1; smooth in the root of t."""
    nodes, weights = np.polynomial.legendre.leggauss(64 + int(x.max()))
    z2 = x[:, None] ** 2 * ((nodes + 1) / 2) ** 6
    # 1 - J_0(z) over z^2, without cancellation where z is small
    small = 0.25 - z2 / 64 + z2**2 / 2304
    share = np.where(z2 < 1e-3, small, (1 - j0(np.sqrt(z2))) / z2.clip(1e-3))
    integral: Array = 3 * x**2 * (share @ (weights / 2))
    return integral


def _separations(size: int) -> Array:
    """Separations of the pixels of a pupil along an axis, in diameters."""
    return np.arange(1 - size, size) / size
