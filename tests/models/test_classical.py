"""Median, PCA, annular PCA and iterative PCA, against twins written with numpy's SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepinv_astro.models import (
    PCA,
    AnnularPCA,
    IterativePCA,
    MedianADI,
    derotate,
    temporal_mean,
    temporal_median,
    turn,
)
from deepinv_astro.models.annular import library_residual_weights, rotation_library
from deepinv_astro.physics import ADI

T, H, W = 9, 17, 21


def sequence(rng: torch.Generator, batch: int = 2, channels: int = 2) -> torch.Tensor:
    """Speckles of rank 4, strong, plus white noise."""
    maps = torch.randn(batch, channels, 4, H * W, dtype=torch.float64, generator=rng)
    series = torch.randn(batch, channels, T, 4, dtype=torch.float64, generator=rng)
    noise = torch.randn(batch, channels, T, H * W, dtype=torch.float64, generator=rng)
    return (100 + 10 * series @ maps + noise).view(batch, channels, T, H, W)


@pytest.fixture
def physics() -> ADI:
    return ADI((2, H, W), torch.linspace(-20, 130, T), center=(9.0, 9.5), dtype=torch.float64)


def numpy_residual(y: torch.Tensor, k: int, static: bool) -> np.ndarray:
    rows = y.reshape(T, -1).numpy()
    rows = rows - rows.mean(0) if static else rows
    _, _, components = np.linalg.svd(rows, full_matrices=False)
    return (rows - rows @ components[:k].T @ components[:k]).reshape(y.shape)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_pca_removes_the_singular_vectors(k: int, static: bool, rng: torch.Generator) -> None:
    y = sequence(rng)
    residual = PCA(k, static=temporal_mean if static else None).residual(y)
    for n in range(2):
        for c in range(2):
            expected = numpy_residual(y[n, c], k, static)
            np.testing.assert_allclose(residual[n, c].numpy(), expected, atol=1e-9)


def test_models_turn_then_combine(physics: ADI, rng: torch.Generator) -> None:
    y = sequence(rng)
    pca = PCA(3, combine=temporal_mean)
    expected = temporal_mean(derotate(pca.residual(y), physics))
    torch.testing.assert_close(pca(y, physics), expected, equal_nan=True)
    median = np.median(y.numpy(), axis=2, keepdims=True)
    expected = temporal_median(derotate(y - torch.from_numpy(median), physics))
    torch.testing.assert_close(MedianADI()(y, physics), expected, equal_nan=True)


MODELS = [
    MedianADI(),
    PCA(3),
    AnnularPCA(2, fwhm=3.0, delta_rot=0.4),
    IterativePCA(rank=3, iterations=2),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_batches_and_channels_do_not_mix(
    model: torch.nn.Module, physics: ADI, rng: torch.Generator
) -> None:
    y = sequence(rng, batch=2, channels=2)
    both = model(y, physics)
    one = ADI((1, H, W), physics.angles[0], center=(9.0, 9.5), dtype=torch.float64)
    assert both.shape == (2, 2, H, W)
    for n in range(2):
        for c in range(2):
            alone = model(y[n : n + 1, c : c + 1], one)
            torch.testing.assert_close(both[n, c], alone[0, 0], equal_nan=True)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_each_sequence_uses_its_angles(model: torch.nn.Module, rng: torch.Generator) -> None:
    y = sequence(rng, channels=1)
    angles = torch.stack([torch.linspace(0, 120, T), torch.linspace(60, -100, T)]).double()
    both = model(y, ADI((1, H, W), angles, dtype=torch.float64))
    for n in range(2):
        alone = model(y[n : n + 1], ADI((1, H, W), angles[n], dtype=torch.float64))
        torch.testing.assert_close(both[n], alone[0], equal_nan=True)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planet_lands_where_its_position_angle_says(
    model: torch.nn.Module, dtype: torch.dtype, rng: torch.Generator
) -> None:
    """Separation 9 px, position angle 120 degrees; the star is elsewhere on the detector."""
    row = 15 + round(9 * math.cos(math.radians(120)))
    column = 18 - round(9 * math.sin(math.radians(120)))
    x = torch.zeros(1, 1, 31, 37, dtype=dtype)
    x[0, 0, row, column] = 400.0
    stamp = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / (2 * 1.3**2)).to(dtype)
    psf = stamp[:, None] * stamp / stamp.sum() ** 2
    p = ADI((1, 31, 37), torch.linspace(-60, 75, 12), psf, center=(16.5, 17.0), dtype=dtype)
    halo = torch.randn(1, 1, 1, 31, 37, dtype=dtype, generator=rng) * 30
    flicker = 1 + 0.1 * torch.randn(1, 1, 12, 1, 1, dtype=dtype, generator=rng)
    image = model(p.A(x) + halo * flicker, p)
    assert image.dtype == dtype
    assert divmod(int(image.nan_to_num().argmax()), 37) == (row, column)
    assert 0.2 < image[0, 0, row, column] / (400 * psf.max()) < 1.1


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_missing_pixel_is_left_out(
    model: torch.nn.Module, physics: ADI, rng: torch.Generator
) -> None:
    y = sequence(rng)
    whole = model(y, physics)
    y[1, 0, 2, 8, 5] = torch.nan
    image = model(y, physics)
    assert torch.equal(image.isnan(), whole.isnan())
    assert torch.equal(image[0].nan_to_num(), whole[0].nan_to_num())
    assert torch.equal(image[1, 1].nan_to_num(), whole[1, 1].nan_to_num())
    change = (image - whole)[1, 0].nan_to_num().abs()
    assert 0 < change.max() < 0.5 * whole[1, 0].nan_to_num().abs().max()


def test_a_missing_pixel_does_not_poison_the_components(rng: torch.Generator) -> None:
    y = sequence(rng)
    with_mean = y.clone()
    with_mean[0, 0, 3, 4, 6] = y[0, 0, [0, 1, 2, 4, 5, 6, 7, 8], 4, 6].mean()
    expected = PCA(2).residual(with_mean)
    y[0, 0, 3, 4, 6] = torch.nan
    residual = PCA(2).residual(y)
    assert residual.isnan().nonzero().tolist() == [[0, 0, 3, 4, 6]]
    known = residual.isfinite()
    torch.testing.assert_close(residual[known], expected[known])


def test_what_no_frame_sees_is_missing(rng: torch.Generator) -> None:
    p = ADI((1, 40, 40), torch.linspace(0, 20, T), detector_size=(H, W), dtype=torch.float64)
    image = PCA(2)(sequence(rng, 1, 1), p)[0, 0]
    assert bool(image[0, 0].isnan())
    assert bool(image[20, 20].isfinite())


def test_references_have_turned_by_the_arc() -> None:
    angles = torch.tensor([0.0, 10.0, 350.0, 90.0])
    expected = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]], dtype=bool)
    found = rotation_library(angles, radius=20.0, arc=20.0 * math.radians(15))
    assert np.array_equal(found.numpy(), expected)


def test_annular_pca_is_the_projection_written_out(rng: torch.Generator) -> None:
    """Frame by frame, ring by ring: SVD of the centred references."""
    y = sequence(rng, 1, 1)
    angles = torch.linspace(-20, 130, T)
    p = ADI((1, H, W), angles, center=(9.0, 9.5), dtype=torch.float64)
    residual = AnnularPCA(2, fwhm=3.0, delta_rot=1.0, width=4.0, inner_radius=2.0).residual(y, p)
    row, column = np.mgrid[:H, :W]
    distance = np.hypot(row - 9.0, column - 9.5)
    assert np.isnan(residual[0, 0, :, distance < 2].numpy()).all()
    left_out = 0
    for ring in range(3):
        pixels = (distance >= 2 + 4 * ring) & (distance < 6 + 4 * ring)
        frames = y[0, 0].numpy()[:, pixels]
        for t in range(T):
            arc = (4.0 + 4 * ring) * np.deg2rad(np.abs(angles.numpy() - float(angles[t])))
            references = frames[arc >= 3.0]
            got = residual[0, 0, t].numpy()[pixels]
            if len(references) < 3:
                left_out += 1
                assert np.isnan(got).all()
                continue
            mean = references.mean(0)
            components = np.linalg.svd(references - mean, full_matrices=False)[2][:2]
            expected = frames[t] - mean
            expected = expected - components.T @ (components @ expected)
            np.testing.assert_allclose(got, expected, atol=1e-8)
    assert left_out < 3 * T


def test_as_many_references_as_components_are_too_few(rng: torch.Generator) -> None:
    products = torch.eye(5, dtype=torch.float64) + 0.1
    library = torch.ones(5, 5, dtype=torch.bool).tril(-1)  # 0, 1, 2, 3 and 4 references
    weights = library_residual_weights(products, library, n_components=2)
    assert weights.isnan().all(1).tolist() == [True, True, True, False, False]
    assert torch.isfinite(weights[3:]).all()


def test_annular_pca_leaves_out_frames_without_references(
    rng: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    p = ADI((1, H, W), torch.linspace(0, 30, T), dtype=torch.float64)
    with caplog.at_level("INFO", logger="deepinv_astro.models.annular"):
        image = AnnularPCA(2, fwhm=4.0, delta_rot=1.0)(sequence(rng, 1, 1), p)
    assert bool(image[0, 0, H // 2, W // 2].isnan())
    assert "9 of 9 frames have too few references at 2.0 pixels" in caplog.text


def test_annular_pca_with_all_frames_in_one_ring_is_pca(rng: torch.Generator) -> None:
    y = sequence(rng, 1, 1)
    p = ADI((1, H, W), torch.linspace(0, 90, T), dtype=torch.float64)
    ring = AnnularPCA(3, fwhm=3.0, delta_rot=0.0, width=100.0).residual(y, p)
    torch.testing.assert_close(ring, PCA(3).residual(y))


def test_iterative_pca_is_the_published_recursion(physics: ADI, rng: torch.Generator) -> None:
    y = sequence(rng)
    x = torch.zeros(2, 2, H, W, dtype=torch.float64)
    images = []
    for rank in (1, 2, 3):
        for _ in range(2):
            background = (y - turn(x, physics)).flatten(3).numpy()
            left, values, right = np.linalg.svd(background, full_matrices=False)
            low = left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]
            sky = derotate(y - torch.from_numpy(low).view_as(y), physics)
            image = temporal_mean(sky).clamp_min(0)
            images.append(image)
            x = image.nan_to_num(0.0)
    seen: list[tuple[int, torch.Tensor]] = []
    model = IterativePCA(rank=3, iterations=2, callback=lambda n, z: seen.append((n, z)))
    result = model(y, physics)
    assert [n for n, _ in seen] == list(range(1, model.total + 1)) == [1, 2, 3, 4, 5, 6]
    for (_, got), expected in zip(seen, images, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
    assert torch.equal(result.nan_to_num(), seen[-1][1].nan_to_num())


def test_iterative_pca_keeps_more_of_a_disk_than_pca(rng: torch.Generator) -> None:
    row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (41, 45)), indexing="ij"
    )
    radius = torch.hypot((row - 20) / 0.4, column - 22)
    x = 20 * torch.exp(-((radius - 14) ** 2) / 8)[None, None]
    p = ADI((1, 41, 45), torch.linspace(0, 90, 15), dtype=torch.float64)
    halo = 500 * torch.exp(-torch.hypot(row - 20, column - 22) / 6)
    flicker = 1 + 0.2 * torch.randn(15, 1, 1, dtype=torch.float64, generator=rng)
    y = p.A(x) + halo * flicker
    disk = (x > 2)[0, 0]
    kept = [
        float(model(y, p)[0, 0][disk].sum() / x[0, 0][disk].sum())
        for model in (PCA(3, temporal_mean), IterativePCA(rank=3, iterations=5))
    ]
    assert kept[0] < 0.6
    assert kept[1] > kept[0] + 0.2


def test_impossible_settings_are_named(physics: ADI) -> None:
    with pytest.raises(ValueError, match="n_components must be zero or more, got -1"):
        PCA(-1)
    with pytest.raises(ValueError, match="less than the number of frames, 9, got 9"):
        PCA(9)(torch.zeros(1, 2, T, H, W, dtype=torch.float64), physics)
    with pytest.raises(ValueError, match="1 <= first_rank <= rank, got 3 and 2"):
        IterativePCA(rank=2, first_rank=3)
    with pytest.raises(ValueError, match="iterations must be one or more, got 0"):
        IterativePCA(iterations=0)
    with pytest.raises(ValueError, match="fwhm must be a positive number of pixels, got 0"):
        AnnularPCA(2, fwhm=0)
    with pytest.raises(ValueError, match="delta_rot must be zero or more"):
        AnnularPCA(2, fwhm=3.0, delta_rot=-1.0)
    with pytest.raises(ValueError, match=r"\(B, 2, 9, 17, 21\), got"):
        MedianADI()(torch.zeros(1, 1, T, H, W), physics)
