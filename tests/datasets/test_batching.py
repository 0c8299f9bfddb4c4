"""Batches of uneven sequences: each datum counts once, each process sees its share."""

from __future__ import annotations

import pytest
import torch

from deepinv_astro.datasets import (
    BucketBatchSampler,
    SyntheticSurvey,
    collate_sequences,
    data_weights,
)
from deepinv_astro.physics import ADI

SIZE = (19, 23)
SHAPES = [(4, 9, 9)] * 7 + [(6, 9, 9)] * 4 + [(4, 9, 11)] * 3


def _flat(batches):
    return sorted(i for batch in batches for i in batch)


def test_buckets_hold_one_shape_and_every_target_once():
    sampler = BucketBatchSampler(SHAPES, 3)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3 + 2 + 1
    assert _flat(batches) == list(range(14))
    assert all(len({SHAPES[i] for i in batch}) == 1 for batch in batches)
    whole = BucketBatchSampler(SHAPES, 3, drop_last=True)
    assert [len(b) for b in whole] == [3] * len(whole) == [3] * 4


def test_order_follows_seed_and_epoch():
    sampler = BucketBatchSampler(SHAPES, 3, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert first != list(BucketBatchSampler(SHAPES, 3, seed=5))
    firsts = set()
    for epoch in range(8):  # buckets are mixed: no shape always comes first
        sampler.set_epoch(epoch)
        firsts.add(SHAPES[next(iter(sampler))[0]])
    assert len(firsts) == 3


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_the_batches_of_one(drop_last):
    """Two processes with batches of 2 together see the batches of 4 of a single one."""
    options = {"seed": 3, "drop_last": drop_last}
    one = list(BucketBatchSampler(SHAPES, 4, **options))
    pair = [
        list(BucketBatchSampler(SHAPES, 2, num_replicas=2, rank=rank, **options)) for rank in (0, 1)
    ]
    assert len(pair[0]) == len(pair[1]) == len(one)
    for whole, left, right in zip(one, *pair, strict=True):
        assert set(left) | set(right) == set(whole)
        assert len(left) == len(right)
        assert len({SHAPES[i] for i in left + right}) == 1
        if len(whole) == 4:
            assert sorted(left + right) == sorted(whole)


def test_process_group_is_found(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        sampler = BucketBatchSampler(SHAPES, 3)
        assert (sampler.num_replicas, sampler.rank) == (1, 0)
    finally:
        torch.distributed.destroy_process_group()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        BucketBatchSampler(SHAPES, 0)
    with pytest.raises(ValueError, match="rank must be below num_replicas=2, got 2"):
        BucketBatchSampler(SHAPES, 1, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="at least one target"):
        BucketBatchSampler([], 1)
    items = [SyntheticSurvey.small(1, img_size=s, frames=3)[0] for s in (SIZE, (23, 19))]
    with pytest.raises(
        ValueError, match=r"one size, got \[\(19, 23\), \(23, 19\)\]; pass `img_size`"
    ):
        collate_sequences(items)
    with pytest.raises(ValueError, match=r"sequences \[1\] of the batch have no data"):
        data_weights(torch.tensor([[1.0], [0.0]]))


def _uneven():
    surveys = [
        SyntheticSurvey.small(1, seed=s, img_size=SIZE, frames=f, psf_size=k, gain_scatter=0.1)
        for s, f, k in ((0, 3, 7), (1, 5, 9))
    ]
    return [s[0] for s in surveys]


def test_padding_changes_neither_residuals_nor_gradients():
    """The weighted mean over a padded batch is that of each sequence alone, and so is its gradient."""
    items = _uneven()
    batch = collate_sequences(items)
    assert batch["y"].shape == (2, 1, 5, *SIZE)
    assert batch["params"]["filter"].shape == (2, 1, 9, 9)
    assert "x" not in batch
    physics = ADI((1, *SIZE), torch.zeros(1))
    physics.update(**batch["params"])
    sky = torch.rand(2, 1, *SIZE, requires_grad=True)
    residual = batch["y"] - physics.A(sky)
    assert not bool(residual[0, :, 3:].any())
    risk = (data_weights(physics.gain) * residual.square()).mean((1, 2, 3, 4))
    (gradient,) = torch.autograd.grad(risk.sum(), sky)
    for n, item in enumerate(items):
        alone = ADI((1, *SIZE), **{k: v[None] for k, v in item["params"].items()})
        x = sky[n : n + 1].detach().clone().requires_grad_()
        expected = (item["y"] - alone.A(x)).square().mean()
        torch.testing.assert_close(risk[n], expected, rtol=1e-4, atol=0)
        (slope,) = torch.autograd.grad(expected, x)
        torch.testing.assert_close(
            gradient[n], slope[0], rtol=1e-3, atol=1e-4 * float(slope.abs().max())
        )


def test_weights_count_what_is_there():
    gain = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])
    transmission = torch.ones(2, 2, 4)
    transmission[1, 0] = 0.0
    weights = data_weights(gain, transmission)
    assert weights.shape == (2, 1, 3, 2, 4)
    torch.testing.assert_close(weights.mean((1, 2, 3, 4)), torch.ones(2))
    assert weights[0, 0, :, 0, 0].tolist() == pytest.approx([1.5, 1.5, 0.0])
    assert weights[1, 0, 0, :, 0].tolist() == pytest.approx([0.0, 2.0])


def test_truth_is_batched_only_if_all_have_it():
    options = {"img_size": SIZE, "frames": 3}
    with_truth = SyntheticSurvey.small(2, with_truth=True, **options)
    without = SyntheticSurvey.small(2, **options)
    assert torch.equal(
        collate_sequences([with_truth[0], with_truth[1]])["x"][1], with_truth[1]["x"]
    )
    assert "x" not in collate_sequences([with_truth[0], without[1]])
