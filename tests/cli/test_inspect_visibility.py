"""What ``inspect`` says of angular modes, and its figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner, Result

from deepinv_astro.cli import app
from deepinv_astro.physics import ADI

ANGLES = torch.tensor([0.0, 11.0, 26.0, 38.0, 60.0])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A halo, a source, noise."""
    generator = torch.Generator().manual_seed(2)
    r = torch.arange(-17.0, 18)
    psf = torch.exp(-(r[10:-10, None] ** 2 + r[10:-10] ** 2) / 6)
    physics = ADI((1, 35, 35), ANGLES, psf / psf.sum())
    x = torch.zeros(1, 1, 35, 35)
    x[0, 0, 26, 20] = 900.0
    halo = 300 * torch.exp(-torch.hypot(r[:, None], r) / 5)
    cube = (physics.A(x)[0, 0] + halo) + torch.randn(5, 35, 35, generator=generator)
    paths = [tmp_path / f"{name}.fits" for name in ("cube", "angles", "psf")]
    for path, values in zip(paths, (cube, ANGLES, psf), strict=True):
        fits.PrimaryHDU(values.numpy()).writeto(path)
    return paths


def test_modes_by_both_ways_and_the_figure(files: list[Path], tmp_path: Path) -> None:
    facts, figure = tmp_path / "facts.json", tmp_path / "seen.png"
    options = ("--angles-unit", "deg", "--center", "17,17")
    result = run("inspect", *files, *options, "--json", facts, "--figure", figure)
    assert result.exit_code == 0, result.output
    assert "the same through the operator" in result.output
    modes = json.loads(facts.read_text())["visibility"]
    assert len(modes) == 11
    phase = torch.deg2rad(ANGLES.double())
    for entry in modes[:5]:
        expected = 1 - float(torch.exp(1j * entry["mode"] * phase).mean().abs() ** 2)
        assert entry["visibility"] == pytest.approx(expected, abs=1e-5)
        assert entry["measured"] == pytest.approx(expected, abs=2e-3)
    assert figure.read_bytes()[:4] == b"\x89PNG"
    again = run("inspect", *files, *options, "--figure", figure)
    assert again.exit_code == 2
    assert "seen.png" in again.output.replace("\n", "")
    assert run("inspect", *files, *options, "--figure", figure, "--overwrite").exit_code == 0


def test_without_a_psf_only_the_closed_form(files: list[Path], tmp_path: Path) -> None:
    facts, figure = tmp_path / "facts.json", tmp_path / "seen.pdf"
    result = run("inspect", *files[:2], "--angles-unit", "deg", "--json", facts, "--figure", figure)
    assert result.exit_code == 0, result.output
    assert "through the operator" not in result.output
    assert all("measured" not in m for m in json.loads(facts.read_text())["visibility"])
    assert figure.read_bytes()[:4] == b"%PDF"
