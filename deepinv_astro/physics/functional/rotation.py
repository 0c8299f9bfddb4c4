r"""Rotation of images about the star: accurate, differentiable, with exact transposes.

Two ways to interpolate, named by :class:`Interpolation`: cubic B-splines (the fast default) and
three shears in Fourier space (the reference). Both resample a *band-limited* image: blur first,
then rotate.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from deepinv_astro.physics.functional.interpolation import (
    SplineGrid,
    SplineSampler,
    spline_prefilter_response,
)

#: Samples that the B-spline prefilter needs beyond an image to decay to 3e-6.
MARGIN = 10


class Interpolation(str, Enum):
    """How an image is resampled after a rotation."""

    SPLINE = "spline"
    SHEAR = "shear"


class Sampler(Protocol):
    """Linear map from images on the sky grid to frames on the detector, and its transpose."""

    def forward(self, coefficients: Tensor) -> Tensor:
        """Frames of images."""

    def adjoint(self, samples: Tensor) -> Tensor:
        """Transpose of :meth:`forward`."""


def sky_positions(
    angles: Tensor, center: Tensor, sky_center: Tensor, size: tuple[int, int]
) -> Tensor:
    r"""Where the pixels of the detector lie on the sky grid.

    Frame :math:`t` shows the sky turned by :math:`-\theta_t`, so the detector pixel at
    :math:`(d_r, d_c)` from the star looks at

    .. math::

        r = r_\star + \cos\theta_t\, d_r + \sin\theta_t\, d_c, \qquad
        c = c_\star - \sin\theta_t\, d_r + \cos\theta_t\, d_c .

    :param torch.Tensor angles: derotation angles :math:`\theta_t` in degrees, shape ``(T,)``.
    :param torch.Tensor center: row and column of the star on the detector, shape ``(T, 2)`` or
        ``(1, 2)``.
    :param torch.Tensor sky_center: row and column :math:`(r_\star, c_\star)` of the star on the
        sky grid, ``(2,)``.
    :param tuple size: rows and columns of the detector.
    :return: (:class:`torch.Tensor`) rows and columns, shape ``(T, 2, H, W)``, in double precision.

    |sep|

    :Examples:

        With a derotation angle of 90 degrees, the pixel above the star shows what is on its left
        on the sky:

        >>> import torch
        >>> star = torch.tensor([[2.0, 1.0]])
        >>> sky_positions(torch.tensor([90.0]), star, star[0], (4, 3))[0, :, 3, 1].round(decimals=6)
        tensor([2., 0.], dtype=torch.float64)
    """
    angles, center, sky_center = angles.double(), center.double(), sky_center.double()
    theta = torch.deg2rad(angles)[:, None, None]
    rows = torch.arange(size[0], dtype=center.dtype, device=center.device)
    columns = torch.arange(size[1], dtype=center.dtype, device=center.device)
    d_row = rows[None, :, None] - center[:, 0, None, None]
    d_column = columns[None, None, :] - center[:, 1, None, None]
    row = sky_center[0] + theta.cos() * d_row + theta.sin() * d_column
    column = sky_center[1] - theta.sin() * d_row + theta.cos() * d_column
    return torch.stack([row, column], dim=1)


class ShearSampler:
    r"""Rotation as three shears, each a phase ramp in Fourier space (Unser, Thévenaz & Yaroslavsky 1995).

    .. math::

        R(\phi) = S_r\!\left(-\tan\tfrac{\phi}{2}\right) S_c(\sin\phi)\,
        S_r\!\left(-\tan\tfrac{\phi}{2}\right), \qquad |\phi| \le 45^\circ,

    after exact turns by multiples of 90 degrees. Every factor is orthogonal, so the transpose is
    the product of the inverse factors in reverse order. It reads images on a padded square grid of
    odd size: slow, and free of interpolation error for band-limited images.

    :param torch.Tensor angles: derotation angles in degrees, ``(T,)``.
    :param torch.Tensor center: star on the detector, ``(T, 2)`` or ``(1, 2)``.
    :param torch.Tensor sky_center: star on the sky grid, ``(2,)``.
    :param tuple size: rows and columns of the detector.
    :param tuple grid: rows and columns of the (periodic) grid that holds the image.
    :param tuple lower: smallest row and column of the grid that hold something, zero or negative
        (wrapped).
    """

    def __init__(
        self,
        angles: Tensor,
        center: Tensor,
        sky_center: Tensor,
        size: tuple[int, int],
        grid: tuple[int, int],
        lower: tuple[int, int],
        shared: bool,
    ):
        self.size, self.grid, self.lower, self.shared = size, grid, lower, shared
        frames = len(angles)
        self.turns = torch.round(angles.detach() / 90.0).int()
        self.phi = torch.deg2rad(angles - 90.0 * self.turns)
        anchor = torch.round(sky_center.detach())
        # an odd square whose half is larger than any distance between a star and what is seen, sheared
        reach = max(
            _reach(anchor[None], lower, grid),
            _reach(center.detach(), (0, 0), size),
        )
        half = math.ceil(reach * (1 + math.tan(math.pi / 8))) + MARGIN
        self.side = 2 * half + 1
        self.half = half
        self.corner = (half - int(anchor[0]), half - int(anchor[1]))  # of the sky in the square
        self.to_middle = (anchor.to(sky_center) - sky_center).expand(frames, 2)
        target = torch.round(center.detach())
        self.crop = [
            (half - int(row), half - int(column)) for row, column in target.expand(frames, 2)
        ]
        self.to_star = (center - target).expand(frames, 2)

    def _shift(self, image: Tensor, by: Tensor, dim: int) -> Tensor:
        """Shift lines along ``dim`` by ``by`` samples, (T, lines); the transpose shifts by ``-by``."""
        frequency = 2 * math.pi * torch.fft.rfftfreq(self.side, dtype=by.dtype, device=by.device)
        if dim == -1:
            phase = by[:, :, None] * frequency
        else:
            phase = frequency[:, None] * by[:, None, :]
        ramp = torch.polar(torch.ones_like(phase), -phase).to(
            torch.fft.rfft(image[..., :1, :1]).dtype
        )
        return torch.fft.irfft(torch.fft.rfft(image, dim=dim) * ramp, n=self.side, dim=dim)

    def _steps(self) -> list[tuple[Tensor, int]]:
        """The shears, with the sub-pixel shifts of both centres folded into further ones."""
        line = torch.arange(self.side, dtype=self.phi.dtype, device=self.phi.device) - self.half
        flat = torch.ones_like(line)
        # turning by -theta: a point at (d_r, d_c) of the sky goes to R(-phi) of it
        along_column = torch.tan(self.phi / 2)[:, None] * line
        along_row = -torch.sin(self.phi)[:, None] * line
        return [
            (self.to_middle[:, :1] * flat, -2),
            (self.to_middle[:, 1:] * flat, -1),
            (along_column, -1),
            (along_row, -2),
            (along_column, -1),
            (self.to_star[:, :1] * flat, -2),
            (self.to_star[:, 1:] * flat, -1),
        ]

    def _turn(self, square: Tensor, sign: int) -> Tensor:
        turned = [
            torch.rot90(image, sign * int(turn), (-2, -1))
            for image, turn in zip(square, self.turns, strict=True)
        ]
        return torch.stack(turned)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Turn images ``(T or 1, rows, columns)`` to frames ``(T, H, W)``."""
        image = torch.roll(coefficients, (-self.lower[0], -self.lower[1]), (-2, -1))
        square = image.new_zeros(len(self.phi), self.side, self.side)
        row, column = (c + low for c, low in zip(self.corner, self.lower, strict=True))
        square[:, row : row + self.grid[0], column : column + self.grid[1]] = image
        first, rest = self._steps()[:2], self._steps()[2:]
        for by, dim in first:
            square = self._shift(square, by, dim)
        square = self._turn(square, 1)
        for by, dim in rest:
            square = self._shift(square, by, dim)
        height, width = self.size
        frames = [
            image[r : r + height, c : c + width]
            for image, (r, c) in zip(square, self.crop, strict=True)
        ]
        return torch.stack(frames)

    def adjoint(self, samples: Tensor) -> Tensor:
        """Transpose of :meth:`forward`, one image for each frame."""
        square = samples.new_zeros(len(self.phi), self.side, self.side)
        height, width = self.size
        for frame, (r, c) in enumerate(self.crop):
            square[frame, r : r + height, c : c + width] = samples[frame]
        first, rest = self._steps()[:2], self._steps()[2:]
        for by, dim in reversed(rest):
            square = self._shift(square, -by, dim)
        square = self._turn(square, -1)
        for by, dim in reversed(first):
            square = self._shift(square, -by, dim)
        row, column = (c + low for c, low in zip(self.corner, self.lower, strict=True))
        image = square[:, row : row + self.grid[0], column : column + self.grid[1]]
        image = torch.roll(image, self.lower, (-2, -1))
        return image.sum(0, keepdim=True) if self.shared else image


def _reach(center: Tensor, lower: tuple[int, int], size: tuple[int, int]) -> float:
    """Largest distance from a centre to a corner of a grid."""
    low = torch.tensor(lower).to(center)
    high = low + torch.tensor(size).to(center) - 1
    return float(torch.maximum((center - low).abs(), (high - center).abs()).norm(dim=-1).max())


def rotate(
    image: Tensor,
    angles: Tensor,
    center: Tensor | tuple[float, float] | None = None,
    interpolation: Interpolation | str = Interpolation.SPLINE,
    fill: float = 0.0,
) -> Tensor:
    r"""Turn frames counter-clockwise, as displayed, by angles in degrees.

    .. math::

        z_t(d) = y_t\left(R_{-\theta_t}\, d\right)

    for pixels :math:`d` counted from the centre, where :math:`R` turns the column axis towards the
    row axis. With the derotation angles of a sequence it brings North up in every frame. Frames
    are continued by reflection for the interpolation; what lies outside of them reads ``fill``.

    :param torch.Tensor image: frames, shape ``(..., T, H, W)``, or ``(..., 1, H, W)`` to turn one
        image by each angle.
    :param torch.Tensor angles: angles in degrees, shape ``(T,)``.
    :param torch.Tensor, tuple center: row and column of the centre, shape ``(2,)`` or ``(T, 2)``;
        default ``(H // 2, W // 2)``.
    :param Interpolation interpolation: ``"spline"`` or ``"shear"``.
    :param float fill: value outside of the frame, e.g. ``nan`` to leave it out of a mean.
    :return: (:class:`torch.Tensor`) turned frames ``(..., T, H, W)``, dtype of ``image``.
        Differentiable in the image, the angles and the centre.
    :raises ValueError: if the number of angles is not the number of frames, or the centre has
        another shape.

    |sep|

    :Examples:

        What is right of the centre comes above it after a quarter turn:

        >>> import torch
        >>> x = torch.zeros(1, 4, 3, dtype=torch.float64)
        >>> x[0, 2, 2] = 1.0
        >>> rotate(x, torch.tensor([90.0]), center=(2, 1))[0, :, 1].round(decimals=6)
        tensor([0., 0., 0., 1.], dtype=torch.float64)
    """
    *batch, given, height, width = image.shape
    angles = torch.as_tensor(angles, device=image.device)
    if angles.ndim != 1 or given not in (1, len(angles)):
        raise ValueError(
            f"angles must be a vector of {given} values, one for each frame, got shape {tuple(angles.shape)}"
        )
    if center is None:
        center = (height // 2, width // 2)
    center = torch.as_tensor(center, device=image.device).double()
    if center.shape not in ((2,), (1, 2), (len(angles), 2)):
        raise ValueError(
            f"center must be (row, column) or one such pair for each of {len(angles)} frames, "
            f"got shape {tuple(center.shape)}"
        )
    center = center.view(-1, 2).expand(len(angles), 2)
    positions = _positions_in_frame(-angles, center, (height, width))
    flat = image.expand(*batch, len(angles), height, width).reshape(-1, len(angles), height, width)
    method = Interpolation(interpolation)
    turned = torch.stack([_resample(one, positions, -angles, center, method) for one in flat])
    row, column = positions.detach().unbind(1)
    outside = (row < -0.5) | (row > height - 0.5) | (column < -0.5) | (column > width - 0.5)
    return turned.masked_fill(outside, fill).view(*batch, len(angles), height, width)


def _positions_in_frame(angles: Tensor, center: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions to read in frames that each turn about their own centre."""
    relative = sky_positions(angles, center, center.new_zeros(2), size)
    return relative + center[:, :, None, None]


def _fade(size: int, pad: int, like: Tensor) -> Tensor:
    """One on ``size`` samples, falling to zero as a cosine over ``pad`` more on both sides."""
    rising = torch.arange(1, size + 2 * pad + 1, device=like.device) / (pad + 1)
    inside = torch.minimum(rising, rising.flip(0)).clamp(max=1).to(like)
    return 0.5 - 0.5 * torch.cos(math.pi * inside)


def _resample(
    frames: Tensor, positions: Tensor, angles: Tensor, center: Tensor, method: Interpolation
) -> Tensor:
    """Read frames (T, H, W), continued by reflection, at positions or after the equivalent turn."""
    height, width = frames.shape[-2:]
    pad = [min(MARGIN, height - 1), min(MARGIN, width - 1)]
    padded = torch.nn.functional.pad(frames, [pad[1], pad[1], pad[0], pad[0]], mode="reflect")
    if method is Interpolation.SHEAR:
        # shears ring at the jump from the frame to nothing: let it fade out within the padding
        padded = padded * _fade(height, pad[0], padded)[:, None] * _fade(width, pad[1], padded)
        turned = []
        for frame, angle, middle in zip(padded, angles, center, strict=True):
            sky = middle + middle.new_tensor(pad)
            grid = (frame.shape[0], frame.shape[1])
            shear = ShearSampler(
                angle[None], middle[None], sky, (height, width), grid, (0, 0), False
            )
            turned.append(shear.forward(frame[None])[0])
        return torch.stack(turned).to(frames)
    rows, columns = (2 * (s // 2 + 1) for s in padded.shape[-2:])
    spectrum = torch.fft.rfft2(padded, s=(rows, columns))
    spectrum = spectrum * spline_prefilter_response((rows, columns), frames)
    coefficients = torch.fft.irfft2(spectrum, s=(rows, columns))
    upper = (pad[0] + height - 1, pad[1] + width - 1)
    grid_ = SplineGrid((rows, columns), (pad[0], pad[1]), upper, False, frames.dtype)
    offset = positions.new_tensor(pad).view(1, 2, 1, 1)
    return SplineSampler(positions + offset, grid_, keep=False).forward(coefficients)
