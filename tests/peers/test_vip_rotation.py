"""ADI against VIP: a planet injected by our operator is put back by VIP's derotation, and reverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.rotation import rotate

pytestmark = pytest.mark.filterwarnings("default")  # VIP's imports warn

vip_hci = pytest.importorskip("vip_hci", reason="needs the extra peers")

ANGLES = torch.tensor([0.0, 35.0, 80.0, -55.0], dtype=torch.float64)


def gaussian(place: tuple[float, float], size: int, sigma: float) -> np.ndarray:
    row, column = np.mgrid[:size, :size]
    r2 = (row - place[0]) ** 2 + (column - place[1]) ** 2
    return np.exp(-r2 / (2 * sigma**2))


def centroid(image: np.ndarray) -> tuple[float, float]:
    row, column = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((row * image).sum() / image.sum()), float((column * image).sum() / image.sum())


def derotated(cube: np.ndarray, angles: np.ndarray) -> np.ndarray:
    from vip_hci.preproc import cube_derotate

    return cube_derotate(cube, angles, imlib="opencv", interpolation="lanczos4")


@pytest.mark.parametrize("method", ["spline", "shear"])
@pytest.mark.parametrize("size", [41, 40])
def test_vip_puts_the_planet_back(size, method):
    planet = (size // 2 + 9, size // 2 - 5)
    psf = torch.from_numpy(gaussian((8, 8), 17, 1.9))
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[0, 0, planet[0], planet[1]] = 1.0
    physics = ADI(
        (1, size, size),
        ANGLES,
        filter=psf / psf.sum(),
        interpolation=method,
        dtype=torch.float64,
    )
    cube = physics.A(x)[0, 0].numpy()
    back = derotated(cube, ANGLES.numpy())
    for frame in back:
        assert centroid(frame) == pytest.approx(planet, abs=0.02)
        assert frame.sum() == pytest.approx(1.0, abs=0.01)
        truth = gaussian(planet, size, 1.9)
        assert np.abs(frame - truth / truth.sum()).max() < 0.02 * frame.max()
    wrong = derotated(cube, -ANGLES.numpy())
    assert np.hypot(*np.subtract(centroid(wrong[1]), planet)) > 5


@pytest.mark.parametrize("size", [41, 40])
def test_rotate_is_cube_derotate(size):
    image = gaussian((size // 2 + 6, size // 2 + 3), size, 2.2)
    cube = np.repeat(image[None], len(ANGLES), 0)
    expected = derotated(cube, ANGLES.numpy())
    found = rotate(torch.from_numpy(cube), ANGLES).numpy()
    assert np.abs(found - expected).max() < 0.02
