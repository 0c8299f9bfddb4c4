r"""Iterative principal component analysis: the sky is taken out before the next analysis."""

from __future__ import annotations

from collections.abc import Callable

from deepinv.models import Reconstructor
from torch import Tensor

from deepinv_astro.models.combine import Combine, temporal_mean
from deepinv_astro.models.derotate import check_sequence, derotate, turn
from deepinv_astro.models.pca import check_components, subtract_components
from deepinv_astro.physics import ADI


class IterativePCA(Reconstructor):
    r"""Iterative PCA (GreeDS): take the last image out of the frames, analyse them again.

    .. math::

        \hat x \leftarrow \left[ \operatorname{comb}_t\, Q_t^{-1}
        \left( Y - \mathcal{H}_k\!\left( Y - Q \hat x \right) \right)_t \right]_+ ,

    with :math:`\mathcal{H}_k` the best approximation of rank :math:`k`, for
    :math:`k = k_0, \dots, K`, ``iterations`` times each, from :math:`\hat x = 0`: GreeDS of Pairet,
    Cantalloube & Jacques, MNRAS 503, 3724, 2021; called I-PCA by Juillard et al., A&A 679, A52,
    2023; a fixed rank (``first_rank`` equal to ``rank``) is the variant of Stapper & Ginski, A&A
    668, A50, 2022. The low ranks take the bright smooth signal, which then no longer feeds the
    higher ones: a disk loses less to self-subtraction than with PCA.

    Missing pixels (NaN) are filled with their temporal mean for the analysis and left out of the
    combination. The result is in the unit of the frames per pixel: it estimates the *blurred* sky
    :math:`Hx`, positive. Transmission and gains of ``physics`` are not corrected. Sky pixels that
    no frame sees are NaN. What the coronagraph hides should be NaN in the data: the halo next to
    the star otherwise makes the first components.

    :param int rank: last rank :math:`K`.
    :param int iterations: iterations at each rank.
    :param int first_rank: first rank :math:`k_0`.
    :param Callable combine: how the turned frames become one image.
    :param Callable static: what is subtracted before the approximation of rank :math:`k`, and
        belongs to it; ``None``, as published, to approximate the frames as they are.
    :param Callable callback: called after each iteration with its number, from 1 to ``total``, and
        the image ``(B, C, H, W)``, e.g. for a progress bar.
    :raises ValueError: if a rank or the number of iterations is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 15, 11), angles=torch.linspace(0, 120, 8))
        >>> x = torch.zeros(1, 1, 15, 11)
        >>> x[0, 0, 11, 5] = 1.0
        >>> numbers = []
        >>> reconstruct = IterativePCA(
        ...     rank=2, iterations=3, callback=lambda n, image: numbers.append(n)
        ... )
        >>> image = reconstruct(physics.A(x) + 50.0, physics)
        >>> divmod(int(image.nan_to_num().argmax()), 11), numbers
        ((11, 5), [1, 2, 3, 4, 5, 6])
    """

    def __init__(
        self,
        rank: int = 10,
        iterations: int = 10,
        first_rank: int = 1,
        combine: Combine = temporal_mean,
        static: Combine | None = None,
        callback: Callable[[int, Tensor], object] | None = None,
    ):
        super().__init__()
        if not 1 <= first_rank <= rank:
            raise ValueError(
                f"ranks must satisfy 1 <= first_rank <= rank, got {first_rank} and {rank}"
            )
        if iterations < 1:
            raise ValueError(f"iterations must be one or more, got {iterations}")
        self.rank, self.iterations, self.first_rank = rank, iterations, first_rank
        self.combine, self.static, self.callback = combine, static, callback

    @property
    def total(self) -> int:
        """Number of iterations over all ranks."""
        return self.iterations * (self.rank - self.first_rank + 1)

    def forward(self, y: Tensor, physics: ADI) -> Tensor:
        r"""Image of the sky.

        :param torch.Tensor y: sequence ``(B, C, T, h, w)``, missing data NaN.
        :param ADI physics: geometry of the sequence.
        :return: (:class:`torch.Tensor`) ``(B, C, H, W)`` on the sky grid of ``physics``.
        :raises ValueError: if the shape of ``y`` does not fit, or there are fewer frames than
            components.
        """
        check_sequence(y, physics)
        check_components(self.rank, physics.frames)
        image = y.new_zeros(len(y), *physics.img_size)
        for iteration in range(self.total):
            rank = self.first_rank + iteration // self.iterations
            sky = turn(image.nan_to_num(0.0), physics)
            # Y - H_k(Y - Qx), where H_k(Z) is Z less its residual
            cleaned = sky + subtract_components(y - sky, rank, self.static)
            image = self.combine(derotate(cleaned, physics)).clamp_min(0)
            if self.callback is not None:
                self.callback(iteration + 1, image)
        return image
