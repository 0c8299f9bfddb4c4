"""Errors of a PSF that was measured at another time than the sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_astro.physics.functional.resampling import SplineLookup, spline_coefficients

__all__ = ["PSFError", "stretched_psf"]


@dataclass(frozen=True)
class PSFError:
    r"""How the PSF that one is told differs from the one that made the data.

    .. math::

        \tilde h = S_{w, q, \phi}\, h, \qquad \ln w \sim \mathcal N(0, \sigma_w^2), \quad
        \ln q \sim \mathcal N(0, \sigma_q^2), \quad \phi \sim \mathcal U(0, 180)

    with :math:`S` of :func:`stretched_psf`: seeing makes the told PSF wider or narrower, vibration
    and wind elongate it.

    :param float width: :math:`\sigma_w`; 0.1 is a width wrong by 10 %.
    :param float elongation: :math:`\sigma_q`.
    :raises ValueError: if one is negative.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
        >>> true = gaussian_psf((21, 21), 4.0)
        >>> told = PSFError(width=0.2).apply(true, torch.Generator().manual_seed(3))
        >>> round(float(told.sum()), 5), bool((told - true).abs().max() > 1e-4)
        (1.0, True)
        >>> bool(torch.equal(PSFError(0.0, 0.0).apply(true, torch.Generator()), true))
        True
    """

    width: float = 0.1
    elongation: float = 0.05

    def __post_init__(self) -> None:
        """Refuse negative deviations."""
        for name in ("width", "elongation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def apply(self, psf: Tensor, generator: torch.Generator) -> Tensor:
        r"""A wrong PSF.

        :param torch.Tensor psf: stamp ``(k, k)``.
        :param torch.Generator generator: source of randomness.
        :return: (:class:`torch.Tensor`) stamp ``(k, k)`` of unit sum; ``psf`` itself without error.
        """
        z = torch.randn(2, generator=generator, dtype=torch.float64).tolist()
        direction = 180 * torch.rand((), generator=generator, dtype=torch.float64).item()
        if self.width == 0 and self.elongation == 0:
            return psf
        width, ratio = math.exp(self.width * z[0]), math.exp(self.elongation * z[1])
        return stretched_psf(psf, width, ratio, direction)


def stretched_psf(psf: Tensor, width: float, ratio: float = 1.0, angle: float = 0.0) -> Tensor:
    r"""PSF magnified along two axes, read by cubic splines.

    .. math::

        \tilde h(u, v) \propto h\left( \frac{\sqrt q}{w} u, \frac{1}{w \sqrt q} v \right)

    with :math:`u` along the direction ``angle`` and :math:`v` across it, as in
    :func:`~deepinv_astro.physics.functional.psf_shapes.gaussian_psf`: a round Gaussian of width
    :math:`w_0` becomes the Gaussian of width :math:`w_0 w` and ratio :math:`q`. Zero beyond the
    stamp.

    :param torch.Tensor psf: stamp ``(k, l)``, the star at ``(k // 2, l // 2)``.
    :param float width: :math:`w`, above 0; larger than 1 is wider.
    :param float ratio: :math:`q`, above 0; below 1 the long axis lies along ``angle``.
    :param float angle: degrees, from the column axis towards the row axis.
    :return: (:class:`torch.Tensor`) stamp ``(k, l)`` of unit sum.
    :raises ValueError: if ``width`` or ``ratio`` is not positive.

    |sep|

    :Examples:

        >>> from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
        >>> long = stretched_psf(gaussian_psf((31, 33), 4.0), 1.1, ratio=0.8, angle=90.0)
        >>> bool(long[20, 16] > long[15, 21])  # along rows
        True
    """
    if width <= 0 or ratio <= 0:
        raise ValueError(f"width and ratio must be positive, got {width} and {ratio}")
    k, l = psf.shape
    star = torch.tensor([k // 2, l // 2], dtype=torch.float64)
    turn = math.radians(angle)
    along = torch.tensor([math.sin(turn), math.cos(turn)], dtype=torch.float64)  # (row, column)
    across = torch.tensor([math.cos(turn), -math.sin(turn)], dtype=torch.float64)
    scale = math.sqrt(ratio) / width * torch.outer(along, along)
    scale = scale + torch.outer(across, across) / (width * math.sqrt(ratio))
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in (k, l)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    positions = torch.einsum("ij,jkl->ikl", scale, grid) + star[:, None, None]
    lookup = SplineLookup(positions[None].to(psf.device), (k, l), psf.dtype)
    read: Tensor = lookup(spline_coefficients(psf[None, None]))[0, 0]
    return read / read.sum()
