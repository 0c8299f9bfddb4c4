r"""Scaling of images about a point: one interpolation along each axis, with its exact transpose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from deepinv_astro.physics.functional.interpolation import _TAPS

__all__ = ["Antialias", "Continuation", "Kernel", "ScaleSampler", "kernel_values", "mirror"]


class Kernel(str, Enum):
    """The function by which an image is read between its pixels."""

    #: Interpolating cubic spline: the most accurate.
    SPLINE = "spline"
    #: Keys' cubic convolution with slope -3/4, as ``torch.nn.functional.grid_sample`` has it.
    BICUBIC = "bicubic"
    #: Straight lines between pixels.
    LINEAR = "linear"


class Antialias(str, Enum):
    """What happens to details that a smaller image cannot hold."""

    #: They are sampled as they are, and reappear as coarser ones.
    NONE = "none"
    #: They are smoothed away: the kernel is stretched over the pixels that are merged.
    BANDLIMITED = "bandlimited"


class Continuation(str, Enum):
    """What an image holds beyond its outer pixels."""

    #: Its mirror image; the outer pixels are not repeated.
    REFLECT = "reflect"
    #: Nothing. Between its pixels it is still read as if it were mirrored.
    ZEROS = "zeros"


def _spline_pieces(reach: int) -> Tensor:
    """Polynomials of the interpolating cubic spline between the integers."""
    pole = math.sqrt(3.0) - 2.0
    lags = torch.arange(reach)[:, None] + torch.arange(-1, 3)
    return math.sqrt(3.0) * torch.tensor(pole, dtype=_TAPS.dtype) ** lags.abs() @ _TAPS


def _keys_pieces(a: float) -> Tensor:
    return torch.tensor([[1, 0, -a - 3, a + 2], [0, a, -2 * a, a]], dtype=_TAPS.dtype)


#: Row n holds the coefficients of (1, f, f^2, f^3) at the distance n + f. The spline has no end: it
#: is cut where it is below 4e-6.
_PIECES = {
    Kernel.SPLINE: _spline_pieces(10),
    Kernel.BICUBIC: _keys_pieces(-0.75),
    Kernel.LINEAR: torch.tensor([[1, -1, 0, 0]], dtype=_TAPS.dtype),
}


def _polynomial(coefficients: Sequence[Tensor], f: Tensor) -> Tensor:
    a, b, c, d = coefficients
    return torch.addcmul(a, f, torch.addcmul(b, f, torch.addcmul(c, f, d)))


def kernel_values(distance: Tensor, kernel: Kernel | str) -> Tensor:
    r"""Interpolation kernel :math:`\eta(t)`: one at zero, zero at all other integers.

    The spline is :math:`\eta(t) = \sqrt3 \sum_k z^{|k|} \beta(t-k)`, with :math:`\beta` the cubic
    B-spline and :math:`z = \sqrt3 - 2` (Unser, IEEE Signal Proc. Mag. 16(6), 1999).

    :param torch.Tensor distance: :math:`t` in pixels, any shape.
    :param Kernel kernel: which one.
    :return: (:class:`torch.Tensor`) values, same shape; differentiable.

    |sep|

    :Examples:

        >>> import torch
        >>> t = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], dtype=torch.float64)
        >>> kernel_values(t, "bicubic").tolist()
        [0.59375, 1.0, 0.59375, 0.0, -0.09375]
        >>> kernel_values(t, "spline").abs().round(decimals=3).tolist()
        [0.6, 1.0, 0.6, 0.0, 0.127]
    """
    pieces = torch.nn.functional.pad(_PIECES[Kernel(kernel)], (0, 0, 0, 1)).to(distance)
    t = distance.abs()
    n = t.detach().floor().clamp(max=len(pieces) - 1)
    place = n.int().flatten()
    rows = [column.index_select(0, place).view_as(t) for column in pieces.mT.contiguous()]
    return _polynomial(rows, t - n)


def mirror(index: Tensor, size: int) -> Tensor:
    """Indices folded into ``[0, size - 1]`` by mirrors on the outer pixels.

    >>> mirror(torch.arange(-2, 6), 3).tolist()
    [2, 1, 0, 1, 2, 1, 0, 1]
    """
    period = max(2 * (size - 1), 1)
    folded = index.remainder(period)
    return torch.minimum(folded, period - folded) if size > 1 else folded


class _Taps(NamedTuple):
    """Sparse rows: line ``o`` of image ``b`` reads ``pixel[b, o]`` with ``weight[b, o]``."""

    pixel: Tensor
    weight: Tensor
    size: int


def _weights(fraction: Tensor, stretch: Tensor | None, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Offsets ``(K,)`` of taps, and weights ``(b, 2, n, K)`` for positions above the pixel 0."""
    pieces = _PIECES[kernel].to(fraction)
    half = math.ceil(len(pieces) * (1.0 if stretch is None else float(stretch.detach().max())))
    offset = torch.arange(1 - half, half + 1, device=fraction.device)
    if stretch is None:  # all taps are at the same fraction of their piece
        left = _polynomial(pieces.flip(0).unbind(1), fraction[..., None])
        right = _polynomial(pieces.unbind(1), 1 - fraction[..., None])
        weight = torch.cat([left, right], dim=-1)
    else:
        stretch = stretch.to(fraction)[:, None, None, None]
        weight = kernel_values((fraction[..., None] - offset) / stretch, kernel)
    return offset, weight / weight.sum(-1, keepdim=True)


class _Read(torch.autograd.Function):
    """Lines ``(b, size, l)`` to lines ``(b, n, l)``: ``y[o] = sum_k weight[o, k] x[index[o, k]]``."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        images, size, length = x.shape
        if images > 1:
            index = index + size * torch.arange(images, device=x.device)[:, None, None]
        bags = index.flatten(0, 1)
        table = x.reshape(images * size, length).contiguous()
        read = embedding_bag(bags, table, per_sample_weights=weight.flatten(0, 1), mode="sum")
        return read.view(images, -1, length)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x, index, weight = ctx.saved_tensors
        along = back = None
        if ctx.needs_input_grad[0]:
            back = _Spread.apply(grad, index, weight, x.shape[1])
        if ctx.needs_input_grad[2]:
            along = (grad @ x.mT).gather(-1, index)
        return back, None, along


class _Spread(torch.autograd.Function):
    """Transpose of :class:`_Read`."""

    @staticmethod
    def forward(y: Tensor, index: Tensor, weight: Tensor, size: int) -> Tensor:
        images, lines, length = y.shape
        first = torch.arange(images, device=y.device)[:, None, None]
        # the same entries, sorted by the pixel that they touch
        pixel, order = (index + size * first).flatten().sort(stable=True)
        pixels = torch.arange(images * size, device=y.device)
        start = torch.searchsorted(pixel, pixels)
        line = torch.arange(images * lines, device=y.device).view(images, lines, 1)
        line = line.expand_as(index).flatten()[order]
        table = y.reshape(images * lines, length).contiguous()
        spread = embedding_bag(
            line, table, start, per_sample_weights=weight.flatten()[order], mode="sum"
        )
        return spread.view(images, size, length)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        y, index, weight = ctx.saved_tensors
        along = back = None
        if ctx.needs_input_grad[0]:
            back = _Read.apply(grad, index, weight)
        if ctx.needs_input_grad[2]:
            along = (y @ grad.mT).gather(-1, index)
        return back, None, along, None


def _along_rows(x: Tensor, taps: _Taps, transposed: bool) -> Tensor:
    """Combine the rows of ``(B, C, H, W)``; the result has its rows and columns exchanged."""
    images, channels, height, width = x.shape
    lines = x.transpose(1, 2).reshape(images, height, channels * width)
    weight = taps.weight.to(x.dtype)
    function = _Spread if transposed else _Read
    inputs = (lines, taps.pixel, weight, *((taps.size,) if transposed else ()))
    # without gradients, spare small images the toll of autograd
    tracked = torch.is_grad_enabled() and (lines.requires_grad or weight.requires_grad)
    lines = (function.apply if tracked else function.forward)(*inputs)
    return lines.view(images, -1, channels, width).permute(0, 2, 3, 1)


class ScaleSampler:
    r"""Images scaled about a point, and the exact transpose of that.

    .. math::

        y[q] = x\left(c + \frac{q - c}{s}\right), \qquad Y = R\, X\, C^\top, \qquad
        R_{ij} \propto \eta\left(\frac{c_r + (i - c_r)/s - j}{\max(1, 1/s)}\right),

    and :math:`C` likewise for the columns. The rows of both have unit sum, so that constants stay
    what they are. Pixels :math:`j` beyond the edge belong to the mirror image. Without antialiasing
    the denominator is one. At :math:`s = 1` both matrices are the identity.

    Gradients flow to the image, the factor and the centre, of any order.

    :param torch.Tensor factor: :math:`s > 0`, one for each image, ``(B,)``.
    :param torch.Tensor center: row and column :math:`c` that stay in place, ``(B, 2)``.
    :param tuple size: rows and columns of the images.
    :param Kernel kernel: the function :math:`\eta`.
    :param Antialias antialias: ``"bandlimited"`` or ``"none"``.
    :param Continuation boundary: ``"reflect"`` or ``"zeros"``.
    :param torch.dtype dtype: precision of the weights.

    |sep|

    :Examples:

        A star two rows above the centre comes to four rows above it:

        >>> import torch
        >>> sampler = ScaleSampler(torch.tensor([2.0]), torch.tensor([[4.0, 1.0]]), (9, 3))
        >>> x = torch.zeros(1, 1, 9, 3)
        >>> x[0, 0, 6, 1] = 1.0
        >>> int(sampler.forward(x)[0, 0, :, 1].argmax())
        8
    """

    def __init__(
        self,
        factor: Tensor,
        center: Tensor,
        size: tuple[int, int],
        kernel: Kernel | str = Kernel.SPLINE,
        antialias: Antialias | str = Antialias.BANDLIMITED,
        boundary: Continuation | str = Continuation.REFLECT,
        dtype: torch.dtype = torch.float64,
    ):
        factor, center = factor.double(), center.double()
        stretch = None
        if Antialias(antialias) is Antialias.BANDLIMITED and float(factor.detach().min()) < 1:
            stretch = (1 / factor).clamp(min=1)
        line = torch.arange(max(size), dtype=center.dtype, device=center.device)
        position = center[..., None] + (line - center[..., None]) / factor[:, None, None]
        below = position.detach().floor()
        # positions need double precision, the weights at their fractions do not
        fraction = (position - below).to(dtype)
        offset, weight = _weights(fraction, stretch, Kernel(kernel))
        if Continuation(boundary) is Continuation.ZEROS:
            last = center.new_tensor(size)[:, None] - 1
            inside = (position >= -0.5) & (position <= last + 0.5)
            weight = weight * inside[..., None]
        index = below.long()[..., None] + offset
        self.axes = [
            _Taps(mirror(index[:, axis, :pixels], pixels), weight[:, axis, :pixels], pixels)
            for axis, pixels in enumerate(size)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Scale images ``(B, C, H, W)``."""
        for taps in self.axes:
            x = _along_rows(x, taps, transposed=False)
        return x.contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose of :meth:`forward`."""
        for taps in self.axes:
            y = _along_rows(y, taps, transposed=True)
        return y.contiguous()
