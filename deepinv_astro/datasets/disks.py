"""Images of circumstellar disks and planets: pure functions of tensors, differentiable.

Angles are in degrees and lengths in pixels. A position angle counts from North (increasing row) to
East (decreasing column). Parameters may be numbers or tensors; tensors of shape ``(B,)`` give
images of shape ``(B, H, W)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = [
    "gaussian_blob",
    "henyey_greenstein",
    "isotropic",
    "point_sources",
    "ring",
    "sky_offset",
    "spiral",
    "two_component_henyey_greenstein",
]

Value = float | Tensor
#: Scattering phase function: from the cosine of the scattering angle to the brightness.
PhaseFunction = Callable[[Tensor], Tensor]


class _Sky(NamedTuple):
    """Offsets from the star along and across a direction of the sky, finely sampled."""

    along: Tensor
    across: Tensor
    oversampling: int


def sky_offset(separation: Value, position_angle: Value) -> tuple[Tensor, Tensor]:
    r"""Row and column offset from the star of a place on the sky.

    .. math::

        \Delta r = \rho \cos\theta, \qquad \Delta c = -\rho \sin\theta

    :param separation: :math:`\rho`, pixels.
    :param position_angle: :math:`\theta`, degrees East of North.
    :return: ``(row, column)`` offsets in pixels.

    >>> row, column = sky_offset(10.0, 90.0)  # East is towards decreasing columns
    >>> round(float(row), 6), round(float(column), 6)
    (0.0, -10.0)
    """
    rho = _tensor(separation)
    theta = torch.deg2rad(_tensor(position_angle))
    return rho * torch.cos(theta), -rho * torch.sin(theta)


def isotropic(cosine: Tensor) -> Tensor:
    r"""Phase function :math:`1/4\pi` of isotropic scattering.

    >>> round(float(isotropic(torch.tensor(0.3))), 4)
    0.0796
    """
    return torch.full_like(cosine, 1 / (4 * math.pi))


def henyey_greenstein(cosine: Tensor, g: Value) -> Tensor:
    r"""Phase function of Henyey and Greenstein (1941).

    .. math::

        p(\cos\theta) = \frac{1}{4\pi} \frac{1 - g^2}{(1 + g^2 - 2 g\cos\theta)^{3/2}}

    It integrates to one over the sphere and :math:`g` is the mean of :math:`\cos\theta`.

    :param torch.Tensor cosine: cosine of the scattering angle, 1 for light that goes straight on.
    :param g: asymmetry in (-1, 1), positive for forward scattering.
    :return: brightness per steradian, of the shape of ``cosine``.

    >>> round(float(henyey_greenstein(torch.tensor(1.0), 0.5)), 4)  # 3 / (2 pi)
    0.4775
    """
    return (1 - g**2) / (4 * math.pi) / (1 + g**2 - 2 * g * cosine) ** 1.5


def two_component_henyey_greenstein(cosine: Tensor, g1: Value, g2: Value, weight: Value) -> Tensor:
    r"""Mixture :math:`w\, p_{g_1} + (1 - w)\, p_{g_2}` of two phase functions.

    :param torch.Tensor cosine: cosine of the scattering angle.
    :param g1: asymmetry of the first component, usually forward.
    :param g2: asymmetry of the second, usually backward.
    :param weight: share :math:`w` of the first.
    :return: brightness per steradian.

    >>> round(float(two_component_henyey_greenstein(torch.tensor(1.0), 0.5, 0.0, 0.25)), 4)
    0.179
    """
    first, second = henyey_greenstein(cosine, g1), henyey_greenstein(cosine, g2)
    return weight * first + (1 - weight) * second


def ring(
    shape: tuple[int, int],
    semi_major_axis: Value,
    inclination: Value,
    position_angle: Value,
    *,
    phase: PhaseFunction = isotropic,
    slopes: tuple[Value, Value] = (20.0, -10.0),
    offset: tuple[Value, Value] = (0.0, 0.0),
    scale_height: Value = 0.0,
    flux: Value = 1.0,
    center: tuple[float, float] | None = None,
    oversampling: int = 4,
    nodes: int = 9,
) -> Tensor:
    r"""Inclined ring of dust that scatters the light of the star (Augereau et al. 1999).

    .. math::

        I(u, v) = \int \frac{p(\cos\theta)}{d^2}\, \sqrt2 \left[ (r/r_0)^{-2 a_{in}} +
        (r/r_0)^{-2 a_{out}} \right]^{-1/2} e^{-z^2 / 2 h^2}\, d\ell

    with :math:`u` along the major axis, :math:`v` across it, :math:`d` the distance of the dust to
    the star and :math:`r, z` its radius and height in the frame of the disk. The integral along the
    line of sight is a Gauss-Hermite rule in :math:`z`; a zero scale height gives the thin disk.
    The near side is at the position angle plus 90 degrees; it is the bright one when light is
    scattered forward.

    :param tuple shape: rows and columns of the image.
    :param semi_major_axis: :math:`r_0` in pixels.
    :param inclination: degrees, 0 seen from above; less than 90, where a thin disk has no area.
    :param position_angle: of the major axis, degrees East of North.
    :param phase: phase function of the cosine of the scattering angle, for instance
        ``functools.partial(henyey_greenstein, g=0.4)``.
    :param tuple slopes: exponents :math:`a_{in} > 0` inside and :math:`a_{out} < 0` outside.
    :param tuple offset: shift of the ring's centre from the star in the plane of the disk, pixels,
        along the major axis (towards the position angle) and across it (towards the near side).
    :param scale_height: :math:`h` in pixels.
    :param flux: sum of the image over the field.
    :param tuple center: row and column of the star, default ``(H // 2, W // 2)``.
    :param int oversampling: samples per pixel and axis, averaged.
    :param int nodes: number of heights in the integral.
    :return: image of shape ``(H, W)``, or ``(B, H, W)`` for batched parameters.
    :raises ValueError: if the inclination is not in [0, 90).

    >>> image = ring((41, 61), 18.0, 60.0, 90.0, flux=5.0)  # major axis East-West
    >>> profile = image[20]  # a cut along it, through the star
    >>> round(float(image.sum()), 4), int(profile[:30].argmax()), int(profile[30:].argmax())
    (5.0, 12, 18)
    """
    i = torch.deg2rad(_column(inclination))
    if bool((i < 0).any()) or bool((i >= math.pi / 2).any()):
        raise ValueError(
            f"inclination is in degrees in [0, 90), got {inclination}; "
            "for an edge-on disk take 89 and a scale height"
        )
    sky = _sky(shape, center, position_angle, oversampling)
    # 1e-6 in the distance: the star itself has no direction, but needs a finite gradient.
    r0, h = _column(semi_major_axis), _column(scale_height)
    thin = bool((h == 0).all())
    heights, weights = np.polynomial.hermite.hermgauss(1 if thin else nodes)
    image = torch.zeros(())
    for z, weight in zip(math.sqrt(2) * heights, weights, strict=True):
        height = z * h
        depth = (height + sky.across * torch.sin(i)) / torch.cos(i)  # towards the observer
        across = sky.across * torch.cos(i) + depth * torch.sin(i)
        distance = torch.sqrt(sky.along**2 + across**2 + height**2 + 1e-6)
        radius = torch.hypot(sky.along - _column(offset[0]), across - _column(offset[1]))
        density = _double_power_law(radius / r0, _column(slopes[0]), _column(slopes[1]))
        image = image + weight * density * phase(depth / distance) / distance**2
    return _normalised(image, sky.oversampling, flux)


def spiral(
    shape: tuple[int, int],
    semi_major_axis: Value,
    inclination: Value,
    position_angle: Value,
    *,
    pitch: Value = 20.0,
    arms: int = 2,
    arm_width: Value = 0.5,
    slopes: tuple[Value, Value] = (6.0, -3.0),
    flux: Value = 1.0,
    center: tuple[float, float] | None = None,
    oversampling: int = 4,
) -> Tensor:
    r"""Logarithmic spiral seen inclined.

    .. math::

        I(r, \varphi) = R(r)\, \exp\left\{ \frac{\cos(m \psi) - 1}{m^2 w^2} \right\}, \qquad
        \psi = \varphi - \ln(r / r_0) / \tan\beta

    in the plane of the disk, :math:`\varphi` from the major axis towards the near side, with the
    radial profile :math:`R` of :func:`ring`; arms trail outwards towards increasing
    :math:`\varphi` for a positive pitch.

    :param tuple shape: rows and columns of the image.
    :param semi_major_axis: :math:`r_0`, where the arms are brightest, pixels.
    :param inclination: degrees from face-on, in [0, 90).
    :param position_angle: of the major axis, degrees East of North.
    :param pitch: angle :math:`\beta` between an arm and the circle, degrees.
    :param int arms: number :math:`m` of arms.
    :param arm_width: angular width :math:`w` of an arm, radians.
    :param tuple slopes: radial exponents inside and outside.
    :param flux: sum of the image over the field.
    :param tuple center: row and column of the star, default ``(H // 2, W // 2)``.
    :param int oversampling: samples per pixel and axis.
    :return: image of shape ``(H, W)`` or ``(B, H, W)``.
    :raises ValueError: if the inclination is not in [0, 90) or there is no arm.

    >>> image = spiral((41, 51), 12.0, 30.0, 40.0, flux=2.0)
    >>> image.shape, round(float(image.sum()), 4)
    (torch.Size([41, 51]), 2.0)
    """
    i = torch.deg2rad(_column(inclination))
    if bool((i < 0).any()) or bool((i >= math.pi / 2).any()):
        raise ValueError(f"inclination is in degrees in [0, 90), got {inclination}")
    if arms < 1:
        raise ValueError(f"a spiral has at least one arm, got {arms}")
    sky = _sky(shape, center, position_angle, oversampling)
    across = sky.across / torch.cos(i)
    radius = torch.sqrt(sky.along**2 + across**2 + 1e-6) / _column(semi_major_axis)
    tangent = torch.tan(torch.deg2rad(_column(pitch)))
    psi = torch.atan2(across, sky.along) - torch.log(radius) / tangent
    crest = torch.exp((torch.cos(arms * psi) - 1) / (arms * _column(arm_width)) ** 2)
    profile = _double_power_law(radius, _column(slopes[0]), _column(slopes[1]))
    return _normalised(profile * crest, sky.oversampling, flux)


def gaussian_blob(
    shape: tuple[int, int],
    separation: Value,
    position_angle: Value,
    *,
    fwhm: tuple[Value, Value] = (6.0, 3.0),
    orientation: Value = 0.0,
    flux: Value = 1.0,
    center: tuple[float, float] | None = None,
    oversampling: int = 2,
) -> Tensor:
    r"""Elliptical Gaussian away from (or on) the star.

    :param tuple shape: rows and columns of the image.
    :param separation: distance of its centre from the star, pixels.
    :param position_angle: of its centre, degrees East of North.
    :param tuple fwhm: full widths at half maximum of the long and the short axis, pixels.
    :param orientation: position angle of the long axis, degrees.
    :param flux: sum of the image over the field.
    :param tuple center: row and column of the star, default ``(H // 2, W // 2)``.
    :param int oversampling: samples per pixel and axis.
    :return: image of shape ``(H, W)`` or ``(B, H, W)``.

    >>> image = gaussian_blob((31, 41), 10.0, 90.0, flux=3.0)
    >>> divmod(int(image.argmax()), 41)
    (15, 10)
    """
    turn = torch.deg2rad(_column(orientation) - _column(position_angle))
    sky = _sky(shape, center, orientation, oversampling)
    along = sky.along - _column(separation) * torch.cos(turn)
    across = sky.across + _column(separation) * torch.sin(turn)
    exponent = (along / _column(fwhm[0])) ** 2 + (across / _column(fwhm[1])) ** 2
    return _normalised(torch.exp(-4 * math.log(2) * exponent), sky.oversampling, flux)


def point_sources(
    shape: tuple[int, int],
    rows: Value,
    columns: Value,
    flux: Value,
) -> Tensor:
    r"""Point sources at any position, as an image in flux per pixel.

    A source between pixels is spread over 8 x 8 of them by the weights of Lagrange's polynomials,

    .. math::

        w_k(f) = \prod_{j \ne k} \frac{f - j}{k - j}, \qquad j, k = -3, \dots, 4,

    which keep its flux, its centroid and its moments up to the seventh: behind a Gaussian PSF it
    has its true shape to 1.3e-3 of its peak at 3.9 pixels FWHM, 4e-4 at 4.8. The price is negative
    weights beside it (a tenth of the flux); bilinear weights have none but blur the source.

    :param tuple shape: rows and columns of the image.
    :param rows: row of each source, ``(N,)``; its 8 x 8 pixels must lie inside the image.
    :param columns: column of each source.
    :param flux: flux of each source.
    :return: image of shape ``shape``, differentiable in positions and fluxes.
    :raises ValueError: if a source is too close to the border.

    >>> image = point_sources((20, 30), 8.25, 19.5, 2.0)
    >>> round(float(image.sum()), 6)
    2.0
    >>> round(float((image.sum(1) * torch.arange(20.0, dtype=image.dtype)).sum() / 2), 6)
    8.25
    """
    positions, weights = [], []
    for values, length in ((rows, shape[0]), (columns, shape[1])):
        p = torch.atleast_1d(_tensor(values))
        if bool((p < 3).any()) or bool((p >= length - 4).any()):
            raise ValueError(
                f"sources must lie between pixels 3 and {length - 4}, got {p.tolist()}; "
                "enlarge the image or move the source inwards"
            )
        first = torch.floor(p.detach()).long()
        positions.append(first[:, None] + torch.arange(-3, 5, device=p.device))
        weights.append(_lagrange(p - first))
    total = torch.atleast_1d(_tensor(flux))[:, None, None]
    stamps = total * weights[0][:, :, None] * weights[1][:, None, :]
    index = positions[0][:, :, None] * shape[1] + positions[1][:, None, :]
    index = index.expand_as(stamps)
    image: Tensor = stamps.new_zeros(shape[0] * shape[1])
    image = image.index_add(0, index.reshape(-1), stamps.reshape(-1))
    return image.reshape(shape)


def _tensor(value: Value) -> Tensor:
    """A tensor from a number (float64, so that nothing is lost before the caller's cast)."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def _column(value: Value) -> Tensor:
    """The same with two trailing axes, to broadcast over pixels."""
    return _tensor(value)[..., None, None]


def _lagrange(fraction: Tensor) -> Tensor:
    """Weights (N, 8) of Lagrange's interpolation at offsets -3...4 for fractions (N,)."""
    offsets = range(-3, 5)
    columns = []
    for k in offsets:
        factors = [(fraction - j) / (k - j) for j in offsets if j != k]
        columns.append(torch.stack(factors).prod(dim=0))
    return torch.stack(columns, dim=-1)


def _sky(
    shape: tuple[int, int],
    center: tuple[float, float] | None,
    position_angle: Value,
    oversampling: int,
) -> _Sky:
    """Offsets along the position angle and across it (towards the position angle + 90)."""
    if oversampling < 1:
        raise ValueError(f"oversampling must be at least 1, got {oversampling}")
    angle = torch.deg2rad(_column(position_angle))
    origin = center if center is not None else (shape[0] // 2, shape[1] // 2)
    axes = []
    for length, start in zip(shape, origin, strict=True):
        fine = torch.arange(length * oversampling, dtype=angle.dtype, device=angle.device)
        axes.append((fine + 0.5) / oversampling - 0.5 - start)
    north, east = axes[0][:, None], -axes[1][None, :]
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _Sky(north * cos + east * sin, east * cos - north * sin, oversampling)


def _double_power_law(x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    r"""Profile :math:`\sqrt2 [x^{-2a} + x^{-2b}]^{-1/2}`, 1 at x = 1, written to never overflow."""
    # Far from x = 1 one of the powers overflows: work with logarithms.
    log = torch.log(x.clamp_min(1e-6))
    return torch.exp(0.5 * math.log(2) - 0.5 * torch.logaddexp(-2 * inner * log, -2 * outer * log))


def _normalised(image: Tensor, oversampling: int, flux: Value) -> Tensor:
    """Average the samples of each pixel and scale the sum to the flux."""
    height, width = image.shape[-2:]
    pooled = avg_pool2d(image.reshape(-1, 1, height, width), oversampling)
    pooled = pooled.reshape(*image.shape[:-2], height // oversampling, width // oversampling)
    return _column(flux) * pooled / pooled.sum(dim=(-2, -1), keepdim=True)
