r"""Patches of the detector: where they lie, and how to cut and reassemble a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    r"""Rectangular patches :math:`n` of :math:`K` pixels, which together cover the field.

    Where patches overlap, pixel :math:`p` has the weight :math:`w_p = 1/\#\{n : p \in n\}` in
    each, so that it counts exactly once. Patches at the edge are kept with fewer pixels: their
    other places are padding, of weight zero.

    :param torch.Tensor index: flat index of the pixel at each place, ``(N, K)``; ``h w`` (one past
        the end) is padding.
    :param torch.Tensor weight: weight :math:`w` of each place, ``(N, K)``, in double precision.
    :param tuple size: rows and columns ``(h, w)`` of the detector.
    """

    index: Tensor
    weight: Tensor
    size: tuple[int, int]

    @classmethod
    def grid(
        cls,
        size: tuple[int, int],
        shape: tuple[int, int],
        *,
        stride: tuple[int, int] | None = None,
        offset: tuple[int, int] = (0, 0),
        field: Tensor | None = None,
    ) -> Patches:
        r"""Patches on a regular grid: a tiling, or overlapping with a smaller stride.

        :param tuple size: rows and columns of the detector.
        :param tuple shape: rows and columns of a patch.
        :param tuple stride: steps between patches, at most ``shape``. Default ``shape``: a tiling.
        :param tuple offset: rows and columns by which the first patch begins before pixel (0, 0),
            less than ``shape``.
        :param torch.Tensor field: boolean ``(h, w)``, true inside the field. Default: everywhere.
        :return: (:class:`Patches`) those that have a pixel inside the field.
        :raises ValueError: if the patches cannot cover the detector or the field is empty.

        |sep|

        :Examples:

            >>> patches = Patches.grid((2, 5), (2, 3), stride=(2, 2))
            >>> patches.index
            tensor([[ 0,  1,  2,  5,  6,  7],
                    [ 2,  3,  4,  7,  8,  9],
                    [ 4, 10, 10,  9, 10, 10]])
            >>> patches.weight[1]
            tensor([0.5000, 1.0000, 0.5000, 0.5000, 1.0000, 0.5000], dtype=torch.float64)
        """
        stride = shape if stride is None else stride
        _check_grid(size, shape, stride, offset)
        height, width = size
        rows, columns = (
            torch.arange(-o, s, step)[:, None] + torch.arange(k)
            for s, k, step, o in zip(size, shape, stride, offset, strict=True)
        )
        row, column = rows[:, None, :, None], columns[None, :, None, :]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, row * width + column, height * width).flatten(0, 1).flatten(1)
        if field is not None:
            if tuple(field.shape) != tuple(size):
                raise ValueError(
                    f"field must have the size {size} of the detector, got {tuple(field.shape)}"
                )
            kept = torch.nn.functional.pad(field.flatten().cpu().bool(), (0, 1))
            index = torch.where(kept[index], index, height * width)
        index = index[(index < height * width).any(1)]
        if not len(index):
            raise ValueError("the field has no pixel: check the mask of bad pixels and NaN")
        coverage = torch.bincount(index.flatten(), minlength=height * width + 1).double()
        coverage[-1] = torch.inf
        return cls(index, 1 / coverage[index], (height, width))

    def to(self, device: torch.device | str) -> Patches:
        """The same patches with their tensors on a device."""
        return Patches(self.index.to(device), self.weight.to(device), self.size)

    def gather(self, frames: Tensor, part: slice = slice(None)) -> Tensor:
        r"""Cut a sequence.

        :param torch.Tensor frames: ``(Q, T, h, w)``.
        :param slice part: which patches.
        :return: (:class:`torch.Tensor`) ``(Q, N, T, K)``, zero at padding.
        """
        flat = torch.nn.functional.pad(frames.flatten(-2), (0, 1))
        index = self.index[part]
        return (
            flat.index_select(-1, index.flatten()).unflatten(-1, tuple(index.shape)).transpose(1, 2)
        )

    def scatter(self, values: Tensor, part: slice = slice(None)) -> Tensor:
        r"""Sum patches in their place: the transpose of :meth:`gather`.

        :param torch.Tensor values: ``(Q, N, T, K)``.
        :param slice part: which patches.
        :return: (:class:`torch.Tensor`) ``(Q, T, h, w)``.
        """
        joined = values.transpose(1, 2).flatten(-2)
        out = joined.new_zeros(*joined.shape[:-1], self.size[0] * self.size[1] + 1)
        out = out.index_add(-1, self.index[part].flatten(), joined)
        return out[..., :-1].unflatten(-1, self.size)


def _check_grid(
    size: tuple[int, int], shape: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int]
) -> None:
    if min(*size, *shape, *stride) < 1:
        raise ValueError(
            f"size {size}, shape {shape} and stride {stride} of patches must be positive"
        )
    if any(s > k for s, k in zip(stride, shape, strict=True)):
        raise ValueError(
            f"a stride of {stride} leaves gaps between patches of {shape}: use at most {shape}"
        )
    if any(not 0 <= o < k for o, k in zip(offset, shape, strict=True)):
        raise ValueError(
            f"offset must be at least 0 and less than the shape {shape} of a patch, got {offset}"
        )
