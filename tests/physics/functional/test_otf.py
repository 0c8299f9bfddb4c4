"""Transfer functions of turned PSFs against their defining sum and a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepinv_astro.physics.functional.otf import turned_otf, turned_otfs

F64 = torch.float64
SIZE = (8, 7)


def direct(psf: np.ndarray, angle: float, size: tuple[int, int]) -> np.ndarray:
    """The double sum, with the pixels turned as (column, row) vectors, counter-clockwise."""
    u = 2 * np.pi * np.fft.fftfreq(size[0])[:, None]
    v = 2 * np.pi * np.fft.rfftfreq(size[1])[None, :]
    otf = np.zeros((size[0], size[1] // 2 + 1), complex)
    turn = np.exp(1j * math.radians(angle))
    for (r, c), value in np.ndenumerate(psf):
        at = turn * ((c - psf.shape[1] // 2) + 1j * (r - psf.shape[0] // 2))
        otf += value * np.exp(-1j * (u * at.imag + v * at.real))
    return otf


@pytest.mark.parametrize("size", [SIZE, (5, 6)])
@pytest.mark.parametrize("stamp", [(3, 5), (4, 2), (1, 1), (11, 9)])
def test_the_defining_sum(stamp, size, rng):
    psf = torch.rand(2, 3, *stamp, generator=rng, dtype=F64)  # two wavelengths, three frames
    angles = torch.tensor([0.0, 31.0, -200.0], dtype=F64)
    found = turned_otfs(psf, angles, size)
    assert found.shape == (2, 3, size[0], 4)
    for c in range(2):
        for t, angle in enumerate(angles.tolist()):
            expected = direct(psf[c, t].numpy(), angle, size)
            np.testing.assert_allclose(found[c, t], expected, rtol=0, atol=1e-12)


def test_not_turned_it_is_the_fft_of_the_stamp_put_at_the_origin(rng):
    psf = torch.rand(4, 3, generator=rng, dtype=F64)
    canvas = torch.zeros(SIZE, dtype=F64)
    canvas[:4, :3] = psf
    expected = torch.fft.rfft2(canvas.roll((-2, -1), (0, 1)))
    found = turned_otf(psf, torch.zeros(1, dtype=F64), SIZE)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_turned_gaussian_is_a_gaussian_turned():
    """Long along the columns; turned by 90 degrees, long along the rows."""
    row, column = torch.meshgrid(
        torch.arange(-12, 13, dtype=F64), torch.arange(-12, 13, dtype=F64), indexing="ij"
    )
    psf = torch.exp(-(row**2) / (2 * 1.2**2) - column**2 / (2 * 2.1**2))
    otf = turned_otf(psf / psf.sum(), torch.tensor([30.0], dtype=F64), (40, 42))[0]
    image = torch.fft.irfft2(otf, s=(40, 42)).roll((20, 21), (0, 1))
    r = torch.arange(40, dtype=F64)[:, None] - 20
    c = torch.arange(42, dtype=F64)[None, :] - 21
    mass = [(image * f).sum() for f in (torch.ones_like(image), r**2, c**2, r * c)]
    a = math.radians(30.0)
    expected = [
        1.0,
        2.1**2 * math.sin(a) ** 2 + 1.2**2 * math.cos(a) ** 2,
        2.1**2 * math.cos(a) ** 2 + 1.2**2 * math.sin(a) ** 2,
        (2.1**2 - 1.2**2) * math.sin(a) * math.cos(a),  # positive: from the column to the row axis
    ]
    assert [float(m) for m in mass] == pytest.approx(expected, rel=2e-3)


def test_one_psf_for_all_angles(rng):
    psf = torch.rand(2, 3, 3, generator=rng, dtype=F64)
    angles = torch.tensor([10.0, 80.0], dtype=F64)
    stacked = psf[:, None].expand(2, 2, 3, 3)
    torch.testing.assert_close(turned_otf(psf, angles, SIZE), turned_otfs(stacked, angles, SIZE))


def test_single_precision_stays_so_and_is_exact_far_out():
    """Phases of thousands of radians are reduced before they are rounded."""
    psf = torch.zeros(201, 201)
    psf[0, 200] = 1.0
    angle = torch.tensor([33.0])
    single = turned_otf(psf, angle, (12, 10))
    assert single.dtype == torch.complex64
    double = turned_otf(psf.double(), angle.double(), (12, 10))
    torch.testing.assert_close(single.to(double.dtype), double, rtol=0, atol=1e-6)


def test_gradients(rng):
    psf = torch.rand(2, 3, 4, generator=rng, dtype=F64).requires_grad_()
    angles = torch.tensor([10.0, -70.0], dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, a: turned_otfs(p, a, (4, 3)), (psf, angles))
