"""``reconstruct --method learned``: weights, adaptation, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner, Result

from deepinv_astro.cli import app
from deepinv_astro.cli.problem import prepare
from deepinv_astro.io import read_parameters, read_sequence
from deepinv_astro.models import (
    MarginalPilot,
    SmallUNet,
    UnrolledADI,
    load_weights,
    read_weights_card,
    save_weights,
)
from deepinv_astro.optim import Marginal
from deepinv_astro.physics import ADI
from deepinv_astro.training import adapt

CENTER, SIZE, FRAMES = (12.4, 13.7), (25, 27), 8


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def separation() -> torch.Tensor:
    rows, columns = torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")
    return torch.hypot(rows - CENTER[0], columns - CENTER[1])


def operator(channels: int) -> ADI:
    down, across = torch.arange(-4.0, 5)[:, None], torch.arange(-4.0, 5)
    psf = torch.exp(-(down**2 + across**2) / (2 * 1.2**2))
    angles = torch.linspace(0.0, 80.0, FRAMES, dtype=torch.float64)
    through = 1 - 0.9 * torch.exp(-(separation().square()) / 8)
    return ADI((channels, *SIZE), angles, (psf / psf.sum())[None, None], CENTER, through)


def make(folder: Path, channels: int = 1, dead: bool = False) -> list[object]:
    """Cube, angles and PSF of a bright bar beside a halo, and the coronagraph."""
    g = torch.Generator().manual_seed(4)
    physics = operator(channels)
    x = torch.zeros(1, channels, *SIZE)
    x[..., 17:19, 4:9] = 20.0
    halo = 200 * torch.exp(-separation() / 6)
    y = halo + physics.A(x)[0]
    y = y + torch.randn(y.shape, generator=g)
    if dead:
        y[:, 3, 5:8] = torch.nan
        y[:, :, 20, 20] = torch.nan
    psf = 4e4 * physics.filter.flatten(0, -3)[0].expand(channels, -1, -1)
    arrays = (y, physics.angles[0], psf, physics.transmission)
    paths = [folder / f"{name}.fits" for name in ("cube", "angles", "psf", "through")]
    for path, array in zip(paths, arrays, strict=True):
        fits.PrimaryHDU(array.squeeze().numpy()).writeto(path)
    return [*paths[:3], "--transmission", paths[3]]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    model = UnrolledADI(MarginalPilot(Marginal(iterations=(3, 4))), [SmallUNet(4)] * 2)
    torch.nn.init.normal_(model.prox[0].last.weight, std=0.02)
    save_weights(tmp_path / "tiny.safetensors", model, {"data": "none: random numbers"})
    return tmp_path / "tiny.safetensors"


GIVEN = ("--center", f"{CENTER[0]},{CENTER[1]}", "--pixel-scale", "20mas")


def test_the_image_is_that_of_the_network(weights: Path, tmp_path: Path) -> None:
    files = make(tmp_path, channels=2, dead=True)
    result = run(
        "reconstruct", *files, *GIVEN, "--method", "learned", "--weights", weights, "-o", tmp_path / "out"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with fits.open(tmp_path / "out" / "image.fits") as hdus:
        image, header = hdus[0].data, hdus[0].header
        assert [h.name for h in hdus][1:4] == ["UNCERTAINTY", "SNR", "VISIBILITY"]
    y = torch.from_numpy(fits.getdata(files[0]).astype(np.float32))[None]
    physics = operator(2)
    with torch.no_grad():
        expected = load_weights(weights)(y, physics)[0].numpy()
    assert image.shape == (2, *SIZE)
    assert image[:, 17:19, 4:9].min() > 5
    assert np.isfinite(image).all()
    assert np.allclose(image, expected, atol=0.02 * expected.max())
    digest = read_weights_card(weights).digest
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["method"] == "learned"
    assert report["image"] == "flux per pixel of the sky"
    assert report["parameters"]["weights_sha256"] == digest
    assert report["parameters"]["weights_card"] == {"data": "none: random numbers"}
    assert "adaptation" not in report["parameters"]
    for text in (" ".join(report["notes"]), " ".join(result.output.split())):
        assert f"tiny.safetensors (SHA-256 {digest}...): none: random numbers." in text
        assert "trained on" in text
    assert read_parameters(tmp_path / "out" / "image.fits")["weights"] == "tiny.safetensors"
    assert digest in "".join(header["HISTORY"])


def test_adapted_it_says_what_was_done(weights: Path, tmp_path: Path) -> None:
    files = make(tmp_path)
    options = ["--method", "learned", "--weights", weights, "--seed", 3]
    out = tmp_path / "out"
    result = run("reconstruct", *files, *GIVEN, *options, "--adapt", 3, "-o", out)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    found = report["parameters"]["adaptation"]
    sequence = read_sequence(*files[:3], transmission=files[4], center=CENTER)
    physics = prepare(sequence).physics
    expected = adapt(load_weights(weights), sequence.y, physics, steps=3, seed=3)
    assert found["steps"] == 3
    assert [line["step"] for line in found["history"]] == [0, 3]
    assert found["chosen_step"] == expected.chosen
    assert found["risk_before"] == expected.before
    assert found["risk_after"] <= found["risk_before"]
    said = " ".join(result.output.split())
    assert "Adapted by gains of 6 rings (from the star outwards" in said
    assert f"and {expected.chosen} of 3 steps" in said or "None of 3 steps was better." in said
    assert found["ring_gains"] == expected.gains.values.tolist()
    image = fits.getdata(out / "image.fits")
    assert np.allclose(image, expected.image[0, 0].numpy())


def test_an_adaptation_that_does_not_help_is_said(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from deepinv_astro import training

    monkeypatch.setattr(training, "adapt", partial(training.adapt, learning_rate=3.0))
    files = make(tmp_path)
    result = run(
        "reconstruct", *files, *GIVEN, "--method", "learned", "--weights", weights, "--adapt", 2,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "None of 2 steps was better." in " ".join(result.output.split())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parameters"]["adaptation"]["chosen_step"] == 0
    # no steps are the gains alone
    result = run(
        "reconstruct", *files, *GIVEN, "--method", "learned", "--weights", weights, "--adapt", 0,
        "-o", tmp_path / "gains",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "steps" not in result.output.split("Adapted by gains")[1].split("The risk")[0]
    images = [fits.getdata(tmp_path / name / "image.fits") for name in ("out", "gains")]
    assert np.array_equal(*images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "WEIGHTS"], "--weights: found"),
        (["--adapt", "5"], "--adapt: found 5 with the method marginal"),
        (["--method", "pca", "--adapt", "5"], "--method learned, or leave out --adapt"),
        (["--method", "learned", "--weights", "none.safetensors"], "no such file"),
        (["--method", "learned", "--weights", "CUBE"], "of another kind"),
        (["--method", "learned", "--weights", "CUT"], "cut off"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    weights: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    files = make(tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-7])
    named = {"WEIGHTS": weights, "CUBE": files[0], "CUT": cut}
    out = tmp_path / "out"
    result = run("reconstruct", *files, *[named.get(o, o) for o in options], "-o", out)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_without_rotation_it_cannot_adapt(weights: Path, tmp_path: Path) -> None:
    files = make(tmp_path)
    fits.PrimaryHDU(np.full(FRAMES, 20.0)).writeto(files[1], overwrite=True)
    result = run(
        "reconstruct", *files, *GIVEN, "--method", "learned", "--weights", weights, "--adapt", 2,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 2, result.output
    assert "rotation" in result.stderr


def test_help_names_the_options() -> None:
    text = run("reconstruct", "--help").output
    for name in ("learned", "--weights", "--adapt"):
        assert name in text
