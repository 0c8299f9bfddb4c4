"""What the ruler says of operators and transformations whose answer is known."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from deepinv.physics import Inpainting, LinearPhysics
from deepinv.transform import Reflect, Rotate, Shift
from torch.nn.functional import interpolate

from deepinv_astro.identifiability import angular_harmonics, identify, remove_mean
from deepinv_astro.physics import ADI, Blur
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.transform import InclinationStretch, Scale, StarRotation

F64 = torch.float64


def low_pass(n):
    """Ideal, at half the Nyquist frequency along each axis."""
    f = torch.fft.fftfreq(n, dtype=F64).abs() < 0.25
    keep = (f[:, None] & f).to(F64)

    def a(x):
        return torch.fft.ifft2(torch.fft.fft2(x) * keep).real

    return LinearPhysics(A=a, A_adjoint=a)


def adi(n=20):
    angles = torch.tensor([0.0, 9.0, 20.0, 33.0, 51.0, 64.0, 80.0], dtype=F64)
    physics = ADI((1, n, n), angles, dtype=F64)
    r = torch.arange(n, dtype=F64) - n // 2
    return physics, torch.zeros(1, 1, n, n, dtype=F64), torch.hypot(r[:, None], r)


def test_low_pass_scale_against_shifts():
    like = torch.zeros(1, 1, 16, 16, dtype=F64)
    scale = identify(low_pass(16), like, Scale(), draws=24, noise=0.02)
    assert scale.rank == 49  # 7 of 16 frequencies along each axis
    assert scale.rank_gain >= 3
    assert scale.gain_db > 1
    assert scale.found > 0.6
    assert "Scale makes" in scale.verdict
    shift = identify(low_pass(16), like, Shift(), draws=6, noise=0.02)
    assert shift.rank_gain == 1
    assert shift.departure < 1e-9
    assert abs(shift.opened) < 1e-9
    assert abs(shift.gain_db) < 1e-6
    assert shift.verdict == (
        "Shift commutes with this operator: training with it adds no information. "
        "207 of 256 directions are not identifiable."
    )


def test_a_loss_is_explained():
    """A map to zero shows nothing: half of the data are left, in closed form."""
    n, sigma, s = torch.zeros(1, 1, 3, 4, dtype=F64), 0.1, 0.3
    same = LinearPhysics(A=lambda x: x, A_adjoint=lambda x: x)

    def ask(scale):
        maps = [lambda x: scale * x]
        return identify(same, n, maps, noise=sigma, prior=lambda x: s * x)

    lost = ask(0.0)
    ratio = (1 / s**2 + 0.5 / sigma**2) / (1 / s**2 + 1 / sigma**2)
    assert lost.gain_db == pytest.approx(10 * math.log10(ratio))
    assert lost.gain_db == pytest.approx(-2.60, abs=0.01)
    assert "-2.60 dB: the loss gives the transformations half of its weight" in str(lost)
    assert str(ask(1.0)).endswith("+0.00 dB")


def test_scale_seen_forwards_shows_less_than_backwards():
    """Images made smaller show coarser details: learning needs the pseudo-inverse."""
    like = torch.zeros(1, 1, 16, 16, dtype=F64)
    scale = Scale(boundary="zeros", center=(7.5, 7.5))
    forward, inverse = (
        identify(low_pass(16), like, scale, draws=2, through=t, floor=1e-2)
        for t in ("forward", "inverse")
    )
    # the middle half of the field has 64 numbers, some 16 of them known: 48 new, less the edges
    assert 25 < inverse.joint_rank - inverse.rank < 50
    assert inverse.found > 2 * forward.found


def test_band_limited_upscaling_by_hand():
    """Periodic images, every frequency halved: four copies of a quarter of the frequencies."""
    n = 12
    f = torch.fft.fftfreq(n, 1 / n, dtype=F64).round().long()

    def halve(x):  # frequency 2k of the image becomes frequency k
        spectrum, out = torch.fft.fft2(x), torch.zeros_like(x, dtype=torch.complex128)
        inside = [i for i in range(n) if abs(2 * int(f[i])) < n // 2]
        for i in inside:
            for j in inside:
                out[..., i, j] = spectrum[..., 2 * int(f[i]) % n, 2 * int(f[j]) % n]
        return torch.fft.ifft2(out).real

    keep = (f.abs() <= 1).to(F64)[:, None] * (f.abs() <= 1)
    a = LinearPhysics(A=lambda x: torch.fft.ifft2(torch.fft.fft2(x) * keep).real)
    result = identify(a, torch.zeros(1, 1, n, n, dtype=F64), halve)
    assert result.rank == 9
    assert result.joint_rank == 9 + 8  # (even, even) frequencies up to 2, less those known
    assert result.found == pytest.approx(8 / (144 - 9))
    assert result.departure > 0.5


@pytest.mark.parametrize(
    "transform",
    [StarRotation(), Reflect(dim=[-1]), Rotate(multiples=90)],
    ids=lambda t: type(t).__name__,
)
def test_what_commutes_with_adi(transform):
    physics, like, r = adi(21)
    ring = angular_harmonics([0], (21, 21), (10, 10), 6.0, 1.2)[:1]
    result = identify(
        physics,
        like,
        transform,
        projection=remove_mean,
        support=r < 9,
        images=ring,
        name="Rotation about the star",
        floor=3e-3,
        draws=5,
    )
    assert result.rank < result.alone.size - 5
    assert result.found < 0.02
    assert float(result.visibility_transformed) < 1e-4
    assert "adds no information" in result.verdict
    assert "Rotation about the star" in result.verdict
    assert "Image 0 is not identifiable" in result.verdict


def test_star_centred_scale_keeps_rings_unseen_and_off_centre_scale_does_not():
    physics, like, r = adi(28)
    images = angular_harmonics([0, 2], (28, 28), (14, 14), 5.0, 1.0)[0][:, None]
    options = {"projection": remove_mean, "support": r < 6.5, "images": images, "floor": 3e-3}
    centred = identify(
        physics, like, Scale((0.6, 0.8), center="star", boundary="zeros"), **options, draws=4
    )
    assert centred.found < 0.02
    assert float(centred.visibility_transformed[0]) < 1e-3
    assert "adds no information" in centred.verdict
    moved = identify(physics, like, Scale((0.6, 0.8), boundary="zeros"), **options, draws=8)
    assert moved.found > 0.9
    assert float(moved.visibility_transformed[0]) > 0.05
    assert "weakly identifiable" in moved.verdict


def test_stretch_shows_rings_in_part():
    physics, like, r = adi(24)
    ring = angular_harmonics([0], (24, 24), (12, 12), 5.0, 1.0)[:1]
    result = identify(
        physics,
        like,
        InclinationStretch(),
        projection=remove_mean,
        support=r < 6.5,
        images=ring,
        floor=3e-3,
        draws=12,
    )
    assert float(result.visibility_alone) < 1e-4
    assert 0.05 < float(result.visibility_transformed) < 0.5
    assert result.joint_rank > result.rank
    assert "Image 0 is weakly identifiable" in result.verdict


def test_blur_gains_by_scale_more_than_by_rotation():
    n = 18
    like = torch.zeros(1, 1, n, n, dtype=F64)
    blur = Blur((1, n, n), gaussian_psf((13, 13), 4.71).to(F64), dtype=F64)
    r = torch.arange(n, dtype=F64) - n // 2
    options = {"support": torch.hypot(r[:, None], r) < n / 2, "noise": 5 / 255, "floor": 6e-3}
    shift, rotation, scale = (
        identify(blur, like, t, **options) for t in (Shift(), StarRotation(), Scale())
    )
    assert abs(shift.gain_db) < 0.01
    assert rotation.gain_db < 0.3
    assert scale.gain_db > 3 * max(rotation.gain_db, 0.3)


def test_estimates_agree_with_matrices():
    n = 14
    like = torch.zeros(1, 1, n, n, dtype=F64)

    def enlarge(x):
        return interpolate(x, scale_factor=2, mode="bicubic")[..., 7:21, 5:19]

    told = []
    exact, estimated = (
        identify(
            low_pass(n),
            like,
            [enlarge, lambda x: x.flip(-1)],
            noise=0.05,
            floor=1e-2,
            null_images=3,
            dense_up_to=size,
            images=torch.ones_like(like),
            progress=lambda *s: told.append(s),
        )
        for size in (2500, 10)
    )
    assert told
    assert estimated.alone.size == pytest.approx(196)
    assert estimated.rank == pytest.approx(exact.rank, abs=12)
    assert estimated.joint_rank == pytest.approx(exact.joint_rank, abs=20)
    assert estimated.gain_db == pytest.approx(exact.gain_db, abs=0.4)
    assert estimated.departure == pytest.approx(exact.departure, rel=0.3)
    torch.testing.assert_close(estimated.visibility_alone, exact.visibility_alone)
    physics = low_pass(n)
    for image in estimated.null_images:
        assert float(physics.A(image[None]).norm()) < 0.2


def test_null_images_are_unseen_orthonormal_and_smooth_first():
    physics, like, r = adi(20)
    found = identify(
        physics, like, projection=remove_mean, support=r < 9, floor=3e-3, null_images=4
    )
    images = found.null_images
    assert images.shape == (4, 1, 20, 20)
    flat = images.flatten(1)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(4, dtype=F64), atol=1e-9, rtol=0)
    seen = remove_mean(physics.A(images)).square().flatten(1).sum(1)
    assert float(seen.max()) <= 3e-3 * found.alone.largest
    assert float(images[:, :, r >= 9].abs().max()) == 0
    roughness = images.diff(dim=-1).square().flatten(1).sum(1)
    assert roughness[0] == roughness.min()
    # symmetric about the star
    turned = torch.rot90(images[:, :, 1:, 1:], 1, (-2, -1))
    assert float((turned - images[:, :, 1:, 1:]).norm() / images.norm()) < 0.1
    assert found.verdict.startswith("Not identifiable from this operator alone")
    assert "not identifiable" in str(found).lower()


def test_an_operator_that_sees_all_and_one_that_sees_nothing():
    like = torch.zeros(1, 1, 3, 4)
    whole = Inpainting((1, 3, 4), mask=torch.ones(1, 3, 4))
    result = identify(whole, like, Shift(), images=torch.rand(2, 1, 3, 4))
    assert result.verdict == "The operator alone sees every direction: no transformation is needed."
    torch.testing.assert_close(result.visibility_alone, torch.ones(2))
    assert result.null_images.shape == (0, 1, 3, 4)
    assert result.rank_gain == 1
    with pytest.raises(ValueError, match="maps every image to zero"):
        identify(Inpainting((1, 3, 4), mask=torch.zeros(1, 3, 4)), like)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.floor = 1.0


def test_printed():
    seen = torch.zeros(1, 3, 5)
    seen[:, :, ::2] = 1.0
    physics = Inpainting((1, 3, 5), mask=seen)
    lines = str(identify(physics, torch.zeros(1, 1, 3, 5), Shift(), noise=0.1)).splitlines()
    assert lines[0].startswith("Shift lifts what")
    assert "9 of 15 alone, 15 with Shift (x 1.67)" in lines[1]
    assert "dB" in lines[-1]


def test_one_pixel_seen_and_its_neighbour_by_a_shift():
    """By hand: both in equal parts, the third never; energies relative to whole images."""
    physics = Inpainting((1, 1, 3), mask=torch.tensor([[[1.0, 0.0, 0.0]]]))
    x = torch.tensor([3.0, 4.0, 0.0]).view(1, 1, 1, 3)
    result = identify(physics, torch.zeros(1, 1, 1, 3), lambda x: x.roll(-1, -1), images=x)
    torch.testing.assert_close(result.joint.values, torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(result.alone.values, torch.tensor([1.0, 0.0, 0.0]))
    assert (result.rank, result.joint_rank, result.found) == (1, 2, 0.5)
    assert float(result.visibility_alone) == pytest.approx(9 / 25)
    assert float(result.visibility_transformed) == pytest.approx(16 / 25)
    assert result.departure == pytest.approx(2**0.5)
    assert result.opened == pytest.approx(0.5)
    torch.testing.assert_close(result.null_images.abs(), torch.tensor([[[[0.0, 0.0, 1.0]]]]))
    assert result.verdict.startswith("the map makes 50% of what this operator does not see visible")
