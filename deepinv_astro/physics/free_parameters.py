r"""Free parameters of an operator and what is known of each before the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

Link = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Free:
    r"""A free parameter of an operator: :math:`v = \ell(\theta)`, :math:`\theta \sim \mathcal N(\theta_0, \Sigma)`.

    :param str name: keyword of the operator that takes the value :math:`v`, such as ``"filter"``.
    :param torch.Tensor, float mean: :math:`\theta_0`, any shape.
    :param torch.Tensor, float std: standard deviations of the prior, broadcast to the shape of
        ``mean``. Give either ``std`` or ``covariance``.
    :param torch.Tensor covariance: :math:`\Sigma` of the flattened :math:`\theta`, ``(n, n)``.
    :param Callable link: :math:`\ell`, differentiable, from a tensor of the shape of ``mean`` to the
        value; a :class:`torch.nn.Module` if it holds tensors. ``None`` for the identity.
    :param str unit: unit of :math:`\theta`, for reports.
    :param tuple labels: a name for each element of :math:`\theta`. Default: ``name``, with the index.
    :raises ValueError: if the prior is not a positive Gaussian of the size of ``mean``.

    |sep|

    :Examples:

        >>> import torch
        >>> Free("center", torch.tensor([51.0, 50.5]), std=0.3, unit="px").labels
        ('center[0]', 'center[1]')
    """

    name: str
    mean: Tensor | float
    std: Tensor | float | None = None
    covariance: Tensor | None = None
    link: Link | None = None
    unit: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        mean = torch.as_tensor(self.mean).detach()
        if not mean.is_floating_point() or not torch.isfinite(mean).all() or not mean.numel():
            raise ValueError(f"mean of {self.name} must be finite floating-point values")
        if (self.std is None) == (self.covariance is None):
            raise ValueError(f"give either std or covariance for {self.name}")
        labels = tuple(self.labels) or _labels(self.name, tuple(mean.shape))
        if len(labels) != mean.numel():
            raise ValueError(f"{self.name} has {mean.numel()} elements and {len(labels)} labels")
        object.__setattr__(self, "mean", mean.clone())
        object.__setattr__(self, "labels", labels)
        _ = self.root  # checks the prior

    @cached_property
    def root(self) -> Tensor:
        r""":math:`L`, lower triangular, of :math:`\Sigma = L L^\top`."""
        mean = torch.as_tensor(self.mean)
        if self.covariance is not None:
            return _cholesky(self.name, torch.as_tensor(self.covariance).to(mean), mean.numel())
        std = torch.as_tensor(self.std).detach().to(mean)
        if not _fits(std, mean) or not (std > 0).all() or not torch.isfinite(std).all():
            raise ValueError(
                f"std of {self.name} must be positive, a number or of a shape that broadcasts to "
                f"{tuple(mean.shape)}, got {self.std}"
            )
        return std.expand(mean.shape).flatten().diag()


class _CommonOffset(nn.Module):
    """The first element is added to all the others."""

    def forward(self, theta: Tensor) -> Tensor:
        return theta[0] + theta[1:]


class _UnitSumBasis(nn.Module):
    """Mean PSF plus a combination of a basis, normalised to unit sum."""

    psf: Tensor
    basis: Tensor

    def __init__(self, psf: Tensor, basis: Tensor):
        super().__init__()
        self.register_buffer("psf", psf.detach().clone())
        self.register_buffer("basis", basis.detach().clone())

    def forward(self, theta: Tensor) -> Tensor:
        psf = self.psf + torch.tensordot(theta, self.basis, dims=1)
        return psf / psf.sum((-2, -1), keepdim=True)


def free_center(center: Tensor | tuple[float, float], std: Tensor | float) -> Free:
    r"""Free position of the star on the detector, for ``center`` of an operator.

    :param torch.Tensor, tuple center: (row, column) in pixels, or one per frame, ``(T, 2)``.
    :param torch.Tensor, float std: prior standard deviation in pixels.
    :return: (:class:`Free`) named ``row`` and ``column``.
    """
    mean = torch.as_tensor(center).detach()
    mean = mean if mean.is_floating_point() else mean.to(torch.get_default_dtype())
    labels = ("row", "column")
    if mean.ndim > 1:
        return Free(
            "center",
            mean[None],
            std,
            unit="px",
            labels=tuple(f"{name}[{t}]" for t in range(len(mean)) for name in labels),
        )
    return Free("center", mean, std, unit="px", labels=labels)


def free_angles(angles: Tensor, std: Tensor | float, true_north_std: float | None = None) -> Free:
    r"""Free derotation angles, :math:`\theta_t + \nu` with an error for each frame and one for all.

    The common error :math:`\nu`, the direction of true North, turns the sky of the answer with it:
    no sequence tells it, so it stays at its prior, and its uncertainty goes to position angles.

    :param torch.Tensor angles: angles in degrees, ``(T,)``.
    :param torch.Tensor, float std: prior standard deviation of each angle, degrees.
    :param float true_north_std: prior standard deviation of :math:`\nu`, degrees; ``None`` for no
        such parameter.
    :return: (:class:`Free`) for the keyword ``angles``; with ``true north`` as the first element.

    |sep|

    :Examples:

        >>> import torch
        >>> spec = free_angles(torch.tensor([10.0, 30.0]), std=0.1, true_north_std=0.5)
        >>> spec.labels, spec.link(torch.tensor([1.0, 10.0, 30.0]))
        (('true north', 'angle[0]', 'angle[1]'), tensor([11., 31.]))
    """
    labels = tuple(f"angle[{t}]" for t in range(len(angles)))
    if true_north_std is None:
        return Free("angles", angles, std, unit="deg", labels=labels)
    each = torch.as_tensor(std).to(angles).expand(angles.shape)
    north = torch.as_tensor([true_north_std]).to(angles)
    return Free(
        "angles",
        torch.cat([torch.zeros_like(angles[:1]), angles]),
        torch.cat([north, each]),
        link=_CommonOffset(),
        unit="deg",
        labels=("true north", *labels),
    )


def free_gain(gain: Tensor, std: Tensor | float) -> Free:
    r"""Free gains of the frames. Their common factor is the flux of the sky: it stays at the prior.

    :param torch.Tensor gain: gains, ``(T,)``.
    :param torch.Tensor, float std: prior standard deviation.
    :return: (:class:`Free`) for the keyword ``gain``.
    """
    return Free("gain", gain, std)


def free_psf(
    psf: Tensor, basis: Tensor, std: Tensor | float = 1.0, covariance: Tensor | None = None
) -> Free:
    r"""Free PSF on a basis, :math:`h = (h_0 + \sum_k \theta_k b_k) / \sum`, of unit sum.

    The total flux of a PSF is never identifiable: the sum is fixed.

    :param torch.Tensor psf: :math:`h_0`, in the shape that the operator takes, ``(..., k, k)``.
    :param torch.Tensor basis: :math:`b_k`, ``(n, ..., k, k)``, such as the principal components of
        several measured PSFs.
    :param torch.Tensor, float std: prior standard deviation of the coefficients, ``(n,)``.
    :param torch.Tensor covariance: their prior covariance ``(n, n)`` instead of ``std``.
    :return: (:class:`Free`) for the keyword ``filter``.
    :raises ValueError: if the shapes differ.
    """
    if basis.shape[1:] != psf.shape or psf.ndim < 2:
        raise ValueError(
            f"basis must be of shape (n, ...) for psf of shape (...), got {tuple(basis.shape)} "
            f"for {tuple(psf.shape)}"
        )
    return Free(
        "filter",
        torch.zeros(len(basis)).to(psf),
        None if covariance is not None else std,
        covariance,
        link=_UnitSumBasis(psf, basis),
        labels=tuple(f"psf[{k}]" for k in range(len(basis))),
    )


def _fits(value: Tensor, like: Tensor) -> bool:
    """Whether it broadcasts to that shape."""
    try:
        return torch.broadcast_shapes(value.shape, like.shape) == like.shape
    except RuntimeError:
        return False


def _labels(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """One for each element: the name, with the index if there are several."""
    if not shape or shape == (1,):
        return (name,)
    grid = torch.cartesian_prod(*(torch.arange(s) for s in shape)).view(-1, len(shape))
    return tuple(f"{name}[{', '.join(map(str, index))}]" for index in grid.tolist())


def _cholesky(name: str, covariance: Tensor, size: int) -> Tensor:
    if covariance.shape != (size, size) or not torch.allclose(covariance, covariance.mT):
        raise ValueError(
            f"covariance of {name} must be symmetric of shape ({size}, {size}), "
            f"got {tuple(covariance.shape)}"
        )
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError(f"covariance of {name} must be positive definite: add to its diagonal")
    return root
