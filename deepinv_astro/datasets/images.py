"""Folders of measured images, their crops, and what is held out of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepinv_astro.io.images import ImageFile, image_files, read_gray_image

__all__ = ["ImageFolder", "deep_field", "grid_crops", "held_out", "random_crops"]

#: With this many images, whole ones are held out.
_MANY = 8


class ImageFolder(Dataset[Tensor]):
    """Measured images of a folder of FITS and PNG files, each ``(1, h, w)``, of any size.

    :param folder: the folder.
    :raises SequenceError: if there is none, or a file cannot be read; the message names it.

    |sep|

    :Examples:

        >>> import tempfile, numpy as np
        >>> from pathlib import Path
        >>> from deepinv_astro.io.images import write_gray_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_gray_image(Path(folder) / "a.fits", np.zeros((3, 5)))
        ...     images = ImageFolder(folder)
        >>> len(images), images[0].shape
        (1, torch.Size([1, 3, 5]))
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.files: list[ImageFile] = [read_gray_image(path) for path in image_files(folder)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.files[index].values).float()[None]


def deep_field(size: int = 224, seed: int = 0, sources: int = 260) -> Tensor:
    r"""A field of stars and galaxies, to try methods on; fluxes are steep, values go from 0 to 1.

    Half of the sources are stars (Gaussian of .7 pixels), half are galaxies: elliptical exponentials
    of scale lengths from 1 to 5 pixels. A peak exceeds :math:`f` with a probability of
    :math:`(f / .05)^{-1/.7}`, up to 1. The sky has a level of .03.

    :param int size: rows and columns.
    :param int seed: of the sources.
    :param int sources: number of them.
    :return: (:class:`torch.Tensor`) image ``(1, size, size)``.

    |sep|

    :Examples:

        >>> from deepinv_astro.datasets.images import deep_field
        >>> field = deep_field(40, seed=3, sources=10)
        >>> field.shape, bool((field >= 0.03).all())
        (torch.Size([1, 40, 40]), True)
    """
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.full((size, size), 0.03)
    for k in range(sources):
        u = torch.rand(6, generator=g).tolist()
        y, x = rows - u[0] * size, columns - u[1] * size
        peak = min(0.05 * (1 - u[2]) ** -0.7, 1.0)
        if k % 2:
            image += peak * torch.exp(-(y**2 + x**2) / (2 * 0.7**2))
            continue
        a = math.pi * u[3]
        along, across = math.cos(a) * x + math.sin(a) * y, math.cos(a) * y - math.sin(a) * x
        length, ratio = 1.0 + 4.0 * u[4] ** 2, 0.3 + 0.7 * u[5]
        image += peak * torch.exp(-((along**2 + (across / ratio) ** 2).sqrt()) / length)
    return image.clamp(max=1.0)[None]


def held_out(images: Sequence[Tensor], size: int) -> tuple[list[Tensor], list[Tensor]]:
    """
    Split measured images in those that train and those that validate.

    Of eight images or more every eighth validates; of fewer, the last rows of each image that is
    high enough: a sixth, or ``size`` of them.

    :param images: each ``(C, h, w)``.
    :param int size: rows and columns that are least needed of each.
    :return: images that train, images that validate; no pixel is in both.
    :raises ValueError: if nothing is left to train or to validate.

    >>> train, validate = held_out([torch.zeros(1, 90, 20)], 10)
    >>> train[0].shape, validate[0].shape
    (torch.Size([1, 75, 20]), torch.Size([1, 15, 20]))
    """
    large = [image for image in images if min(image.shape[-2:]) >= size]
    if len(large) >= _MANY:
        validate = large[_MANY - 1 :: _MANY]
        return [image for i, image in enumerate(large) if i % _MANY != _MANY - 1], validate
    train, validate = [], []
    for image in large:
        rows = image.shape[-2]
        strip = max(size, rows // 6)
        if rows - strip >= size:
            validate.append(image[..., rows - strip :, :])
            image = image[..., : rows - strip, :]
        train.append(image)
    if not validate:
        shapes = ", ".join(str(tuple(image.shape[-2:])) for image in images[:6])
        raise ValueError(
            f"`images`: crops of {size} x {size} pixels, to train and to validate apart, do not fit in "
            f"images of {shapes or 'no size: there are none'}; give larger images or a smaller `crop`"
        )
    return train, validate


def random_crops(
    images: Sequence[Tensor], size: int, count: int, rng: torch.Generator | None = None
) -> Tensor:
    """
    Crops at random places, an image as often as it has places.

    :param images: each ``(C, h, w)``, at least ``size`` high and wide.
    :param int size: rows and columns.
    :param int count: number of crops.
    :param torch.Generator rng: source of the places.
    :return: ``(count, C, size, size)``.
    """
    places = torch.tensor([(i.shape[-2] - size + 1) * (i.shape[-1] - size + 1) for i in images])
    ends = places.cumsum(0)
    # from uniform numbers: integers up to a bound would use the generator differently
    drawn = (torch.rand(count, generator=rng, dtype=torch.float64) * ends[-1]).long()
    which = torch.searchsorted(ends, drawn, right=True).tolist()
    crops = []
    for k, place in zip(which, (drawn - (ends - places)[which]).tolist(), strict=True):
        row, column = divmod(place, images[k].shape[-1] - size + 1)
        crops.append(images[k][..., row : row + size, column : column + size])
    return torch.stack(crops)


def grid_crops(images: Sequence[Tensor], size: int, most: int) -> Tensor:
    """
    Crops side by side, the same at each call; evenly chosen where there are more than wanted.

    :param images: each ``(C, h, w)``, at least ``size`` high and wide.
    :param int size: rows and columns.
    :param int most: number of crops.
    :return: ``(n, C, size, size)`` with ``n`` at most ``most``.

    >>> grid_crops([torch.arange(12.0).view(1, 3, 4)], 2, 9)[:, 0, 0, 0]
    tensor([0., 2.])
    """
    crops = []
    for image in images:
        for row in range(0, image.shape[-2] - size + 1, size):
            for column in range(0, image.shape[-1] - size + 1, size):
                crops.append(image[..., row : row + size, column : column + size])
    chosen = torch.linspace(0, len(crops) - 1, min(most, len(crops))).round().long().tolist()
    return torch.stack([crops[i] for i in chosen])
