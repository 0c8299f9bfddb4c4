r"""What the virtual operators would be worth, in decibels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepinv_astro.identifiability.spectrum import lanczos, random_signs
from deepinv_astro.identifiability.virtual import Gram, Map


def power_law(like: Tensor, exponent: float = 2.0, std: float = 0.25) -> Map:
    r"""Square root of the covariance of images whose spectrum is a power law.

    .. math::

        S(f) \propto \left( f^2 + f_0^2 \right)^{-p/2}, \qquad f_0 = \frac{1}{\max(H, W)},

    with :math:`\sum_f S(f)` such that a pixel has the standard deviation ``std``: :math:`p = 2` is the
    classical law of natural images. Periodic; the channels are independent.

    :param torch.Tensor like: an image, for shape, dtype and device.
    :param float exponent: :math:`p`.
    :param float std: of a pixel.
    :return: (:class:`collections.abc.Callable`) :math:`x \mapsto \Sigma^{1/2} x`, symmetric.

    |sep|

    :Examples:

        >>> import torch
        >>> root = power_law(torch.zeros(1, 1, 6, 8), std=0.5)
        >>> pixel = torch.zeros(1, 1, 6, 8)
        >>> pixel[0, 0, 2, 3] = 1.0
        >>> round(float(root(root(pixel))[0, 0, 2, 3]), 4)  # its variance
        0.25
    """
    height, width = like.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)
    power = (rows**2 + columns**2 + 1 / max(height, width) ** 2) ** (-exponent / 2)
    # of the half spectrum, each column but the first (and the last of an even width) stands for two
    twice = torch.full_like(columns, 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    mean = (power * twice).sum() / (height * width)
    root = std * (power / mean).sqrt()

    def apply(x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * root, s=(height, width))

    return apply


def wiener_error(
    gram: Gram,
    noise: float,
    root: Map,
    *,
    matrix: Tensor | None = None,
    generator: torch.Generator | None = None,
    steps: int = 80,
    probes: int = 6,
) -> float:
    r"""Mean squared error of the Wiener estimate from an operator and its virtual ones.

    .. math::

        \mathrm{MSE}(M) = \frac1n \operatorname{tr} \left( \Sigma^{-1} + \frac{M}{\sigma^2}
        \right)^{-1}
        = \frac1n \operatorname{tr} R \left( I + \frac{R^\top M R}{\sigma^2} \right)^{-1} R^\top ,
        \qquad R R^\top = \Sigma .

    Exact with the dense ``matrix`` of the map; otherwise by Lanczos quadrature
    (:func:`~deepinv_astro.identifiability.spectrum.lanczos`) from random signs.

    :param Gram gram: :math:`M`.
    :param float noise: standard deviation :math:`\sigma` of the measurements.
    :param Callable root: symmetric square root of the prior covariance, on images.
    :param torch.Tensor matrix: :math:`M` as a matrix, if at hand.
    :param torch.Generator generator: of the random signs; default seed 0.
    :param int steps: of each quadrature.
    :param int probes: number of random vectors.
    :return: (:class:`float`) error per pixel.
    :raises ValueError: if the noise is not positive.
    """
    if not noise > 0:
        raise ValueError(f"`noise` must be a positive standard deviation, got {noise}")
    like = gram.like
    if matrix is not None:
        with torch.no_grad():  # rows of the identity through the symmetric root: R restricted
            r = gram.vectors(
                root(Gram(gram.measure, like).images(torch.eye(like.numel()).to(like)))
            )
        inner = torch.eye(like.numel()).to(like) + r @ matrix @ r.mT / noise**2
        return float((r * torch.linalg.solve(inner, r)).sum()) / gram.n
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def product(z: Tensor) -> Tensor:
        """R^T M R / sigma^2, on the whole grid."""
        v = gram.vectors(root(z.view(len(z), *like.shape[1:])))
        return root(gram.images(gram(v))).flatten(1) / noise**2

    total = 0.0
    for _ in range(probes):
        signs = random_signs(gram.vectors(like)[0], generator)
        start = root(gram.images(signs[None]))[0].flatten()
        nodes, weights = lanczos(product, start, steps)
        total += float((weights / (1 + nodes.clamp_min(0))).sum())
    return total / probes / gram.n


def decibels(alone: float, joint: float) -> float:
    r""":math:`10 \log_{10}` of the ratio of two errors; less than 0 if the second is larger.

    With :math:`M = \tfrac12 (M_A + M_T)` for the second it can be: half of the weight of the data
    goes to :math:`M_T`, and where that shows less, as a scale does of what is seen anyway, it is
    lost. At worst, with :math:`M_T = 0`, half of the data are left, at most 3 dB.

    >>> decibels(2e-3, 1e-3)
    3.010299956639812
    """
    return 10 * math.log10(alone / joint)
