r"""Principal component analysis ring by ring, with frames chosen for their rotation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.models.combine import Combine, fill_missing, temporal_median
from deepinv_astro.models.derotate import check_sequence, derotate
from deepinv_astro.models.pca import check_components, gram
from deepinv_astro.physics import ADI

logger = logging.getLogger(__name__)


def rotation_library(angles: Tensor, radius: float, arc: float) -> Tensor:
    r"""Frames that may serve as references for each frame.

    Frame :math:`s` is far enough from frame :math:`t` when the sky at the radius :math:`r` has
    moved by the arc

    .. math::

        r\, |\theta_s - \theta_t| \geq a .

    :param torch.Tensor angles: derotation angles in degrees, ``(T,)``.
    :param float radius: distance from the star :math:`r`, pixels.
    :param float arc: smallest displacement :math:`a`, pixels.
    :return: (:class:`torch.Tensor`) booleans ``(T, T)``: row :math:`t` tells which frames serve
        frame :math:`t`. With ``arc`` zero, all do, itself included.

    |sep|

    :Examples:

        At 10 pixels from the star, 20 degrees are 3.5 pixels:

        >>> import torch
        >>> rotation_library(torch.tensor([0.0, 20.0, 70.0]), radius=10.0, arc=4.0)
        tensor([[False, False,  True],
                [False, False,  True],
                [ True,  True, False]])
    """
    turn = torch.deg2rad((angles[:, None] - angles[None]).double()).remainder(2 * math.pi)
    turn = torch.minimum(turn, 2 * math.pi - turn)
    return radius * turn >= arc


def library_residual_weights(products: Tensor, library: Tensor, n_components: int) -> Tensor:
    r"""Matrix that removes from each frame what the components of its references explain.

    With :math:`G = Y Y^\top`, frame :math:`t` and its references :math:`S_t` become the row
    :math:`W_t Y`,

    .. math::

        W_t = a_t \left( I - G Z_t^\top\, U_k \Lambda_k^{-1} U_k^\top Z_t \right), \qquad
        Z_t G Z_t^\top = U \Lambda U^\top,

    where :math:`a_t = e_t - \bar e_{S_t}` and the rows of :math:`Z_t` are
    :math:`e_s - \bar e_{S_t}` for the references :math:`s`: their mean is subtracted from the frame
    and from themselves. :math:`W_t` is NaN for a frame with :math:`k` references or fewer.

    :param torch.Tensor products: inner products :math:`G` of the frames, ``(T, T)``, float64.
    :param torch.Tensor library: booleans ``(T, T)``: row :math:`t` tells the references of frame
        :math:`t`.
    :param int n_components: number of components :math:`k`.
    :return: (:class:`torch.Tensor`) :math:`W`, ``(T, T)``, float64.
    """
    return torch.stack(
        [
            _frame_weights(products, frame, references.nonzero()[:, 0], n_components)
            for frame, references in enumerate(library)
        ]
    )


def _frame_weights(products: Tensor, frame: int, references: Tensor, n_components: int) -> Tensor:
    weights = products.new_zeros(len(products))
    if len(references) <= n_components:
        return weights.fill_(torch.nan)
    own = products[references][:, references]
    centred = own - own.mean(0) - own.mean(1, keepdim=True) + own.mean()
    values, vectors = torch.linalg.eigh(centred)
    kept = vectors[:, len(references) - n_components :]
    scale = values[len(references) - n_components :]
    # inner products of the centred references with the frame, less the mean of the references
    cross = products[references, frame] - own.mean(1)
    cross = cross - cross.mean()
    floor = torch.finfo(scale.dtype).eps * values[-1].clamp_min(0) * len(references)
    inverse = torch.where(scale > floor, 1 / scale, torch.zeros_like(scale))
    share = kept @ ((kept.mT @ cross) * inverse)
    weights[frame] = 1.0
    weights[references] -= share + 1.0 / len(references)
    return weights


class AnnularPCA(Reconstructor):
    r"""Principal components ring by ring, from frames in which the sky has turned far enough.

    .. math::

        \hat x = \operatorname{comb}_t\, Q_t^{-1} \bigoplus_g \left[ W^{(g)} Y_g \right]_t

    with :math:`Y_g` the pixels of the ring :math:`g` about the star of the detector, and
    :math:`W^{(g)}` the removal, from each frame, of the mean and of the first :math:`k` principal
    components of the frames whose sky, at the middle of the ring, is displaced by ``delta_rot``
    FWHM or more (:func:`library_residual_weights`): Soummer et al., ApJ 755, L28, 2012; frame
    selection of Marois et al., ApJ 641, 556, 2006, as is usual for PCA (Absil et al., A&A 559, L12,
    2013). A source then subtracts less of itself.

    A frame with ``n_components`` references or fewer is left out of the ring, as missing data; a
    ring without any frame is NaN; how many frames are left out is logged. Near the star, ask for a
    smaller ``delta_rot``. Missing pixels, unit and corrections are as for
    :class:`~deepinv_astro.models.pca.PCA`.

    :param int n_components: number of components :math:`k`.
    :param float fwhm: full width at half maximum of the PSF, pixels.
    :param float delta_rot: smallest displacement of the sky, in FWHM; zero to use all frames.
    :param float width: width of a ring in pixels; default: one FWHM.
    :param float inner_radius: radius at which the first ring starts, pixels; nearer pixels are
        missing.
    :param Callable combine: how the turned frames become one image.
    :raises ValueError: if a length is not positive, or a number negative.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 21, 17), angles=torch.linspace(0, 150, 12))
        >>> x = torch.zeros(1, 1, 21, 17)
        >>> x[0, 0, 16, 8] = 1.0
        >>> reconstruct = AnnularPCA(n_components=1, fwhm=2.0, delta_rot=0.5)
        >>> image = reconstruct(physics.A(x) + 50.0, physics)
        >>> divmod(int(image.nan_to_num().argmax()), 17)
        (16, 8)
    """

    def __init__(
        self,
        n_components: int,
        fwhm: float,
        delta_rot: float = 0.5,
        width: float | None = None,
        inner_radius: float = 0.0,
        combine: Combine = temporal_median,
    ):
        super().__init__()
        width = fwhm if width is None else width
        check_components(n_components)
        for name, value in (("fwhm", fwhm), ("width", width)):
            if not value > 0:
                raise ValueError(f"{name} must be a positive number of pixels, got {value}")
        for name, value in (("delta_rot", delta_rot), ("inner_radius", inner_radius)):
            if not value >= 0:
                raise ValueError(f"{name} must be zero or more, got {value}")
        self.n_components, self.fwhm, self.delta_rot = n_components, fwhm, delta_rot
        self.width, self.inner_radius, self.combine = width, inner_radius, combine

    def forward(self, y: Tensor, physics: ADI) -> Tensor:
        r"""Image of the sky.

        :param torch.Tensor y: sequence ``(B, C, T, h, w)``, missing data NaN.
        :param ADI physics: geometry of the sequence; its ``angles`` choose the frames.
        :return: (:class:`torch.Tensor`) ``(B, C, H, W)`` on the sky grid of ``physics``.
        :raises ValueError: if the shape of ``y`` does not fit, or there are fewer frames than
            components.
        """
        check_sequence(y, physics)
        check_components(self.n_components, physics.frames)
        return self.combine(derotate(self.residual(y, physics), physics))

    def residual(self, y: Tensor, physics: ADI) -> Tensor:
        r"""Frames without their components, before they are turned.

        :param torch.Tensor y: sequence ``(B, C, T, h, w)``, missing data NaN.
        :param ADI physics: geometry of the sequence.
        :return: (:class:`torch.Tensor`) ``(B, C, T, h, w)``, NaN where data or references are
            missing.
        """
        filled = fill_missing(y)
        residual = torch.full_like(filled, torch.nan)
        for row, sequence in enumerate(filled):
            angles = physics.angles[row % len(physics.angles)].detach()
            center = physics.center[row % len(physics.center)].detach().double().mean(0)
            for radius, ring in self._rings(center, sequence.shape[-2:]):
                library = rotation_library(angles, radius, self.delta_rot * self.fwhm)
                for channel, frames in enumerate(sequence):
                    pixels = frames[:, ring]
                    weights = library_residual_weights(gram(pixels), library, self.n_components)
                    residual[row, channel][:, ring] = weights.to(pixels.dtype) @ pixels
                left_out = int((library.sum(1) <= self.n_components).sum())
                if left_out:
                    logger.info(
                        "%d of %d frames have too few references at %.1f pixels from the star",
                        left_out,
                        len(library),
                        radius,
                    )
        return residual.masked_fill(y.isnan(), torch.nan)

    def _rings(self, center: Tensor, size: torch.Size) -> Iterator[tuple[float, Tensor]]:
        """Middle radius and pixels (h, w) of each ring about the star; its mean if it moves."""
        rows = torch.arange(size[0], dtype=center.dtype, device=center.device) - center[0]
        columns = torch.arange(size[1], dtype=center.dtype, device=center.device) - center[1]
        distance = torch.hypot(rows[:, None], columns[None])
        index = ((distance - self.inner_radius) / self.width).floor()
        for ring in range(int(index.max()) + 1):
            pixels = index == ring
            if bool(pixels.any()):
                yield self.inner_radius + (ring + 0.5) * self.width, pixels
