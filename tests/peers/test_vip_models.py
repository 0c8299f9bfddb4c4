"""Classical models and S/N against vip_hci, on simulated and on real frames.

Run in an environment that has vip_hci (the extra ``peers``); skipped elsewhere.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import rotate as ndimage_rotate

from deepinv_astro.metric import SmallSampleSNR, gaussian_sigma, snr, snr_map
from deepinv_astro.models import PCA, AnnularPCA, derotate
from deepinv_astro.physics import ADI

# Importing vip_hci and its dependencies raises deprecation warnings that are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def vip() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("vip_hci", reason="needs the extra peers")
        for name in ("psfsub", "preproc", "metrics"):
            pytest.importorskip(f"vip_hci.{name}")
    return module  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def real(data_root: Path) -> tuple[np.ndarray, np.ndarray]:
    stem = str(data_root / "naco_betapic" / "naco_betapic_")
    cube = fits.getdata(stem + "cube.fits").astype(np.float64)
    return cube, fits.getdata(stem + "pa.fits").ravel().astype(np.float64)


def middle(size: int, inner: float, outer: float) -> np.ndarray:
    row, column = np.mgrid[:size, :size] - size // 2
    distance = np.hypot(row, column)
    return (distance >= inner) & (distance < outer)


def blobs(angles: np.ndarray, size: int) -> tuple[np.ndarray, ADI]:
    """Frames of a smooth sky, without symmetry."""
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[0, 0, size // 2 + 9, size // 2 + 4], x[0, 0, size // 2 - 6, size // 2 + 12] = 50.0, 30.0
    line = torch.exp(-(torch.arange(-7.0, 8.0).double() ** 2) / (2 * 1.9**2))
    psf = line[:, None] * line / line.sum() ** 2
    physics = ADI((1, size, size), torch.from_numpy(angles), psf, dtype=torch.float64)
    return physics.A(x)[0, 0].numpy(), physics


def test_direction_of_derotation(vip: ModuleType) -> None:
    angles = np.array([-14.3, 0.0, 20.0, 67.1, 150.0])
    frames, physics = blobs(angles, 51)
    ours = derotate(torch.from_numpy(frames)[None, None], physics)[0, 0].numpy()
    theirs = vip.preproc.cube_derotate(frames, angles, imlib="vip-fft")
    # scipy turns counter-clockwise where row 0 is shown at the top: the other way
    scipys = np.stack(
        [
            ndimage_rotate(frame, -angle, reshape=False, order=5)
            for frame, angle in zip(frames, angles, strict=True)
        ]
    )
    ring = middle(51, 0, 21)
    scale = np.abs(ours[:, ring]).max()
    assert np.abs(ours - theirs)[:, ring].max() < 0.01 * scale
    assert np.abs(ours - scipys)[:, ring].max() < 0.01 * scale
    assert np.abs(ours - frames)[0, ring].max() > 0.3 * scale


def test_residual_frames_are_equal_on_the_real_cube(
    vip: ModuleType, real: tuple[np.ndarray, np.ndarray]
) -> None:
    cube, angles = real
    for k, static, scaling in ((10, None, None), (5, lambda y: y.mean(-3), "temp-mean")):
        theirs = vip.psfsub.pca(
            cube,
            angles,
            ncomp=k,
            scaling=scaling,
            imlib="skimage",
            interpolation="bilinear",
            full_output=True,
            verbose=False,
        )[3]
        ours = PCA(k, static=static).residual(torch.from_numpy(cube)[None, None])[0, 0].numpy()
        assert np.abs(ours - theirs).max() < 1e-8 * np.abs(cube).max()


def test_image_of_the_real_cube(vip: ModuleType, real: tuple[np.ndarray, np.ndarray]) -> None:
    """The planet within 1 %, the rest within the error of interpolating white pixel noise."""
    cube, angles = real
    cube = np.ascontiguousarray(cube[:, 2:, 2:])  # the star to the centre of the array
    theirs = vip.psfsub.pca(
        cube, angles, ncomp=10, imlib="skimage", interpolation="biquintic", verbose=False
    )
    physics = ADI((1, 99, 99), torch.from_numpy(angles), dtype=torch.float64)
    y = torch.from_numpy(cube)[None, None]
    ours = PCA(10, static=None)(y, physics)[0, 0].numpy()
    ring = middle(99, 8, 46)
    assert np.std((ours - theirs)[ring]) < 0.15 * np.std(theirs[ring])
    planet = np.unravel_index(np.argmax(np.where(middle(99, 14, 20), theirs, -np.inf)), ours.shape)
    assert ours[planet] == pytest.approx(theirs[planet], rel=0.01)


def test_annular_residual_on_the_real_cube(
    vip: ModuleType, real: tuple[np.ndarray, np.ndarray]
) -> None:
    """Same frames, same rings: equal where the rules of selection agree."""
    cube, angles = real
    cube = np.ascontiguousarray(cube[:, 2:, 2:])
    physics = ADI((1, 99, 99), torch.from_numpy(angles), dtype=torch.float64)
    y = torch.from_numpy(cube)[None, None]
    ours = AnnularPCA(3, fwhm=4.8, delta_rot=0.5, width=6.0, inner_radius=12.0).residual(y, physics)
    theirs = vip.psfsub.pca_annular(
        cube,
        angles,
        radius_int=12,
        fwhm=4.8,
        asize=6,
        n_segments=1,
        delta_rot=0.5,
        ncomp=3,
        scaling="temp-mean",
        max_frames_lib=1000,
        imlib="skimage",
        interpolation="bilinear",
        full_output=True,
        verbose=False,
    )[0]
    # they centre on the mean of all frames, we on that of the references: compare the images
    ring = middle(99, 13, 23)
    image = ours[0, 0].numpy()[:, ring], np.asarray(theirs)[:, ring]
    correlation = np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1]
    assert correlation > 0.9


def peer_apertures(position: tuple[int, int], star: int, fwhm: float) -> tuple[int, float]:
    radius = math.hypot(position[0] - star, position[1] - star)
    return int(2 * math.pi / (2 * math.asin(fwhm / 2 / radius))), radius


def test_snr_where_the_definitions_agree(vip: ModuleType) -> None:
    """They set the apertures side by side, which leaves a gap; we space them evenly.

    Where the gap closes both are the same.
    """
    rng = np.random.default_rng(3)
    image = rng.normal(size=(81, 81))
    position, star = (40, 61), 40
    count = 30
    fwhm = 2 * 21 * math.sin(math.pi / count) * (1 - 1e-9)  # exactly 30 apertures side by side
    assert peer_apertures(position, star, fwhm)[0] == count
    theirs = vip.metrics.snr(image, (position[1], position[0]), fwhm)
    ours = snr(torch.from_numpy(image), position, fwhm)
    assert int(ours.references) == count - 1
    assert float(ours.snr) == pytest.approx(theirs, rel=1e-5)


def test_significance(vip: ModuleType) -> None:
    fwhm = 4.0
    radius = 30 * fwhm / (2 * math.pi)  # exactly 30 apertures in their formula and in ours
    for value in (0.5, 3.0, 6.0):
        theirs = vip.metrics.significance(value, radius, fwhm, verbose=False)
        ours = gaussian_sigma(SmallSampleSNR(torch.tensor(value).double(), torch.tensor(29)))
        assert float(ours) == pytest.approx(theirs, rel=1e-6)


def test_planet_in_the_snr_map_of_their_image(
    vip: ModuleType, real: tuple[np.ndarray, np.ndarray]
) -> None:
    """Beta Pictoris b stands out in the same place, with the S/N of their function up to the gap."""
    cube, angles = real
    cube = np.ascontiguousarray(cube[:, 2:, 2:])
    image = vip.psfsub.pca(
        cube, angles, ncomp=14, imlib="skimage", interpolation="biquintic", verbose=False
    )
    result = snr_map(torch.from_numpy(image), 4.8)
    ratio = np.where(middle(99, 12, 22), result.snr.nan_to_num().numpy(), 0.0)
    row, column = np.unravel_index(np.argmax(ratio), ratio.shape)
    # separation 16.6 px; position angle 210.6 + 104.4 - 360 in the frame of the file
    angle = math.degrees(math.atan2(-(column - 49), row - 49)) % 360
    assert math.hypot(row - 49, column - 49) == pytest.approx(16.6, abs=2.5)
    assert angle == pytest.approx((210.6 + 104.39) % 360, abs=4)
    theirs = vip.metrics.snr(image, (int(column), int(row)), 4.8)
    assert 0.6 < ratio[row, column] / theirs < 1.2
