r"""Classical angular differential imaging."""

from __future__ import annotations

from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.models.combine import Combine, temporal_median
from deepinv_astro.models.derotate import check_sequence, derotate
from deepinv_astro.physics import ADI


class MedianADI(Reconstructor):
    r"""Classical ADI: subtract the median of the sequence, turn North up, combine.

    .. math::

        \hat x = \operatorname{comb}_t\, Q_t^{-1}\left( y_t - \operatorname{med}_s\, y_s \right)

    with :math:`Q_t^{-1}` the turn that brings North up
    (:func:`~deepinv_astro.models.derotate.derotate`) and both combinations the median, by default.
    Missing pixels (NaN) are left out of both.

    The result is in the unit of the frames per pixel: it estimates the *blurred* sky :math:`Hx`,
    less what self-subtraction takes. Transmission and gains of ``physics`` are not corrected. Sky
    pixels that no frame sees are NaN.

    :param Callable reference: static part of frames ``(..., T, H, W)``, e.g.
        :func:`~deepinv_astro.models.combine.temporal_mean`.
    :param Callable combine: how the turned frames become one image.

    |sep|

    :Examples:

        A bright static halo is removed, a planet above the star stays:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 9, 11), angles=torch.linspace(0, 120, 5))
        >>> x = torch.zeros(1, 1, 9, 11)
        >>> x[0, 0, 7, 5] = 1.0
        >>> image = MedianADI()(physics.A(x) + 50.0, physics)
        >>> divmod(int(image.nan_to_num().argmax()), 11)
        (7, 5)
    """

    def __init__(self, reference: Combine = temporal_median, combine: Combine = temporal_median):
        super().__init__()
        self.reference, self.combine = reference, combine

    def forward(self, y: Tensor, physics: ADI) -> Tensor:
        r"""Image of the sky.

        :param torch.Tensor y: sequence ``(B, C, T, h, w)``, missing data NaN.
        :param ADI physics: geometry of the sequence.
        :return: (:class:`torch.Tensor`) ``(B, C, H, W)`` on the sky grid of ``physics``.
        :raises ValueError: if the shape of ``y`` does not fit.
        """
        check_sequence(y, physics)
        return self.combine(derotate(y - self.reference(y).unsqueeze(-3), physics))
