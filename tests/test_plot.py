"""What figures show, read back from their artists."""

from __future__ import annotations

from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
import torch
from deepinv.physics import Inpainting
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from deepinv_astro.identifiability import identify
from deepinv_astro.plot import (
    add_beam,
    add_colorbar,
    add_compass,
    brightness_norm,
    colorbar_ticks,
    draw_adi_visibility,
    draw_identifiability,
    mark_sources,
    offset_extent,
    quicklook,
    show_frame,
    show_sky,
    signed_norm,
    source_name,
)

SCALE = 50 * u.mas
CENTER = (8.25, 5.5)


def offsets(row: float, column: float) -> tuple[float, float]:
    """East and North of a pixel in arcseconds."""
    return 0.05 * (CENTER[1] - column), 0.05 * (row - CENTER[0])


def test_a_pixel_is_drawn_at_its_offset_from_the_star() -> None:
    image = np.zeros((15, 13))
    image[12, 2] = 1.0
    shown = show_sky(Figure().subplots(), image, center=CENTER, pixel_scale=SCALE)
    left, right, bottom, top = shown.get_extent()
    step = (right - left) / 13, (top - bottom) / 15
    # North-East: positive in both, East to the left
    assert (left + 2.5 * step[0], bottom + 12.5 * step[1]) == pytest.approx(offsets(12, 2))
    assert min(offsets(12, 2)) > 0
    assert left > right
    assert shown.origin == "lower"


def test_the_frame_is_drawn_along_its_columns() -> None:
    axes = Figure().subplots()
    shown = show_frame(axes, np.ones((15, 13)), center=CENTER, pixel_scale=SCALE)
    left, right, bottom, top = shown.get_extent()
    assert (left, right) == pytest.approx((-0.05 * 6.0, 0.05 * 7.0))
    assert (bottom, top) == pytest.approx((-0.05 * 8.75, 0.05 * 6.25))


def test_the_star_is_at_zero() -> None:
    axes = Figure().subplots()
    show_sky(axes, np.ones((15, 13)), center=CENTER, pixel_scale=SCALE)
    assert axes.lines
    for line in axes.lines:
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (0.0, 0.0)


def test_sources_are_circled_where_they_are() -> None:
    axes = Figure().subplots()
    sources = [SimpleNamespace(row=12.0, column=2.0), SimpleNamespace(row=3.0, column=9.0)]
    letters = mark_sources(axes, sources, center=CENTER, pixel_scale=SCALE, radius=2.0)
    circles = [p for p in axes.patches if isinstance(p, Circle)]
    for circle, source in zip(circles, sources, strict=True):
        assert circle.center == pytest.approx(offsets(source.row, source.column))
        assert circle.radius == pytest.approx(0.1)
    assert [letter.get_text() for letter in letters] == ["A", "B"]


def test_the_compass_points_up_and_left() -> None:
    north, east = add_compass(Figure().subplots())
    assert (north.get_text(), east.get_text()) == ("N", "E")
    assert north.get_position()[1] > north.xy[1]
    assert north.get_position()[0] == north.xy[0]
    assert east.get_position()[0] < east.xy[0]


def test_units_of_the_axes() -> None:
    axes = Figure().subplots(1, 2)
    show_sky(axes[0], np.ones((5, 4)), center=(2, 2), pixel_scale=SCALE)
    show_sky(axes[1], np.ones((5, 4)), center=(2, 2))
    assert [a.get_xlabel() for a in axes] == ["ΔRA (arcsec)", "ΔRA (pixels)"]
    assert offset_extent((5, 4), (2, 2), None) == (2.5, -1.5, -2.5, 2.5)


def test_signed_norm_is_symmetric() -> None:
    norm = signed_norm(np.array([[-3.0, np.nan], [8.0, 0.0]]))
    assert norm(0.0) == 0.5
    assert (norm.vmin, norm.vmax) == (-8.0, 8.0)
    assert signed_norm(np.array([40.0])).vmax == 12.0
    assert signed_norm(np.full((2, 2), np.nan)).vmax == 5.0


def test_brightness_norm_of_difficult_images() -> None:
    for image in (np.zeros((4, 5)), np.full((4, 5), np.nan), -np.ones((4, 5))):
        norm = brightness_norm(image)
        assert float(norm.vmax or 0) > float(norm.vmin or 0)
    norm = brightness_norm(np.array([0.0, 1.0, 2.0, 1e4]), top=100.0)
    assert float(norm(1e4)) == pytest.approx(1.0)
    assert 0 < float(norm(100.0)) < float(norm(1000.0)) < 1


@pytest.mark.parametrize("vmax", [3e-7, 0.5, 13.0, 2.4e6])
def test_ticks_are_round_and_readable(vmax: float) -> None:
    norm = AsinhNorm(linear_width=vmax / 20, vmin=0.0, vmax=vmax)
    ticks = colorbar_ticks(norm)
    places = np.array([float(norm(t)) for t in ticks])
    assert len(ticks) >= 4
    assert np.diff(places).min() > 0.06
    assert places.max() <= 1.0
    assert {f"{t:.0e}"[0] for t in ticks[1:]} <= {"1", "2", "5"}


def test_quicklook() -> None:
    generator = np.random.default_rng(2)
    image, snr = generator.random((15, 13)), generator.normal(size=(15, 13))
    snr[0, 0] = 30.0
    frame = generator.random((21, 17)) * 100
    frame[3, 4] = np.nan
    figure = Figure(layout="constrained")
    axes = quicklook(
        figure, image, snr, frame, center=CENTER, frame_center=(10.0, 8.0), pixel_scale=SCALE,
        unit="ct", sources=[SimpleNamespace(row=12.0, column=2.0)], title="β Pictoris",
    )  # fmt: skip
    figure.canvas.draw()
    shown = [a.images[0].get_array() for a in axes]
    for array, expected in zip(shown, (image, snr, frame), strict=True):
        np.testing.assert_array_equal(np.ma.filled(array, np.nan), expected)
    labels = [a.get_ylabel() for a in figure.axes if a not in axes]
    assert labels == ["ct / pixel", "S/N of a point source", "ct / pixel"]
    assert [sum(isinstance(p, Circle) for p in a.patches) for a in axes] == [1, 1, 0]
    ends = {a.get_ylabel(): a for a in figure.axes if a not in axes}
    assert "\N{MINUS SIGN}10" in {
        t.get_text() for t in ends["S/N of a point source"].get_yticklabels()
    }


@pytest.mark.parametrize(
    ("extremes", "extend"),
    [((-3, 4), "neither"), ((-30, 4), "min"), ((-3, 40), "max"), ((-30, 40), "both")],
)
def test_the_colour_bar_says_where_values_go_on(
    extremes: tuple[float, float], extend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "deepinv_astro.plot.add_colorbar", lambda *a, extend="neither": seen.append(extend)
    )
    snr = np.zeros((15, 13))
    snr[0, :2], snr[1, 1] = extremes, np.nan
    quicklook(Figure(), snr, snr, snr, center=CENTER, frame_center=CENTER)
    assert seen[1] == extend


def test_the_beam_has_the_width_of_the_psf() -> None:
    axes = Figure().subplots()
    image = np.ones((30, 60))
    show_sky(axes, image, center=(15, 30), pixel_scale=SCALE)
    beam = add_beam(axes, image.shape, 6.0)
    (left, bottom), (right, top) = axes.transData.inverted().transform(
        beam.get_transform().transform([[-1, -1], [1, 1]])
    )
    # a transform of the patch maps the unit circle
    assert left - right == pytest.approx(6 * 0.05)
    assert top - bottom == pytest.approx(6 * 0.05)


def test_colour_bars_name_the_unit_of_the_data() -> None:
    figure = Figure()
    axes = figure.subplots()
    shown = show_sky(axes, np.arange(20.0).reshape(5, 4), center=(2, 2))
    add_colorbar(axes, shown, "adu / pixel")
    assert figure.axes[1].get_ylabel() == "adu / pixel"


def test_names_of_sources() -> None:
    assert [source_name(n) for n in (0, 25, 26, 53)] == ["A", "Z", "A1", "B2"]


def test_identifiability_on_one_axes_or_many() -> None:
    mask = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]])
    result = identify(Inpainting((1, 2, 3), mask=mask), torch.zeros(1, 1, 2, 3))
    one = Figure().subplots()
    draw_identifiability(one, result)
    assert one.get_legend().get_texts()[0].get_text() == "operator alone: 5 of 6"
    figure = Figure()
    axes = figure.subplots(2, 2)
    draw_identifiability(axes, result)
    shown = axes[0, 1].images[0]
    assert np.abs(np.asarray(shown.get_array())).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert shown.colorbar.ax.get_ylabel() == "value, unit norm"
    assert (axes[0, 1].get_xlabel(), axes[0, 1].get_ylabel()) == ("column (pixels)", "row (pixels)")
    assert [a.get_visible() for a in axes.flat] == [True, True, False, False]
    bars = Figure().subplots()
    draw_adi_visibility(bars, [{"mode": 0, "visibility": 0.0}])
    assert len(bars.patches) == 1
