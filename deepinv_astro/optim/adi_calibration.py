r"""What a sequence tells of its operator when neither the sky nor the speckles are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from deepinv_astro.optim.adi_tangents import CalibratedADI, sky_symmetries
from deepinv_astro.optim.regions import Partition
from deepinv_astro.optim.rexpaco import noise_relative_maps
from deepinv_astro.optim.sky_solver import CHUNK, SkyGrid, solve
from deepinv_astro.optim.temporal import TemporalLikelihood
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur

#: Fraction of the curvature with frozen statistics that is always left: less would mean nothing.
LEAST_CURVATURE = 0.02

#: Least part of a spline that is free.
LEAST_OVERLAP = 0.1

#: Least flux within the core of the PSF, in standard deviations of the flux of a point source, of a
#: sky that informs: what is fainter may be speckles.
SEEN = 6.0


class SpeckleExpansion:
    r"""The marginal likelihood of speckles about one residual, with the weight that its scatter asks for.

    For the residual :math:`r` of :class:`~deepinv_astro.optim.TemporalLikelihood`, whose region
    :math:`g` is the matrix :math:`R_g` of :math:`K_g` pixels,

    .. math::

        J(r - \delta) \approx J(r) - \langle w, \delta \rangle + \tfrac12 \langle \delta, M \delta \rangle,
        \qquad G_g = \nu K_g I + R_g R_g^\top,

    .. math::

        w_g = \frac{K_g (1+\nu)}{c_g}\, G_g^{-1} R_g, \qquad
        M_g \delta = \frac{K_g (1+\nu)}{c_g}\, G_g^{-1} \delta \left(I - R_g^\top G_g^{-1} R_g\right) .

    :math:`M` is the curvature of :math:`\log\det` less one small term, and positive semi-definite. The last
    factor is what the data need to tell :math:`\delta` from the covariance of the speckles: :math:`T`
    of the patterns of a region are lost.

    The likelihood takes the pixels of a region as independent; speckles are as wide as the PSF
    :math:`h`. The factor :math:`c_g \ge 1`, the number of pixels that count as one, is measured: the
    variance of the score of a PSF placed anywhere in the region, over what :math:`M` expects,

    .. math::

        c_g = \frac{\sum_{p,t} (h_p^\top w_t)^2}{\sum_{p,t} \langle h_p e_t, M\, h_p e_t \rangle}
        \quad\text{(with } c = 1 \text{ on the right)} .

    It is about :math:`1 / (1 - T/K)` for white noise. The estimate from :math:`J / c` then
    has the covariance :math:`(M/c)^{-1} = M^{-1} (c M) M^{-1}`.

    :param TemporalLikelihood likelihood: regions, profile of the variance, references.
    :param torch.Tensor residual: :math:`r`, ``(1, C, T, h, w)``, without NaN.
    :param torch.Tensor psf: :math:`h`, as the operator has it, or ``None`` for one pixel.
    """

    def __init__(self, likelihood: TemporalLikelihood, residual: Tensor, psf: Tensor | None):
        self._likelihood = likelihood
        white = likelihood._white(residual)
        size = (residual.shape[-2], residual.shape[-1])
        share = 1 / len(likelihood.partitions)
        self._statistics = [
            _statistics(part, white, likelihood.nu, share, size, psf)
            for part in likelihood.partitions
        ]
        #: :math:`w`, the gradient in the residual.
        self.score = self._assemble(white, residual.shape, _score)

    @property
    def pixels_per_datum(self) -> Tensor:
        """:math:`c` of each region of each partition."""
        return torch.cat([c for own in self._statistics for c in own.pixels_per_datum], 1)

    def cost(self, residual: Tensor) -> float:
        """:math:`J` of another residual, each region divided by its :math:`c`."""
        white, total = self._likelihood._white(residual), 0.0
        for part, own in zip(self._likelihood.partitions, self._statistics, strict=True):
            gram = torch.cat([rows @ rows.mT for rows in part.gather(white)], 1).double()
            gram.diagonal(dim1=-2, dim2=-1).add_(own.floor[:, None])
            halves = torch.linalg.cholesky(gram).diagonal(dim1=-2, dim2=-1).log().sum(-1)
            total += float((halves * torch.cat(own.weights, 1)[..., 0, 0]).sum())
        return total

    def __call__(self, sequences: Tensor) -> Tensor:
        """:math:`M` applied to sequences without references, ``(N, C, T, h, w)``."""
        chunks = []
        for chunk in sequences.split(CHUNK):
            scaled = chunk * self._likelihood._scale()
            if self._likelihood.references is not None:
                more = self._likelihood.references.shape[2]
                scaled = torch.nn.functional.pad(scaled, (0, 0, 0, 0, 0, more))
            white = (scaled - scaled.mean(2, keepdim=True)).flatten(3).flatten(0, 1)
            chunks.append(self._assemble(white, chunk.shape, _curvature))
        return torch.cat(chunks)

    def _assemble(
        self, white: Tensor, shape: torch.Size, of: Callable[[_Statistics, int, Tensor], Tensor]
    ) -> Tensor:
        """Act on the rows of each region, and go back to sequences."""
        slope = torch.zeros_like(white)
        for part, own in zip(self._likelihood.partitions, self._statistics, strict=True):
            blocks = [of(own, k, rows) for k, rows in enumerate(part.gather(white))]
            slope += part.scatter(blocks, white.shape[-1])
        return self._likelihood._unwhite(slope, shape)


class _Statistics(NamedTuple):
    """Of the regions of a partition, in its blocks: R, G^-1, K (1 + nu) / c, c; nu K of all regions."""

    rows: list[Tensor]
    inverses: list[Tensor]
    weights: list[Tensor]
    pixels_per_datum: list[Tensor]
    floor: Tensor


def _score(own: _Statistics, k: int, rows: Tensor) -> Tensor:
    return own.weights[k] * (own.inverses[k] @ rows)


def _curvature(own: _Statistics, k: int, rows: Tensor) -> Tensor:
    mine = own.rows[k]
    many = rows.unflatten(0, (-1, len(mine)))
    many = many - (many @ mine.mT) @ (own.inverses[k] @ mine)
    return (own.weights[k] * (own.inverses[k] @ many)).flatten(0, 1)


def _statistics(
    part: Partition,
    white: Tensor,
    nu: float,
    share: float,
    size: tuple[int, int],
    psf: Tensor | None,
) -> _Statistics:
    blocks = part.gather(white)
    regions = [len(counts) for counts in part.counts.split([n for n, _ in part.blocks])]
    counts = part.counts.double()
    gram = torch.cat([rows @ rows.mT for rows in blocks], 1).double()
    gram.diagonal(dim1=-2, dim2=-1).add_(nu * counts[:, None])
    factor = torch.linalg.cholesky(gram)
    inverse = torch.cholesky_inverse(factor)
    weight = (counts * (1 + nu))[:, None, None]
    # the scores, and the patterns of the speckles, seen through the PSF
    scores = _times((weight * inverse).to(white), regions, blocks)
    patterns = _times(torch.linalg.inv(factor).to(white), regions, blocks)
    everywhere = [torch.ones_like(rows[:, :, :1]) for rows in blocks]
    stamp = torch.ones(1, 1).to(white) if psf is None else _mean_stamp(psf)
    whole = _sums(part, blur(_images(part, everywhere, size), stamp.square()))
    lost = _sums(part, blur(_images(part, patterns, size), stamp).square())
    found = _sums(part, blur(_images(part, scores, size), stamp).square())
    # the temporal mean, removed, has 1 / (nu K) of the trace
    trace = inverse.diagonal(dim1=-2, dim2=-1).sum(-1) - 1 / (nu * counts)
    left = torch.maximum(whole - lost, LEAST_CURVATURE * whole)
    ratio = (found / (weight[:, 0, 0] * trace * left)).clamp_min(1.0)
    weights = (share * weight / ratio[..., None, None]).to(white)
    return _Statistics(
        blocks,
        [own.to(white) for own in inverse.split(regions, 1)],
        list(weights.split(regions, 1)),
        list(ratio.split(regions, 1)),
        nu * counts,
    )


def _mean_stamp(psf: Tensor) -> Tensor:
    """Mean PSF, turned round: convolution with it is a matched filter."""
    return psf.reshape(-1, *psf.shape[-2:]).mean(0).flip(-2, -1)


def _times(matrices: Tensor, regions: list[int], blocks: list[Tensor]) -> list[Tensor]:
    return [m @ rows for m, rows in zip(matrices.split(regions, 1), blocks, strict=True)]


def _images(part: Partition, blocks: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Rows of regions as images of the detector, ``(C, T, h, w)``."""
    return part.scatter(blocks, size[0] * size[1]).unflatten(-1, size)


def _sums(part: Partition, images: Tensor) -> Tensor:
    """Sums over the frames and the pixels of each region, ``(C, regions)``, double precision."""
    return torch.cat([b.double().sum((2, 3)) for b in part.gather(images.flatten(-2))], 1)


@dataclass(frozen=True, eq=False)
class SkyPrior:
    r"""How a sky may differ from a reconstruction: Gaussian, with the curvature of its smoothness.

    .. math::

        -\ln p(x + \delta) = \tfrac12 \sum_p \frac{\kappa_s w_p}
        {\sqrt{|\nabla x|_p^2 + \varepsilon_p^2}}\, |\nabla \delta|_p^2 + \text{const}

    for :math:`\delta` on the pixels where the flux within the core of the PSF is at least
    :data:`SEEN` times its error, :math:`1 / \mathrm{std}(A^\top w)`, and their neighbours; zero
    elsewhere. It is the quadratic that bounds the edge-preserving smoothness of
    :class:`~deepinv_astro.optim.Marginal` from above at :math:`x`. Its bias towards zero is left
    out: it would pass into the gains. :math:`\delta` is a sum of splines on ``grid``, as fine as the
    PSF can tell.

    :param torch.Tensor free: where the sky is seen, ``(1, C, H, W)``.
    :param torch.Tensor stiffness: weight of :math:`\tfrac12 |\nabla \delta|^2`, ``(1, C, H, W)``.
    :param torch.Tensor noise: standard deviation of the score :math:`A^\top w`, ``(1, C, H, W)``.
    :param SkyGrid grid: where the splines are; ``None`` for one unknown in each pixel.
    """

    free: Tensor
    stiffness: Tensor
    noise: Tensor
    grid: SkyGrid | None = None

    @classmethod
    def about(
        cls,
        x: Tensor,
        residual: Tensor,
        physics: ADI,
        speckles: SpeckleExpansion,
        smoothness: float,
        fwhm: float = 0.0,
    ) -> SkyPrior:
        """Prior about a reconstruction ``x`` with the strength ``smoothness`` in units of the noise.

        ``fwhm`` of the PSF, in pixels, is twice the spacing of the splines.
        """
        noise, std = noise_relative_maps(lambda _: (residual, speckles.score), residual, physics)
        down, right = _differences(x)
        length = (down.square() + right.square() + (0.25 * std).square()).sqrt()
        seen = noise * blur(x, core(physics.filter)) > SEEN
        free = max_pool2d(seen.to(x), 3, 1, 1) > 0
        grid = SkyGrid.of(x, fwhm / 2) if fwhm > 2 else None
        return cls(free, smoothness * noise / length, noise, grid)

    @property
    def diagonal(self) -> Tensor:
        r"""About the diagonal of :math:`A^\top M A + P`."""
        return self.noise.square() + 4 * self.stiffness

    def solve(
        self, curvature: Callable[[Tensor], Tensor], b: Tensor, tol: float, max_iter: int
    ) -> Tensor:
        r"""Solve :math:`K \delta = b` among the sums of splines, zero where nothing is free.

        Arguments as in :func:`~deepinv_astro.optim.sky_solver.solve`.
        """
        if self.grid is None:
            return solve(curvature, b * self.free, self.free, self.diagonal, tol, max_iter)
        grid, free = self.grid, self.free
        used = grid.overlap(free) > LEAST_OVERLAP
        found = solve(
            lambda a: grid.transpose(curvature(grid(a) * free) * free) * used,
            grid.transpose(b * free) * used,
            used,
            grid.transpose(self.diagonal * free).clamp_min(1e-30),
            tol,
            max_iter,
        )
        return grid(found) * free

    def __call__(self, delta: Tensor) -> Tensor:
        """The curvature :math:`P` applied to skies ``(N, C, H, W)`` that are zero where nothing is free."""
        down, right = _differences(delta)
        down, right = down * self.stiffness, right * self.stiffness
        out = -down - right
        out[..., 1:, :] += down[..., :-1, :]
        out[..., :, 1:] += right[..., :, :-1]
        return out * self.free


def core(psf: Tensor | None) -> Tensor | None:
    """One where the PSF is above half of its maximum."""
    return None if psf is None else (psf >= psf.amax((-2, -1), keepdim=True) / 2).to(psf)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    right[..., :, :-1] = x[..., :, 1:] - x[..., :, :-1]
    return down, right


@dataclass(frozen=True, eq=False)
class Evidence:
    r"""The marginal likelihood of a calibration about one point: see :func:`expand_evidence`.

    :param torch.Tensor score: minus its gradient in the parameters :math:`\theta`, ``(n,)``.
    :param torch.Tensor information: Fisher information on :math:`\theta`, ``(n, n)``.
    :param torch.Tensor response: :math:`\partial_j \hat x`, what the sky does when a parameter
        moves, ``(n, C, H, W)``.
    :param torch.Tensor correction: what it does at once, ``(1, C, H, W)``.
    :param torch.Tensor probes: pairs :math:`(K^{-1} z, z)`, ``(2, S, C, H, W)``.
    :param torch.Tensor tangents: :math:`D_j`, ``(n, C, T, h, w)``.
    :param torch.Tensor symmetries: sequences of the sky's symmetries, ``(m, C, T, h, w)``.
    :param torch.Tensor yielding: what the sky does when those are added, ``(m, C, H, W)``.
    :param torch.Tensor mixing: amplitudes of the symmetries: at once (first column), and when a
        parameter moves, ``(m, 1 + n)``.
    """

    score: Tensor
    information: Tensor
    response: Tensor
    correction: Tensor
    probes: Tensor
    tangents: Tensor
    symmetries: Tensor
    yielding: Tensor
    mixing: Tensor

    def follow(self, move: Tensor) -> tuple[Tensor, Tensor]:
        """What follows a move of the parameters ``(n,)``.

        :return: change of the sky ``(1, C, H, W)``, and sequence of its symmetries
            ``(1, C, T, h, w)``.
        """
        amplitudes = (self.mixing[:, 0] + self.mixing[:, 1:] @ move).to(self.response)
        sky = torch.einsum("j...,j->...", self.response, move.to(self.response))
        sky = sky + torch.einsum("k...,k->...", self.yielding, amplitudes)
        sequence = torch.einsum("k...,k->...", self.symmetries, amplitudes)
        return self.correction + sky, sequence[None]

    def filters(self, physics: ADI) -> Tensor:
        r"""What reads the score off the gradient in the residual: :math:`s_j = \langle E_j, w \rangle`.

        .. math::

            E_j = D_j - A K^{-1} A^\top M D_j

        without what the symmetries do, and without the determinant's part of the score.

        :param ADI physics: the operator.
        :return: (:class:`torch.Tensor`) ``(n, C, T, h, w)``.
        """
        mixing = self.mixing[:, 1:].to(self.tangents)
        sky = self.response + torch.einsum("kj,k...->j...", mixing, self.yielding)
        more = torch.einsum("kj,k...->j...", mixing, self.symmetries)
        return self.tangents + more + torch.cat([physics.A(part) for part in sky.split(CHUNK)])


def expand_evidence(
    model: CalibratedADI,
    theta: Tensor,
    x: Tensor,
    speckles: SpeckleExpansion,
    prior: SkyPrior,
    probes: Tensor,
    *,
    tol: float = 1e-2,
    max_iter: int = 100,
) -> Evidence:
    r"""Score and Fisher information of the parameters of an operator, the sky integrated out.

    With :math:`-\ln p(y \mid x, \theta) = J(y - A_\theta x)` and the sky Gaussian about its
    reconstruction with the precision :math:`P`, Laplace's approximation of the integral over the sky is

    .. math::

        -\ln p(y \mid \theta) = \min_\delta \left[ J(y - A_\theta (x + \delta))
        + \tfrac12 \delta^\top P \delta \right] + \tfrac12 \log\det K, \qquad
        K = A_\theta^\top M A_\theta + P .

    With :math:`D_j = \partial_j A_\theta x`, :math:`K` restricted to the pixels that may differ, and
    :math:`N = M - M A K^{-1} A^\top M`, its information and minus its gradient are

    .. math::

        F = D^\top N D, \qquad
        s_j = D_j^\top w - D_j^\top M A K^{-1} A^\top w
        - \operatorname{tr} K^{-1} A^\top M\, \partial_j A .

    both exact where :math:`x` is the minimum, else to first order in what :math:`x` lacks.
    The trace is the mean of :math:`\langle M A K^{-1} z, \partial_j A z \rangle` over ``probes``
    with :math:`E z z^\top = I`.

    Brightness, orientation and position of the sky, and its sharpness where the PSF is free, have no
    prior at all (:func:`~deepinv_astro.optim.adi_tangents.sky_symmetries`): they are eliminated from
    :math:`s` and :math:`F`. Hence nothing is learned of a common gain, of true North, or of the
    width of an isotropic PSF, whatever the prior of the sky.

    :param CalibratedADI model: operator and free parameters.
    :param torch.Tensor theta: the parameters ``(n,)``, in their units.
    :param torch.Tensor x: reconstruction with them, ``(1, C, H, W)``; what is not seen does not
        inform.
    :param SpeckleExpansion speckles: of :math:`y - A_\theta x`.
    :param SkyPrior prior: :math:`P`, about ``x``.
    :param torch.Tensor probes: :math:`z`, ``(S, C, H, W)``; none for ``S`` = 0, which leaves the
        determinant out.
    :param float tol: relative error of the solutions of :math:`K`.
    :param int max_iter: most conjugate gradients.
    :return: (:class:`Evidence`)
    """
    physics = model.at(theta)
    z = probes * prior.free
    seen = x * prior.free
    tangents = model.tangents(theta, torch.cat([seen, z]))
    columns = torch.cat(
        [tangents.columns(), sky_symmetries(physics, seen, model.filter_slopes(theta))]
    )
    curved = speckles(columns)

    def curvature(delta: Tensor) -> Tensor:
        bent = [physics.A_adjoint(speckles(physics.A(d))) for d in delta.split(CHUNK)]
        return torch.cat(bent) * prior.free + prior(delta)

    pulled = torch.cat([_adjoint(physics, curved), _adjoint(physics, speckles.score), z])
    solved = prior.solve(curvature, pulled, tol, max_iter)
    count, n = len(columns), len(theta)
    flat, pushed = columns.flatten(1).double(), solved[:count].flatten(1).double()
    information = (
        flat @ curved.flatten(1).double().T - pulled[:count].flatten(1).double() @ pushed.T
    )
    score = flat @ speckles.score.flatten().double() - pushed @ pulled[count].flatten().double()
    inverse = solved[count + 1 :]
    if len(z):
        weights = speckles(physics.A(inverse)) / len(z)
        score[:n] -= tangents.pull(torch.cat([torch.zeros_like(weights[:1]), weights]))
    information = (information + information.T) / 2
    mixed = torch.linalg.pinv(information[n:, n:], hermitian=True, rtol=1e-6)
    mixing = mixed @ torch.cat([score[n:, None], -information[n:, :n]], 1)
    own = information[:n, :n] + information[:n, n:] @ mixing[:, 1:]
    return Evidence(
        score[:n] - information[:n, n:] @ mixing[:, 0],
        (own + own.T) / 2,
        -solved[:n],
        solved[count : count + 1],
        torch.stack([inverse, z]),
        columns[:n],
        columns[n:],
        -solved[n:count],
        mixing,
    )


def _adjoint(physics: ADI, sequences: Tensor) -> Tensor:
    return torch.cat([physics.A_adjoint(part) for part in sequences.split(CHUNK)])
