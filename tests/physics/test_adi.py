"""ADI against dense matrices, a closed form, scipy.ndimage, and the laws of operators."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cases
import deepinv as dinv
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from deepinv_astro import testing
from deepinv_astro.physics import ADI

METHODS = ["spline", "shear"]
F64 = torch.float64


def build(case: cases.Case, method: str, seed: int = 0, **changed: object) -> ADI:
    physics = case.make(seed)
    physics.interpolation = type(physics.interpolation)(method)
    for name, value in changed.items():
        setattr(physics, name, value)
    return physics


@pytest.fixture(params=cases.ADI_CASES, ids=str)
def case(request: pytest.FixtureRequest) -> cases.Case:
    return request.param


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


# ---------------------------------------------------------------- laws


def test_adjoint_is_the_transpose(case, method):
    physics, x = build(case, method), case.image()
    matrix = testing.assert_adjoint(physics, x, rtol=1e-12)
    y = physics.A(x)
    torch.testing.assert_close(y.flatten(), matrix @ x.flatten(), rtol=1e-12, atol=1e-12)


def test_linear_and_batches_do_not_mix(case, method):
    physics = build(case, method)
    x = case.image()
    y = physics.A(x)
    testing.assert_linear(physics.A, x)
    testing.assert_linear(physics.A_adjoint, y)
    if len(x) > 1:
        testing.assert_batches_independent(physics.A, x)
        testing.assert_batches_independent(physics.A_adjoint, y)


def test_state_and_dtype(case, method):
    physics, other = build(case, method), build(case, method, seed=1)
    testing.assert_state_restored(physics, other, case.image())
    testing.assert_dtype_kept(physics, case.image(), rtol=1e-3)


def test_each_image_has_the_parameters_of_its_index(method):
    """Image n of a batch sees parameters n mod b, each frame its own, each channel its own."""
    case = cases.ADI_CASES[-2]
    physics = build(case, method)
    x = torch.cat([case.image(1), case.image(2)])  # twice the batch of the parameters
    y = physics.A(x)
    for n in range(4):
        for t in range(3):
            for c in range(2):
                b = n % 2
                one = ADI(
                    (1, *case.shape[2:]),
                    angles=physics.angles[b, t : t + 1],
                    filter=physics.filter[b, c, t],
                    center=physics.center[b, t],
                    transmission=physics.transmission[b],
                    gain=physics.gain[b, t : t + 1],
                    smear=physics.smear[b, t : t + 1],
                    smear_steps=2,
                    detector_size=physics.detector_size,
                    sky_center=physics.sky_center,
                    interpolation=method,
                    dtype=F64,
                )
                alone = one.A(x[n : n + 1, c : c + 1])[0, 0, 0]
                torch.testing.assert_close(y[n, c, t], alone, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------- the model, in closed form


class Ellipse(NamedTuple):
    """A Gaussian of unit flux: covariance of (row, column) offsets."""

    long: float
    short: float
    turned: float  # degrees, of the long axis from the column axis towards the row axis

    def covariance(self) -> Tensor:
        a = math.radians(self.turned)
        axes = torch.tensor([[math.sin(a), math.cos(a)], [math.cos(a), -math.sin(a)]], dtype=F64)
        return axes @ torch.diag(vector(self.long**2, self.short**2)) @ axes.mT


def gaussian(covariance: Tensor, center: Tensor, size: tuple[int, int]) -> Tensor:
    rows = torch.arange(size[0], dtype=F64)[:, None] - center[0]
    columns = torch.arange(size[1], dtype=F64)[None, :] - center[1]
    p = torch.linalg.inv(covariance)
    q = p[0, 0] * rows**2 + 2 * p[0, 1] * rows * columns + p[1, 1] * columns**2
    return torch.exp(-q / 2) / (2 * math.pi * torch.linalg.det(covariance).sqrt())


def counter_clockwise(degrees: float) -> Tensor:
    """Turns offsets (row, column) from the column axis towards the row axis."""
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]], dtype=F64)


SKY, DETECTOR = (49, 44), (41, 46)
STAR_ON_SKY, STAR = vector(23.4, 22.8), vector(19.3, 23.6)
SOURCE, PSF = Ellipse(2.2, 1.3, 25.0), Ellipse(1.9, 1.4, -40.0)
ANGLES = vector(0.0, 27.0, 113.0, -64.0, 200.0)
PLANET = vector(30.1, 29.3)  # row, column on the sky


def closed_form(angle: float, star: Tensor, source: Ellipse = SOURCE) -> Tensor:
    """Frame of an elliptic Gaussian source: turned by -angle, then blurred by the fixed PSF."""
    turn = counter_clockwise(-float(angle))
    place = star + turn @ (PLANET - STAR_ON_SKY)
    covariance = turn @ source.covariance() @ turn.mT + PSF.covariance()
    return gaussian(covariance, place, DETECTOR)


def gaussian_adi(method: str, **options: object) -> ADI:
    stamp = gaussian(PSF.covariance(), vector(12, 12), (25, 25))
    given = {"angles": ANGLES, "filter": stamp / stamp.sum(), "center": STAR, **options}
    return ADI(
        (1, *SKY),
        **given,
        sky_center=STAR_ON_SKY,
        detector_size=DETECTOR,
        interpolation=method,
        dtype=F64,
    )


def gaussian_sky() -> Tensor:
    return gaussian(SOURCE.covariance(), PLANET, SKY)[None, None]


# Of the peak. Cubic splines err by f''''/384 per axis: 2 * 3 / 1.9**4 / 384 for a width of 1.9 px.
CLOSE = {"spline": 1e-3, "shear": 2e-6}


def assert_frames(frames: Tensor, expected: Tensor, method: str) -> None:
    error = float((frames - expected).abs().max() / expected.max())
    assert error < CLOSE[method]


def test_closed_form_of_a_turning_blurred_source(method):
    """Position, orientation and flux; off-grid star, sky star elsewhere, H != W, small detector."""
    y = gaussian_adi(method).A(gaussian_sky())[0, 0]
    assert_frames(y, torch.stack([closed_form(a, STAR) for a in ANGLES]), method)


def test_closed_form_with_centers_and_gains_per_frame(method):
    stars = STAR + torch.tensor(
        [[0.0, 0.0], [0.5, -0.3], [-1.2, 2.1], [0.1, 0.9], [2.0, -2.4]], dtype=F64
    )
    gain = vector(1.0, 0.8, 1.1, 0.7, 2.0)
    y = gaussian_adi(method, center=stars[None], gain=gain).A(gaussian_sky())[0, 0]
    expected = torch.stack([closed_form(a, s) for a, s in zip(ANGLES, stars, strict=True)])
    assert_frames(y / gain[:, None, None], expected, method)


def test_closed_form_with_transmission_after_the_psf(method, rng):
    transmission = torch.rand(DETECTOR, generator=rng, dtype=F64)  # rough: it is not resampled
    y = gaussian_adi(method, transmission=transmission).A(gaussian_sky())[0, 0]
    assert_frames(y, transmission * torch.stack([closed_form(a, STAR) for a in ANGLES]), method)


def test_closed_form_with_transmission_before_the_psf(method):
    """The transmission falls linearly along the rows: a plane times a Gaussian is closed too."""
    rows, columns = torch.meshgrid(
        torch.arange(DETECTOR[0], dtype=F64), torch.arange(DETECTOR[1], dtype=F64), indexing="ij"
    )
    slope = vector(0.011, -0.006)  # per pixel of row and of column
    transmission = 0.6 + slope[0] * (rows - STAR[0]) + slope[1] * (columns - STAR[1])
    physics = gaussian_adi(method, transmission=transmission, transmission_order="before_psf")
    y = physics.A(gaussian_sky())[0, 0]
    expected = []
    for angle in ANGLES:
        turn = counter_clockwise(-float(angle))
        covariance = turn @ SOURCE.covariance() @ turn.mT
        offset = turn @ (PLANET - STAR_ON_SKY)
        # the source times a plane: the mean of the plane under the part of the source that a
        # pixel sees, which is Gaussian with a mean linear in the pixel's position
        share = covariance @ torch.linalg.inv(covariance + PSF.covariance())
        d_row, d_column = rows - STAR[0] - offset[0], columns - STAR[1] - offset[1]
        seen_row = offset[0] + share[0, 0] * d_row + share[0, 1] * d_column
        seen_column = offset[1] + share[1, 0] * d_row + share[1, 1] * d_column
        plane = 0.6 + slope[0] * seen_row + slope[1] * seen_column
        expected.append(plane * closed_form(float(angle), STAR))
    assert_frames(y, torch.stack(expected), method)


def test_smear_is_the_mean_of_the_exposure(method):
    smear = vector(12.0, 0.0, 7.0, 25.0, 3.0)
    y = gaussian_adi(method, smear=smear, smear_steps=6).A(gaussian_sky())[0, 0]
    fine = (torch.arange(60, dtype=F64) + 0.5) / 60 - 0.5  # the exposure, nearly continuous
    expected = torch.stack(
        [
            torch.stack([closed_form(a + s * f, STAR) for f in fine]).mean(0)
            for a, s in zip(ANGLES, smear, strict=True)
        ]
    )
    error = float((y - expected).abs().max() / expected.max())
    assert error < 3e-3  # of the midpoint rule with six steps over up to 25 degrees
    unsmeared = torch.stack([closed_form(a, STAR) for a in ANGLES])
    assert float((y - unsmeared).abs().max() / expected.max()) > 0.05


def test_each_wavelength_and_frame_has_its_psf(method):
    widths = torch.tensor([[1.4, 1.6, 2.0, 1.5, 1.9], [1.8, 1.5, 1.7, 2.1, 1.6]], dtype=F64)
    stamps = torch.stack(
        [
            torch.stack(
                [
                    gaussian(Ellipse(float(s), 1.3, 10.0).covariance(), vector(12, 12), (25, 25))
                    for s in row
                ]
            )
            for row in widths
        ]
    )
    physics = ADI(
        (2, *SKY),
        ANGLES,
        filter=stamps[None],
        center=STAR,
        sky_center=STAR_ON_SKY,
        detector_size=DETECTOR,
        interpolation=method,
        dtype=F64,
    )
    y = physics.A(gaussian_sky().repeat(1, 2, 1, 1))[0]
    for c in range(2):
        for t, angle in enumerate(ANGLES):
            turn = counter_clockwise(-float(angle))
            psf = Ellipse(float(widths[c, t]), 1.3, 10.0).covariance()
            covariance = turn @ SOURCE.covariance() @ turn.mT + psf
            place = STAR + turn @ (PLANET - STAR_ON_SKY)
            assert_frames(y[c, t], gaussian(covariance, place, DETECTOR), method)


# ---------------------------------------------------------------- dense twins


def spline_twin(x: np.ndarray, psf: np.ndarray | None, physics: ADI) -> np.ndarray:
    """The spline operator once more, in numpy and scipy.ndimage, frame by frame on a wide canvas."""
    pad = 24
    canvas = np.pad(x, pad)
    frames = []
    row_star, column_star = physics.sky_center.tolist()
    for angle, star in zip(physics.angles[0].tolist(), physics.center[0].tolist(), strict=False):
        blurred = canvas if psf is None else convolved(canvas, psf, angle)
        a = math.radians(angle)
        h, w = physics.detector_size
        d_row, d_column = np.mgrid[:h, :w].astype(float)
        d_row, d_column = d_row - star[0], d_column - star[1]
        row = row_star + math.cos(a) * d_row + math.sin(a) * d_column
        column = column_star - math.sin(a) * d_row + math.cos(a) * d_column
        frame = scipy.ndimage.map_coordinates(
            blurred, [row + pad, column + pad], order=3, mode="grid-wrap"
        )
        reach = (0, 0) if psf is None else (psf.shape[0] // 2, psf.shape[1] // 2)
        for axis, position in enumerate((row, column)):
            low, high = -reach[axis] - 0.5, x.shape[axis] - 0.5 + reach[axis]
            frame[(position < low) | (position > high)] = 0
        frames.append(frame)
    return np.stack(frames)


def convolved(image: np.ndarray, psf: np.ndarray, angle: float) -> np.ndarray:
    """Periodic convolution with a turned PSF: its Fourier transform as an explicit double sum."""
    u, v = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(s) for s in image.shape), indexing="ij")
    a = math.radians(angle)
    transfer = np.zeros(image.shape, complex)
    for (r, c), value in np.ndenumerate(psf):
        row, column = r - psf.shape[0] // 2, c - psf.shape[1] // 2
        # turned from the column axis towards the row axis
        turned = (
            row * math.cos(a) + column * math.sin(a),
            column * math.cos(a) - row * math.sin(a),
        )
        transfer += value * np.exp(-1j * (u * turned[0] + v * turned[1]))
    return np.fft.ifft2(np.fft.fft2(image) * transfer).real


@pytest.mark.parametrize("blurred", [False, True])
def test_spline_twin_of_scipy(blurred, rng):
    angles = vector(0.0, 33.0, -101.0)
    psf = gaussian(Ellipse(1.7, 1.5, 30.0).covariance(), vector(8, 7), (17, 15))
    physics = ADI(
        (1, 18, 15),
        angles,
        filter=psf if blurred else None,
        center=torch.tensor([[[8.3, 7.1], [9.0, 7.0], [8.5, 6.2]]], dtype=F64),
        sky_center=(9.4, 6.7),
        detector_size=(15, 17),
        dtype=F64,
    )
    x = torch.rand(1, 1, 18, 15, generator=rng, dtype=F64)
    expected = spline_twin(x[0, 0].numpy(), psf.numpy() if blurred else None, physics)
    y = physics.A(x)[0, 0].numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=5e-5 * expected.max())


@pytest.mark.parametrize(
    ("angle", "place"),
    # North up, East left: a planet to the North (up) of the star, position angle 0. The sky turns
    # by minus the derotation angle: after 90 degrees it is seen on the right, after -90 on the left.
    [(0.0, (9, 4)), (90.0, (6, 7)), (-90.0, (6, 1)), (180.0, (3, 4)), (450.0, (6, 7))],
)
def test_a_planet_lands_where_the_convention_says(angle, place, method):
    x = torch.zeros(1, 1, 13, 9, dtype=F64)
    x[0, 0, 9, 4] = 1.0
    y = ADI((1, 13, 9), vector(angle), interpolation=method, dtype=F64).A(x)[0, 0, 0]
    expected = torch.zeros(13, 9, dtype=F64)
    expected[place] = 1.0
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("sky", "detector"), [((8, 6), (8, 6)), ((7, 10), (6, 9))])
def test_default_centres_are_pixels(sky, detector, method):
    """A source at (H // 2, W // 2) stays at (h // 2, w // 2), even and odd."""
    x = torch.zeros(1, 1, *sky, dtype=F64)
    x[0, 0, sky[0] // 2, sky[1] // 2] = 1.0
    angles = vector(0.0, 90.0, 180.0)
    physics = ADI((1, *sky), angles, detector_size=detector, interpolation=method, dtype=F64)
    expected = torch.zeros(3, *detector, dtype=F64)
    expected[:, detector[0] // 2, detector[1] // 2] = 1.0
    torch.testing.assert_close(physics.A(x)[0, 0], expected, rtol=0, atol=1e-5)


def test_a_frame_turned_back_by_scipy_puts_the_planet_back(method):
    """scipy.ndimage.rotate turns the row axis towards the column axis: +angle is our clockwise."""
    size, star = (31, 31), 15.0
    planet = vector(24.0, 18.0)
    psf = gaussian(Ellipse(1.7, 1.7, 0.0).covariance(), vector(8, 8), (17, 17))
    x = torch.zeros(1, 1, *size, dtype=F64)
    x[0, 0, 24, 18] = 1.0
    physics = ADI((1, *size), vector(40.0), filter=psf, interpolation=method, dtype=F64)
    assert physics.center.flatten().tolist() == [star, star]
    frame = physics.A(x)[0, 0, 0].numpy()
    back = scipy.ndimage.rotate(frame, -40.0, reshape=False, order=5)
    np.testing.assert_allclose(scipy.ndimage.center_of_mass(back), planet, atol=2e-3)
    wrong = scipy.ndimage.rotate(frame, 40.0, reshape=False, order=5)
    assert np.hypot(*(np.array(scipy.ndimage.center_of_mass(wrong)) - planet.numpy())) > 5


# ---------------------------------------------------------------- flux


def flux_errors(method: str, fwhm: float) -> Tensor:
    """Relative errors of a point source over radii and angles, columns (total, PSF-fitted)."""
    sigma, size = fwhm / 2.3548200450309493, 81
    stamp = gaussian(Ellipse(sigma, sigma, 0.0).covariance(), vector(12, 12), (25, 25))
    angles = vector(3.0, 17.3, 45.0, 71.9, 101.0, 158.6)
    physics = ADI(
        (1, size, size), angles, filter=stamp / stamp.sum(), interpolation=method, dtype=F64
    )
    errors = []
    for radius in (2, 7, 13, 24):
        x = torch.zeros(1, 1, size, size, dtype=F64)
        x[0, 0, 40 + radius, 40 - radius // 3] = 1.0
        for frame, angle in zip(physics.A(x)[0, 0], angles, strict=True):
            offset = counter_clockwise(-float(angle)) @ vector(radius, -(radius // 3))
            truth = gaussian(Ellipse(sigma, sigma, 0.0).covariance(), offset + 40, (size, size))
            fitted = (frame * truth).sum() / (truth * truth).sum()
            errors.append(torch.stack([frame.sum(), fitted]) - 1)
    return torch.stack(errors)


@pytest.mark.parametrize(
    ("method", "fwhm", "total", "fitted", "worst"),
    [
        ("spline", 4.8, 1e-5, 5e-4, 1e-3),
        ("spline", 3.9, 1e-4, 2e-3, 2e-3),
        # a Gaussian of 2 px keeps 3 % of its amplitude at the Nyquist frequency: its samples alone
        # do not say how it looks when turned
        ("spline", 2.0, 2e-3, 1e-2, 3e-2),
        ("shear", 3.9, 1e-5, 1e-6, 1e-6),
        ("shear", 2.0, 1e-3, 2e-3, 4e-3),
    ],
)
def test_flux_of_a_turned_point_source(method, fwhm, total, fitted, worst):
    """Summed over each frame; fitted by the true PSF at the true place: mean, and worst frame."""
    errors = flux_errors(method, fwhm)
    assert float(errors[:, 0].abs().max()) < total
    assert abs(float(errors[:, 1].mean())) < fitted
    assert float(errors[:, 1].abs().max()) < worst


def test_flux_is_that_of_the_sky_times_gain(method):
    gain = vector(0.5, 2.0, 1.0, 1.5, 0.9)
    y = gaussian_adi(method, gain=gain).A(3 * gaussian_sky())[0, 0]
    testing.assert_flux(y, 3 * gain, rtol=1e-4)


# ---------------------------------------------------------------- memory and cache


@pytest.mark.parametrize("name", ["everything", "everything-before-psf", "psf-per-frame", "smear"])
def test_chunks_give_the_same(name, method):
    case = next(c for c in cases.ADI_CASES if c.name == name)
    x = case.image()
    whole = build(case, method)
    y = whole.A(x)
    back = whole.A_adjoint(y)
    otf, table = whole._frame_bytes()
    batches = max(len(v) for v in whole._parameters_given())
    # frame by frame; frame by frame, all transfer functions kept; several frames at a time
    for budget in (0, whole.frames * batches * otf, 2 * (otf + table)):
        parts = build(case, method, max_bytes=budget)
        assert budget or len(parts._chunks()) == whole.frames > 1
        torch.testing.assert_close(parts.A(x), y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts.A_adjoint(y), back, rtol=1e-12, atol=1e-12)


CHANGES = {
    "in-place": lambda p, new: [getattr(p, k).copy_(v) for k, v in new.items()],
    "update": lambda p, new: p.update(**{k: v.clone() for k, v in new.items()}),
    "keyword": lambda p, new: p.A(torch.zeros(1, *p.img_size, dtype=F64), **new),
    "load_state_dict": lambda p, new: p.load_state_dict({**p.state_dict(), **new}),
    "setattr": lambda p, new: [setattr(p, k, v.clone()) for k, v in new.items()],
}


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize(
    "name", ["angles", "filter", "center", "transmission", "gain", "smear", "sky_center"]
)
def test_no_stale_tables(name, way):
    """Whatever changes a parameter, the next use sees it, in both directions."""
    if name == "sky_center" and way in ("update", "keyword"):
        pytest.skip("sky_center is the grid of the answer, not a parameter of update")
    case = cases.ADI_CASES[-2]
    physics, fresh, other = case.make(0), case.make(0), case.make(1)
    x = case.image()
    before = physics.A(x)
    new = {name: getattr(other, name).clone()}
    with torch.no_grad():
        if way == "keyword":
            physics.A(x, **new)
        else:
            CHANGES[way](physics, new)
    setattr(fresh, name, new[name])
    y = fresh.A(x)
    assert not torch.equal(before, y)
    torch.testing.assert_close(physics.A(x), y, rtol=0, atol=0)
    torch.testing.assert_close(physics.A_adjoint(y), fresh.A_adjoint(y), rtol=0, atol=0)


def test_tables_are_kept_while_nothing_changes():
    case = cases.ADI_CASES[-2]
    physics = case.make(0)
    physics.A(case.image())
    kept = physics._tables
    physics.A_adjoint(physics.A(case.image(3)))
    assert physics._tables is kept


@pytest.mark.parametrize("changed", [("interpolation", "shear"), ("max_bytes", 0)])
def test_options_changed_after_use_count(changed):
    case = cases.ADI_CASES[5]
    physics, fresh = case.make(0), build(case, "shear") if changed[1] == "shear" else case.make(0)
    x = case.image()
    y = physics.A(x)
    physics.A_adjoint(y)
    setattr(physics, changed[0], type(getattr(physics, changed[0]))(changed[1]))
    torch.testing.assert_close(physics.A(x), fresh.A(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(physics.A_adjoint(y), fresh.A_adjoint(y), rtol=1e-12, atol=1e-12)


def test_moved_to_another_precision_after_use():
    case = cases.ADI_CASES[-1]
    physics = case.make(0)
    y = physics.A(case.image())
    single = physics.float().A(case.image().float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), y, rtol=1e-3, atol=1e-3)
    again = physics.double().A(case.image())
    assert again.dtype == F64


@pytest.mark.slow
def test_a_hundred_frames_of_a_million_pixels_fit_in_8_gb():
    """Forward and adjoint in a fresh process, float32, PSF of 39 x 39; some minutes."""
    script = Path(__file__).parents[2] / "docs" / "benchmarks" / "memory.py"
    done = subprocess.run(
        [sys.executable, script, "--one", "1024", "100", "39", "spline", "1024"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=3600,
    )
    assert json.loads(done.stdout.splitlines()[-1])["peak_mib"] < 8000


# ---------------------------------------------------------------- gradients


GRADIENTS = [
    ("angles", "filter", "gain", "center"),
    ("transmission", "smear", "angles"),
]


@pytest.mark.parametrize("order", ["after_psf", "before_psf"])
@pytest.mark.parametrize("names", GRADIENTS, ids="-".join)
@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["whole", "chunks"])
def test_gradients_to_every_parameter(names, order, method, max_bytes):
    shape = (1, 1, 4, 3)
    sizes = {
        "angles": (2,),
        "filter": (3, 2),
        "center": (1, 2, 2),
        "transmission": (3, 4),
        "gain": (2,),
        "smear": (2,),
    }
    values = cases.parameters(3, sizes)
    physics = ADI(
        shape[1:],
        **values,
        smear_steps=2,
        sky_center=(1.7, 1.2),
        detector_size=(3, 4),
        transmission_order=order,
        interpolation=method,
        max_bytes=max_bytes,
        dtype=F64,
    )
    x = torch.zeros(shape, dtype=F64)
    physics.A(x)  # tables are kept from here on: they must not be used below
    testing.assert_gradients(physics, x, {name: getattr(physics, name) for name in names})


def test_second_derivatives(method):
    """Hessian of a least-squares cost along angles and centre, for Gauss-Newton and Laplace."""
    physics = ADI((1, 4, 3), vector(20.0, 75.0), interpolation=method, dtype=F64)
    x = cases.adi("", (1, 1, 4, 3), angles=(2,)).image()
    center = vector(1.8, 1.1).requires_grad_()
    angles = vector(21.0, 74.0).requires_grad_()

    def cost(angles: Tensor, center: Tensor, x: Tensor) -> Tensor:
        return physics.A(x, angles=angles, center=center).square().sum()

    assert torch.autograd.gradgradcheck(cost, (angles, center, x.requires_grad_()), atol=1e-4)


def test_gradient_calls_and_kept_tables_do_not_disturb_each_other():
    case = cases.ADI_CASES[-2]
    physics, x = case.make(0), case.image()
    y = physics.A(x)
    angles = physics.angles.clone().requires_grad_()
    with_gradient = physics.A(x, angles=angles)
    assert with_gradient.requires_grad
    torch.testing.assert_close(with_gradient.detach(), y, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert not physics.A(x).requires_grad
        torch.testing.assert_close(physics.A(x), y, rtol=1e-12, atol=1e-12)
    again = physics.A(x)  # still the angles that require a gradient
    (gradient,) = torch.autograd.grad(again.square().sum(), angles)
    (expected,) = torch.autograd.grad(with_gradient.square().sum(), angles)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    physics.update(angles=angles.detach())
    assert not physics.A(x).requires_grad


def test_gradient_to_the_image_uses_the_adjoint(case, method):
    physics, x = build(case, method), case.image().requires_grad_()
    y = physics.A(x)
    v = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    (gradient,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close(gradient, physics.A_adjoint(v), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(physics.A_vjp(x, v), gradient, rtol=1e-11, atol=1e-11)
    z = v.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(physics.A_adjoint(z), z, x.detach())
    torch.testing.assert_close(gradient, y.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["kept", "chunks"])
def test_torch_func_vjp(max_bytes, method):
    case = cases.ADI_CASES[-2]
    physics, x = build(case, method, max_bytes=max_bytes), case.image()
    y, back = torch.func.vjp(physics.A, x)
    torch.testing.assert_close(back(y)[0], physics.A_adjoint(y), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["kept", "chunks"])
def test_inference_mode_and_training_may_alternate(max_bytes):
    case = cases.ADI_CASES[-2]
    physics = build(case, "spline", max_bytes=max_bytes)
    x = case.image()
    with torch.inference_mode():
        y = physics.A(x, angles=physics.angles + 1)
        physics.A_adjoint(y)
    z = x.clone().requires_grad_()
    out = physics.A(z)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), y.clone(), rtol=1e-12, atol=1e-12)
    assert float(z.grad.abs().max()) > 0


# ---------------------------------------------------------------- life within deepinv


def test_copies_are_equal_and_apart():
    case = cases.ADI_CASES[-1]
    physics, x = case.make(0), case.image()
    y = physics.A(x)
    # deepinv's noise models hold a lambda, so that no physics can be pickled whole
    for name, other in {"clone": physics.clone(), "deepcopy": copy.deepcopy(physics)}.items():
        assert other._tables is None, "tables must not be copied"
        torch.testing.assert_close(other.A(x), y, rtol=0, atol=0, msg=name)
        other.update(angles=physics.angles + 5)
        assert not torch.equal(other.A(x), y)
    torch.testing.assert_close(physics.A(x), y, rtol=0, atol=0)


def test_variant_and_sample_are_copies():
    case = cases.ADI_CASES[-2]
    physics, x = case.make(0), case.image()
    y = physics.A(x)
    for n in range(2):
        one = physics.sample(n)
        assert {len(value) for value in one._parameters_given()} == {1}
        torch.testing.assert_close(one.A(x[n : n + 1]), y[n : n + 1], rtol=1e-12, atol=1e-12)
    other = physics.variant(angles=physics.angles + 5)
    assert not torch.equal(other.A(x), y)
    torch.testing.assert_close(physics.A(x), y, rtol=0, atol=0)


def test_parameters_do_not_share_memory_with_what_was_given():
    angles, gain = vector(1.0, 40.0, 80.0), torch.ones(1, dtype=F64).expand(3)
    physics = ADI((1, 5, 4), angles, gain=gain, dtype=F64)
    other = ADI((1, 5, 4), angles + 1, gain=2 * gain, dtype=F64)
    physics.load_state_dict(other.state_dict())
    assert angles.tolist() == [1.0, 40.0, 80.0]
    assert physics.gain.tolist() == [[2.0, 2.0, 2.0]]
    angles.zero_()
    assert physics.angles.tolist() == [[2.0, 41.0, 81.0]]


def test_solvers_of_deepinv_run():
    """The pseudo-inverse and the proximal step solve their equations, in double precision."""
    case = next(c for c in cases.ADI_CASES if c.name == "plain-odd")
    physics, x = case.make(0), case.image()
    matrix = testing.dense_matrix(physics.A, x)
    y = physics.A(x)
    z = physics.prox_l2(torch.zeros_like(x), y, gamma=2.0, solver="CG", max_iter=200, tol=1e-10)
    normal = matrix.mT @ matrix + torch.eye(x.numel(), dtype=F64) / 2.0
    expected = torch.linalg.solve(normal, matrix.mT @ y.flatten()).view_as(x)
    torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
    found = physics.A_dagger(y, solver="CG", max_iter=500, tol=1e-9)
    assert float((physics.A(found) - y).norm() / y.norm()) < 1e-2
    norm = physics.compute_sqnorm(x, max_iter=2000, tol=1e-12, verbose=False)
    assert float(norm) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)) ** 2, rel=1e-3)


def test_noise_model_is_the_one_given():
    physics = ADI(
        (1, 5, 4),
        vector(0.0, 30.0),
        noise_model=dinv.physics.GaussianNoise(sigma=0.5),
        dtype=F64,
    )
    x = torch.zeros(50, 1, 5, 4, dtype=F64)
    y = physics(x)
    assert float(y.std()) == pytest.approx(0.5, rel=0.05)
    assert float(physics(x, sigma=0.1).std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.filterwarnings("default")  # of deepinv's Trainer
def test_trainer_takes_parameters_from_the_data(tmp_path, monkeypatch):
    """deepinv's Trainer passes the dictionary of parameters of each sample to the operator."""
    monkeypatch.chdir(tmp_path)
    frames, n = 3, 4
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 6, 5, generator=generator)
    params = {
        "angles": 90 * torch.rand(n, frames, generator=generator),
        "gain": 1 + torch.rand(n, frames, generator=generator),
    }
    physics = ADI((1, 6, 5), torch.zeros(frames))
    y = torch.cat(
        [physics.A(x[i : i + 1], **{k: v[i : i + 1] for k, v in params.items()}) for i in range(n)]
    )

    class Sequences(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            return x[i], y[i], {k: v[i] for k, v in params.items()}

    class Model(dinv.models.Reconstructor):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.1))
            self.seen: list[Tensor] = []

        def forward(self, y: Tensor, physics: ADI, **kwargs: object) -> Tensor:
            self.seen.append(physics.angles.clone())
            return self.scale * physics.A_adjoint(y)

    model = Model()
    trainer = dinv.Trainer(
        model=model,
        physics=physics,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        train_dataloader=torch.utils.data.DataLoader(Sequences(), batch_size=2),
        epochs=1,
        losses=[dinv.loss.MCLoss()],
        metrics=None,
        device="cpu",
        save_path=None,
        verbose=False,
        show_progress_bar=False,
    )
    trainer.train()
    assert float(model.scale.detach()) != pytest.approx(0.1, abs=1e-6)
    seen = torch.cat(model.seen)
    torch.testing.assert_close(seen[:n], params["angles"], rtol=0, atol=0)


def test_stamps_with_fewer_axes_mean_the_same(rng):
    stamps = torch.rand(2, 3, 4, generator=rng, dtype=F64)
    x = torch.rand(1, 2, 6, 5, generator=rng, dtype=F64)
    y = make(filter=stamps[None, :, None]).A(x)
    for filter in (stamps, stamps[None], stamps[None, :, None].expand(1, 2, 3, 3, 4)):
        torch.testing.assert_close(make(filter=filter).A(x), y, rtol=1e-12, atol=1e-12)
    one = make(filter=stamps[1]).A(x)
    torch.testing.assert_close(one[:, 1], y[:, 1], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- errors


def make(**given: object) -> ADI:
    return ADI(**{"img_size": (2, 6, 5), "angles": vector(0.0, 10.0, 20.0), "dtype": F64, **given})


BAD = [
    (
        {"angles": torch.zeros(2, 3, 1)},
        r"angles must be of shape \(T,\) or \(b, T\), got \(2, 3, 1\)",
    ),
    ({"angles": torch.zeros(0)}, r"angles must be of shape .* got \(0,\)"),
    ({"angles": vector(0.0, math.nan)}, "angles must be finite"),
    ({"angles": vector(0.0, math.inf)}, "angles must be finite"),
    ({"filter": torch.ones(3)}, r"filter must be of shape \(k, k\)"),
    ({"filter": torch.ones(3, 3) * math.nan}, "filter must be finite"),
    ({"filter": torch.ones(1, 3, 3, 3)}, "filter has 3 channels, the image has 2"),
    ({"filter": torch.ones(1, 1, 2, 3, 3)}, "filter is given for 2 frames, but there are 3 angles"),
    ({"center": vector(1.0, 2.0, 3.0)}, r"center must be of shape \(2,\), .* got \(3,\)"),
    ({"center": torch.zeros(1, 4, 2)}, "center is given for 4 frames, but there are 3 angles"),
    ({"center": (1.0, math.nan)}, "center must be finite"),
    (
        {"transmission": torch.ones(5, 6)},
        r"transmission must be of shape \(b, 6, 5\), got \(5, 6\)",
    ),
    ({"gain": torch.ones(4)}, "gain is given for 4 frames, but there are 3 angles"),
    ({"smear": torch.ones(2)}, "smear is given for 2 frames, but there are 3 angles"),
    ({"angles": torch.zeros(2, 3), "gain": torch.ones(3, 3)}, r"one batch size, got \[2, 3\]"),
    ({"interpolation": "bilinear"}, "bilinear"),
    ({"transmission_order": "never"}, "never"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)
    parameters = {k: torch.as_tensor(v) for k, v in given.items() if k in cases._PARAMETERS}
    if parameters and "angles" not in parameters:
        with pytest.raises(ValueError, match=message):
            make().A(torch.zeros(1, 2, 6, 5, dtype=F64), **parameters)


def test_bad_images():
    physics = make(detector_size=(4, 3))
    with pytest.raises(ValueError, match=r"x must be .*\(B, 2, 6, 5\), got \(1, 1, 6, 5\)"):
        physics.A(torch.zeros(1, 1, 6, 5, dtype=F64))
    with pytest.raises(ValueError, match=r"got \(2, 6, 5\)"):
        physics.A(torch.zeros(2, 6, 5, dtype=F64))
    with pytest.raises(ValueError, match=r"y must be .*\(B, 2, 3, 4, 3\), got \(1, 2, 4, 4, 3\)"):
        physics.A_adjoint(torch.zeros(1, 2, 4, 4, 3, dtype=F64))
    batched = make(angles=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a batch of 3 cannot use parameters in a batch of 2"):
        batched.A(torch.zeros(3, 2, 6, 5, dtype=F64))


def test_a_refused_update_leaves_the_operator_as_it_was():
    physics = make(gain=vector(1.0, 2.0, 3.0))
    x = torch.ones(1, 2, 6, 5, dtype=F64)
    y = physics.A(x)
    with pytest.raises(ValueError, match="gain is given for 3 frames, but there are 4 angles"):
        physics.update(angles=torch.zeros(4))
    torch.testing.assert_close(physics.A(x), y, rtol=0, atol=0)
    physics.update(angles=torch.zeros(4), gain=torch.ones(4))
    assert physics.A(x).shape == (1, 2, 4, 6, 5)


def test_an_empty_batch_stays_empty():
    physics = make()
    assert physics.A(torch.zeros(0, 2, 6, 5, dtype=F64)).shape == (0, 2, 3, 6, 5)
    assert physics.A_adjoint(torch.zeros(0, 2, 3, 6, 5, dtype=F64)).shape == (0, 2, 6, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"img_size": (6, 5)}, "img_size"),
        ({"detector_size": (0, 5)}, "detector_size"),
        ({"sky_center": (1.0, 2.0, 3.0)}, "sky_center"),
        ({"sky_center": (math.nan, 2.0)}, "sky_center"),
        ({"smear": torch.ones(3), "smear_steps": 0}, "smear_steps"),
    ],
)
def test_bad_geometry(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_another_precision_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="float32"):
        make().to(torch.float32).A(torch.zeros(1, 2, 6, 5, dtype=F64))
