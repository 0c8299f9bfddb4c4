r"""Principal component analysis of the speckles."""

from __future__ import annotations

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.models.combine import Combine, fill_missing, temporal_mean, temporal_median
from deepinv_astro.models.derotate import check_sequence, derotate
from deepinv_astro.physics import ADI


def gram(pixels: Tensor) -> Tensor:
    r"""Inner products of frames, :math:`G = Y Y^\top`, in double precision.

    :param torch.Tensor pixels: frames as rows, ``(..., T, K)``, finite.
    :return: (:class:`torch.Tensor`) ``(..., T, T)``, float64.
    """
    rows = pixels.double()
    return rows @ rows.mT


def residual_weights(products: Tensor, n_components: int) -> Tensor:
    r"""Matrix that removes from frames their projection on their own first principal components.

    With :math:`G = Y Y^\top = U \Lambda U^\top` the frames' inner products, the principal
    components (the first right singular vectors of :math:`Y`) explain :math:`U_k U_k^\top Y`, so
    the residual is :math:`W Y` with

    .. math::

        W = I - U_k U_k^\top .

    :param torch.Tensor products: :math:`G`, ``(..., T, T)``, symmetric.
    :param int n_components: :math:`k`.
    :return: (:class:`torch.Tensor`) :math:`W`, ``(..., T, T)``, dtype of ``products``.

    |sep|

    :Examples:

        >>> import torch
        >>> frames = torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
        >>> (residual_weights(gram(frames), 1).float() @ frames).round(decimals=5).abs()
        tensor([[0., 0.],
                [0., 0.],
                [0., 1.]])
    """
    vectors = (
        torch.linalg.eigh(products).eigenvectors[..., -n_components:] if n_components else None
    )
    identity = torch.eye(products.shape[-1]).to(products)
    return identity.expand_as(products) if vectors is None else identity - vectors @ vectors.mT


def subtract_components(frames: Tensor, n_components: int, static: Combine | None) -> Tensor:
    r"""Frames without their static part and their first principal components.

    A pixel that some frames miss is first filled with the mean of the frames that see it, so that
    it does not move the components, and is missing again in the residual.

    :param torch.Tensor frames: ``(..., T, H, W)``, missing data NaN.
    :param int n_components: number of components, up to ``T``.
    :param Callable static: static part of the frames, or ``None`` to analyse them as they are.
    :return: (:class:`torch.Tensor`) ``(..., T, H, W)``, dtype of ``frames``.
    """
    filled = fill_missing(frames)
    if static is not None:
        filled = filled - static(filled).unsqueeze(-3)
    pixels = filled.flatten(-2)
    weights = residual_weights(gram(pixels), n_components).to(frames.dtype)
    residual = (weights @ pixels).view(filled.shape)
    return residual.masked_fill(frames.isnan(), torch.nan)


class PCA(Reconstructor):
    r"""Subtract the first principal components of the frames, turn North up, combine.

    .. math::

        \hat x = \operatorname{comb}_t\, Q_t^{-1} \left[ (I - U_k U_k^\top)(Y - \bar Y) \right]_t ,
        \qquad (Y - \bar Y)(Y - \bar Y)^\top = U \Lambda U^\top ,

    with the frames as rows of :math:`Y` and :math:`\bar Y` their temporal mean: Soummer, Pueyo &
    Larkin, ApJ 755, L28, 2012; Amara & Quanz, MNRAS 427, 948, 2012. The components come from the
    :math:`T \times T` matrix of inner products in double precision. Each wavelength has its own.

    Missing pixels (NaN) are filled with their temporal mean for the analysis and left out of the
    combination. The result is in the unit of the frames per pixel: it estimates the *blurred* sky
    :math:`Hx`, less what self-subtraction and the components take; calibrate it by injections
    (:func:`deepinv_astro.metric.throughput`). Transmission and gains of ``physics`` are not
    corrected. Sky pixels that no frame sees are NaN.

    :param int n_components: number of components :math:`k`.
    :param Callable combine: how the turned frames become one image, e.g.
        :func:`~deepinv_astro.models.combine.temporal_median` or
        :func:`~deepinv_astro.models.combine.temporal_mean`.
    :param Callable static: what is subtracted first; ``None`` to analyse the frames as they are.
    :raises ValueError: if ``n_components`` is negative.

    |sep|

    :Examples:

        Speckles that flicker together are removed, a planet above the star stays:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> generator = torch.Generator().manual_seed(0)
        >>> physics = ADI((1, 15, 11), angles=torch.linspace(0, 120, 8))
        >>> x = torch.zeros(1, 1, 15, 11)
        >>> x[0, 0, 11, 5] = 1.0
        >>> speckles = torch.rand(15, 11, generator=generator) * torch.rand(
        ...     8, 1, 1, generator=generator
        ... )
        >>> image = PCA(n_components=1)(physics.A(x) + 100 * speckles, physics)
        >>> divmod(int(image.nan_to_num().argmax()), 11)
        (11, 5)
    """

    def __init__(
        self,
        n_components: int,
        combine: Combine = temporal_median,
        static: Combine | None = temporal_mean,
    ):
        super().__init__()
        check_components(n_components)
        self.n_components, self.combine, self.static = n_components, combine, static

    def forward(self, y: Tensor, physics: ADI) -> Tensor:
        r"""Image of the sky.

        :param torch.Tensor y: sequence ``(B, C, T, h, w)``, missing data NaN.
        :param ADI physics: geometry of the sequence.
        :return: (:class:`torch.Tensor`) ``(B, C, H, W)`` on the sky grid of ``physics``.
        :raises ValueError: if the shape of ``y`` does not fit, or there are fewer frames than
            components.
        """
        check_sequence(y, physics)
        check_components(self.n_components, physics.frames)
        return self.combine(derotate(self.residual(y), physics))

    def residual(self, y: Tensor) -> Tensor:
        r"""Frames without their components, before they are turned.

        :param torch.Tensor y: frames ``(..., T, h, w)``, missing data NaN.
        :return: (:class:`torch.Tensor`) ``(..., T, h, w)``.
        """
        return subtract_components(y, self.n_components, self.static)


def check_components(n_components: int, frames: int | None = None) -> None:
    """Raise if a number of components is impossible.

    :param int n_components: number of components.
    :param int frames: number of frames, if known.
    :raises ValueError: if it is negative or not less than the number of frames.
    """
    if n_components < 0:
        raise ValueError(f"n_components must be zero or more, got {n_components}")
    if frames is not None and n_components >= frames:
        raise ValueError(
            f"`n_components` must be less than the number of frames, {frames}, got {n_components}: "
            "as many components as frames explain everything"
        )
