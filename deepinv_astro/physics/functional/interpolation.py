r"""Cubic B-spline sampling of images at arbitrary positions, with its exact transpose."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

# Row k holds the polynomial coefficients (1, f, f^2, f^3) of the cubic B-spline at tap k - 1,
# for a sample at fraction f after the tap 0; the other tables are its derivatives.
_TAPS = (
    torch.tensor([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]], dtype=torch.float64)
    / 6.0
)


def _tap_polynomials(order: int) -> Tensor:
    table = _TAPS
    for _ in range(order):
        powers = torch.arange(1, table.shape[1], dtype=table.dtype)
        table = table[:, 1:] * powers
    return table


def spline_weights(fraction: Tensor, order: int = 0) -> Tensor:
    r"""Weights of the four cubic B-spline taps, or of their derivatives.

    With :math:`f\in[0,1)` the distance to the sample below, the interpolated value is
    :math:`\sum_{k=-1}^{2} \beta^{(j)}(f-k)\, c_k`, where :math:`\beta` is the cubic B-spline,
    :math:`j` the
    order of derivation and :math:`c` the spline coefficients (Unser, IEEE Signal Proc. Mag. 16(6),
    1999).

    :param torch.Tensor fraction: positions :math:`f` in samples, any shape.
    :param int order: order of derivation, 0 to 3.
    :return: (:class:`torch.Tensor`) weights, shape ``(*fraction.shape, 4)``, dtype of ``fraction``.

    |sep|

    :Examples:

        >>> import torch
        >>> (48 * spline_weights(torch.tensor([0.5]))).round().tolist()
        [[1.0, 23.0, 23.0, 1.0]]
    """
    table = _tap_polynomials(order).to(fraction)
    powers = torch.stack([fraction**p for p in range(table.shape[1])], dim=-1)
    return powers @ table.mT


def spline_prefilter_response(size: tuple[int, int], like: Tensor) -> Tensor:
    r"""Frequency response of the cubic B-spline prefilter on the grid of ``torch.fft.rfft2``.

    .. math::

        P(u, v) = \frac{3}{2+\cos u}\,\frac{3}{2+\cos v},

    the inverse of the response of the sampled cubic B-spline :math:`(1,4,1)/6` along each axis:
    multiplying the spectrum of an image by :math:`P` gives its (periodic) spline coefficients.

    :param tuple size: number of rows and columns of the image.
    :param torch.Tensor like: real tensor whose dtype and device are taken.
    :return: (:class:`torch.Tensor`) real response of shape ``(rows, columns // 2 + 1)``.
    """
    rows, columns = size
    u = 2 * math.pi * torch.fft.fftfreq(rows, dtype=torch.float64)
    v = 2 * math.pi * torch.fft.rfftfreq(columns, dtype=torch.float64)
    response = (3 / (2 + u.cos()))[:, None] * (3 / (2 + v.cos()))
    return response.to(like)


def _csr(indices: Tensor, values: Tensor, columns: int) -> Tensor:
    """Sparse matrix with the same number of entries, the last axis, in each row."""
    rows, taps = values.shape
    start = torch.arange(0, rows * taps + 1, taps, dtype=indices.dtype, device=indices.device)
    return _sparse_csr(start, indices.flatten(), values.flatten(), (rows, columns))


def _sparse_csr(start: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch announces once that its CSR layout is in beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(start, indices, values, size=size, check_invariants=False)


def _transposed(matrix: Tensor) -> Tensor:
    if matrix.device.type != "cpu":
        return matrix.t().to_sparse_csr()
    # scipy transposes in linear time, torch sorts
    entries = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    other = csr_matrix(entries, shape=matrix.shape).T.tocsr()
    start, indices, values = (
        torch.from_numpy(part) for part in (other.indptr, other.indices, other.data)
    )
    return _sparse_csr(start, indices, values, other.shape)


class _Table:
    """Sparse matrix that samples at fixed positions, and its transpose, made at the first product.

    That happens within :class:`_Apply`, where the transforms of torch.func, to which sparse tensors
    are unknown, have stepped aside.
    """

    def __init__(self, positions: Tensor, grid: SplineGrid):
        self.positions, self.grid = positions, grid
        self._matrices: tuple[Tensor, Tensor] | None = None

    def product(self, vector: Tensor, transposed: bool) -> Tensor:
        if self._matrices is None:
            matrix = self.grid.matrix(self.positions)
            self._matrices = (matrix, _transposed(matrix))
        return self._matrices[transposed] @ vector


class _Apply(torch.autograd.Function):
    """Product with a fixed sparse matrix or its transpose: closed under differentiation."""

    @staticmethod
    def forward(vector: Tensor, table: _Table, transposed: bool) -> Tensor:
        return table.product(vector, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.table, ctx.transposed = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(grad, ctx.table, not ctx.transposed), None, None


class _Sample(torch.autograd.Function):
    """Spline sampling, differentiable in the coefficients and in the positions."""

    @staticmethod
    def forward(
        coefficients: Tensor, positions: Tensor, grid: SplineGrid, order: tuple[int, int]
    ) -> Tensor:
        return grid.matrix(positions, order) @ coefficients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.grid, ctx.order = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        coefficients, positions = ctx.saved_tensors
        need_coefficients, need_positions = ctx.needs_input_grad[:2]
        adjoint = along = None
        if need_coefficients:
            adjoint = _Spread.apply(grad, positions, ctx.grid, ctx.order)
        if need_positions:
            along = _slopes(coefficients, positions, grad, ctx.grid, ctx.order)
        return adjoint, along, None, None


class _Spread(torch.autograd.Function):
    """Transpose of :class:`_Sample`."""

    @staticmethod
    def forward(
        values: Tensor, positions: Tensor, grid: SplineGrid, order: tuple[int, int]
    ) -> Tensor:
        indices, weights = grid.taps(positions, order)
        out = values.new_zeros(grid.length(positions))
        return out.index_add_(0, indices.flatten(), (weights * values[:, None]).flatten())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.grid, ctx.order = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, positions = ctx.saved_tensors
        need_values, need_positions = ctx.needs_input_grad[:2]
        sampled = along = None
        if need_values:
            sampled = _Sample.apply(grad, positions, ctx.grid, ctx.order)
        if need_positions:
            along = _slopes(grad, positions, values, ctx.grid, ctx.order)
        return sampled, along, None, None


def _slopes(
    coefficients: Tensor,
    positions: Tensor,
    weight: Tensor,
    grid: SplineGrid,
    order: tuple[int, int],
) -> Tensor:
    """Derivative of ``<weight, sample(coefficients, positions)>`` along the rows and the columns."""
    row, column = order
    slopes = [
        weight * _Sample.apply(coefficients, positions, grid, step)
        for step in ((row + 1, column), (row, column + 1))
    ]
    frames, _, height, width = positions.shape
    stacked = torch.stack([slope.view(frames, height, width) for slope in slopes], dim=1)
    return stacked.to(positions.dtype)


@dataclass(frozen=True)
class SplineGrid:
    r"""The periodic grid that holds spline coefficients, and which part of it is meant.

    Positions outside of ``[lower - 0.5, upper + 0.5]`` along an axis read zero.

    :param tuple size: rows and columns of the (periodic) grid.
    :param tuple lower: smallest row and column that hold something; negative ones wrap to the end
        of the grid.
    :param tuple upper: largest row and column that hold something.
    :param bool shared: all frames of positions read one image, instead of one image for each.
    :param torch.dtype dtype: precision of the weights; positions keep their own.
    """

    size: tuple[int, int]
    lower: tuple[float, float]
    upper: tuple[float, float]
    shared: bool
    dtype: torch.dtype

    def length(self, positions: Tensor) -> int:
        """Number of coefficients of all images read by ``positions``."""
        images = 1 if self.shared else positions.shape[0]
        return images * self.size[0] * self.size[1]

    def taps(self, positions: Tensor, order: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Indices (int32) and weights of the 16 taps of each position, both ``(samples, 16)``."""
        taps, weights = [], []
        offsets = torch.arange(-1, 3, device=positions.device, dtype=torch.int32)
        for axis in range(2):
            position = positions[:, axis].detach()
            below = position.floor()
            inside = (position >= self.lower[axis] - 0.5) & (position <= self.upper[axis] + 0.5)
            weight = spline_weights((position - below).to(self.dtype), order[axis])
            weights.append(torch.where(inside[..., None], weight, 0.0))
            # far positions have weight zero: clamp them so that the integers cannot overflow
            below = below.clamp(-self.size[axis], 2 * self.size[axis])
            taps.append((below.int()[..., None] + offsets).remainder_(self.size[axis]))
        index = taps[0][..., :, None] * self.size[1] + taps[1][..., None, :]
        if not self.shared:
            frame = torch.arange(len(positions), device=positions.device, dtype=torch.int32)
            index += (frame * (self.size[0] * self.size[1])).view(-1, 1, 1, 1, 1)
        weight = weights[0][..., :, None] * weights[1][..., None, :]
        return index.view(-1, 16), weight.view(-1, 16)

    def matrix(self, positions: Tensor, order: tuple[int, int] = (0, 0)) -> Tensor:
        """Sparse matrix that samples at ``positions``."""
        indices, weights = self.taps(positions, order)
        return _csr(indices, weights, self.length(positions))


class SplineSampler:
    r"""Linear map from spline coefficients to samples, and its exact transpose.

    .. math::

        y_{t}(p) = \sum_{k,l} \beta(r_{t,p}-k)\,\beta(c_{t,p}-l)\; z_t[k,l]

    with :math:`\beta` the cubic B-spline and :math:`(r_{t,p}, c_{t,p})` the positions.

    :param torch.Tensor positions: rows and columns to read, shape ``(T, 2, H, W)``. Gradients flow
        to them.
    :param SplineGrid grid: the grid of the coefficients.
    :param bool keep: build the sparse matrix and its transpose once and keep them (16 entries of 8
        or 12 bytes for each sample, twice); otherwise they are made anew at each use, and
        gradients reach ``positions``.
    """

    def __init__(self, positions: Tensor, grid: SplineGrid, keep: bool):
        self.positions, self.grid = positions, grid
        self._table = _Table(positions, grid) if keep else None

    def forward(self, coefficients: Tensor) -> Tensor:
        """Sample coefficients ``(T or 1, rows, columns)`` to ``(T, H, W)``."""
        frames, _, height, width = self.positions.shape
        if self._table is not None:
            samples = _Apply.apply(coefficients.flatten(), self._table, False)
        else:
            samples = _Sample.apply(coefficients.flatten(), self.positions, self.grid, (0, 0))
        return samples.view(frames, height, width)

    def adjoint(self, samples: Tensor) -> Tensor:
        """Transpose of :meth:`forward`."""
        if self._table is not None:
            spread = _Apply.apply(samples.flatten(), self._table, True)
        else:
            spread = _Spread.apply(samples.flatten(), self.positions, self.grid, (0, 0))
        return spread.view(-1, *self.grid.size)
