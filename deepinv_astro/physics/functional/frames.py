r"""Frames of a turning sky: the linear map behind :class:`deepinv_astro.physics.ADI`, for one set of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from deepinv_astro.physics.functional.interpolation import (
    SplineGrid,
    SplineSampler,
    spline_prefilter_response,
)
from deepinv_astro.physics.functional.otf import turned_otfs
from deepinv_astro.physics.functional.rotation import (
    MARGIN,
    Interpolation,
    Sampler,
    ShearSampler,
    sky_positions,
)


@dataclass(frozen=True)
class Geometry:
    """Sizes of the sky image, of the stamp of the PSF and of a frame, and the interpolation."""

    sky: tuple[int, int]
    stamp: tuple[int, int]
    detector: tuple[int, int]
    interpolation: Interpolation

    @property
    def reach(self) -> int:
        """How far the turned stamp reaches from the star: to its corners."""
        return math.ceil(math.hypot(self.stamp[0] // 2, self.stamp[1] // 2))

    @property
    def lower(self) -> tuple[int, int]:
        """First row and column of the blurred sky: negative, it spills over the edge."""
        return (-self.reach, -self.reach)

    @property
    def upper(self) -> tuple[int, int]:
        """Last row and column of the blurred sky."""
        return (self.sky[0] - 1 + self.reach, self.sky[1] - 1 + self.reach)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the periodic grid that holds the blurred sky without wrapping.

        Half of the margin is enough around a blurred image, whose edge is the corner of a stamp.
        """
        margin = MARGIN if self.reach == 0 else MARGIN // 2
        rows, columns = (
            high - low + 1 + margin for low, high in zip(self.lower, self.upper, strict=True)
        )
        # factors 2, 3 and 5 only: others are slow
        return (next_fast_len(rows, real=True), next_fast_len(columns, real=True))


@dataclass(frozen=True)
class FrameModel:
    r"""Some frames of a sequence, as a linear map of the sky.

    .. math::

        y_t = w_t \odot \frac{1}{S}\sum_s Q_{t,s}\, F^{-1}\!\left( \hat h_{t,s} \odot F(\gamma_{t,s} \odot x) \right)

    :param Geometry geometry: sizes.
    :param torch.Tensor angles: derotation angles in degrees ``(T S,)``, exposure after exposure.
    :param torch.Tensor center: star on the detector, ``(T S, 2)``.
    :param torch.Tensor sky_center: star on the sky, ``(2,)``.
    :param torch.Tensor otf: transfer functions, ``(c, T S or 1, rows, columns // 2 + 1)``.
    :param torch.Tensor before: what multiplies the sky, ``(T S, H, W)``, or ``None``.
    :param torch.Tensor weight: what multiplies the frames, broadcast to ``(T, h, w)``, or ``None``.
    :param int steps: exposures per frame :math:`S`.
    :param bool keep: keep the tables of the interpolation after the first use.
    """

    geometry: Geometry
    angles: Tensor
    center: Tensor
    sky_center: Tensor
    otf: Tensor
    before: Tensor | None
    weight: Tensor | None
    steps: int
    keep: bool
    _kept: list[Sampler] = field(default_factory=list, repr=False, compare=False)

    @property
    def _shared(self) -> bool:
        return self.otf.shape[1] == 1 and self.before is None

    def _sampler(self) -> Sampler:
        if self._kept:
            return self._kept[0]
        g = self.geometry
        sampler: Sampler
        if g.interpolation is Interpolation.SHEAR:
            sampler = ShearSampler(
                self.angles.double(),
                self.center.double(),
                self.sky_center.double(),
                g.detector,
                g.grid,
                g.lower,
                self._shared,
            )
        else:
            positions = sky_positions(self.angles, self.center, self.sky_center, g.detector)
            dtype = self.otf.real.dtype
            grid = SplineGrid(g.grid, g.lower, g.upper, self._shared, dtype)
            sampler = SplineSampler(positions, grid, self.keep)
        if self.keep:
            self._kept.append(sampler)
        return sampler

    def forward(self, x: Tensor) -> Tensor:
        """Frames ``(C, T, h, w)`` of a sky ``(C, H, W)``."""
        sky = x[:, None] if self.before is None else x[:, None] * self.before
        grid = self.geometry.grid
        blurred = torch.fft.irfft2(torch.fft.rfft2(sky, s=grid) * self.otf, s=grid)
        sampler = self._sampler()
        y = _stacked([sampler.forward(image) for image in blurred])
        if self.steps > 1:
            y = y.unflatten(1, (-1, self.steps)).mean(2)
        return y if self.weight is None else y * self.weight

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose of :meth:`forward`."""
        if self.weight is not None:
            y = y * self.weight
        if self.steps > 1:
            y = (y / self.steps).repeat_interleave(self.steps, 1)
        sampler = self._sampler()
        blurred = _stacked([sampler.adjoint(frames) for frames in y])
        spectrum = torch.fft.rfft2(blurred) * self.otf.conj()
        if self.before is None:
            spectrum = spectrum.sum(1, keepdim=True)
        height, width = self.geometry.sky
        sky = torch.fft.irfft2(spectrum, s=self.geometry.grid)[..., :height, :width]
        return (sky if self.before is None else sky * self.before).sum(1)


def _stacked(channels: list[Tensor]) -> Tensor:
    """All channels, one of them without a copy."""
    return channels[0][None] if len(channels) == 1 else torch.stack(channels)


def frame_otf(psf: Tensor | None, angles: Tensor, geometry: Geometry, like: Tensor) -> Tensor:
    """Transfer functions of PSF and interpolation, ``(c, T or 1, rows, columns // 2 + 1)``.

    :param torch.Tensor psf: stamps ``(c, T or 1, k, k)``, or ``None`` for no blur.
    :param torch.Tensor angles: derotation angles ``(T,)`` in degrees: the kernels are turned by
        them.
    :param Geometry geometry: sizes.
    :param torch.Tensor like: real tensor whose dtype and device are taken.
    """
    rows, columns = geometry.grid
    if psf is None:
        shape = (1, 1, rows, columns // 2 + 1)
        otf = torch.ones(shape, device=like.device, dtype=torch.complex(like, like).dtype)
    else:
        stamps = psf.expand(len(psf), len(angles), *geometry.stamp)
        otf = turned_otfs(stamps, angles, geometry.grid)
    if geometry.interpolation is Interpolation.SPLINE:
        otf = otf * spline_prefilter_response(geometry.grid, like)
    return otf


def map_on_sky(
    values: Tensor, angles: Tensor, center: Tensor, sky_center: Tensor, size: tuple[int, int]
) -> Tensor:
    """Map of the detector read, linearly, where the pixels of the sky fall in each frame; constant beyond its edge.

    :param torch.Tensor values: map ``(h, w)``.
    :param torch.Tensor angles: derotation angles ``(T,)`` in degrees.
    :param torch.Tensor center: star on the detector, ``(T, 2)``.
    :param torch.Tensor sky_center: star on the sky, ``(2,)``.
    :param tuple size: rows and columns of the sky.
    :return: (:class:`torch.Tensor`) ``(T, H, W)``.
    """
    frames = len(angles)
    relative = sky_positions(-angles, sky_center.expand(frames, 2), sky_center.new_zeros(2), size)
    positions = relative + center.double()[:, :, None, None]
    last = positions.new_tensor([max(s - 1, 1) for s in values.shape])
    unit = 2 * positions.permute(0, 2, 3, 1) / last - 1
    read = torch.nn.functional.grid_sample(
        values.double().expand(frames, 1, *values.shape),
        unit.flip(-1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return read[:, 0].to(values)
