r"""What is free and what is known of an operator: parameters with a Gaussian prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

#: A direction whose posterior standard deviation is more than this fraction of the prior's has
#: learned nothing: it stays at the prior.
UNINFORMED = 0.9

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


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    r"""What the data told of each parameter, and along which directions they told nothing.

    In the whitened coordinates :math:`u`, where the prior is :math:`\mathcal N(0, I)`, the
    eigenvectors :math:`v_j` of the Fisher information :math:`F` are directions that are learned
    independently, and the ratio of the posterior to the prior standard deviation along
    :math:`v_j` is :math:`(1 + f_j)^{-1/2}`. Directions with a ratio above the threshold are *kept* at
    the prior mean: the error of the estimate along them is the prior's.

    :param tuple names: names of the parameters, ``n`` of them.
    :param tuple units: their units.
    :param torch.Tensor values: :math:`\theta`, ``(n,)``.
    :param torch.Tensor prior_mean: :math:`\theta_0`.
    :param torch.Tensor prior_std: standard deviations of the prior.
    :param torch.Tensor posterior_std: standard deviations of ``values``.
    :param torch.Tensor covariance: covariance of ``values``, ``(n, n)``.
    :param torch.Tensor directions: columns :math:`v_j`, ``(n, n)``, the best known first.
    :param torch.Tensor direction_ratio: posterior over prior standard deviation of each direction.
    :param torch.Tensor kept: which directions stay at the prior.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    values: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    posterior_std: Tensor
    covariance: Tensor
    directions: Tensor
    direction_ratio: Tensor
    kept: Tensor

    @property
    def ratio(self) -> Tensor:
        """Posterior over prior standard deviation of each parameter."""
        return self.posterior_std / self.prior_std

    @property
    def kept_directions(self) -> Tensor:
        """The columns that stay at the prior, for :meth:`Calibration.keep`."""
        return self.directions[:, self.kept]

    def describe_kept(self, terms: int = 3) -> tuple[str, ...]:
        """Each direction that stays at the prior in words: its largest components, by name."""
        lines = []
        for direction, ratio in zip(
            self.kept_directions.T, self.direction_ratio[self.kept], strict=True
        ):
            largest = direction.abs().argsort(descending=True)[:terms]
            parts = [
                f"{float(direction[i]):+.2f} {self.names[i]}"
                for i in largest.tolist()
                if abs(float(direction[i])) >= 0.1
            ]
            more = " ..." if int((direction.abs() >= 0.1).sum()) > terms else ""
            lines.append(f"{' '.join(parts)}{more} (posterior/prior {float(ratio):.3f})")
        return tuple(lines)


class Calibration(nn.Module):
    r"""Free parameters of an operator, in whitened coordinates.

    .. math::

        \theta = \theta_0 + L P u, \qquad \Sigma_\theta = L L^\top, \qquad
        -\ln p(\theta) = \tfrac12 \| P u \|^2 + \text{const},

    with one learned vector :math:`u`, so that one learning rate suits all units, and :math:`P` the
    projector that removes the directions which :meth:`keep` holds at the prior: nothing that an
    optimiser does to :math:`u` moves :math:`\theta` along them.

    The module produces values for ``physics.update_parameters``, of any deepinv operator whose
    parameters are buffers. Values with gradients become buffers that are not leaves: update the
    operator again with :meth:`detached` when done, or give it only those (the operator of a
    network should never carry gradients to :math:`\theta`, see
    :class:`~deepinv_astro.loss.CalibrationLoss`).

    :param Free free: the parameters; each keyword once.
    :raises ValueError: if there is none, or if a keyword is given twice.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> angles = torch.tensor([0.0, 20.0, 50.0])
        >>> calibration = Calibration(free_center((2.0, 1.5), 0.5), free_gain(torch.ones(3), 0.1))
        >>> physics = ADI((1, 5, 4), angles)
        >>> physics.update_parameters(**calibration.detached())
        >>> physics.center.flatten(), physics.gain
        (tensor([2.0000, 1.5000]), tensor([[1., 1., 1.]]))

        The data fix the row of the star to a hundredth of its prior and say nothing else:

        >>> information = torch.zeros(5, 5)
        >>> information[0, 0] = 1e4
        >>> report = calibration.report(information)
        >>> report.names[0], report.ratio
        ('row', tensor([0.0100, 1.0000, 1.0000, 1.0000, 1.0000]))
        >>> calibration.keep(report.kept_directions)
        >>> with torch.no_grad():
        ...     calibration.u += 1.0
        >>> calibration.detached()["center"], calibration.detached()["gain"]
        (tensor([2.5000, 1.5000]), tensor([1., 1., 1.]))
    """

    mean: Tensor
    root: Tensor
    projector: Tensor

    def __init__(self, *free: Free):
        super().__init__()
        names = [spec.name for spec in free]
        if not free or len(set(names)) < len(names):
            raise ValueError(f"give one or more parameters, each keyword once, got {names}")
        self.free = free
        self.links = nn.ModuleList([f.link for f in free if isinstance(f.link, nn.Module)])
        means = [torch.as_tensor(f.mean).flatten() for f in free]
        mean = torch.cat(means)
        self.register_buffer("mean", mean)
        self.register_buffer("root", torch.block_diag(*(f.root.to(mean) for f in free)))
        self.register_buffer("projector", torch.eye(len(mean)).to(mean))
        self.u = nn.Parameter(torch.zeros_like(mean))

    @property
    def names(self) -> tuple[str, ...]:
        r"""A name for each element of :math:`\theta`."""
        return tuple(label for spec in self.free for label in spec.labels)

    @property
    def units(self) -> tuple[str, ...]:
        r"""The unit of each element of :math:`\theta`."""
        return tuple(spec.unit for spec in self.free for _ in spec.labels)

    @property
    def theta(self) -> Tensor:
        """The parameters in their units, with gradients, ``(n,)``."""
        return self.theta_at(self.u)

    def theta_at(self, u: Tensor) -> Tensor:
        """The parameters of given whitened coordinates ``(n,)``."""
        return self.mean + self.root @ (self.projector @ u)

    def at(self, u: Tensor) -> dict[str, Tensor]:
        r"""Values for the operator at given whitened coordinates.

        :param torch.Tensor u: ``(n,)``.
        :return: (dict) values by keyword, differentiable in ``u``.
        """
        theta, first, values = self.theta_at(u), 0, {}
        for spec in self.free:
            shape = torch.as_tensor(spec.mean).shape
            part = theta[first : first + shape.numel()].view(shape)
            values[spec.name] = part if spec.link is None else spec.link(part)
            first += shape.numel()
        return values

    def forward(self) -> dict[str, Tensor]:
        """Values for ``physics.update_parameters``, with gradients to :math:`u`."""
        return self.at(self.u)

    def detached(self) -> dict[str, Tensor]:
        """Values for ``physics.update_parameters``, without gradients."""
        with torch.no_grad():
            return {name: value.clone() for name, value in self.at(self.u).items()}

    def prior_cost(self) -> Tensor:
        r"""Minus the logarithm of the prior, :math:`\tfrac12 \| P u \|^2`."""
        return (self.projector @ self.u).square().sum() / 2

    @torch.no_grad()
    def keep(self, directions: Tensor) -> None:
        r"""Hold directions at the prior mean.

        :param torch.Tensor directions: columns that span them in whitened coordinates, ``(n, k)``;
            ``k`` = 0 frees all. Replaces what was held before.
        :raises ValueError: if the shape does not fit.
        """
        size = len(self.mean)
        if directions.ndim != 2 or len(directions) != size:
            raise ValueError(
                f"directions must be of shape ({size}, k), got {tuple(directions.shape)}"
            )
        basis = torch.linalg.qr(directions.to(self.mean).double())[0]
        eye = torch.eye(size, dtype=basis.dtype, device=basis.device)
        self.projector.copy_(eye - basis @ basis.T)

    @torch.no_grad()
    def report(self, information: Tensor, threshold: float = UNINFORMED) -> CalibrationReport:
        r"""What the data told.

        :param torch.Tensor information: Fisher information of the data on :math:`u`, ``(n, n)``,
            without the prior.
        :param float threshold: largest ratio of the posterior to the prior standard deviation at
            which a direction may move.
        :return: (:class:`CalibrationReport`) values, errors, and the directions to :meth:`keep`.
        :raises ValueError: if the information is not a finite matrix of this size.
        """
        size = len(self.mean)
        if information.shape != (size, size) or not torch.isfinite(information).all():
            raise ValueError(
                f"information must be a finite matrix of shape ({size}, {size}), "
                f"got {tuple(information.shape)}"
            )
        symmetric = (information + information.mT).to(self.mean).double() / 2
        eigenvalues, vectors = torch.linalg.eigh(symmetric)
        eigenvalues, vectors = eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
        ratio = (1 + eigenvalues).rsqrt()
        kept = ratio > threshold
        root = self.root.double()
        half = root @ (vectors * ratio.masked_fill(kept, 1.0))
        covariance = half @ half.T
        return CalibrationReport(
            names=self.names,
            units=self.units,
            values=self.theta.detach().clone(),
            prior_mean=self.mean.clone(),
            prior_std=root.square().sum(1).sqrt().to(self.mean),
            posterior_std=covariance.diagonal().sqrt().to(self.mean),
            covariance=covariance.to(self.mean),
            directions=vectors.to(self.mean),
            direction_ratio=ratio.to(self.mean),
            kept=kept,
        )


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
