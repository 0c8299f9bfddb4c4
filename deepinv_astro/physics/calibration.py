r"""What is free and what is known of an operator: parameters with a Gaussian prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepinv_astro.physics.free_parameters import Free

#: A direction whose posterior standard deviation is more than this fraction of the prior's has
#: learned nothing: it stays at the prior.
UNINFORMED = 0.9


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

    def __str__(self) -> str:
        rows = [
            f"{name}: {value:.4g} ± {std:.2g} {unit} (before {mean:.4g} ± {before:.2g})".replace(
                "  ", " "
            )
            for name, unit, value, std, mean, before in zip(
                self.names,
                self.units,
                self.values.tolist(),
                self.posterior_std.tolist(),
                self.prior_mean.tolist(),
                self.prior_std.tolist(),
                strict=True,
            )
        ]
        kept = [f"at the prior: {line}" for line in self.describe_kept()]
        return "\n".join([*rows, *kept])

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
        >>> from deepinv_astro.physics import ADI, free_center, free_gain
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
        >>> print(str(report).splitlines()[0])
        row: 2 ± 0.005 px (before 2 ± 0.5)
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
