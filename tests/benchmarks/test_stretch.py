"""The operators of the stretch benchmark are those of the package, in fewer numbers."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deepinv_astro.loss import FrameSplit, FrameSplittingLoss, FrameSplittingModel, frame_subset
from deepinv_astro.physics import ADI

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
SIZE, T = 9, 8


@pytest.fixture
def stretch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("stretch")


@pytest.fixture
def physics(stretch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ADI:
    monkeypatch.setattr(stretch, "SIZE", SIZE)
    angles = torch.linspace(0, 70, T).double() ** 1.2
    return ADI((1, SIZE, SIZE), angles, stretch.PSF[2:7, 2:7].double(), dtype=torch.float64)


def test_projected_data_lose_nothing_of_the_image(
    stretch: ModuleType, physics: ADI, rng: torch.Generator
) -> None:
    whole = stretch.Projected(physics)
    x = torch.randn(3, 1, SIZE, SIZE, generator=rng)
    y = physics.A(x.double())
    centred = y - y.mean(2, keepdim=True)
    torch.testing.assert_close(
        whole.A(x).square().flatten(1).sum(1), centred.square().flatten(1).sum(1).float()
    )
    halo = 10 * torch.rand(1, 1, 1, SIZE, SIZE, generator=rng)
    torch.testing.assert_close(whole.coordinates(y.float() + halo), whole.A(x), rtol=0, atol=3e-3)
    z = torch.randn(3, 1, 1, len(whole.matrix), generator=rng)
    torch.testing.assert_close((whole.A(x) * z).sum(), (x * whole.A_adjoint(z)).sum())
    unit = whole.analysis @ whole.analysis.mT  # white noise stays white, of the same level
    torch.testing.assert_close(unit, torch.eye(len(unit)), rtol=0, atol=1e-3)


def test_its_splitting_is_that_of_the_package(
    stretch: ModuleType, physics: ADI, rng: torch.Generator
) -> None:
    split = FrameSplit(torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7]))
    held = stretch.Projected(frame_subset(physics, split.held))
    y = torch.randn(1, 1, T, SIZE, SIZE, generator=rng, dtype=torch.float64)
    images = torch.randn(2, 1, 1, SIZE, SIZE, generator=rng, dtype=torch.float64)
    loss = FrameSplittingLoss()
    model = FrameSplittingModel(torch.nn.Identity(), loss)
    model.split = split
    values = [loss(x_net=x, y=y, physics=physics, model=model) for x in images]
    z = held.coordinates(y[:, :, split.held].float())
    own = [(z - held.A(x.float())).square().mean() for x in images]
    numbers = 4 * SIZE**2, len(held.matrix)
    expected = (values[0] - values[1]) * numbers[0]
    torch.testing.assert_close(
        (own[0] - own[1]).view(1) * numbers[1], expected.float(), rtol=1e-3, atol=1e-3
    )


def test_disks_have_their_inclinations(stretch: ModuleType, rng: torch.Generator) -> None:
    found = stretch.disks(40, rng)
    assert found.x.shape == (40, 1, stretch.SIZE, stretch.SIZE)
    flux = found.x.flatten(1).sum(1)
    assert float(flux.min()) >= stretch.FLUX[0] - 1e-2
    assert float(flux.max()) <= stretch.FLUX[1] + 1e-2
    offsets = torch.arange(stretch.SIZE) - stretch.SIZE // 2.0
    moments = torch.stack(
        [
            (found.x[:, 0] * a).flatten(1).sum(1) / flux
            for a in (
                offsets[:, None] ** 2 + 0 * offsets,
                offsets**2 + 0 * offsets[:, None],
                offsets[:, None] * offsets,
            )
        ]
    )
    matrix = torch.stack([moments[[0, 2]], moments[[2, 1]]]).permute(2, 0, 1)
    ratio = torch.linalg.eigvalsh(matrix)
    ratio = (ratio[:, 0] / ratio[:, 1]).sqrt()
    expected = torch.deg2rad(found.inclination).cos().float()
    assert float(torch.corrcoef(torch.stack([ratio, expected]))[0, 1]) > 0.8


def test_recovered_share_of_the_invariant_part(stretch: ModuleType, rng: torch.Generator) -> None:
    truth = stretch.disks(6, rng)
    result = stretch.scores([0.25 * truth.x], [truth.x], truth.inclination)
    assert result["all_invisible_flux"] == pytest.approx(0.25, abs=1e-5)
    assert result["all_db"] == pytest.approx(-20 * torch.log10(torch.tensor(0.75)).item(), abs=1e-4)
