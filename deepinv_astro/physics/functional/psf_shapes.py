r"""Point-spread functions given by a formula: Gaussian, Moffat, Airy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from deepinv_astro.physics.functional.bessel import bessel_ratio

__all__ = ["airy_psf", "gaussian_psf", "moffat_alpha", "moffat_fwhm", "moffat_psf"]

Scalar = Tensor | float


def gaussian_psf(
    shape: tuple[int, int],
    fwhm: Scalar,
    *,
    ratio: Scalar = 1.0,
    angle: Scalar = 0.0,
    offset: Tensor | None = None,
    oversampling: int = 4,
) -> Tensor:
    r"""Elliptical Gaussian integrated over the pixels.

    .. math::

        h(p) \propto \int_{p} 2^{-4 \varrho^2 / w^2}, \qquad
        \varrho^2 = q\, u^2 + v^2 / q

    with :math:`u` the distance from the star along the direction ``angle``, :math:`v` across it,
    :math:`w` the full width at half maximum (geometric mean of both axes) and :math:`q` the ratio
    of the width across to the width along. The sum over the stamp is one.

    :param tuple shape: rows and columns :math:`(k, l)` of the stamp.
    :param torch.Tensor, float fwhm: :math:`w` in pixels.
    :param torch.Tensor, float ratio: :math:`q`; below 1 the long axis lies along ``angle``.
    :param torch.Tensor, float angle: in degrees, from the column axis towards the row axis.
    :param torch.Tensor offset: row and column of the star from ``(k // 2, l // 2)``, ``(..., 2)``.
    :param int oversampling: Gauss-Legendre nodes per pixel and axis; 1 for the value at the middle
        of the pixel. The default errs by less than :math:`2\times10^{-4}` of the peak for a FWHM of one
        pixel, :math:`2\times10^{-5}` for 1.5.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)``, the leading axes being those of the
        parameters, broadcast; in the precision of the parameters that are tensors.
    :raises ValueError: if the width or the ratio is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> psf = gaussian_psf((5, 7), 2.0, ratio=0.5, angle=0.0)  # long along columns
        >>> psf[2, 4] > psf[3, 3]
        tensor(True)
        >>> gaussian_psf((5, 7), torch.tensor([1.5, 2.0, 3.0])).shape
        torch.Size([3, 5, 7])
    """
    _check_positive(fwhm=fwhm, ratio=ratio)
    w, q, theta, star = _tensors(fwhm, ratio, angle, offset=offset)

    def profile(row: Tensor, column: Tensor) -> Tensor:
        return torch.exp(-4 * math.log(2) * _elliptical(row, column, q, theta) / w**2)

    return _stamp(profile, shape, star, oversampling)


def moffat_psf(
    shape: tuple[int, int],
    fwhm: Scalar,
    beta: Scalar,
    *,
    ratio: Scalar = 1.0,
    angle: Scalar = 0.0,
    offset: Tensor | None = None,
    oversampling: int = 4,
) -> Tensor:
    r"""Elliptical Moffat function (1969) integrated over the pixels.

    .. math::

        h(p) \propto \int_{p} \left( 1 + \frac{\varrho^2}{\alpha^2} \right)^{-\beta}, \qquad
        w = 2 \alpha \sqrt{2^{1/\beta} - 1}

    with the elliptical radius :math:`\varrho` of :func:`gaussian_psf`. The sum over the stamp is
    one; over the infinite plane it is larger by the light in the wings, a fraction of about
    :math:`(k / 2 \alpha)^{2 - 2 \beta}`.

    :param tuple shape: rows and columns :math:`(k, l)` of the stamp.
    :param torch.Tensor, float fwhm: :math:`w` in pixels; :func:`moffat_fwhm` gives it from
        :math:`\alpha`.
    :param torch.Tensor, float beta: :math:`\beta`; the total flux is finite above 1.
    :param torch.Tensor, float ratio: as for :func:`gaussian_psf`.
    :param torch.Tensor, float angle: as for :func:`gaussian_psf`.
    :param torch.Tensor offset: as for :func:`gaussian_psf`.
    :param int oversampling: as for :func:`gaussian_psf`.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)``.
    :raises ValueError: if the width, :math:`\beta` or the ratio is not positive.

    |sep|

    :Examples:

        >>> psf = moffat_psf((31, 41), 4.0, 2.5)
        >>> round(float(psf.sum()), 4), divmod(int(psf.argmax()), 41)
        (1.0, (15, 20))
    """
    _check_positive(fwhm=fwhm, beta=beta, ratio=ratio)
    w, b, q, theta, star = _tensors(fwhm, beta, ratio, angle, offset=offset)
    alpha = moffat_alpha(w, b)

    def profile(row: Tensor, column: Tensor) -> Tensor:
        return torch.exp(-b * torch.log1p(_elliptical(row, column, q, theta) / alpha**2))

    return _stamp(profile, shape, star, oversampling)


def airy_psf(
    shape: tuple[int, int],
    sampling: Scalar,
    *,
    obscuration: Scalar = 0.0,
    offset: Tensor | None = None,
    oversampling: int = 4,
) -> Tensor:
    r"""Airy pattern of a circular pupil with a central obscuration, integrated over the pixels.

    .. math::

        h(p) \propto \int_{p} \left[ \frac{J(v) - \epsilon^2 J(\epsilon v)}{1 - \epsilon^2}
        \right]^2, \qquad J(v) = \frac{2 J_1(v)}{v}, \quad v = \frac{\pi r}{s}

    The sum over the stamp is one; over the infinite plane, larger by about :math:`2 s / \pi^2 R`
    for a stamp of half side :math:`R` (no obscuration).

    :param tuple shape: rows and columns :math:`(k, l)` of the stamp.
    :param torch.Tensor, float sampling: :math:`s = \lambda / D` in pixels; of shape ``(C,)`` for a
        stamp per wavelength.
    :param torch.Tensor, float obscuration: :math:`\epsilon`, its diameter over that of the pupil.
    :param torch.Tensor offset: as for :func:`gaussian_psf`.
    :param int oversampling: as for :func:`gaussian_psf`.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)``.
    :raises ValueError: if the sampling is not positive or the obscuration not in [0, 1).

    |sep|

    :Examples:

        >>> psf = airy_psf((33, 35), torch.tensor([2.0, 4.0]), obscuration=0.3)
        >>> psf.shape, bool(psf[0].max() > 3 * psf[1].max())
        (torch.Size([2, 33, 35]), True)
    """
    _check_positive(sampling=sampling)
    s, epsilon, star = _tensors(sampling, obscuration, offset=offset)
    if not bool(((epsilon >= 0) & (epsilon < 1)).all()):
        raise ValueError(f"obscuration is a fraction of the diameter in [0, 1), got {obscuration}")

    def profile(row: Tensor, column: Tensor) -> Tensor:
        v2 = (math.pi / s) ** 2 * (row**2 + column**2)
        inner = epsilon**2 * bessel_ratio(epsilon**2 * v2, 1)
        return (2 * (bessel_ratio(v2, 1) - inner) / (1 - epsilon**2)) ** 2

    return _stamp(profile, shape, star, oversampling)


def moffat_fwhm(alpha: Tensor, beta: Tensor) -> Tensor:
    r"""Full width at half maximum of a Moffat function, :math:`2 \alpha \sqrt{2^{1/\beta} - 1}`.

    :param torch.Tensor alpha: :math:`\alpha`, in pixels.
    :param torch.Tensor beta: :math:`\beta`.
    :return: (:class:`torch.Tensor`) width in pixels.

    |sep|

    :Examples:

        >>> import torch
        >>> float(moffat_fwhm(torch.tensor(3.0), torch.tensor(1.0)))
        6.0
    """
    return 2 * alpha * torch.sqrt(torch.expm1(math.log(2) / beta))


def moffat_alpha(fwhm: Tensor, beta: Tensor) -> Tensor:
    r"""Scale :math:`\alpha` of a Moffat function, the inverse of :func:`moffat_fwhm`.

    :param torch.Tensor fwhm: full width at half maximum in pixels.
    :param torch.Tensor beta: :math:`\beta`.
    :return: (:class:`torch.Tensor`) :math:`\alpha` in pixels.

    |sep|

    :Examples:

        >>> import torch
        >>> float(moffat_alpha(torch.tensor(6.0), torch.tensor(1.0)))
        3.0
    """
    return fwhm / (2 * torch.sqrt(torch.expm1(math.log(2) / beta)))


def _check_positive(**values: Scalar) -> None:
    for name, value in values.items():
        if not bool(torch.as_tensor(value > 0).all()):
            raise ValueError(f"{name} must be positive, got {value}")


def _tensors(*values: Scalar, offset: Tensor | None) -> list[Tensor]:
    """Parameters ``(..., 1, 1)`` and offset ``(..., 2)`` of one precision, on one device."""
    given = [v for v in (*values, offset) if isinstance(v, Tensor)]
    dtype = torch.get_default_dtype()
    if given:
        dtype = given[0].dtype
        for value in given[1:]:
            dtype = torch.promote_types(dtype, value.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    device = given[0].device if given else "cpu"
    star = torch.zeros(2, dtype=dtype, device=device) if offset is None else offset
    if star.ndim == 0 or star.shape[-1] != 2:
        raise ValueError(
            f"offset must be (row, column) in its last axis, (..., 2), got {tuple(star.shape)}"
        )
    scalars = [torch.as_tensor(v, dtype=dtype, device=device)[..., None, None] for v in values]
    return [*scalars, star.to(dtype)]


def _elliptical(row: Tensor, column: Tensor, ratio: Tensor, angle: Tensor) -> Tensor:
    """Squared elliptical radius."""
    turn = torch.deg2rad(angle)
    along = column * torch.cos(turn) + row * torch.sin(turn)
    across = row * torch.cos(turn) - column * torch.sin(turn)
    return ratio * along**2 + across**2 / ratio


@lru_cache(maxsize=16)
def _nodes(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gauss-Legendre nodes and weights on a pixel, from -1/2 to 1/2."""
    if count < 1:
        raise ValueError(f"oversampling must be at least 1, got {count}")
    x, w = np.polynomial.legendre.leggauss(count)
    return tuple((x / 2).tolist()), tuple((w / 2).tolist())


def _stamp(
    profile: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int],
    star: Tensor,
    oversampling: int,
) -> Tensor:
    """Integrate a profile of (row, column) over the pixels and give the stamp unit sum."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be the rows and columns of a stamp, got {shape}")
    x, w = (star.new_tensor(v) for v in _nodes(oversampling))
    axes = [
        (
            torch.arange(size, dtype=star.dtype, device=star.device)[:, None] - size // 2 + x
        ).flatten()
        for size in shape
    ]
    row = axes[0][:, None] - star[..., 0, None, None]
    column = axes[1] - star[..., 1, None, None]
    fine = profile(row, column)
    blocks = fine.unflatten(-1, (shape[1], oversampling)).unflatten(-3, (shape[0], oversampling))
    psf = torch.einsum("...imjn,m,n->...ij", blocks, w, w)
    return psf / psf.sum(dim=(-2, -1), keepdim=True)
