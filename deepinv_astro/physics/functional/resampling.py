r"""Reading images between their pixels by cubic B-splines, fast for many frames at once."""

from __future__ import annotations

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from deepinv_astro.physics.functional.interpolation import spline_prefilter_response
from deepinv_astro.physics.functional.rotation import MARGIN


def spline_coefficients(image: Tensor) -> Tensor:
    r"""Cubic B-spline coefficients of images continued by reflection.

    :param torch.Tensor image: ``(..., H, W)``, finite.
    :return: (:class:`torch.Tensor`) coefficients ``(..., H + 2 m, W + 2 m)``, where the margin
        ``m`` is at most :data:`~deepinv_astro.physics.functional.rotation.MARGIN` and less than
        either side of the image.
    """
    height, width = image.shape[-2:]
    margin = _margin((height, width))
    padded = pad(image.reshape(-1, 1, height, width), [margin] * 4, mode="reflect")
    rows, columns = padded.shape[-2:]
    # multiples of eight are the sizes at which batches of transforms are fast
    size = (
        8 * next_fast_len(-(-rows // 8), real=True),
        8 * next_fast_len(-(-columns // 8), real=True),
    )
    spectrum = torch.fft.rfft2(padded, s=size) * spline_prefilter_response(size, image)
    coefficients: Tensor = torch.fft.irfft2(spectrum, s=size)[..., :rows, :columns]
    return coefficients.reshape(*image.shape[:-2], rows, columns)


def _margin(size: tuple[int, int]) -> int:
    return min(MARGIN, size[0] - 1, size[1] - 1)


class SplineLookup:
    r"""Samples of images at fixed positions, by cubic B-splines written as four linear look-ups.

    The four taps of a cubic B-spline are positive, so that two of them and the values under them
    amount to one linear interpolation between two neighbours (Sigg & Hadwiger, GPU Gems 2, ch. 20,
    2005): with :math:`g_0 = w_{-1}+w_0`, :math:`g_1 = w_1+w_2`,

    .. math::

        \sum_{k=-1}^{2} w_k\, c_{i+k} = g_0\, c\!\left(i - 1 + w_0/g_0\right)
        + g_1\, c\!\left(i + 1 + w_2/g_1\right),

    where :math:`c(\cdot)` interpolates linearly.

    :param torch.Tensor positions: rows and columns to read, ``(T, 2, h, w)``.
    :param tuple size: rows and columns of the images that will be read.
    :param torch.dtype dtype: precision of the images.
    """

    def __init__(self, positions: Tensor, size: tuple[int, int], dtype: torch.dtype):
        self.positions, self.size, self.dtype = positions, size, dtype
        row, column = positions.unbind(1)
        inside = (row >= -0.5) & (row <= size[0] - 0.5)
        self.outside = ~(inside & (column >= -0.5) & (column <= size[1] - 0.5))
        rows = self._axis(positions[:, 0], size[0])
        columns = self._axis(positions[:, 1], size[1])
        self._grids = [
            [torch.stack([column, row], dim=-1) for column in columns[:2]] for row in rows[:2]
        ]
        self._shares = rows[2][:, None], columns[2][:, None]

    def _axis(self, position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where to look up on both sides, in units of ``grid_sample``, and the second share."""
        below = position.floor()
        f = (position - below).to(self.dtype)
        second = (1 + 3 * f + 3 * f**2 - 2 * f**3) / 6
        first = 1 - second
        before = (4 + f**2 * (3 * f - 6)) / 6 / first - 1
        after = f**3 / 6 / second + 1
        margin = _margin(self.size)
        scale = 2.0 / (size + 2 * margin - 1)
        base = (below + margin).to(self.dtype) * scale - 1
        return base + before * scale, base + after * scale, second

    def __call__(self, coefficients: Tensor) -> Tensor:
        """Samples ``(N, T, h, w)`` from coefficients ``(N, T or 1, ., .)``; zero outside."""
        images = coefficients.transpose(0, 1).expand(len(self.positions), -1, -1, -1)

        def look_up(grid: Tensor) -> Tensor:
            return grid_sample(images, grid, padding_mode="border", align_corners=True)

        along_rows, along_columns = self._shares
        upper, lower = (
            torch.lerp(look_up(left), look_up(right), along_columns) for left, right in self._grids
        )
        samples = torch.lerp(upper, lower, along_rows)
        return samples.masked_fill(self.outside[:, None], 0.0).transpose(0, 1)

    def seen(self, valid: Tensor) -> Tensor:
        """Positions, ``(N, T, h, w)``, whose four nearest pixels are all there and ``valid``."""
        row, column = (
            2 * self.positions[:, axis].to(self.dtype) / max(self.size[axis] - 1, 1) - 1
            for axis in range(2)
        )
        maps = valid.to(self.dtype).transpose(0, 1).expand(len(self.positions), -1, -1, -1)
        grid = torch.stack([column, row], dim=-1)
        share = grid_sample(maps, grid, padding_mode="border", align_corners=True)
        whole = share > 1 - 1e-4
        return (whole & ~self.outside[:, None]).transpose(0, 1)
