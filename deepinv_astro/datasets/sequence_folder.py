"""Sequences of many stars on disk, read when they are asked for."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from deepinv.datasets import ImageDataset
from torch import Tensor

from deepinv_astro.datasets.manifest import (
    MANIFEST_NAMES,
    ManifestEntry,
    check_manifest,
    find_targets,
    listed,
    read_manifest,
)
from deepinv_astro.io import Sequence, SequenceError
from deepinv_astro.io.arrays import read_image
from deepinv_astro.physics.functional.centering import estimate_center

__all__ = ["SequenceFolder", "cut_about"]

logger = logging.getLogger(__name__)

#: A frame with less than this share of its pixels is left out.
LEAST_VALID = 0.5


class SequenceFolder(ImageDataset):
    r"""A folder of sequences of different lengths and sizes, one for each target.

    The targets are those of ``manifest.json`` or ``manifest.csv``, else the sub-folders with
    ``cube.fits``, ``angles.fits`` and ``psf.fits``. All is checked at once when the folder is
    opened: the error lists every file that is missing or broken. Sequences are read when
    they are asked for.

    An item is what deepinv's ``Trainer`` takes: ``{"y": (C, T, h, w), "params": {"angles": (T,),
    "filter": (C, k, k), "center": (2,), "gain": (T,), "transmission": (h, w)}}`` in float32, and with
    ``"x": (C, h, w)`` if asked for and there is a ``truth``. What is not there is zero in ``y`` and
    in the operator,

    .. math::

        y_{t,p} = 0, \quad g_t \Gamma_p = 0 \qquad \text{where the data are missing,}

    hence has no residual, whatever the sky; :func:`~deepinv_astro.datasets.data_weights` takes it out
    of means. A pixel that is missing in some frames is left out in all of them, and a frame with less
    than half of its pixels altogether. (The transmission acts after the PSF, the default of
    :class:`~deepinv_astro.physics.ADI`.)

    One operator needs one size of frames: ``img_size`` crops or pads all of them about their stars.
    For batches take ``DataLoader(folder, batch_sampler=BucketBatchSampler(folder.shapes, 4),
    collate_fn=collate_sequences)``, or ``batch_size`` with the same ``collate_fn``.

    :param root: folder, or manifest.
    :param tuple img_size: rows and columns of all frames and skies, the star within half a pixel of
        ``(h // 2, w // 2)``; default: as they are.
    :param bool with_truth: whether items hold ``"x"`` where it is known.
    :param int keep: number of sequences kept in memory, the latest.
    :raises ValueError: if the folder or manifest holds no target, or with a list of all that is
        missing or broken.

    |sep|

    :Examples:

        >>> SequenceFolder("an/empty/folder")  # folder = SequenceFolder("my/survey")
        Traceback (most recent call last):
            ...
        ValueError: an/empty/folder: no such folder or manifest
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        img_size: tuple[int, int] | None = None,
        with_truth: bool = False,
        keep: int = 4,
    ) -> None:
        super().__init__(use_dict_output=True)
        if img_size is not None and (len(img_size) != 2 or min(img_size) < 1):
            raise ValueError(f"img_size must be two positive numbers, got {img_size}")
        if keep < 0:
            raise ValueError(f"keep must not be negative, got {keep}")
        self.root = Path(root).expanduser()
        self.entries = _entries(self.root)
        problems = check_manifest(self.entries)
        if problems:
            raise ValueError(listed(str(self.root), problems))
        self.img_size, self.with_truth, self.keep = img_size, with_truth, keep
        self.shapes = [self._shape(entry) for entry in self.entries]
        self._kept: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self._key(index)
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = self._read(self.entries[key])
        item = self._kept[key]
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        params = {name: value.clone() for name, value in item["params"].items()}
        return {**{k: v.clone() for k, v in item.items() if k != "params"}, "params": params}

    def sequence(self, index: int) -> Sequence:
        """
        A sequence as its files have it, read anew.

        :param int index: of the target.
        :return: :class:`~deepinv_astro.io.Sequence`.
        """
        return self.entries[self._key(index)].read()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}  # workers make their own

    def _key(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"target {index} of a folder of {len(self)}")
        return index % len(self)

    def _shape(self, entry: ManifestEntry) -> tuple[int, int, int, int]:
        """Channels, frames, rows and columns of an item."""
        channels, frames, rows, columns = entry.shape()
        return (channels, frames, *(self.img_size or (rows, columns)))

    def _read(self, entry: ManifestEntry) -> dict[str, Any]:
        """One item."""
        sequence = entry.read().to(dtype=torch.float32)
        center = _center(sequence, entry)
        y, gain, transmission = without_missing(sequence)
        if self.img_size is not None:
            y = cut_about(y, center, self.img_size)
            transmission = cut_about(transmission, center, self.img_size)
            center = tuple(
                n // 2 + c - round(c) for c, n in zip(center, self.img_size, strict=True)
            )
        params = {
            "angles": sequence.angles.float(),
            "filter": sequence.psf,
            "center": torch.tensor(center, dtype=torch.float32),
            "gain": gain,
            "transmission": transmission,
        }
        item: dict[str, Any] = {"y": y, "params": params}
        if self.with_truth and entry.truth is not None:
            item["x"] = self._truth(entry, (y.shape[0], y.shape[-2], y.shape[-1]))
        return item

    def _truth(self, entry: ManifestEntry, size: tuple[int, int, int]) -> Tensor:
        """The true sky about its star, which is at (H // 2, W // 2)."""
        expected = "an image (H, W) or (C, H, W)"
        found = read_image(entry.truth or "", "truth", lambda n: n in (2, 3), expected)
        x = torch.from_numpy(found.values).float()
        x = x[None] if x.ndim == 2 else x
        if len(x) not in (1, size[0]):
            raise SequenceError(
                found.name, f"{len(x)} channels", f"{size[0]}", "give an image per channel"
            )
        star = (float(x.shape[-2] // 2), float(x.shape[-1] // 2))
        return cut_about(x.expand(size[0], *x.shape[-2:]), star, size[1:])


def without_missing(sequence: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    r"""Frames without NaN, and what the operator must not see.

    :param Sequence sequence: the data.
    :return: ``y`` ``(C, T, H, W)``, zero where data are missing; the gain of each frame ``(T,)``, 1 or 0;
        the transmission ``(H, W)``, zero where a pixel is missing in any frame of gain 1.
    """
    valid = sequence.valid[0].all(0)  # in all channels
    used = valid.float().mean((1, 2)) >= LEAST_VALID
    if not bool(used.any()):
        used = torch.ones_like(used)
    seen = valid[used].all(0)
    transmission = seen.to(sequence.y)
    if sequence.transmission is not None:
        transmission = transmission * sequence.transmission
    there = used[:, None, None] & seen
    y = torch.where(there, sequence.y[0], 0.0)
    return y, used.to(y), transmission


def cut_about(image: Tensor, center: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    r"""Image of another size, the pixel nearest to a point in its middle, zero beyond the edge.

    :param torch.Tensor image: ``(..., H, W)``.
    :param tuple center: row and column that come within half a pixel of ``(h // 2, w // 2)``.
    :param tuple size: rows and columns ``(h, w)``.
    :return: (:class:`torch.Tensor`) ``(..., h, w)``.

    >>> image = torch.arange(12.0).reshape(3, 4)
    >>> cut_about(image, (0.2, 2.9), (3, 2)).tolist()  # pixel (0, 3) goes to (1, 1)
    [[0.0, 0.0], [2.0, 3.0], [6.0, 7.0]]
    """
    cut = image.new_zeros(*image.shape[:-2], *size)
    here, there = [], []
    for axis, middle in enumerate(center):
        length, wanted = image.shape[axis - 2], size[axis]
        first = round(middle) - wanted // 2  # in the image, of the first pixel of the result
        low, high = max(first, 0), min(first + wanted, length)
        high = max(low, high)
        there.append(slice(low, high))
        here.append(slice(low - first, high - first))
    cut[..., here[0], here[1]] = image[..., there[0], there[1]]
    return cut


def _entries(root: Path) -> tuple[ManifestEntry, ...]:
    """The targets of a folder or a manifest."""
    if root.is_file():
        entries = read_manifest(root)
    elif root.is_dir():
        manifest = next((root / n for n in MANIFEST_NAMES if (root / n).is_file()), None)
        entries = find_targets(root) if manifest is None else read_manifest(manifest)
    else:
        raise ValueError(f"{root}: no such folder or manifest")
    if not entries:
        names = " or ".join(MANIFEST_NAMES)
        alone = root.is_dir() and any(root.glob("*.fits*"))
        hint = f"; for one star, name the folder above it, {root.resolve().parent}" if alone else ""
        raise ValueError(
            f"{root} holds no sequence: expected {names}, or sub-folders with cube.fits, "
            f"angles.fits and psf.fits{hint}"
        )
    return entries


def _center(sequence: Sequence, entry: ManifestEntry) -> tuple[float, ...]:
    """The star as given, or from the symmetry of the halo."""
    if sequence.center is not None:
        return sequence.center
    try:
        found = estimate_center(sequence.y[0].nanmean((0, 1)))
    except ValueError as error:
        remedy = "give the star's `center` in the manifest or in the header"
        raise SequenceError(str(entry.cube), str(error), "a halo about its star", remedy) from error
    logger.warning(
        "%s: the star's position is not given; estimated row %.2f, column %.2f",
        entry.cube, found.row, found.column,
    )  # fmt: skip
    return found.row, found.column
