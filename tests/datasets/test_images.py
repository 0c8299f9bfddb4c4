"""Crops of measured images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deepinv_astro.datasets.images import ImageFolder, grid_crops, held_out, random_crops
from deepinv_astro.io.images import write_gray_image


def numbered(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    """Images whose pixels are all different."""
    images, start = [], 0
    for h, w in shapes:
        images.append(torch.arange(start, start + h * w, dtype=torch.float64).reshape(1, h, w))
        start += h * w
    return images


def test_folder(tmp_path: Path) -> None:
    write_gray_image(tmp_path / "b.fits", np.full((4, 6), 7.0))
    write_gray_image(tmp_path / "a.png", np.full((3, 5), 0.2))
    images = ImageFolder(tmp_path)
    assert [tuple(image.shape) for image in images] == [(1, 3, 5), (1, 4, 6)]
    assert float(images[1].max()) == 7.0
    assert images[0].dtype == torch.float32


@pytest.mark.parametrize("count", [2, 9])
def test_no_pixel_trains_and_validates(count: int) -> None:
    images = numbered(*[(40 + k, 30) for k in range(count)])
    train, validate = held_out(images, 12)
    assert sum(i.numel() for i in images) == sum(i.numel() for i in (*train, *validate))
    both = torch.cat([i.flatten() for i in (*train, *validate)])
    assert len(both.unique()) == len(both)
    assert all(min(i.shape[-2:]) >= 12 for i in (*train, *validate))
    assert len(validate) == (1 if count == 9 else count)


def test_images_too_small_are_left_out_or_refused() -> None:
    train, validate = held_out(numbered((10, 90), (40, 40)), 12)
    assert len(train) == len(validate) == 1
    with pytest.raises(ValueError, match=r"`images`: crops of 12 x 12 .* \(20, 90\)"):
        held_out(numbered((20, 90)), 12)


def test_crops_come_from_every_place_and_are_evenly_drawn() -> None:
    images = numbered((5, 4), (4, 7))  # 2 x 1 and 1 x 4 places of crops of 4
    crops = random_crops(images, 4, 6000, torch.Generator().manual_seed(0))
    corners, counts = crops[:, 0, 0, 0].unique(return_counts=True)
    assert corners.tolist() == [0.0, 4.0, 20.0, 21.0, 22.0, 23.0]
    assert bool(((counts - 1000).abs() < 5 * 1000**0.5).all())
    assert torch.equal(crops[crops[:, 0, 0, 0] == 22][0], images[1][:, :, 2:6])


def test_crops_of_a_grid_are_evenly_chosen() -> None:
    images = numbered((4, 6), (2, 9))
    assert grid_crops(images, 2, 100)[:, 0, 0, 0].tolist() == [0, 2, 4, 12, 14, 16, 24, 26, 28, 30]
    assert grid_crops(images, 2, 4)[:, 0, 0, 0].tolist() == [0, 12, 24, 30]
