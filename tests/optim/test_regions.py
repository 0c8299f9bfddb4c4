"""Regions of the detector: labels against loops, and the gathering of their pixels."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.optim.regions import (
    EXCLUDED,
    Partition,
    annular_regions,
    annuli,
    both_regions,
    separation,
    tiled_regions,
    tiles,
)

SIZE, CENTER = (13, 18), (5.5, 8.25)


def test_separation_is_measured_from_row_and_column_of_the_star():
    distance = separation(SIZE, CENTER)
    for row, column in ((0, 0), (12, 3), (5, 17)):
        assert float(distance[row, column]) == pytest.approx(math.hypot(row - 5.5, column - 8.25))
    assert torch.equal(distance, separation(SIZE, torch.tensor(CENTER)))


def test_annuli_are_the_bins_of_the_separation():
    labels = annuli(SIZE, CENTER, 2.5, fewest=1)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            assert int(labels[row, column]) == int(math.hypot(row - 5.5, column - 8.25) / 2.5)


@pytest.mark.parametrize("fewest", [30, 60, 100, 130, 234, 1000])
@pytest.mark.parametrize("center", [(6, 9), (0, 0), (-7.0, 9.0)])
def test_no_annulus_is_smaller_than_asked_where_it_can_be_avoided(fewest, center):
    labels = annuli(SIZE, center, 2.0, fewest)
    values, counts = labels.unique(return_counts=True)
    assert values.tolist() == list(range(len(values)))
    assert len(values) == 1 or int(counts.min()) >= fewest
    order = separation(SIZE, center).flatten().argsort()
    assert bool((labels.flatten()[order].diff() >= 0).all())
    bins = (separation(SIZE, center) / 2).long()
    for j in bins.unique():
        assert len(labels[bins == j].unique()) == 1


def test_small_innermost_annulus_joins_the_next_one_only():
    before = annuli((21, 21), (10, 10), 3.0, 1).unique(return_counts=True)[1].tolist()
    after = annuli((21, 21), (10, 10), 3.0, before[0] + 1).unique(return_counts=True)[1].tolist()
    assert after[:2] == [before[0] + before[1], before[2]]


@pytest.mark.parametrize(
    ("size", "shape"), [((13, 18), (4, 5)), ((5, 3), (8, 8)), ((9, 2), (1, 2))]
)
def test_tiles_are_rectangles_of_nearly_equal_size(size, shape):
    labels = tiles(size, shape)
    counts = labels.unique(return_counts=True)[1]
    rows, columns = (max(1, round(s / t)) for s, t in zip(size, shape, strict=True))
    assert len(counts) == rows * columns
    for label in labels.unique():
        where = torch.nonzero(labels == label)
        extent = where.max(0).values - where.min(0).values + 1
        assert int(extent.prod()) == len(where)  # a rectangle
        assert extent[0] in (size[0] // rows, -(-size[0] // rows))
        assert extent[1] in (size[1] // columns, -(-size[1] // columns))


def test_kinds_of_regions():
    center = torch.tensor(CENTER)
    rings = annular_regions(SIZE, center, 4.0, 20)
    squares = tiled_regions(SIZE, center, 4.0, 20)
    assert torch.equal(rings[0], annuli(SIZE, center, 5.0, 20))
    assert torch.equal(squares[0], tiles(SIZE, (8, 8)))
    assert all(map(torch.equal, both_regions(SIZE, center, 4.0, 20), rings + squares))


@pytest.fixture
def labels(rng):
    found = torch.randint(0, 6, SIZE, generator=rng) * 7  # labels need not be consecutive
    found[0, :14] = 35
    found[4, 2:9] = EXCLUDED
    return found


def test_gather_gives_each_region_its_pixels_and_zeros_elsewhere(labels, rng):
    partition = Partition.from_labels(labels)
    y = torch.randn(2, 3, labels.numel(), generator=rng, dtype=torch.float64)
    found = []
    for block, (regions, places) in zip(partition.gather(y), partition.blocks, strict=True):
        assert block.shape == (2, regions, 3, places)
        found += list(block.unbind(1))
    assert len(found) == len(partition.counts) == 6
    expected = {int(label): y[..., labels.flatten() == label] for label in range(0, 42, 7)}
    counts = [pixels.shape[-1] for pixels in expected.values()]
    assert sorted(counts) == partition.counts.tolist()
    for rows, count in zip(found, partition.counts, strict=True):
        assert any(
            pixels.shape[-1] == count and torch.equal(rows[..., :count], pixels)
            for pixels in expected.values()
        )
        assert not rows[..., count:].any()
    assert any(rows.shape[-1] > count for rows, count in zip(found, partition.counts, strict=True))


def test_scatter_is_the_transpose_of_gather_and_undoes_it(labels, rng):
    partition = Partition.from_labels(labels)
    y = torch.randn(2, 3, labels.numel(), generator=rng, dtype=torch.float64)
    blocks = [torch.randn(b.shape, generator=rng, dtype=b.dtype) for b in partition.gather(y)]
    left = sum(float((a * b).sum()) for a, b in zip(partition.gather(y), blocks, strict=True))
    right = float((y * partition.scatter(blocks, labels.numel())).sum())
    assert left == pytest.approx(right, rel=1e-12)
    back = partition.scatter(partition.gather(y), labels.numel())
    kept = (labels != EXCLUDED).flatten()
    assert torch.equal(back[..., kept], y[..., kept])
    assert not back[..., ~kept].any()


def test_blocks_waste_little_and_one_block_would_do():
    labels = annuli((40, 45), (20, 22), 3.0, 1)
    partition = Partition.from_labels(labels)
    assert len(partition.order) <= 1.25 * labels.numel()
    assert len(Partition.from_labels(labels, slack=1e9).blocks) == 1
    assert len(Partition.from_labels(labels, slack=1.0).blocks) == len(
        set(partition.counts.tolist())
    )


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="no pixel is left"):
        Partition.from_labels(torch.full((3, 4), EXCLUDED))
