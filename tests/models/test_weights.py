"""Files of weights: the network comes back whole from the file alone, and others are refused."""

from __future__ import annotations

import json
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepinv_astro.models import (
    MarginalPilot,
    SmallUNet,
    UnrolledADI,
    WhitePilot,
    load_weights,
    read_weights_card,
    save_weights,
    temporal_level,
)
from deepinv_astro.models.weights import SHIPPED
from deepinv_astro.optim import Marginal
from deepinv_astro.optim.projected import minimize_projected
from deepinv_astro.physics import ADI

CARD = {"data": "none, random", "limits": "all: β Pictoris is not in it"}


def described(**changes: object) -> dict[str, str]:
    """Metadata of a file."""
    known = {"format": "deepinv_astro.UnrolledADI", "version": 1}
    return {"deepinv_astro": json.dumps(known | changes)}


def network(width: int = 4) -> UnrolledADI:
    """Random, with a shared network, and a pilot that is not the default."""
    torch.manual_seed(3)
    one, other = SmallUNet(width), SmallUNet(width)
    pilot = MarginalPilot(Marginal(iterations=(3, 5), sparsity=0.4))
    model = UnrolledADI(pilot, [one, other, one], positive=False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_weights(path, network(), CARD)
    return path


def test_the_file_alone_makes_the_same_network(path: Path) -> None:
    made, model = load_weights(path), network()
    assert made.prox[0] is made.prox[2]
    assert made.prox[0] is not made.prox[1]
    assert not made.training
    assert made.positive is False
    assert made.pilot.method.iterations == (3, 5)
    assert made.pilot.method.sparsity == 0.4
    physics = ADI((1, 14, 13), torch.linspace(0, 70, 8))
    y = torch.randn(1, 1, 8, 14, 13, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(y, physics)
        assert torch.equal(made(y, physics), expected)
    assert not torch.equal(expected, expected.clamp_min(0))
    # written again, it is the same file
    again = path.with_name("again.safetensors")
    save_weights(again, made, CARD)
    assert again.read_bytes() == path.read_bytes()


def test_card_and_digest(path: Path) -> None:
    found = read_weights_card(path)
    assert found.card == CARD
    assert found.name == "w.safetensors"
    assert len(found.digest) == 12
    assert found.architecture["order"] == [0, 1, 0]
    assert (found.architecture["steps"], found.architecture["width"]) == (3, 4)
    model = network()
    with torch.no_grad():
        model.log_steps[0] += 1
    save_weights(path, model, CARD, overwrite=True)
    assert read_weights_card(path).digest != found.digest


def test_the_default_pilot_comes_back(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", UnrolledADI(prox=[SmallUNet(4)]), CARD)
    made, default = load_weights(tmp_path / "w").pilot.method, MarginalPilot().method
    assert made.solver.func is default.solver.func
    assert made.solver.keywords == default.solver.keywords
    assert made.iterations == default.iterations
    other = Marginal(solver=partial(minimize_projected, memory=3))
    with pytest.raises(ValueError, match="minimize_projected"):
        save_weights(tmp_path / "v", UnrolledADI(MarginalPilot(other), [SmallUNet(4)]), CARD)


def test_double_precision_is_read_in_the_default_one(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", network().double(), CARD)
    assert load_weights(tmp_path / "w").log_steps.dtype == torch.float32


def test_an_existing_file_is_kept(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        save_weights(path, network(8), CARD)
    assert path.read_bytes() == before


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "w"
    for model, message in (
        (UnrolledADI(WhitePilot(temporal_level), [SmallUNet(4)]), "MarginalPilot"),
        (UnrolledADI(prox=[SmallUNet(4), SmallUNet(8)]), "one width"),
        (UnrolledADI(prox=[SmallUNet(4, features=5)]), "features"),
        (UnrolledADI(prox=[torch.nn.Identity()]), "Identity"),
    ):
        with pytest.raises(ValueError, match=message):
            save_weights(target, model, CARD)
    with pytest.raises(ValueError, match="card"):
        save_weights(target, network(), {"seed": 3})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [4, 100, 3000, -1])
def test_a_file_that_is_cut_off(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load_weights, read_weights_card):
        with pytest.raises(ValueError, match=r"w\.safetensors: found a file that is cut off"):
            read(path)


def test_other_files(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_weights(tmp_path / "none")
    (tmp_path / "text").write_text("not a network, but a long line of text, all the same")
    with pytest.raises(ValueError, match="of another kind"):
        load_weights(tmp_path / "text")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="the format None"):
        load_weights(tmp_path / "foreign")
    tensors = load_file(path)
    save_file(tensors, path, described(version=2))
    with pytest.raises(ValueError, match=r"version 2; expected 1, .* update deepinv_astro"):
        load_weights(path)
    save_file(tensors, path, described())
    with pytest.raises(ValueError, match="no description"):
        load_weights(path)
    save_file(tensors, path, {"deepinv_astro": "[]"})
    with pytest.raises(ValueError, match="no description"):
        load_weights(path)


@pytest.mark.parametrize(
    "change",
    [{"width": 5}, {"steps": 2}, {"order": [0, 2, 0]}, {"order": [0, 0, 0]}, {"pilot": {}}],
)
def test_a_description_of_something_else(path: Path, change: dict[str, object]) -> None:
    known = read_weights_card(path)
    architecture = known.architecture | change
    save_file(load_file(path), path, described(architecture=architecture, card={}))
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.prox[1].last.bias.fill_(torch.nan)
    save_weights(tmp_path / "w", model, CARD)
    with pytest.raises(ValueError, match="not finite"):
        load_weights(tmp_path / "w")


def test_weights_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = resources.files("deepinv_astro") / "weights" / SHIPPED
    if shipped.is_file():
        assert len(shipped.read_bytes()) < 3e6
        assert sum(p.numel() for p in load_weights().parameters()) < 500_000
        assert {"data", "seed", "command", "scores", "limits"} <= set(read_weights_card().card)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=r"no survey\.safetensors in this installation"):
        load_weights()
