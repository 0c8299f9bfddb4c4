"""Disks against their closed forms."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from deepinv_astro.datasets.disks import (
    gaussian_blob,
    henyey_greenstein,
    isotropic,
    point_sources,
    ring,
    sky_offset,
    spiral,
    two_component_henyey_greenstein,
)

SHAPE, CENTER = (81, 101), (42.0, 47.5)


def _offsets(image: torch.Tensor, center: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(image.shape[-2], dtype=image.dtype)[:, None] - center[0]
    columns = torch.arange(image.shape[-1], dtype=image.dtype)[None] - center[1]
    return rows, columns


def _second_moments(image: torch.Tensor, center: tuple[float, float]) -> torch.Tensor:
    """North-North, East-East, North-East moments about the star."""
    north, columns = _offsets(image, center)
    east = -columns
    total = image.sum()
    return torch.stack([(image * m).sum() / total for m in (north**2, east**2, north * east)])


def test_sky_offset_runs_from_north_to_east():
    for angle, expected in ((0, (7, 0)), (90, (0, -7)), (180, (-7, 0)), (270, (0, 7))):
        torch.testing.assert_close(
            torch.stack(sky_offset(7.0, angle)), torch.tensor(expected).double(), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("g", [-0.4, 0.0, 0.7])
def test_henyey_greenstein_is_normalised_with_mean_cosine_g(g):
    mu = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    p = henyey_greenstein(mu, g)
    assert float(2 * math.pi * torch.trapezoid(p, mu)) == pytest.approx(1, abs=1e-6)
    assert float(2 * math.pi * torch.trapezoid(p * mu, mu)) == pytest.approx(g, abs=1e-6)
    mixture = two_component_henyey_greenstein(mu, g, 0.1, 0.25)
    mean = float(2 * math.pi * torch.trapezoid(mixture * mu, mu))
    assert mean == pytest.approx(0.25 * g + 0.75 * 0.1, abs=1e-6)
    torch.testing.assert_close(isotropic(mu), henyey_greenstein(mu, 0.0))


@pytest.mark.parametrize("inclination", [0.0, 40.0, 75.0])
@pytest.mark.parametrize("position_angle", [0.0, 30.0, 135.0])
def test_ring_is_an_ellipse_of_axis_ratio_cos_i_along_its_position_angle(
    inclination, position_angle
):
    image = ring(
        SHAPE, 22.0, inclination, position_angle, center=CENTER, slopes=(30.0, -30.0), flux=3.0
    )
    assert image.dtype == torch.float64
    assert float(image.sum()) == pytest.approx(3.0)
    nn, ee, ne = _second_moments(image, CENTER)
    theta = math.radians(position_angle)
    along = nn * math.cos(theta) ** 2 + ee * math.sin(theta) ** 2 + ne * math.sin(2 * theta)
    across = nn * math.sin(theta) ** 2 + ee * math.cos(theta) ** 2 - ne * math.sin(2 * theta)
    crossed = (ee - nn) / 2 * math.sin(2 * theta) + ne * math.cos(2 * theta)
    # A thin ring lit isotropically has equal brightness per unit of its own azimuth.
    # The pixel adds 1/12 to each second moment.
    ratio = float(torch.sqrt((across - 1 / 12) / (along - 1 / 12)))
    assert ratio == pytest.approx(math.cos(math.radians(inclination)), rel=0.01)
    assert float(along) == pytest.approx(22.0**2 / 2, rel=0.05)
    assert abs(float(crossed)) < 0.01 * float(along)


def test_the_near_side_is_the_position_angle_plus_90_and_bright_in_forward_scattering():
    forward = ring(SHAPE, 25.0, 60.0, 0.0, phase=partial(henyey_greenstein, g=0.4), center=(40, 50))
    near, far = forward[40, 50 - 13], forward[40, 50 + 13]  # East, West
    mu = math.sin(math.radians(60))
    expected = henyey_greenstein(torch.tensor(mu), 0.4) / henyey_greenstein(torch.tensor(-mu), 0.4)
    assert float(near / far) == pytest.approx(float(expected), rel=0.03)
    backward = ring(
        SHAPE, 25.0, 60.0, 0.0, phase=partial(henyey_greenstein, g=-0.4), center=(40, 50)
    )
    torch.testing.assert_close(backward, forward.flip(1))


def test_isotropic_ring_is_symmetric_about_the_star():
    image = ring((61, 81), 20.0, 50.0, 33.0)
    torch.testing.assert_close(image, image.flip(0, 1))
    lopsided = ring((61, 81), 20.0, 50.0, 33.0, phase=partial(henyey_greenstein, g=0.3))
    assert float((lopsided - lopsided.flip(0, 1)).abs().max()) > 0.1 * float(lopsided.max())


def test_radial_profile_follows_its_slopes():
    image = ring((161, 161), 30.0, 0.0, 0.0, slopes=(4.0, -3.0))
    cut = image[80, 80:]
    # Far from the peak: density times the light of the star, 1/r^2.
    assert float((cut[70] / cut[60]).log() / math.log(7 / 6)) == pytest.approx(-5.0, abs=0.1)
    assert float((cut[12] / cut[10]).log() / math.log(12 / 10)) == pytest.approx(2.0, abs=0.1)


def test_offset_moves_the_ring_and_leaves_the_star():
    image = ring(
        (121, 121), 30.0, 0.0, 90.0, slopes=(40.0, -40.0), offset=(6.0, 0.0), oversampling=3
    )
    cut = image[60]  # East-West: East at column 60 - 36, West at 60 + 24
    assert int(cut[:60].argmax()) == 24
    assert int(60 + cut[60:].argmax()) == 84
    # The star lights the near end more: (36 / 24)^2.
    assert float(cut[84] / cut[24]) == pytest.approx((36 / 24) ** 2, rel=0.1)


def test_thickness_widens_the_minor_axis_only():
    thin = ring(SHAPE, 22.0, 80.0, 90.0, center=(40, 50))
    thick = ring(SHAPE, 22.0, 80.0, 90.0, center=(40, 50), scale_height=2.0)
    before, after = _second_moments(thin, (40, 50)), _second_moments(thick, (40, 50))
    added = float(after[0] - before[0])
    # h^2 sin^2 i, less what 1/d^2 gives to the dust nearest the plane.
    assert added == pytest.approx(4 * math.sin(math.radians(80)) ** 2, rel=0.1)
    assert float(after[1] / before[1]) == pytest.approx(1, abs=0.02)


def test_spiral_has_two_arms_that_wind_by_the_pitch():
    image = spiral((121, 121), 25.0, 0.0, 0.0, pitch=25.0, arm_width=0.2, slopes=(1.0, -1.0))
    torch.testing.assert_close(image, image.flip(0, 1), rtol=1e-6, atol=1e-12)
    rows, columns = _offsets(image, (60, 60))
    radius, angle = torch.hypot(rows, columns), torch.atan2(-columns + 0 * rows, rows + 0 * columns)
    turned = []
    for r in (20.0, 40.0):
        on = (radius - r).abs() < 1
        turned.append(torch.angle((image * torch.exp(2j * angle) * on).sum()) / 2)
    expected = math.log(2) / math.tan(math.radians(25))
    difference = (float(turned[1] - turned[0]) - expected + math.pi / 2) % math.pi - math.pi / 2
    assert abs(difference) < 0.03


def test_spiral_inclined_is_the_face_on_one_compressed():
    face, tilted = (
        spiral((101, 101), 22.0, i, 0.0, slopes=(6.0, -12.0), oversampling=5) for i in (0.0, 60.0)
    )
    moment = [_second_moments(image, (50, 50)) for image in (face, tilted)]
    assert float(moment[1][1] / moment[0][1]) == pytest.approx(0.25, rel=0.05)
    assert float(moment[1][0] / moment[0][0]) == pytest.approx(1.0, rel=0.02)


def test_blob_has_its_place_and_its_widths():
    image = gaussian_blob(
        SHAPE, 15.0, 60.0, fwhm=(9.0, 4.0), orientation=0.0, flux=2.0, center=CENTER
    )
    row, column = (float(v) for v in sky_offset(15.0, 60.0))
    place = (CENTER[0] + row, CENTER[1] + column)
    rows, columns = _offsets(image, place)
    assert abs(float((image * rows).sum())) < 1e-6
    assert abs(float((image * columns).sum())) < 1e-6
    nn, ee, ne = _second_moments(image, place)
    assert float(nn) == pytest.approx((9 / 2.35482) ** 2 + 1 / 12, rel=0.01)
    assert float(ee) == pytest.approx((4 / 2.35482) ** 2 + 1 / 12, rel=0.01)
    assert abs(float(ne)) < 1e-6


def test_point_source_keeps_moments_up_to_the_seventh():
    image = point_sources((21, 31), 10.37, 14.81, 2.5)
    rows, columns = _offsets(image, (10.37, 14.81))
    assert float(image.sum()) == pytest.approx(2.5)
    for power in range(1, 8):
        assert abs(float((image * rows**power).sum())) < 1e-9
        assert abs(float((image * columns**power).sum())) < 1e-9
    assert int((image != 0).sum()) == 64


def test_point_source_seen_through_a_psf_has_its_true_shape():
    sigma = 3.9 / 2.35482
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in (41, 51))

    def gauss(r: float, c: float) -> torch.Tensor:
        d = (rows[:, None] - r) ** 2 + (columns - c) ** 2
        return torch.exp(-d / (2 * sigma**2))

    image = point_sources((41, 51), torch.tensor([18.5, 25.2]), torch.tensor([20.5, 33.7]), 1.0)
    seen = sum(float(image[r, c]) * gauss(r, c) for r, c in image.nonzero().tolist())
    torch.testing.assert_close(seen, gauss(18.5, 20.5) + gauss(25.2, 33.7), atol=1.5e-3, rtol=0)


def test_batched_parameters_make_batches_that_do_not_mix():
    angles = torch.tensor([10.0, 80.0, 200.0], dtype=torch.float64)
    both = ring((41, 51), 15.0, 55.0, angles, scale_height=1.0, flux=torch.tensor([1.0, 2.0, 3.0]))
    assert both.shape == (3, 41, 51)
    for k, angle in enumerate(angles):
        alone = ring((41, 51), 15.0, 55.0, float(angle), scale_height=1.0, flux=k + 1.0)
        torch.testing.assert_close(both[k], alone)


def test_gradients_match_finite_differences():
    start = torch.tensor([15.0, 55.0, 20.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(25, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def scene(p: torch.Tensor) -> torch.Tensor:
        phase = partial(henyey_greenstein, g=p[3])
        disk = ring(
            (25, 31), p[0], p[1], p[2], phase=phase, scale_height=p[4], oversampling=2, nodes=3
        )
        arms = spiral((25, 31), p[0], p[1], p[2], oversampling=1)
        planet = point_sources((25, 31), p[0] - 3.3, p[0] + 0.3, 0.1)
        return (weights * (disk + arms + planet)).sum()

    assert torch.autograd.gradcheck(scene, (start,), atol=1e-6)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 90\), got 90"):
        ring((21, 21), 5.0, 90.0, 0.0)
    with pytest.raises(ValueError, match=r"\[0, 90\), got -5"):
        spiral((21, 21), 5.0, -5.0, 0.0)
    with pytest.raises(ValueError, match="at least one arm, got 0"):
        spiral((21, 21), 5.0, 0.0, 0.0, arms=0)
    with pytest.raises(ValueError, match="between pixels 3 and 17"):
        point_sources((21, 21), 1.0, 10.0, 1.0)
    with pytest.raises(ValueError, match="oversampling"):
        ring((21, 21), 5.0, 10.0, 0.0, oversampling=0)
