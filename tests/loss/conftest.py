"""A short training of a small network by deepinv's Trainer, on images blurred each by its own PSF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from deepinv.loss import Loss
from torch.utils.data import DataLoader, Dataset

from deepinv_astro.physics import Blur, HeteroscedasticNoise

_SHAPE = (1, 9, 8)


class _Blurred(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, n):
        generator = torch.Generator().manual_seed(n)
        x, psf = (torch.rand(shape, generator=generator) for shape in (_SHAPE, (1, 3, 3)))
        psf /= psf.sum()
        return {"x": x, "y": Blur(_SHAPE, psf).A(x[None])[0], "params": {"filter": psf}}


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, y, physics, **kwargs):
        return self.layer(physics.A_adjoint(y))


@pytest.fixture
def train(tmp_path: Path) -> Callable[[list[Loss]], dinv.Trainer]:
    """Two steps with these losses, and a validation with them; the network must have moved."""

    def run(losses: list[Loss]) -> dinv.Trainer:
        network = _Network()
        before = network.layer.weight.detach().clone()
        trainer = dinv.Trainer(
            model=network,
            physics=Blur(_SHAPE, torch.ones(1, 1), noise_model=HeteroscedasticNoise(0.1)),
            optimizer=torch.optim.SGD(network.parameters(), lr=1e-2),
            train_dataloader=DataLoader(_Blurred(), batch_size=2),
            eval_dataloader=DataLoader(_Blurred(), batch_size=2),
            losses=losses,
            metrics=None,
            compute_eval_losses=True,
            epochs=1,
            save_path=str(tmp_path),
            device="cpu",
            non_blocking_transfers=False,
            verbose=False,
            show_progress_bar=False,
        )
        trainer.train()
        assert not torch.equal(before, network.layer.weight)
        for loss in losses:
            name = type(loss).__name__
            assert len(trainer.loss_history[name]) == len(trainer.eval_loss_history[name]) == 1
            assert abs(trainer.loss_history[name][0]) < 10, name
        return trainer

    return run
