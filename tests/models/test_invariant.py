"""The least invariant part of an image, against loops over pixels."""

import pytest
import torch
from torch import Tensor

from deepinv_astro.metric import remove_invisible
from deepinv_astro.models.invariant import InvariantPart
from deepinv_astro.physics import ADI

H, W, STAR = 21, 24, (9.0, 12.4)


def separation() -> Tensor:
    """Of each pixel from the star."""
    rows, columns = torch.arange(H).double() - STAR[0], torch.arange(W).double() - STAR[1]
    return torch.hypot(rows[:, None], columns)


def rings(*profile: float) -> Tensor:
    """A polynomial of the separation, rounded to what the basis of rings holds."""
    knots = torch.arange(30.0).double()
    values = sum(c * (knots / 10) ** k for k, c in enumerate(profile))
    below = separation().long()
    return torch.lerp(values[below], values[below + 1], separation() - below)[None, None]


@pytest.fixture
def images(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (2, 3, H, W)
    return tuple(torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))


def test_floor_is_the_tenth_percentile_of_annuli(images: tuple[Tensor, Tensor]) -> None:
    seen, distance = images[0], separation()
    found = InvariantPart(STAR).floor(seen)

    def quantile(image: Tensor, radius: int) -> float:
        values = sorted(
            float(image[i, j])
            for i in range(H)
            for j in range(W)
            if abs(float(distance[i, j]) - radius) <= 0.5
        )
        return -values[round(0.1 * (len(values) - 1))]

    for b, c, i, j in [(0, 0, 2, 3), (1, 2, 9, 12), (0, 1, 20, 23), (1, 0, 15, 6)]:
        r = float(distance[i, j])
        low, high = (quantile(seen[b, c], radius) for radius in (int(r), int(r) + 1))
        expected = low + (high - low) * (r - int(r))
        assert float(found[b, c, i, j]) == pytest.approx(expected, rel=1e-12)


def test_only_what_rotation_shows_is_used(images: tuple[Tensor, Tensor]) -> None:
    x, first = images
    least = InvariantPart(STAR).least
    found = least(x, first)
    torch.testing.assert_close(least(x + rings(5, -2, 1), first), found)
    profile = found - remove_invisible(x, STAR)
    seen = remove_invisible(profile, STAR)  # the lesser of two profiles has kinks between knots
    assert seen.norm() < 0.05 * profile.norm()


def test_never_more_than_the_first_image(images: tuple[Tensor, Tensor]) -> None:
    x, first = images
    part = InvariantPart(STAR)
    v = remove_invisible(x, STAR)
    low = v - rings(100.0)
    torch.testing.assert_close(part.least(x, low), v - rings(100.0), atol=1e-9, rtol=0)
    torch.testing.assert_close(part.least(x, first + rings(100.0)), v + part.floor(v))


def test_part_of_the_first_image(images: tuple[Tensor, Tensor]) -> None:
    x, first = images
    found = InvariantPart(STAR).of_first(x, first)
    torch.testing.assert_close(remove_invisible(found, STAR), remove_invisible(x, STAR))
    change = found - first
    torch.testing.assert_close(remove_invisible(change, STAR), change)


def test_a_disk_that_does_not_fill_its_annuli_is_found_again() -> None:
    """A positive image whose annuli are dark in places is its own least completion."""
    rows, columns = torch.arange(65.0).double() - 32, torch.arange(65.0).double() - 32
    x = torch.exp(-((((columns / 12) ** 2 + (rows[:, None] / 2) ** 2) - 1) ** 2))[None, None]
    found = InvariantPart((32.0, 32.0)).least(x + 3.0, x + 0.5)
    outside = torch.hypot(rows[:, None], columns) > 9
    error = (found - x)[..., outside].norm() / x[..., outside].norm()
    assert float(error) < 0.1
    full = torch.exp(-(((torch.hypot(rows[:, None], columns) - 15) / 2) ** 2))[None, None]
    lost = InvariantPart((32.0, 32.0)).least(full, full)
    assert float(lost.abs().max()) < 0.1  # a face-on ring is a lower bound: nothing


def test_gradients_are_those_of_differences(images: tuple[Tensor, Tensor]) -> None:
    x, first = (image[:1, :1] for image in images)
    least = InvariantPart(STAR).least
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: least(v, 10 + first)[..., 4:8, 5:9], (x,))


def test_star_of_an_operator_and_single_precision(images: tuple[Tensor, Tensor]) -> None:
    x, first = images
    physics = ADI((1, H, W), torch.linspace(0, 80, 5), sky_center=STAR)
    part = InvariantPart.of(physics)
    assert part.center == pytest.approx(STAR)
    single = part.least(x.float(), first.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), InvariantPart(STAR).least(x, first), atol=1e-4, rtol=0
    )
    far = InvariantPart((-40.0, 12.0)).least(x, first)  # star off the image
    assert far.shape == x.shape
    assert bool(torch.isfinite(far).all())
