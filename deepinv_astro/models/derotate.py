r"""Between the frames of a sequence and the sky: turning without blurring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deepinv_astro.models.combine import fill_missing
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.resampling import SplineLookup, spline_coefficients
from deepinv_astro.physics.functional.rotation import sky_positions

# Samples that are read at once: what fits in the cache of a core, tables included.
_SAMPLES = 1 << 17

#: Some frames, and how to read images at the positions of these frames.
Lookup = tuple[slice, SplineLookup]

Make = Callable[[ADI, int, torch.dtype], Iterator[Lookup]]
State = list[tuple[Tensor, int]]

# Gone with the operator they belong to. An operator is not asked to hold them: it knows no models.
_TABLES: WeakKeyDictionary[ADI, tuple[State, dict[tuple[int, torch.dtype, Make], list[Lookup]]]] = (
    WeakKeyDictionary()
)


def derotate(frames: Tensor, physics: ADI) -> Tensor:
    r"""Frames brought onto the sky grid: North up, the star at ``physics.sky_center``.

    .. math::

        z_t(s) = y_t\left(c_t + R_{-\theta_t}(s - s_\star)\right)

    for the pixels :math:`s` of the sky grid, with :math:`c_t` the star on the detector and
    :math:`s_\star` the star on the sky; cubic B-splines. A sample is missing, NaN, where it falls
    outside of the frame or has a missing pixel among its four neighbours.

    The tables of the interpolation are kept until the geometry of ``physics`` changes, if they fit
    in its ``max_bytes``; else frames are processed in chunks, with tables made anew.

    :param torch.Tensor frames: frames on the detector, ``(B, C, T, h, w)``, missing data NaN.
    :param ADI physics: geometry: its ``angles``, ``center`` and ``sky_center`` are used, nothing
        else.
    :return: (:class:`torch.Tensor`) ``(B, C, T, H, W)``. Differentiable in the frames.
    :raises ValueError: if the shape of the frames is not that of the measurements of ``physics``.

    |sep|

    :Examples:

        The star of the detector is one row and one column further than the star of the sky:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 5, 7), angles=torch.tensor([90.0]), center=(3.0, 4.0))
        >>> y = torch.zeros(1, 1, 1, 5, 7)
        >>> y[0, 0, 0, 3, 6] = 1.0  # two pixels right of the star
        >>> divmod(int(derotate(y, physics).nan_to_num().argmax()), 7)  # two pixels above it
        (4, 3)
    """
    check_sequence(frames, physics)
    parts = [
        read_on_sky(sequence, lookups_on_sky(physics, row, frames.dtype))
        for row, sequence in enumerate(frames)
    ]
    return torch.stack(parts)


def read_on_sky(frames: Tensor, lookups: Iterable[Lookup]) -> Tensor:
    """Frames ``(C, T, h, w)`` at the pixels of the sky, ``(C, T, H, W)``, missing data NaN."""
    filled = fill_missing(frames)
    valid = None if filled is frames else frames.isfinite()
    chunks = []
    for at, lookup in lookups:
        samples = lookup(spline_coefficients(filled[:, at]))
        missing = lookup.outside if valid is None else ~lookup.seen(valid[:, at])
        chunks.append(samples.masked_fill(missing, torch.nan))
    return torch.cat(chunks, dim=1)


def turn(image: Tensor, physics: ADI) -> Tensor:
    r"""Frames that show a sky, already blurred: :math:`Q_t x`, zero beyond its edge.

    :param torch.Tensor image: sky ``(B, C, H, W)``, finite.
    :param ADI physics: geometry, as in :func:`derotate`.
    :return: (:class:`torch.Tensor`) frames ``(B, C, T, h, w)``. Differentiable in the image.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 5, 7), angles=torch.tensor([0.0, 90.0]))
        >>> x = torch.zeros(1, 1, 5, 7)
        >>> x[0, 0, 4, 3] = 1.0  # two pixels above the star
        >>> [divmod(int(frame.argmax()), 7) for frame in turn(x, physics)[0, 0]]
        [(4, 3), (2, 5)]
    """
    parts = [
        read_on_detector(sky, lookups_on_detector(physics, row, image.dtype))
        for row, sky in enumerate(image)
    ]
    return torch.stack(parts)


def read_on_detector(sky: Tensor, lookups: Iterable[Lookup]) -> Tensor:
    """One sky ``(C, H, W)`` at the pixels of the frames, ``(C, T, h, w)``, zero beyond its edge."""
    coefficients = spline_coefficients(sky)[:, None]
    return torch.cat([lookup(coefficients) for _, lookup in lookups], dim=1)


def lookups_on_sky(physics: ADI, row: int, dtype: torch.dtype) -> Iterable[Lookup]:
    """Chunks of frames, and how to read them at the pixels of the sky, for one of the batch."""
    return _kept(physics, row, dtype, _make_on_sky)


def lookups_on_detector(physics: ADI, row: int, dtype: torch.dtype) -> Iterable[Lookup]:
    """Chunks of frames, and how to read the sky at their pixels, for one of the batch."""
    return _kept(physics, row, dtype, _make_on_detector)


def _make_on_sky(physics: ADI, row: int, dtype: torch.dtype) -> Iterator[Lookup]:
    angles, center = _pose(physics, row)
    star, size = physics.sky_center.detach(), physics.img_size[1:]
    for at in _chunks(len(angles), size):
        about = star.expand(len(angles[at]), 2)
        relative = sky_positions(-angles[at], about, torch.zeros_like(star), size)
        positions = relative + center[at, :, None, None]
        yield at, SplineLookup(positions, physics.detector_size, dtype)


def _make_on_detector(physics: ADI, row: int, dtype: torch.dtype) -> Iterator[Lookup]:
    angles, center = _pose(physics, row)
    star, size = physics.sky_center.detach(), physics.detector_size
    for at in _chunks(len(angles), size):
        positions = sky_positions(angles[at], center[at], star, size)
        yield at, SplineLookup(positions, physics.img_size[1:], dtype)


def _kept(physics: ADI, row: int, dtype: torch.dtype, make: Make) -> Iterable[Lookup]:
    """Tables of an operator: kept until its geometry changes if they fit in its ``max_bytes``."""
    size = max(math.prod(physics.detector_size), math.prod(physics.img_size[1:]))
    rows = max(len(physics.angles), len(physics.center))
    if 2 * rows * physics.frames * size * (10 * dtype.itemsize + 17) > physics.max_bytes:
        return make(physics, row, dtype)
    geometry = (physics.angles, physics.center, physics.sky_center)
    state = [(value, value._version) for value in geometry]
    old, tables = _TABLES.get(physics, ([], {}))
    same = len(old) == len(state) and all(
        a is b and m == n for (a, m), (b, n) in zip(old, state, strict=True)
    )
    if not same:
        tables = {}
        _TABLES[physics] = (state, tables)
    key = (row % rows, dtype, make)
    if key not in tables:
        with torch.no_grad():
            tables[key] = list(make(physics, row, dtype))
    return tables[key]


def _pose(physics: ADI, row: int) -> tuple[Tensor, Tensor]:
    """Angles (T,) and star on the detector (T, 2) of one of the batch, in double precision."""
    angles = physics.angles[row % len(physics.angles)].detach().double()
    center = physics.center[row % len(physics.center)].detach().double()
    return angles, center.expand(len(angles), 2)


def _chunks(frames: int, size: tuple[int, int]) -> list[slice]:
    step = max(1, _SAMPLES // (size[0] * size[1]))
    return [slice(t, t + step) for t in range(0, frames, step)]


def check_sequence(y: Tensor, physics: ADI) -> None:
    """Raise if a sequence does not fit its operator.

    :param torch.Tensor y: sequence.
    :param ADI physics: operator.
    :raises ValueError: if the shape is not ``(B, C, T, h, w)`` with the sizes of ``physics``.
    """
    expected = (physics.img_size[0], physics.frames, *physics.detector_size)
    if y.ndim != 5 or tuple(y.shape[1:]) != expected:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"y must be of shape (B, C, T, h, w) = (B, {sizes}), got {tuple(y.shape)}")
