"""Rotation and stretch about the star against closed forms, the ADI operator and dense matrices."""

import math

import pytest
import torch

from deepinv_astro.datasets import gaussian_blob, ring
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.rotation import rotate
from deepinv_astro.testing import (
    assert_inverse,
    assert_neutral,
    assert_parameters_per_image,
    assert_reproducible,
    assert_transform_adjoint,
)
from deepinv_astro.transform import InclinationStretch, Scale, StarRotation

DOUBLE = {"dtype": torch.float64}
SIZE, STAR = (57, 72), (26.3, 38.4)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def blob(separation: float, position_angle: float, **options) -> torch.Tensor:
    options = {"fwhm": (5.0, 5.0), "center": STAR, "oversampling": 1, **options}
    image = gaussian_blob(SIZE, separation, position_angle, **options)
    return image[None, None].double()


def error(image: torch.Tensor, expected: torch.Tensor) -> float:
    return float((image - expected).norm() / expected.norm())


# ---------------------------------------------------------------- rotation
@pytest.mark.parametrize("angle", [30.0, -77.7, 170.0])
def test_rotation_turns_position_angles(angle):
    """Counter-clockwise as displayed is from North to East."""
    x = blob(12.0, 50.0, fwhm=(8.0, 5.0), orientation=20.0)
    expected = blob(12.0, 50.0 + angle, fwhm=(8.0, 5.0), orientation=20.0 + angle)
    y = StarRotation(star=STAR)(x, angle=angle)
    assert error(y, expected) < 2e-3
    assert float(y.sum()) == pytest.approx(float(x.sum()), rel=1e-4)


def test_rotation_is_that_of_the_sequences():
    x, angle = noise(1, 1, 16, 23), torch.tensor([37.0, -120.0], **DOUBLE)
    ours = StarRotation(star=(8.2, 10.9))(x, angle=angle)
    theirs = rotate(x[0], angle, (8.2, 10.9))
    torch.testing.assert_close(ours[:, 0], theirs, rtol=0, atol=2e-4)  # margins of 10 pixels
    adi = ADI(
        (1, *SIZE), torch.tensor([21.0, 64.0]), sky_center=STAR, center=STAR, dtype=torch.float64
    )
    sky = blob(10.0, 200.0)
    frames = StarRotation(star=STAR)(sky, angle=[-21.0, -64.0])
    torch.testing.assert_close(frames[:, 0], adi.A(sky)[0, 0], rtol=0, atol=1e-6)


def test_quarter_turns_are_exact():
    x = noise(1, 2, 9, 9)
    for turns in range(-2, 4):
        y = StarRotation(star=(4, 4))(x, angle=90.0 * turns)
        torch.testing.assert_close(y, torch.rot90(x, turns, (-1, -2)), rtol=0, atol=1e-9)


def test_mirrored_surroundings():
    """Half a turn about a corner shows the mirror image of the mirror image."""
    x = noise(1, 1, 6, 8)
    y = StarRotation(star=(0, 0), boundary="reflect")(x, angle=180.0)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-9)
    y = StarRotation(star=(0, 0))(x, angle=180.0)
    assert float(y[..., 1:, :].abs().max()) == 0


# ---------------------------------------------------------------- stretch
def stretched_blob(separation, position_angle, axis, q) -> torch.Tensor:
    """A round blob: its distance across the axis, and its width across it, are multiplied by q."""
    between = math.radians(position_angle - axis)
    along, beside = separation * math.cos(between), q * separation * math.sin(between)
    place = axis + math.degrees(math.atan2(beside, along))
    widths, turn = ((5.0, 5.0 * q), axis) if q < 1 else ((5.0 * q, 5.0), axis + 90)
    return blob(math.hypot(along, beside), place, fwhm=widths, orientation=turn)


@pytest.mark.parametrize("axis", [0.0, 35.0, 90.0, 150.0])
@pytest.mark.parametrize("q", [0.6, 1.5])
def test_stretch_follows_the_closed_form(axis, q):
    x = blob(11.0, 70.0)
    params = {"axis_ratio": q, "position_angle": axis}
    transform = InclinationStretch(star=STAR)
    y = transform(x, **params)
    expected = stretched_blob(11.0, 70.0, axis, q)
    assert error(y, expected) < 5e-3
    assert float(y.sum()) == pytest.approx(1, abs=2e-3)
    bright = InclinationStretch(star=STAR, keep="brightness")(x, **params)
    torch.testing.assert_close(bright, q * y)
    torch.testing.assert_close(transform(x, gain=0.3, **params), 0.3 * y)


def test_disk_from_above_becomes_the_inclined_disk():
    shape = {"slopes": (4.0, -4.0), "center": STAR, "oversampling": 8}
    above = ring(SIZE, 14.0, 0.0, 0.0, **shape)[None, None].double()
    inclined = ring(SIZE, 14.0, 50.0, 115.0, **shape)[None, None].double()
    params = {"axis_ratio": math.cos(math.radians(50.0)), "position_angle": 115.0}
    transform = InclinationStretch(star=STAR)
    field = slice(4, -4), slice(4, -4)
    y = transform(above, **params)
    y = y * inclined.sum() / y.sum()
    assert error(y[..., field[0], field[1]], inclined[..., field[0], field[1]]) < 0.05
    other = transform(above, axis_ratio=params["axis_ratio"], position_angle=65.0)
    assert error(other, inclined) > 0.3


@pytest.mark.parametrize("antialias", ["none", "bandlimited"])
@pytest.mark.parametrize("q", [0.5, 1.8])
def test_along_an_axis_it_is_the_scaling(antialias, q):
    """Images that do not vary along the axis: both transforms stretch them across it."""
    settings = {"antialias": antialias, "boundary": "reflect", "keep": "brightness"}
    line = torch.cos(0.9 * torch.arange(40, **DOUBLE)) + noise(40) / 10
    for x, axis in ((line[:, None].expand(40, 31), 90.0), (line.expand(31, 40), 0.0)):
        x = x[None, None].contiguous()
        star = (17.3, 14.2)
        ours = InclinationStretch(star=star, **settings)(x, axis_ratio=q, position_angle=axis)
        scaled = Scale(center=star, **settings)(x, factor=q)
        # with antialiasing the kernels agree but for their sampling
        atol = 1e-5 if antialias == "none" or q > 1 else 0.03
        torch.testing.assert_close(ours, scaled, rtol=0, atol=atol)


def test_stretch_removes_aliases():
    rows, columns = torch.meshgrid(*(torch.arange(n, **DOUBLE) for n in SIZE), indexing="ij")
    phi = math.radians(30.0)
    phase = 0.42 * (rows * math.sin(phi) + columns * math.cos(phi))
    x = torch.cos(2 * math.pi * phase)[None, None]
    params = {"axis_ratio": 0.5, "position_angle": 30.0}
    left = {
        name: float(
            InclinationStretch(antialias=name, keep="brightness")(x, **params)[
                ..., 20:40, 25:45
            ].std()
        )
        for name in ("none", "bandlimited")
    }
    assert left["none"] > 0.4
    assert left["bandlimited"] < 0.05


def test_not_brighter_on_the_detector():
    physics = ADI((1, 33, 40), torch.tensor([-20.0, 5.0, 31.0]), dtype=torch.float64)

    def detector(x: torch.Tensor) -> torch.Tensor:
        y = physics.A(x)
        return y - y.mean(2, keepdim=True)

    x = torch.cat(
        [
            gaussian_blob((33, 40), 9.0, 45.0)[None, None],
            ring((33, 40), 9.0, 60.0, 30.0)[None, None],
        ]
    ).double()
    transform = InclinationStretch((40.0, 70.0), detector=detector, n_trans=3, direction="either")
    params = transform.get_params(x)
    after = detector(transform(x, **params)).flatten(1).norm(dim=1).view(3, 2)
    before = detector(x).flatten(1).norm(dim=1)
    gain = params["gain"]
    assert bool((gain < 0.99).any())
    assert float((after / before).max()) < 1 + 1e-9
    torch.testing.assert_close(
        (after / before)[gain < 1], torch.ones(int((gain < 1).sum()), **DOUBLE)
    )
    free = {name: value for name, value in params.items() if name != "gain"}
    unbound = detector(transform(x, **free)).flatten(1).norm(dim=1).view(3, 2) / before
    torch.testing.assert_close(gain, (1 / unbound).clamp(max=1))


# ---------------------------------------------------------------- laws
TRANSFORMS = {
    "rotation": (StarRotation, {"angle": [[35.0, -100.0]]}, {"angle": 0.0}),
    "stretch": (
        InclinationStretch,
        {"axis_ratio": [[0.6, 1.3]], "position_angle": [[20.0, 130.0]], "gain": [[1.0, 0.7]]},
        {"axis_ratio": 1.0, "position_angle": 33.0},
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("boundary", ["reflect", "zeros"])
def test_laws(name, boundary):
    kind, params, neutral = TRANSFORMS[name]
    transform = kind(boundary=boundary, n_trans=2)
    for size in ((6, 5), (5, 8)):
        tensors = {k: torch.tensor(v, **DOUBLE) for k, v in params.items()}
        star = torch.tensor([2.3, 2.8], **DOUBLE)
        x = noise(2, 1, *size)
        matrix = assert_transform_adjoint(transform, x, 1e-10, star=star, **tensors)
        assert float(matrix[: x[0].numel(), x[0].numel() :].abs().max()) == 0
        assert_neutral(transform, x, 1e-6, **neutral)
        assert_neutral(transform, x.float(), 1e-6, **neutral)
    x = noise(3, 2, 11, 9)
    assert_parameters_per_image(transform, x, transform.get_params(x))
    assert_reproducible(transform, x)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients(name):
    kind, params, _ = TRANSFORMS[name]
    names = [*params, "star"]
    values = [torch.tensor(v, **DOUBLE) for v in params.values()]
    values.append(torch.tensor([2.37, 2.81], **DOUBLE))
    inputs = [v.requires_grad_() for v in (noise(2, 1, 6, 5), *values)]
    transform = kind()
    for apply in (transform.transform, transform.inverse, transform.adjoint):
        assert torch.autograd.gradcheck(
            lambda x, *v, apply=apply: apply(x, **dict(zip(names, v, strict=True))), inputs
        )


@pytest.mark.parametrize(
    ("transform", "params"),
    [
        (StarRotation(star=STAR), {"angle": [63.0]}),
        (InclinationStretch(star=STAR), {"axis_ratio": [0.5], "position_angle": [62.0]}),
        (
            InclinationStretch(star=STAR),
            {"axis_ratio": [1.7], "position_angle": [140.0], "gain": [0.3]},
        ),
    ],
)
def test_round_trip(transform, params):
    x = blob(6.0, 130.0, fwhm=(7.0, 6.0), orientation=70.0)
    assert_inverse(transform, x, 0.01, **params)
    backwards = transform.inverse(x, **params)
    assert error(transform(backwards, **params), x) < 0.01


def test_chain_of_all():
    """A stretch, a rotation, a scaling, and back, each by its own parameters."""
    rng = torch.Generator().manual_seed(2)
    stretch = InclinationStretch((20.0, 50.0), star=STAR, rng=rng)
    chain = (
        stretch * StarRotation(star=STAR, rng=rng) * Scale((0.8,), STAR, boundary="zeros", rng=rng)
    )
    x = torch.cat([blob(9.0, 130.0, fwhm=(9.0, 7.0)), blob(6.0, 30.0, fwhm=(9.0, 8.0))])
    params = chain.get_params(x)
    y = chain.transform(x, **params)
    assert error(y, x) > 0.3
    assert error(chain.inverse(y, **params), x) < 0.01


def test_random_parameters():
    x = noise(400, 1, 4, 5)
    angle = StarRotation().get_params(x)["angle"]
    assert angle.shape == (1, 400)
    assert float(angle.min()) < -160 < 160 < float(angle.max())
    for direction in ("incline", "deproject", "either"):
        transform = InclinationStretch((0.0, 60.0), direction=direction)
        ratio = transform.get_params(x)["axis_ratio"]
        cosine = torch.minimum(ratio, 1 / ratio)
        assert 0.5 <= float(cosine.min()) < 0.52
        assert float(cosine.mean()) == pytest.approx(0.75, abs=0.02)  # uniform in cos i
        share = float((ratio > 1).double().mean())
        expected = {"incline": 0, "deproject": 1, "either": 0.5}[direction]
        assert share == pytest.approx(expected, abs=0.07)


def test_wrong_arguments():
    x = noise(1, 1, 5, 6)
    with pytest.raises(ValueError, match="`inclinations`"):
        InclinationStretch((0.0, 90.0))
    with pytest.raises(ValueError, match="`star`"):
        StarRotation(star=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="`angles`"):
        StarRotation(angles=())
    with pytest.raises(ValueError, match="`axis_ratio` must be positive"):
        InclinationStretch()(x, axis_ratio=0.0, position_angle=1.0)
