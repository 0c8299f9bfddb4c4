"""The pupil against areas, orthogonality, the Airy pattern and scipy's FFT."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.special
import torch

from deepinv_astro.physics.functional.pupil import (
    KECK,
    VLT,
    PupilShape,
    SegmentedShape,
    focal_field,
    pupil_grid,
    telescope_pupil,
    zernike,
)


def test_area_of_an_obstructed_pupil():
    pupil = telescope_pupil(48, PupilShape(0.3))
    assert float(pupil.mean()) == pytest.approx(math.pi / 4 * (1 - 0.3**2), rel=2e-3)


def test_an_arm_blocks_its_own_light_only():
    shape = PupilShape(0.2, 0.03, (90.0,))  # one arm, towards increasing row
    whole, cut = telescope_pupil(64, PupilShape(0.2)), telescope_pupil(64, shape)
    lost = whole - cut
    assert float(lost.sum()) / 64**2 == pytest.approx(0.03 * 0.4, rel=0.05)
    assert float(lost[:32].sum()) == 0.0
    assert float(lost[34:, 31:33].sum()) == pytest.approx(float(lost.sum()))


def test_an_oblique_arm_points_from_columns_to_rows():
    lost = telescope_pupil(64, PupilShape(0.2)) - telescope_pupil(64, PupilShape(0.2, 0.03, (30,)))
    row, column = pupil_grid(64)
    angle = math.atan2(float((lost * row).sum()), float((lost * column).sum()))
    assert math.degrees(angle) == pytest.approx(30, abs=0.5)
    assert float(lost.sum()) / 64**2 == pytest.approx(0.03 * 0.4, rel=0.05)


def test_vlt_pupil_has_both_mirror_symmetries():
    pupil = telescope_pupil(40, VLT)
    assert torch.equal(pupil, pupil.flip(0))
    assert torch.equal(pupil, pupil.flip(1))
    assert not torch.equal(pupil, pupil.T)  # arms 101 degrees apart, not 90


@pytest.mark.parametrize(("rings", "gap"), [(1, 0.0), (2, 0.02), (3, 0.01)])
def test_segments_have_their_number_area_and_circle(rings, gap):
    shape = SegmentedShape(rings, gap)
    count = 3 * rings * (rings + 1)
    pupil = telescope_pupil(150, shape, oversampling=4)
    segment = math.sqrt(3) / 2 * shape.width() ** 2
    assert float(pupil.mean()) == pytest.approx(count * segment, rel=2e-3)
    row, column = pupil_grid(1200)
    mirror = shape.mirror(row, column)
    radius = torch.hypot(row, column)[mirror]
    assert float(radius.max()) == pytest.approx(0.5, abs=1.5e-3)  # corners on the circle
    assert float(radius.min()) == pytest.approx(shape.width() / 2 + gap, abs=1.5e-3)
    if gap:
        labels, found = scipy.ndimage.label(mirror.numpy())
        assert found == count
        sizes = np.bincount(labels.ravel())[1:] / 1200**2
        np.testing.assert_allclose(sizes, segment, rtol=0.02)


def test_keck_has_36_segments_and_six_fold_symmetry():
    assert KECK.width() * 10.95 == pytest.approx(math.sqrt(3) * 0.9, rel=2e-3)
    pupil = telescope_pupil(120, KECK, oversampling=4)
    assert torch.equal(pupil, pupil.flip(0))
    assert torch.equal(pupil, pupil.flip(1))
    turned = scipy.ndimage.rotate(pupil.numpy(), 60, reshape=False, order=1)
    assert np.abs(turned - pupil.numpy()).mean() < 0.02
    assert np.abs(pupil.numpy() - pupil.numpy().T).mean() > 0.02  # not four-fold
    hole = torch.hypot(*pupil_grid(120)) < 1.25 / 10.95
    assert float(pupil[hole].max()) == 0.0
    # segments, less the ring of the obscuration beyond the missing one, less the arms
    area = 36 * math.sqrt(3) / 2 * KECK.width() ** 2
    beyond = math.pi / 4 * KECK.obscuration**2 - math.sqrt(3) / 2 * (KECK.width() + KECK.gap) ** 2
    arms = 6 * KECK.spider_width * (0.47 - KECK.obscuration / 2)
    assert float(pupil.mean()) == pytest.approx(area - beyond - arms, rel=5e-3)


def test_zernike_polynomials_are_orthonormal_and_named_as_noll_does():
    row, column = pupil_grid(300)
    disc = torch.hypot(row, column) <= 0.5
    modes = torch.stack([zernike(j, row, column)[disc] for j in range(1, 16)])
    gram = modes @ modes.T / disc.sum()
    torch.testing.assert_close(gram, torch.eye(15, dtype=gram.dtype), atol=0.02, rtol=0)
    rho2 = 4 * (row**2 + column**2)[disc]
    x, y = 2 * column[disc], 2 * row[disc]
    torch.testing.assert_close(modes[1], 2 * x)
    torch.testing.assert_close(modes[3], math.sqrt(3) * (2 * rho2 - 1))
    torch.testing.assert_close(modes[5], math.sqrt(6) * (x**2 - y**2))
    torch.testing.assert_close(modes[6], math.sqrt(8) * (3 * rho2 - 2) * y)
    torch.testing.assert_close(modes[10], math.sqrt(5) * (6 * rho2**2 - 6 * rho2 + 1))


def test_focal_plane_of_a_disc_is_the_airy_pattern_of_an_annulus():
    epsilon, sampling = 0.3, 4.0
    pupil = telescope_pupil(256, PupilShape(epsilon), oversampling=4)
    field = focal_field(pupil.to(torch.complex128), sampling, (33, 41), (16.3, 20.0))
    r = torch.hypot(torch.arange(33.0)[:, None] - 16.3, torch.arange(41.0) - 20.0).double()
    v = (math.pi * r / sampling).clamp_min(1e-9).numpy()

    def jinc(z: np.ndarray) -> np.ndarray:
        return 2 * scipy.special.j1(z) / z

    airy = (jinc(v) - epsilon**2 * jinc(epsilon * v)) / (1 - epsilon**2)
    expected = torch.from_numpy(airy) * float(pupil.sum()) / (256 * sampling)
    torch.testing.assert_close(field.real, expected, atol=1e-3 * float(expected.max()), rtol=0)
    assert float(field.imag.abs().max()) < 1e-10


def test_focal_field_is_the_fft_on_its_grid_and_keeps_energy():
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(2, 8, 8, dtype=torch.complex128, generator=generator)
    ours = focal_field(field, 3.0, (24, 24), (12, 12))  # 24 = 3 x 8: one period
    padded = np.zeros((2, 24, 24), dtype=complex)
    padded[:, :8, :8] = field.numpy()
    theirs = scipy.fft.fftshift(scipy.fft.fft2(padded), axes=(1, 2)) / 24
    np.testing.assert_allclose(np.abs(ours.numpy()), np.abs(theirs), atol=1e-12)
    energy = ours.abs().square().sum(dim=(1, 2))
    torch.testing.assert_close(energy, field.abs().square().sum(dim=(1, 2)))


def test_a_slope_in_the_pupil_moves_the_star_towards_the_slope():
    row, column = pupil_grid(64)
    pupil = telescope_pupil(64)
    sampling = 4.0
    phase = 2 * math.pi * (1.5 * row - 0.5 * column)  # 1.5 lambda/D in row, -.5 in column
    field = focal_field(pupil * torch.exp(1j * phase), sampling, (41, 31), (20, 15))
    assert divmod(int(field.abs().argmax()), 31) == (26, 13)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_focal_field_keeps_precision_and_gradients(dtype):
    field = torch.ones(4, 4, dtype=dtype, requires_grad=True)
    out = focal_field(field, 2.0, (5, 6), (2, 3))
    assert out.dtype == dtype
    out.abs().square().sum().backward()
    assert bool(field.grad.abs().max() > 0)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"obscuration .* got 1\.2"):
        telescope_pupil(8, PupilShape(1.2))
    with pytest.raises(ValueError, match="complex and square"):
        focal_field(torch.ones(4, 4), 2.0, (5, 5), (2, 2))
    with pytest.raises(ValueError, match="starts at 1"):
        zernike(0, *pupil_grid(4))
    with pytest.raises(ValueError, match="at least 1"):
        pupil_grid(0)
