r"""Regions of the detector: annuli about the star, tiles, and how to gather their pixels at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Label of a pixel that belongs to no region.
EXCLUDED = -1


def separation(size: tuple[int, int], center: Tensor | tuple[float, float]) -> Tensor:
    r"""Distance of each pixel to the star, in pixels.

    :param tuple size: rows and columns.
    :param torch.Tensor, tuple center: row and column of the star.
    :return: (:class:`torch.Tensor`) distances, shape ``size``, in double precision.

    |sep|

    :Examples:

        >>> separation((3, 5), (0, 1))[2]
        tensor([2.2361, 2.0000, 2.2361, 2.8284, 3.6056], dtype=torch.float64)
    """
    row, column = (float(c) for c in center)
    rows = torch.arange(size[0], dtype=torch.float64) - row
    columns = torch.arange(size[1], dtype=torch.float64) - column
    return torch.hypot(rows[:, None], columns[None, :])


def annuli(
    size: tuple[int, int], center: Tensor | tuple[float, float], width: float, fewest: int
) -> Tensor:
    r"""Labels of annuli :math:`[j\,\Delta, (j+1)\,\Delta)` about the star.

    :param tuple size: rows and columns of the detector.
    :param torch.Tensor, tuple center: row and column of the star.
    :param float width: width :math:`\Delta` in pixels.
    :param int fewest: an annulus with fewer pixels joins its inner neighbour (the innermost, its
        outer one).
    :return: (:class:`torch.Tensor`) integer labels, shape ``size``.

    |sep|

    :Examples:

        >>> annuli((3, 6), (1, 1), 2.0, fewest=3)[1]
        tensor([0, 0, 0, 1, 1, 2])
    """
    labels = (separation(size, center) / width).long()
    present = labels.unique().tolist()
    while len(present) > 1:
        small = [label for label in present if int((labels == label).sum()) < fewest]
        if not small:
            break
        outermost = present.index(small[-1])
        labels[labels == small[-1]] = present[max(outermost - 1, 1 - outermost)]
        del present[outermost]
    consecutive: Tensor = labels.unique(return_inverse=True)[1]
    return consecutive


def tiles(size: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    r"""Labels of rectangular tiles that cover the detector, as equal as possible.

    :param tuple size: rows and columns of the detector.
    :param tuple shape: rows and columns of a tile.
    :return: (:class:`torch.Tensor`) integer labels, shape ``size``.

    |sep|

    :Examples:

        >>> tiles((2, 7), (2, 3))[0]
        tensor([0, 0, 0, 0, 1, 1, 1])
    """
    counts = [max(1, round(s / t)) for s, t in zip(size, shape, strict=True)]
    row, column = (torch.arange(s) * n // s for s, n in zip(size, counts, strict=True))
    return row[:, None] * counts[1] + column[None, :]


#: Maps detector size, star and FWHM to maps of labels, each a partition of the detector.
Regions = Callable[[tuple[int, int], Tensor, float, int], list[Tensor]]


def annular_regions(
    size: tuple[int, int], center: Tensor, fwhm: float, frames: int
) -> list[Tensor]:
    """Annuli of 1.25 FWHM about the star, whose speckles share a covariance in time."""
    return [annuli(size, center, 1.25 * fwhm, fewest=frames)]


def tiled_regions(size: tuple[int, int], center: Tensor, fwhm: float, frames: int) -> list[Tensor]:
    """Square tiles of about two FWHM."""
    side = max(2, round(2 * fwhm))
    return [tiles(size, (side, side))]


def both_regions(size: tuple[int, int], center: Tensor, fwhm: float, frames: int) -> list[Tensor]:
    """Annuli and tiles, each with half of the weight: for sequences with reference frames."""
    return annular_regions(size, center, fwhm, frames) + tiled_regions(size, center, fwhm, frames)


@dataclass(frozen=True)
class Partition:
    r"""Pixels of the detector, gathered in blocks of regions of nearly equal size.

    :param torch.Tensor order: flat pixel index of each place; ``n_pixels`` (one past the end) where
        a place is padding.
    :param tuple blocks: for each block the number of regions and of places in each.
    :param torch.Tensor counts: number of pixels of each region, in the order of the blocks.
    """

    order: Tensor
    blocks: tuple[tuple[int, int], ...]
    counts: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, slack: float = 1.25) -> Partition:
        """Gather the regions of a map of labels; pixels labelled :data:`EXCLUDED` are left out.

        :param torch.Tensor labels: integers ``(h, w)``.
        :param float slack: regions in one block differ in size by this factor at most.
        :raises ValueError: if every pixel is excluded.
        """
        flat = labels.flatten()
        if not bool((flat != EXCLUDED).any()):
            raise ValueError("no pixel is left in any region: check the mask of bad pixels and NaN")
        regions = [
            torch.nonzero(flat == label)[:, 0] for label in flat.unique() if label != EXCLUDED
        ]
        regions.sort(key=len)
        blocks: list[list[Tensor]] = []
        for region in regions:
            if not blocks or len(region) > slack * len(blocks[-1][0]):
                blocks.append([])
            blocks[-1].append(region)
        order, shapes = [], []
        for block in blocks:
            longest = len(block[-1])
            shapes.append((len(block), longest))
            for region in block:
                order.append(region)
                order.append(region.new_full((longest - len(region),), len(flat)))
        counts = torch.tensor([len(region) for region in regions], device=labels.device)
        return cls(torch.cat(order), tuple(shapes), counts)

    def gather(self, flat: Tensor) -> list[Tensor]:
        """Split rows ``(B, T, pixels)`` into blocks ``(B, regions, T, places)``; padding is zero."""
        padded = torch.nn.functional.pad(flat, (0, 1)).index_select(-1, self.order)
        sizes = [regions * places for regions, places in self.blocks]
        return [
            part.unflatten(-1, block).transpose(1, 2)
            for part, block in zip(padded.split(sizes, -1), self.blocks, strict=True)
        ]

    def scatter(self, blocks: list[Tensor], pixels: int) -> Tensor:
        """Put blocks back in place: the transpose of :meth:`gather`."""
        joined = torch.cat([block.transpose(1, 2).flatten(-2) for block in blocks], -1)
        out = joined.new_zeros(*joined.shape[:-1], pixels + 1)
        return out.index_copy_(-1, self.order, joined)[..., :-1]
