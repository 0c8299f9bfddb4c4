r"""Likelihood of patches with the covariance at its best value for each residual."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.optim import DataFidelity
from deepinv.physics import Physics
from torch import Tensor

from deepinv_astro.optim.nuisance import PatchStatistics
from deepinv_astro.optim.patches import Patches


class ProfiledPatchLikelihood(DataFidelity):
    r"""Gaussian likelihood of patches with mean and covariance profiled, the shrinkage frozen.

    With :math:`\hat C_n(x) = W_n \odot \hat S_n(x)`, where :math:`W` is one on the diagonal and
    :math:`1 - \hat\rho_n` elsewhere, the covariance minimises
    :math:`\frac T2 [\log\det C + \operatorname{tr}(C^{-1} (W \odot \hat S))]`,
    which leaves

    .. math::

        J(x) = \frac T2 \sum_n w_n \log\det\left( W_n \odot \hat S_n(x) \right), \qquad
        \frac{\partial J}{\partial r_{n,t}} = w_n \left( W_n \odot \hat C_n^{-1} \right) (r_{n,t} - \hat m_n),

    up to a constant (:math:`J` is set to :math:`\frac T2 \sum_n w_n K_n` at the covariance of
    ``statistics``, so that it does not depend on the unit of the data), with :math:`w_n` the mean
    weight of the pixels of a patch (one for a tiling). This refines image and statistics jointly.

    :param PatchStatistics statistics: gives patches, shrinkage and the pixels that take part.
    :raises ValueError: if data are missing in some frames only, or there are folds.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim.nuisance import PatchCovariance
        >>> r = torch.randn(1, 1, 8, 4, 6, generator=torch.Generator().manual_seed(0)).double()
        >>> statistics = PatchCovariance(Patches.grid((4, 6), (2, 3))).estimate(r)
        >>> likelihood = ProfiledPatchLikelihood(statistics)
        >>> twice = likelihood.of_residual(2 * r)[0] - likelihood.of_residual(r)[0]
        >>> (twice / torch.tensor(2.0, dtype=r.dtype).log()).round(
        ...     decimals=6
        ... )  # T times the number of pixels
        tensor([192.], dtype=torch.float64)
    """

    def __init__(self, statistics: PatchStatistics):
        super().__init__()
        valid = statistics.valid
        if statistics.shrinkage.shape[-1] > 1:
            raise ValueError(
                "joint refinement does not combine with folds: use the alternate refinement"
            )
        if bool((valid.any(2) & ~valid.all(2)).any()):
            raise ValueError(
                "joint refinement needs each pixel in all frames or in none: "
                "use the alternate refinement, or drop the pixels or frames with missing data"
            )
        self._size = statistics.patches.size
        usable = statistics.usable
        weight = statistics.patches.weight.to(statistics.mean) * usable
        self.register_buffer("index", statistics.patches.index)
        self.register_buffer("usable", usable)
        self.register_buffer("valid", valid)
        log_det = torch.logdet(statistics.precision[:, :, :, 0].double())
        self.register_buffer("offset", log_det + usable.sum(-1))
        self.register_buffer("rho", statistics.shrinkage[..., 0])
        self.register_buffer("weight", weight.sum(-1) / usable.sum(-1).clamp_min(1))

    def fn(self, x: Tensor, y: Tensor, physics: Physics, *args: Any, **kwargs: Any) -> Tensor:
        """Cost :math:`J(x)`, shape ``(B,)``."""
        return self.of_residual(y - physics.A(x))[0]

    def grad(self, x: Tensor, y: Tensor, physics: Physics, *args: Any, **kwargs: Any) -> Tensor:
        """Gradient of the cost in the image, shape of ``x``."""
        return -physics.A_adjoint(self.of_residual(y - physics.A(x))[1])

    def of_residual(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        r"""Cost and its gradient in the residual :math:`y - A x`.

        :param torch.Tensor residual: ``(B, C, T, h, w)``.
        :return: cost ``(B,)`` in double precision and gradient, zero where data are missing.
        :raises ValueError: if the shape is not the one of the statistics.
        """
        if residual.shape != self.valid.shape:
            raise ValueError(
                f"the residual must have the shape {tuple(self.valid.shape)} of the statistics, "
                f"got {tuple(residual.shape)}"
            )
        patches = Patches(self.index, self.weight, self._size)
        flat = torch.where(self.valid, residual, 0).flatten(0, 1)
        vectors = patches.gather(flat).unflatten(0, residual.shape[:2]) * self.usable[..., None, :]
        centred = vectors - vectors.mean(-2, keepdim=True)
        frames = residual.shape[2]
        scatter = (centred.mT @ centred / frames).double()
        variance = torch.where(self.usable, scatter.diagonal(dim1=-2, dim2=-1), 1)
        std = variance.sqrt()
        eye = torch.eye(std.shape[-1], dtype=std.dtype, device=std.device)
        window = (1 - self.rho[..., None, None]) * (1 - eye)
        root = torch.linalg.cholesky(
            window * scatter / (std[..., :, None] * std[..., None, :]) + eye
        )
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + variance.log().sum(-1)
        inverse = torch.cholesky_inverse(root) / (std[..., :, None] * std[..., None, :])
        masked = ((window + eye) * inverse * self.weight[..., None, None]).to(residual)
        gradient = patches.scatter((centred @ masked).flatten(0, 1)).unflatten(
            0, residual.shape[:2]
        )
        return 0.5 * frames * (self.weight * (log_det + self.offset)).sum((1, 2)), gradient
