r"""Images turned or stretched about a point, by cubic B-splines, with the exact transpose."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from deepinv_astro.physics.functional.interpolation import (
    SplineGrid,
    SplineSampler,
    spline_prefilter_response,
    spline_weights,
)
from deepinv_astro.physics.functional.scaling import Continuation

__all__ = ["AffineSampler", "rotation_matrix", "stretch_matrix", "stretch_response"]


def rotation_matrix(angle: Tensor) -> Tensor:
    r"""The matrix that turns offsets (row, column) by minus an angle.

    .. math::

        \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}

    An image that is read at these offsets appears turned by :math:`+\theta`, counter-clockwise as
    displayed, which takes the column axis towards the row axis.

    :param torch.Tensor angle: :math:`\theta` in degrees, any shape.
    :return: (:class:`torch.Tensor`) matrices ``(..., 2, 2)``.

    >>> rotation_matrix(torch.tensor(90.0)).round().tolist()
    [[-0.0, -1.0], [1.0, -0.0]]
    """
    theta = torch.deg2rad(angle)
    cosine, sine = theta.cos(), theta.sin()
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)


def across(position_angle: Tensor) -> Tensor:
    r"""Unit vector :math:`n = (\sin\varphi, \cos\varphi)`, (row, column), across a position angle."""
    phi = torch.deg2rad(position_angle)
    return torch.stack([phi.sin(), phi.cos()], dim=-1)


def stretch_matrix(axis_ratio: Tensor, position_angle: Tensor) -> Tensor:
    r"""The matrix :math:`I + (1/q - 1)\, n n^\top` that divides offsets across an axis by :math:`q`.

    An image that is read at these offsets appears multiplied by :math:`q` across the axis.

    :param torch.Tensor axis_ratio: :math:`q > 0`, any shape.
    :param torch.Tensor position_angle: of the axis that keeps its length, degrees East of North.
    :return: (:class:`torch.Tensor`) matrices ``(..., 2, 2)``.

    With the axis to the North, columns are divided:

    >>> stretch_matrix(torch.tensor(0.5), torch.tensor(0.0)).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    n = across(position_angle)
    excess = (1 / axis_ratio - 1)[..., None, None]
    return torch.eye(2, dtype=n.dtype, device=n.device) + excess * n[..., :, None] * n[..., None, :]


def _spline_response(frequency: Tensor) -> Tensor:
    """Fourier transform of the interpolating cubic spline."""
    return 3 * torch.sinc(frequency / (2 * math.pi)) ** 4 / (2 + torch.cos(frequency))


def stretch_response(axis_ratio: Tensor, position_angle: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Low-pass filter for images that are compressed across an axis.

    .. math::

        \frac{\hat\eta(\omega / q)}{\hat\eta(\omega)}, \qquad \omega = n \cdot (u, v), \qquad
        \hat\eta(\omega) = \frac{3 \operatorname{sinc}^4(\omega / 2\pi)}{2 + \cos\omega}

    for :math:`q < 1`, and one for :math:`q \ge 1`. Followed by the interpolation by the spline
    :math:`\eta`, it is the interpolation by that spline, stretched over the pixels that are merged.

    :param torch.Tensor axis_ratio: :math:`q`, ``(B,)``.
    :param torch.Tensor position_angle: in degrees, ``(B,)``.
    :param tuple size: rows and columns of the grid.
    :return: (:class:`torch.Tensor`) response on the grid of ``torch.fft.rfft2``, ``(B, rows,
        columns // 2 + 1)``.

    >>> q, north = torch.tensor([0.5]).double(), torch.tensor([0.0]).double()
    >>> stretch_response(q, north, (1, 8))[0, 0].round(decimals=3).tolist()
    [1.0, 0.986, 0.5, 0.014, 0.0]
    """
    n = across(position_angle)
    u = 2 * math.pi * torch.fft.fftfreq(size[0], dtype=n.dtype, device=n.device)
    v = 2 * math.pi * torch.fft.rfftfreq(size[1], dtype=n.dtype, device=n.device)
    omega = n[:, 0, None, None] * u[:, None] + n[:, 1, None, None] * v
    merged = (1 / axis_ratio).clamp(min=1)[:, None, None]
    return _spline_response(merged * omega) / _spline_response(omega)


def _extend(x: Tensor, dim: int) -> Tensor:
    """One period of the mirrored image: ``2 (N - 1)`` lines."""
    n = x.shape[dim]
    return torch.cat([x, x.narrow(dim, min(1, n), max(n - 2, 0)).flip(dim)], dim)


def _fold(y: Tensor, size: int, dim: int) -> Tensor:
    """Transpose of :func:`_extend`."""
    first = y.narrow(dim, 0, size)
    inner = y.shape[dim] - size
    if inner == 0:
        return first
    edge = torch.zeros_like(y.narrow(dim, 0, 1))
    return first + torch.cat([edge, y.narrow(dim, size, inner).flip(dim), edge], dim)


class _LookUp:
    """Spline sampling of periodic coefficients ``(B, C, *grid)`` by four bilinear look-ups.

    Two taps of a cubic B-spline amount to one linear interpolation between them, see
    :class:`~deepinv_astro.physics.functional.resampling.SplineLookup`. This one is in double
    precision, so that integer positions give the pixels.
    """

    def __init__(self, positions: Tensor, grid: tuple[int, int]):
        self.grid = grid
        below = positions.detach().floor()
        weight = spline_weights(positions.detach() - below)
        lower, upper = weight[..., :2].sum(-1), weight[..., 2:].sum(-1)
        # of the coefficients with one more line before them and two more after them
        places = below + weight[..., 1] / lower, below + 2 + weight[..., 3] / upper
        span = positions.new_tensor([n + 2 for n in grid]).view(2, 1, 1)
        rows, columns = zip(*((2 * place / span - 1).unbind(1) for place in places), strict=True)
        self.corners = [[torch.stack([c, r], -1) for c in columns] for r in rows]
        self.share = upper.unbind(1)

    def __call__(self, image: Tensor) -> Tensor:
        """Samples ``(B, C, H, W)``."""
        wrapped = image.double()
        for dim in (-2, -1):
            n = wrapped.shape[dim]
            index = torch.arange(-1, n + 2, device=image.device).remainder(n)
            wrapped = wrapped.index_select(dim, index)
        rows, columns = (share[:, None] for share in self.share)

        def along_columns(pair: list[Tensor]) -> Tensor:
            left, right = (grid_sample(wrapped, g, align_corners=True) for g in pair)
            return torch.lerp(left, right, columns)

        upper, lower = map(along_columns, self.corners)
        return torch.lerp(upper, lower, rows).to(image.dtype)


class _Linear(torch.autograd.Function):
    """A linear map or its transpose: closed under differentiation."""

    @staticmethod
    def forward(vector: Tensor, look_up: _LookUp, transposed: bool) -> Tensor:
        if not transposed:
            return look_up(vector)
        with torch.enable_grad():
            image = vector.new_zeros(*vector.shape[:2], *look_up.grid, requires_grad=True)
            return torch.autograd.grad(look_up(image), image, vector)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.look_up, ctx.transposed = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(grad, ctx.look_up, not ctx.transposed), None, None


class AffineSampler:
    r"""Images read on a grid that is turned or stretched about a point, and the exact transpose.

    .. math::

        y[q] = x\left(c + M (q - c)\right)

    with :math:`x(\cdot)` the interpolating cubic spline of the image, which is continued by its
    mirror images, after an optional filter. Gradients flow to the image and to all parameters.

    :param torch.Tensor matrix: :math:`M`, ``(B, 2, 2)``.
    :param torch.Tensor center: row and column :math:`c`, ``(B, 2)``.
    :param tuple size: rows and columns of the images.
    :param Continuation boundary: ``"reflect"``, or ``"zeros"`` for nothing beyond the edges.
    :param torch.Tensor response: of the filter, real and even, on the half spectrum of the mirrored
        image, of ``2 (H - 1)`` by ``2 (W - 1)`` pixels (one where that is zero); ``(B, ., .)``.

    |sep|

    :Examples:

        >>> import torch
        >>> turn = rotation_matrix(torch.tensor([90.0]))
        >>> sampler = AffineSampler(turn, torch.tensor([[2.0, 1.0]]), (4, 3))
        >>> x = torch.zeros(1, 1, 4, 3)
        >>> x[0, 0, 2, 2] = 1.0  # right of the centre comes above it
        >>> sampler.forward(x)[0, 0, :, 1].round(decimals=5).abs()
        tensor([0., 0., 0., 1.])
    """

    def __init__(
        self,
        matrix: Tensor,
        center: Tensor,
        size: tuple[int, int],
        boundary: Continuation | str = Continuation.REFLECT,
        response: Tensor | None = None,
    ):
        center, self.size, self.response = center.double(), size, response
        lines = [torch.arange(n, dtype=center.dtype, device=center.device) for n in size]
        pixels = torch.stack(torch.meshgrid(*lines, indexing="ij")).flatten(1)
        offset = matrix.double() @ (pixels - center[..., None])
        position = (center[..., None] + offset).unflatten(-1, size)
        self.grid = (max(2 * (size[0] - 1), 1), max(2 * (size[1] - 1), 1))
        self.outside: Tensor | None = None
        last = center.new_tensor([n - 1 for n in size])[:, None, None]
        if Continuation(boundary) is Continuation.ZEROS:
            self.outside = ((position < -0.5) | (position > last + 0.5)).any(1, keepdim=True)
        period = center.new_tensor(self.grid)[:, None, None]
        self.positions = position.remainder(period)
        self.look_up = _LookUp(self.positions, self.grid)

    def _read(self, image: Tensor, transposed: bool) -> Tensor:
        """Samples of the periodic coefficients, or the transpose of that."""
        if not self.positions.requires_grad:
            return _Linear.apply(image, self.look_up, transposed)
        ends = (-math.inf, -math.inf), (math.inf, math.inf)
        grid = SplineGrid(self.grid, *ends, False, image.dtype)
        sampler = SplineSampler(self.positions, grid, keep=False)
        channels = [
            (sampler.adjoint if transposed else sampler.forward)(c) for c in image.unbind(1)
        ]
        return torch.stack(channels, dim=1)

    def _filtered(self, image: Tensor) -> Tensor:
        """Spline coefficients of the filtered image; this map is symmetric."""
        spectrum = torch.fft.rfft2(image) * spline_prefilter_response(self.grid, image)
        if self.response is not None:
            spectrum = spectrum * self.response.to(image)[:, None]
        return torch.fft.irfft2(spectrum, s=self.grid)

    def forward(self, x: Tensor) -> Tensor:
        """Transform images ``(B, C, H, W)``."""
        y = self._read(self._filtered(_extend(_extend(x, -2), -1)), transposed=False)
        return y if self.outside is None else y.masked_fill(self.outside, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose of :meth:`forward`."""
        if self.outside is not None:
            y = y.masked_fill(self.outside, 0.0)
        spread = self._read(y, transposed=True)
        height, width = self.size
        return _fold(_fold(self._filtered(spread), height, -2), width, -1).contiguous()
