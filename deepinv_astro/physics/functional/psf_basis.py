r"""Point-spread functions between several measured ones: their mean and principal components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.functional import jvp

from deepinv_astro.physics.functional.psf_fit import fit_psf
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf

__all__ = ["PSFBasis", "psf_basis", "register_psfs", "shift_stamp"]


@dataclass(frozen=True)
class PSFBasis:
    r"""Mean of measured PSFs and the directions in which they differ.

    .. math::

        h_z = \bar h + \sum_k z_k v_k, \qquad z \sim \mathcal N(0, \operatorname{diag}(s_k^2))

    The :math:`v_k` are orthonormal and each sums to zero, so :math:`h_z` has unit sum for any
    :math:`z`. It is linear in :math:`z` and can be slightly negative where the mean is faint.

    :param torch.Tensor mean: :math:`\bar h`, ``(k, l)`` or ``(C, k, l)``, unit sum.
    :param torch.Tensor components: :math:`v_k`, ``(K, k, l)`` or ``(K, C, k, l)``.
    :param torch.Tensor covariance: of the coefficients over the measured PSFs, ``(K, K)``; the
        prior of :math:`z`. It holds the noise of those measurements too.
    :param float explained: fraction of the variance about the mean that the components hold.
    """

    mean: Tensor
    components: Tensor
    covariance: Tensor
    explained: float

    def __call__(self, coefficients: Tensor, *, offset: Tensor | None = None) -> Tensor:
        r"""PSF of given coefficients.

        :param torch.Tensor coefficients: :math:`z`, ``(..., K)``.
        :param torch.Tensor offset: row and column of the star from the middle, ``(..., 2)``.
        :return: (:class:`torch.Tensor`) ``(..., k, l)`` or ``(..., C, k, l)``; unit sum over the
            stamp.
        :raises ValueError: if the number of coefficients is not :math:`K`.
        """
        if coefficients.shape[-1:] != self.components.shape[:1]:
            raise ValueError(
                f"coefficients must be (..., {len(self.components)}), "
                f"got {tuple(coefficients.shape)}"
            )
        change = torch.tensordot(coefficients, self.components.to(coefficients), dims=1)
        psf = self.mean.to(coefficients) + change
        if offset is None:
            return psf
        if self.mean.ndim == 3:
            offset = offset[..., None, :]
        moved = shift_stamp(psf, offset)
        return moved / moved.sum(dim=(-2, -1), keepdim=True)

    def coefficients(self, psf: Tensor) -> Tensor:
        r"""Coefficients of the nearest PSF, :math:`z_k = \langle v_k, h - \bar h \rangle`.

        :param torch.Tensor psf: centred PSFs of unit sum, ``(..., k, l)`` or ``(..., C, k, l)``.
        :return: (:class:`torch.Tensor`) ``(..., K)``.
        """
        axes = self.mean.ndim
        return torch.tensordot((psf - self.mean).flatten(-axes), self.components.flatten(1).mT, 1)


def psf_basis(psfs: Tensor, count: int | None = None) -> PSFBasis:
    r"""Principal components of measured PSFs, for example one before and one after a sequence.

    .. math::

        h_n - \bar h = \sum_k z_{nk} v_k, \qquad
        s_k^2 = \frac{1}{N - 1} \sum_n z_{nk}^2

    :param torch.Tensor psfs: ``(N, k, l)`` or ``(N, C, k, l)``, registered on the middle pixel, for
        example by :func:`register_psfs`; any flux.
    :param int count: number :math:`K` of components, default :math:`N - 1`, which are all.
    :return: :class:`PSFBasis`.
    :raises ValueError: if there are fewer than two PSFs, more components than :math:`N - 1`, or
        a PSF without light.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
        >>> basis = psf_basis(gaussian_psf((15, 17), torch.tensor([2.8, 3.0, 3.3])), 1)
        >>> basis.components.shape, basis.explained > 0.98
        (torch.Size([1, 15, 17]), True)
        >>> round(float(basis(torch.tensor([0.02])).sum()), 4)
        1.0
    """
    if psfs.ndim not in (3, 4) or len(psfs) < 2:
        raise ValueError(
            f"psfs must be two or more stamps, (N, k, l) or (N, C, k, l), got {tuple(psfs.shape)}"
        )
    size = len(psfs) - 1 if count is None else count
    if not 1 <= size < len(psfs):
        raise ValueError(f"{len(psfs)} PSFs have 1 to {len(psfs) - 1} components, got count={size}")
    unit = _unit_sum(psfs)
    mean = unit.mean(0)
    _, s, v = torch.linalg.svd((unit - mean).flatten(1), full_matrices=False)
    variance = s.square() / (len(psfs) - 1)
    total = float(variance.sum())
    return PSFBasis(
        mean=mean,
        components=v[:size].reshape(size, *mean.shape),
        covariance=torch.diag(variance[:size]),
        explained=float(variance[:size].sum()) / total if total > 0 else 1.0,
    )


def register_psfs(psfs: Tensor, iterations: int = 5) -> Tensor:
    r"""Bring measured PSFs to one centre, that of their mean to the middle pixel.

    .. math::

        \hat\delta_n = \arg\min_{\delta, a} \sum_p [h_n(p + \delta) - a\, \bar h(p)]^2

    by Gauss-Newton, the mean being made anew each time; then all are shifted by what puts the
    Gaussian fitted to the core of the mean on the middle.

    :param torch.Tensor psfs: ``(N, k, l)`` or ``(N, C, k, l)``, each star within two pixels of
        ``(k // 2, l // 2)``, background subtracted.
    :param int iterations: of Gauss-Newton.
    :return: (:class:`torch.Tensor`) PSFs of unit sum, of the same shape.
    :raises ValueError: if a PSF has no light.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
        >>> offset = torch.tensor([[0.4, -0.3], [-0.2, 0.1]], dtype=torch.float64)
        >>> stars = register_psfs(gaussian_psf((21, 23), 3.0, offset=offset))
        >>> bool((stars - gaussian_psf((21, 23), 3.0)).abs().max() < 1e-4)
        True
    """
    stamps = _unit_sum(psfs.double())
    shift = torch.stack([-_core_offset(stamp) for stamp in stamps])
    extra = (1,) * (psfs.ndim - 3)
    for _ in range(iterations):
        at = shift.reshape(len(psfs), *extra, 2)
        moved = shift_stamp(stamps, at)
        slopes = [
            jvp(partial(shift_stamp, stamps), at, axis.expand_as(at).clone())[1]
            for axis in torch.eye(2).to(at)
        ]
        mean = _unit_sum(moved).mean(0)
        design = torch.stack([*slopes, -mean.expand_as(moved)], -1)
        design = design.reshape(len(psfs), -1, 3)
        rest = (mean - moved).reshape(len(psfs), -1, 1)
        shift = shift + torch.linalg.lstsq(design, rest).solution[:, :2, 0]
    centred = shift_stamp(stamps, shift.reshape(len(psfs), *extra, 2))
    shift = shift - _core_offset(_unit_sum(centred).mean(0))
    moved = shift_stamp(stamps, shift.reshape(len(psfs), *extra, 2))
    return _unit_sum(moved).to(psfs)


def shift_stamp(stamp: Tensor, offset: Tensor) -> Tensor:
    r"""Shift stamps by a fraction of a pixel with their Fourier series.

    .. math::

        \tilde h(\omega) \mapsto \tilde h(\omega)\, e^{-i \omega \cdot \delta}

    The stamp is continued by its mirror image, which makes it continuous and periodic: what leaves
    one side does not come back on the other.

    :param torch.Tensor stamp: ``(..., k, l)``.
    :param torch.Tensor offset: :math:`\delta`, rows and columns, ``(..., 2)``, to broadcast.
    :return: (:class:`torch.Tensor`) ``(..., k, l)``, differentiable in both.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
        >>> star = gaussian_psf((15, 17), 3.0)
        >>> moved = shift_stamp(star, torch.tensor([2.0, 0.0]))
        >>> divmod(int(moved.argmax()), 17)
        (9, 8)
    """
    phases = []
    for axis, size in enumerate(stamp.shape[-2:]):
        frequency = torch.fft.fftfreq(2 * size, dtype=stamp.dtype, device=stamp.device)
        turn = 2 * math.pi * frequency * offset[..., axis, None]
        # the highest frequency of an even length stands for both signs: only its cosine is real
        sine = torch.where(frequency.abs() == 0.5, 0.0, torch.sin(turn))
        phases.append(torch.complex(torch.cos(turn), -sine))
    wide = torch.cat([stamp, stamp.flip(-1)], -1)
    wide = torch.cat([wide, wide.flip(-2)], -2)
    spectrum = torch.fft.fft2(wide) * phases[0][..., :, None] * phases[1][..., None, :]
    return torch.fft.ifft2(spectrum).real[..., : stamp.shape[-2], : stamp.shape[-1]]


def _unit_sum(psfs: Tensor) -> Tensor:
    total = psfs.sum(dim=(-2, -1), keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError(
            "each PSF must have a positive sum, got "
            f"{[round(t, 6) for t in total.flatten().tolist()]}: subtract the background"
        )
    return psfs / total


def _core_offset(stamp: Tensor) -> Tensor:
    """Position of the core from the middle, by a Gaussian on the pixels around the peak."""
    image = stamp if stamp.ndim == 2 else stamp.mean(0)
    half = min(7, (min(image.shape) - 1) // 2)
    top, left = image.shape[0] // 2 - half, image.shape[1] // 2 - half
    side = 2 * half + 1
    core = image[top : top + side, left : left + side]
    peak = float(core.max())
    near = torch.where(core > 0.3 * peak, peak, math.inf)
    fit = fit_psf(
        core,
        partial(gaussian_psf, (side, side)),
        {"fwhm": 3.0},
        noise=near,
        bounds={"fwhm": (0.5, 4.0 * side)},
        fixed={"background": 0.0},
    )
    return fit.values[1:3]
