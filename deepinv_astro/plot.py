"""Figures: an axis in, artists out."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import astropy.units as u
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Ellipse
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

if TYPE_CHECKING:
    from deepinv_astro.identifiability import Identifiability

Map = NDArray[Any]

#: A colour map whose lightness grows evenly, and one that diverges evenly from white.
BRIGHTNESS, SIGNED = "inferno", "RdBu_r"


class Located(Protocol):
    """Anything with a position on the sky image, in float pixels."""

    @property
    def row(self) -> float:
        """Row, 0 is the middle of the first."""

    @property
    def column(self) -> float:
        """Column."""


def offset_extent(
    shape: tuple[int, int], center: tuple[float, float], pixel_scale: u.Quantity | None
) -> tuple[float, float, float, float]:
    r"""
    Limits of a North-up image in offsets from the star, for ``imshow``: East to the left.

    .. math::
        \Delta_\text{East} = -s\,(c - c_0), \qquad \Delta_\text{North} = s\,(r - r_0)

    :param tuple shape: rows and columns.
    :param tuple center: row and column of the star.
    :param astropy.units.Quantity pixel_scale: angle per pixel :math:`s`; ``None`` for pixels.
    :return: left, right, bottom, top; arcseconds, or pixels where the scale is unknown.

    >>> offset_extent((3, 5), (1.0, 1.0), 100 * u.mas)
    (0.15, -0.35, -0.15, 0.15)
    """
    step = 1.0 if pixel_scale is None else float(pixel_scale.to_value(u.arcsec))
    height, width = shape
    row, column = center
    edges = (column + 0.5, column + 0.5 - width, -row - 0.5, height - 0.5 - row)
    left, right, bottom, top = (round(step * edge, 12) for edge in edges)
    return left, right, bottom, top


def show_sky(
    axes: Axes,
    image: Map,
    *,
    center: tuple[float, float],
    pixel_scale: u.Quantity | None = None,
    norm: Normalize | None = None,
    cmap: str = BRIGHTNESS,
) -> AxesImage:
    """
    Show a North-up image in offsets from the star, with arrows to North and East.

    :param matplotlib.axes.Axes axes: where to draw.
    :param numpy.ndarray image: ``(H, W)``.
    :param tuple center: row and column of the star.
    :param astropy.units.Quantity pixel_scale: angle per pixel; ``None`` for pixels.
    :param matplotlib.colors.Normalize norm: stretch; default :func:`brightness_norm`.
    :param str cmap: colour map.
    :return: the image.

    >>> axes = Figure().subplots()
    >>> shown = show_sky(axes, np.eye(5, 7), center=(2.0, 3.0), pixel_scale=50 * u.mas)
    >>> axes.get_xlabel(), bool(axes.xaxis_inverted())
    ('ΔRA (arcsec)', True)
    """
    extent = offset_extent(image.shape, center, pixel_scale)
    shown = axes.imshow(
        image, origin="lower", extent=extent, norm=norm or brightness_norm(image), cmap=cmap,
        interpolation="nearest",
    )  # fmt: skip
    unit = "pixels" if pixel_scale is None else "arcsec"
    axes.set_xlabel(f"ΔRA ({unit})")
    axes.set_ylabel(f"ΔDec ({unit})")
    axes.plot(0.0, 0.0, marker="+", markersize=9, color="white", markeredgewidth=2.4)
    axes.plot(0.0, 0.0, marker="+", markersize=8, color="black", markeredgewidth=1.0)
    return shown


def show_frame(
    axes: Axes,
    frame: Map,
    *,
    center: tuple[float, float],
    pixel_scale: u.Quantity | None = None,
    norm: Normalize | None = None,
) -> AxesImage:
    """
    Show a frame as the detector saw it, in offsets from the star along its rows and columns.

    :param matplotlib.axes.Axes axes: where to draw.
    :param numpy.ndarray frame: ``(H, W)``; missing data NaN, drawn grey.
    :param tuple center: row and column of the star.
    :param astropy.units.Quantity pixel_scale: angle per pixel; ``None`` for pixels.
    :param matplotlib.colors.Normalize norm: stretch; default :func:`brightness_norm`.
    :return: the image.

    >>> axes = Figure().subplots()
    >>> _ = show_frame(axes, np.eye(5, 7), center=(2.0, 3.0))
    >>> axes.get_xlabel(), bool(axes.xaxis_inverted())
    ('detector x (pixels)', False)
    """
    left, right, bottom, top = offset_extent(frame.shape, center, pixel_scale)
    shown = axes.imshow(
        frame, origin="lower", extent=(-left, -right, bottom, top), cmap=BRIGHTNESS,
        norm=norm or brightness_norm(frame), interpolation="nearest",
    )  # fmt: skip
    unit = "pixels" if pixel_scale is None else "arcsec"
    axes.set_xlabel(f"detector x ({unit})")
    axes.set_ylabel(f"detector y ({unit})")
    axes.set_facecolor("0.6")
    axes.plot(0.0, 0.0, marker="+", markersize=9, color="white", markeredgewidth=2.4)
    axes.plot(0.0, 0.0, marker="+", markersize=8, color="black", markeredgewidth=1.0)
    return shown


def brightness_norm(image: Map, top: float = 99.9) -> Normalize:
    """
    Stretch that is linear for the faint half of an image and logarithmic above.

    :param numpy.ndarray image: values; NaN is left out.
    :param float top: percentile of the positive values that gets the brightest colour.
    :return: an asinh stretch; linear where the image is constant or empty.

    >>> norm = brightness_norm(np.array([0.0, 1.0, 10.0, 1000.0]), top=100.0)
    >>> round(float(norm(100.0)), 2), round(float(norm(1000.0)), 2)
    (0.39, 1.0)
    """
    values = image[np.isfinite(image)]
    positive = values[values > 0]
    if not positive.size:
        return Normalize(0.0, 1.0)
    vmax = float(np.percentile(positive, top))
    width = float(np.clip(np.median(positive), vmax / 20, vmax))
    # a few noisy pixels must not set the darkest colour
    vmin = min(0.0, float(np.percentile(values, 1.0)))
    return AsinhNorm(linear_width=width, vmin=vmin, vmax=vmax)


def signed_norm(snr: Map, least: float = 5.0, most: float = 12.0) -> Normalize:
    """
    Stretch of a signal-to-noise map: zero in the middle, the same limit on both sides.

    :param numpy.ndarray snr: values; NaN is left out.
    :param float least: least limit.
    :param float most: most; beyond it the colour stays.
    :return: a linear stretch.

    >>> norm = signed_norm(np.array([-2.0, 7.5, np.nan]))
    >>> norm.vmin, norm.vmax
    (-7.5, 7.5)
    """
    values = np.abs(snr[np.isfinite(snr)])
    peak = float(values.max()) if values.size else 0.0
    limit = min(max(peak, least), most)
    return Normalize(-limit, limit)


def add_compass(axes: Axes, color: str = "white", length: float = 0.13) -> list[Annotation]:
    """
    Arrows to North (up) and East (left) in the lower right corner.

    :param matplotlib.axes.Axes axes: axes of :func:`show_sky`.
    :param str color: of arrows and letters.
    :param float length: in units of the axes.
    :return: both arrows.

    >>> [arrow.get_text() for arrow in add_compass(Figure().subplots())]
    ['N', 'E']
    """
    corner = (0.93, 0.07)
    tips = {"N": (corner[0], corner[1] + length), "E": (corner[0] - length, corner[1])}
    style = {"arrowstyle": "<-", "color": color, "lw": 1.4, "shrinkA": 0.0, "shrinkB": 0.0}
    return [
        axes.annotate(
            name, xy=corner, xytext=tip, xycoords="axes fraction", textcoords="axes fraction",
            ha="center", va="center", color=color, fontsize=10, fontweight="bold", arrowprops=style,
        )
        for name, tip in tips.items()
    ]  # fmt: skip


def mark_sources(
    axes: Axes,
    sources: Sequence[Located],
    *,
    center: tuple[float, float],
    pixel_scale: u.Quantity | None = None,
    radius: float = 4.0,
    color: str = "white",
) -> list[Text]:
    """
    Circle point sources and name them A, B, C in the order given.

    :param matplotlib.axes.Axes axes: axes of :func:`show_sky`.
    :param sources: with ``row`` and ``column``.
    :param tuple center: row and column of the star.
    :param astropy.units.Quantity pixel_scale: angle per pixel; ``None`` for pixels.
    :param float radius: of the circles, in pixels.
    :param str color: of circles and letters.
    :return: the letters.

    >>> from types import SimpleNamespace
    >>> axes = Figure().subplots()
    >>> [name] = mark_sources(axes, [SimpleNamespace(row=8.0, column=1.0)], center=(5.0, 5.0))
    >>> name.get_text(), len(axes.patches)
    ('A', 1)
    """
    step = 1.0 if pixel_scale is None else float(pixel_scale.to_value(u.arcsec))
    letters = []
    for number, source in enumerate(sources):
        east, north = step * (center[1] - source.column), step * (source.row - center[0])
        axes.add_patch(Circle((east, north), step * radius, fill=False, color=color, lw=1.3))
        # North-West of the circle, East being left
        shift = 0.75 * step * radius
        letters.append(
            axes.text(
                east - shift, north + shift, source_name(number), color=color, fontsize=11,
                fontweight="bold", ha="left", va="bottom", clip_on=True,
            )
        )  # fmt: skip
    return letters


def add_beam(axes: Axes, shape: tuple[int, int], fwhm: float, color: str = "white") -> Ellipse:
    """
    The width of the PSF as a filled circle in the lower left corner.

    :param matplotlib.axes.Axes axes: axes of :func:`show_sky`.
    :param tuple shape: rows and columns of the image.
    :param float fwhm: of the PSF, in pixels: the diameter.
    :param str color: of the circle.
    :return: the circle.

    >>> round(add_beam(Figure().subplots(), (50, 100), 5.0).width, 3)
    0.05
    """
    height, width = shape
    beam = Ellipse(
        (0.03 + fwhm / width / 2, 0.03 + fwhm / height / 2), fwhm / width, fwhm / height,
        color=color, transform=axes.transAxes,
    )  # fmt: skip
    axes.add_patch(beam)
    return beam


def source_name(number: int) -> str:
    """
    Letter of a source, in the order of significance: A, B, ..., Z, A1, B1, ...

    >>> source_name(1), source_name(27)
    ('B', 'B1')
    """
    cycle, letter = divmod(number, len(string.ascii_uppercase))
    return string.ascii_uppercase[letter] + (str(cycle) if cycle else "")


def add_colorbar(axes: Axes, shown: ScalarMappable, label: str, extend: str = "neither") -> None:
    """Colour bar of the height of the axes, with its label."""
    figure = axes.get_figure()
    if figure is not None:
        figure.colorbar(
            shown, ax=axes, label=label, extend=extend, fraction=0.046, pad=0.02,
            ticks=colorbar_ticks(shown.norm) if isinstance(shown.norm, AsinhNorm) else None,
            format=lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"),
        )  # fmt: skip


def colorbar_ticks(norm: Normalize) -> list[float]:
    """
    Round values of an asinh stretch, far enough from each other to be read.

    >>> colorbar_ticks(AsinhNorm(linear_width=1.0, vmin=0.0, vmax=250.0))
    [0.0, 0.5, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
    """
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 1.0)
    magnitude = int(np.floor(np.log10(max(high, abs(low)))))
    rounds = [m * 10.0**p for p in range(magnitude - 6, magnitude + 1) for m in (1, 2, 5)]
    ticks = [0.0]
    for value in rounds:
        if value <= high and float(norm(value) - norm(ticks[-1])) > 0.07:
            ticks.append(float(f"{value:.0e}"))
    return ticks


def _extend(image: Map, norm: Normalize) -> str:
    """At which ends of its colour bar an image goes on."""
    low = bool((image < float(norm.vmin or 0.0)).any())
    high = bool((image > float(norm.vmax or 0.0)).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[low, high]


def quicklook(
    figure: Figure,
    image: Map,
    snr: Map | None,
    frame: Map,
    *,
    center: tuple[float, float],
    frame_center: tuple[float, float],
    pixel_scale: u.Quantity | None = None,
    unit: str = "",
    sources: Sequence[Located] = (),
    fwhm: float = 4.0,
    title: str = "",
) -> list[Axes]:
    """
    The result at a glance: image, signal-to-noise map, and one frame of the data.

    A disk in the lower left corner has the width of the PSF; point sources are circled.

    :param matplotlib.figure.Figure figure: empty; 15 x 4.6 inches suit.
    :param numpy.ndarray image: North-up ``(H, W)``.
    :param numpy.ndarray snr: signal-to-noise ratio of a point source, ``(H, W)``; ``None`` if not
        known.
    :param numpy.ndarray frame: one frame, or the mean of all, ``(h, w)``.
    :param tuple center: row and column of the star in the image.
    :param tuple frame_center: row and column of the star on the detector.
    :param astropy.units.Quantity pixel_scale: angle per pixel; ``None`` for pixels.
    :param str unit: of the image.
    :param sources: point sources in the order of their letters, with ``row`` and ``column``.
    :param float fwhm: width of the PSF in pixels; the circles about sources have this radius.
    :param str title: of the figure.
    :return: the axes.

    >>> figure = Figure()
    >>> axes = quicklook(
    ...     figure, np.eye(9, 7), None, np.eye(5, 7), center=(4, 3), frame_center=(2, 3)
    ... )
    >>> [a.get_title() for a in axes]
    ['Image, North up', 'Data: one frame']
    """
    names = ["image", "frame"] if snr is None else ["image", "snr", "frame"]
    axes = dict(zip(names, figure.subplots(1, len(names)), strict=True))
    flux = f"{unit} / pixel" if unit else "flux per pixel (unit of the data)"
    shown = show_sky(axes["image"], image, center=center, pixel_scale=pixel_scale)
    add_colorbar(axes["image"], shown, flux, extend="max")
    axes["image"].set_title("Image, North up")
    if snr is not None:
        norm = signed_norm(snr)
        shown = show_sky(
            axes["snr"], snr, center=center, pixel_scale=pixel_scale, norm=norm, cmap=SIGNED
        )
        add_colorbar(axes["snr"], shown, "S/N of a point source", extend=_extend(snr, norm))
        axes["snr"].set_title("Signal to noise")
    for name, color in (("image", "white"), ("snr", "black")):
        if name in axes:
            add_compass(axes[name], color)
            add_beam(axes[name], (image.shape[0], image.shape[1]), fwhm, color)
            mark_sources(
                axes[name],
                sources,
                center=center,
                pixel_scale=pixel_scale,
                radius=fwhm,
                color=color,
            )
    shown = show_frame(axes["frame"], frame, center=frame_center, pixel_scale=pixel_scale)
    add_colorbar(axes["frame"], shown, flux, extend="max")
    axes["frame"].set_title("Data: one frame")
    if title:
        figure.suptitle(title)
    return [axes[name] for name in names]


def draw_identifiability(
    axes: Axes | Sequence[Axes] | Map, result: Identifiability, labels: Sequence[str] = ()
) -> None:
    """
    Spectra of an operator alone and with transformations, and what stays unseen.

    :param matplotlib.axes.Axes axes: where to draw the spectra; or several, of which each but the
        first shows one image that stays unseen, with its colour bar. Axes that find none are hidden.
    :param Identifiability result: of :func:`~deepinv_astro.identifiability.identify`.
    :param labels: of both curves; default from the result.

    >>> import torch
    >>> from deepinv.physics import Inpainting
    >>> from deepinv.transform import Reflect
    >>> from deepinv_astro.identifiability import identify
    >>> physics = Inpainting((1, 2, 3), mask=torch.tensor([[[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]]))
    >>> result = identify(physics, torch.zeros(1, 1, 2, 3), Reflect(dim=[-1]))
    >>> axes = Figure().subplots(1, 2)
    >>> draw_identifiability(axes, result)
    >>> axes[0].get_xlabel(), axes[1].get_xlabel()
    ('direction', 'column (pixels)')
    """
    first, *others = np.ravel(np.asarray(axes, dtype=object))
    names = labels or ("operator alone", f"with {result.transform}")
    curves = [(result.alone, "o", "0.45")]
    if result.joint is not None:
        curves.append((result.joint, "-", "C0"))
    for (spectrum, style, color), name in zip(curves, names, strict=False):
        place = np.cumsum(spectrum.counts.cpu().numpy())
        share = spectrum.values.cpu().numpy() / spectrum.largest
        label = f"{name}: {spectrum.rank(result.floor):.0f} of {spectrum.size:.0f}"
        first.plot(place, share, style, color=color, markersize=3, label=label)
    first.axhline(result.floor, color="black", linestyle=":", linewidth=1)
    first.set_yscale("log")
    first.set_ylim(result.floor / 300, 2)
    first.set_xlabel("direction")
    first.set_ylabel("eigenvalue / largest")
    first.legend(loc="best", fontsize="small")
    for number, (other, unseen) in enumerate(zip(others, result.null_images, strict=False), 1):
        image = unseen.mean(0).cpu().numpy()
        top = float(np.abs(image).max())
        shown = other.imshow(image, origin="lower", cmap=SIGNED, norm=Normalize(-top, top))
        other.set_title(f"unseen {number}", fontsize="small")
        other.set_xlabel("column (pixels)")
        other.set_ylabel("row (pixels)")
        add_colorbar(other, shown, "value, unit norm")
    for other in others[len(result.null_images) :]:
        other.set_visible(False)


def draw_adi_visibility(
    axes: Axes | Sequence[Axes] | Map,
    modes: Sequence[Mapping[str, float]],
    reach: Sequence[Mapping[str, float]] = (),
) -> None:
    """
    What angular differential imaging sees of angular modes and of point sources.

    :param matplotlib.axes.Axes axes: where to draw the modes; or two, the second for the separations.
    :param modes: entries with ``mode``, ``visibility`` and perhaps ``measured``.
    :param reach: entries with ``separation_px`` and ``point_visibility``.

    >>> axes = Figure().subplots(1, 2)
    >>> modes = [{"mode": 0, "visibility": 0.0}, {"mode": 1, "visibility": 0.2, "measured": 0.2}]
    >>> draw_adi_visibility(axes, modes)
    >>> len(axes[0].patches), axes[1].get_visible()
    (2, False)
    """
    left, *others = np.ravel(np.asarray(axes, dtype=object))
    left.bar(
        [m["mode"] for m in modes], [m["visibility"] for m in modes], color="0.75", label="angles"
    )
    known = [m for m in modes if "measured" in m]
    if known:
        left.plot(
            [m["mode"] for m in known],
            [m["measured"] for m in known],
            "o",
            color="C0",
            label="operator",
        )
    left.annotate(
        "a face-on ring\nis invisible", (0.0, 0.0), (-0.4, 0.8), ha="left", fontsize="small",
        arrowprops={"arrowstyle": "->"},
    )  # fmt: skip
    left.set_xlabel("angular mode m")
    left.set_ylabel("fraction of the energy seen")
    left.set_ylim(0, 1.05)
    left.legend(loc="lower right", fontsize="small")
    for right in others:
        right.set_visible(bool(reach))
        away = [r["separation_px"] for r in reach]
        right.plot(away, [r["point_visibility"] for r in reach], "o-")
        right.set_xlim(left=0)
        right.set_ylim(0, 1.05)
        right.set_xlabel("separation of a point source (pixels)")
        right.set_ylabel("fraction of the energy seen")
