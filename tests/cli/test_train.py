"""Training and restoring on the command line: files, errors in one line, resume after a kill."""

from __future__ import annotations

import csv
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner, Result

from deepinv_astro.cli import app
from deepinv_astro.io.images import read_gray_image, write_gray_image
from deepinv_astro.training import Restoration

SIGMA, FWHM = 0.03, 2.4
RESULTS = ("weights.pt", "checkpoint.pt", "log.csv", "progress.png", "report.json")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert "`" not in result.stderr
    return result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two FITS images and a PNG of blurred squares."""
    g = np.random.default_rng(0)
    images = tmp_path / "sky"
    down = np.arange(-6.0, 7)
    psf = np.exp(-(down[:, None] ** 2 + down**2) / (2 * (FWHM / 2.3548) ** 2))
    fits.PrimaryHDU(300 * psf.astype(np.float32)).writeto(tmp_path / "psf.fits")
    maker = Restoration(torch.from_numpy(psf), SIGMA)
    for k, size in enumerate((72, 80, 76)):
        x = np.zeros((size + 12, size + 8 + 12), np.float32)
        for _ in range(60):
            row, column = g.integers(0, size, 2)
            x[row : row + g.integers(3, 15), column : column + g.integers(3, 15)] = g.random()
        with torch.no_grad():
            y = maker.physics(size, size + 8)(torch.from_numpy(x)[None, None])[0, 0].numpy()
        header = fits.Header({"CRPIX1": 10.0, "CDELT1": 0.5, "OBJECT": "M 1"})
        name = f"{k}.png" if k == 2 else f"{k}.fits"
        write_gray_image(images / name, y, None if k == 2 else header)
    return images


SHORT = ("--steps", 30, "--crop", 20)


def test_train_and_restore(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("train", "--images", folder, "--psf", FWHM, "-o", out, *SHORT)
    assert result.exit_code == 0, result.output
    assert {p.name for p in out.iterdir()} == set(RESULTS)
    report = json.loads((out / "report.json").read_text())
    assert report["noise"] == pytest.approx(SIGMA, rel=0.1)
    assert report["factor"] == 1
    with (out / "log.csv").open() as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["0", "30"]
    target = tmp_path / "restored.fits"
    result = run("restore", folder / "1.fits", "--weights", out / "weights.pt", "-o", target)
    assert result.exit_code == 0, result.output
    found = read_gray_image(target)
    assert found.values.shape == (80, 88)
    assert found.header["OBJECT"] == "M 1"
    assert found.header["CDELT1"] == 0.5
    y = torch.from_numpy(read_gray_image(folder / "1.fits").values)[None]
    with torch.no_grad():
        expected = Restoration.load(out / "weights.pt")(y)[0].numpy()
    assert np.array_equal(found.values, expected)
    assert "restored.fits exists" in error_of(
        "restore", folder / "1.fits", "--weights", out / "weights.pt", "-o", target
    )
    assert "pass --overwrite" in error_of(
        "train", "--images", folder, "--psf", FWHM, "-o", out, *SHORT
    )


def test_super_resolution_with_a_measured_psf(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "train", "--task", "sr", "--images", folder, "--psf", tmp_path / "psf.fits",
        "--noise", SIGMA, "-o", out, *SHORT,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    target = tmp_path / "a.png"
    result = run("restore", folder / "2.png", "--weights", out / "weights.pt", "-o", target)
    assert result.exit_code == 0, result.output
    assert read_gray_image(target).values.shape == (152, 168)
    psf = Restoration.load(out / "weights.pt").psf
    down = torch.arange(-(len(psf) // 2), len(psf) // 2 + 1.0)
    width = float((psf.sum(0) * down**2).sum().sqrt())
    assert width == pytest.approx(FWHM / 2.3548, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--images": "none"}, "--images"),
        ({"--psf": "none.fits"}, "none.fits"),
        ({"--psf": -1}, "--psf"),
        ({"--noise": "loud"}, "--noise: found 'loud'; expected a positive number or auto"),
        ({"--noise": 0}, "--noise"),
        ({"--factor": 3}, "--task sr"),
        ({"--crop": 70}, "--crop"),
        ({"--resume": None}, "--resume"),
        (
            {"--psf": 0},
            "found 0, which leaves nothing to deblur; give that of the images, or pass --task sr",
        ),
        ({"--psf": 40}, "found 121 x 121 pixels, more than the smallest image has (72 on the grid"),
        (
            {"--psf": 70, "--task": "sr"},
            "found 211 x 211 pixels, more than the smallest image has (144",
        ),
        ({"--device": "gpu"}, "--device: found 'gpu'; expected one of cpu, cuda"),
        ({"--device": "cuda:99"}, "--device: PyTorch cannot use 'cuda:99' here"),
    ],
)
def test_errors_name_the_option(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    options: dict[str, object] = {"--images": folder, "--psf": FWHM, "-o": tmp_path / "o"}
    options.update(change)
    words = [w for pair in options.items() for w in pair if w is not None]
    assert message in error_of("train", *words)
    assert not (tmp_path / "o").exists()


def test_a_measured_psf_must_fit(folder: Path, tmp_path: Path) -> None:
    rows = np.arange(-40.0, 41)[:, None]
    wide = np.exp(-np.hypot(rows, rows.T) / 20).astype(np.float32)  # needed to its edges
    fits.PrimaryHDU(wide).writeto(tmp_path / "wide.fits")
    message = error_of(
        "train", "--images", folder, "--psf", tmp_path / "wide.fits", "-o", tmp_path / "o"
    )
    assert "more than the smallest image has (72" in message
    assert not (tmp_path / "o").exists()


def test_images_that_teach_nothing_leave_no_folder(tmp_path: Path) -> None:
    for k in range(2):
        write_gray_image(tmp_path / "flat" / f"{k}.fits", np.ones((120, 120), np.float32))
    out = ("-o", tmp_path / "o")
    assert "--noise" in error_of("train", "--images", tmp_path / "flat", "--psf", 2, *out)
    assert "constant" in error_of(
        "train", "--images", tmp_path / "flat", "--psf", 2, "--noise", 1, *out
    )
    assert not (tmp_path / "o").exists()


def test_super_resolution_says_that_its_noise_is_uncertain(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Restoration] = []
    monkeypatch.setattr(
        importlib.import_module("deepinv_astro.cli.train_images"),
        "_run",
        lambda _, r, *a: seen.append(r),
    )
    options = ("--images", folder, "--task", "sr", "--psf", 0, "--crop", 12, "-o", tmp_path / "o")
    result = run("train", *options)
    assert result.exit_code == 0, result.output
    assert "may be some 40 % too high" in result.output
    assert "40 %" not in run("train", *options, "--noise", SIGMA).output
    assert [(r.psf.tolist(), r.factor) for r in seen] == [([[1.0]], 2)] * 2
    wide = run("train", *options[:5], 25, *options[6:])  # 77 pixels, on images of 2 x 72
    assert wide.exit_code == 0, wide.output
    assert seen[2].psf.shape == (77, 77)


def test_help_shows_flags_without_a_value() -> None:
    for command in ("train", "restore"):
        text = run(command, "--help").output
        lines = [line for line in text.splitlines() if "--overwrite" in line or "--resume" in line]
        assert lines
        assert not any("bool" in line for line in lines)


def test_training_runs_on_the_device_that_was_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever torch has: here its device without data stands for a GPU."""
    reconstruct, train = (
        importlib.import_module(f"deepinv_astro.cli.{name}")
        for name in ("reconstruct", "train_images")
    )
    monkeypatch.setattr(reconstruct, "check_device", lambda name: None)
    seen = {}

    def stop(training, restoration, *rest):  # type: ignore[no-untyped-def]
        tensors = [*training.model.state_dict().values(), *training.physics.state_dict().values(),
                   *training.train, training.validate, restoration.psf]  # fmt: skip
        seen.update(dict.fromkeys(t.device.type for t in tensors))

    monkeypatch.setattr(train, "_run", stop)
    options = ("--images", folder, "--psf", FWHM, "-o", tmp_path / "o", *SHORT)
    for device in ("cpu", "meta"):
        seen.clear()
        result = run("train", *options, "--device", device)
        assert result.exit_code == 0, result.output
        assert set(seen) == {device}


def test_errors_of_restore(folder: Path, tmp_path: Path) -> None:
    assert "none.fits" in error_of(
        "restore", tmp_path / "none.fits", "--weights", folder / "0.fits"
    )
    assert "--weights" in error_of("restore", folder / "0.fits", "--weights", folder / "1.fits")
    image, out = folder / "0.fits", tmp_path / "x.jpg"
    assert ".fits or .png" in error_of("restore", image, "--weights", image, "--out", out)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)[
        "model"
    ]
    return state


def test_resume_refuses_another_training(folder: Path, tmp_path: Path) -> None:
    options = ["train", "--images", folder, "--steps", "30", "--crop", "16", "-o", tmp_path / "t"]
    assert run(*options, "--psf", FWHM).exit_code == 0
    before = (tmp_path / "t" / "report.json").read_text()
    result = run(*options, "--psf", FWHM + 0.1, "--seed", "4", "--resume")
    assert result.exit_code == 2
    assert "was begun with another psf" in result.output
    assert "seed" in result.output
    assert (tmp_path / "t" / "report.json").read_text() == before


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    options = [
        "train", "--images", str(folder), "--psf", str(FWHM), "--steps", "250", "--crop", "16",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*options, "-o", whole).exit_code == 0
    command = [sys.executable, "-m", "deepinv_astro.cli", *options, "-o", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log, deadline = killed / "log.csv", time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = torch.load(killed / "checkpoint.pt", weights_only=True)
    assert state["step"] in (0, 100, 200)
    assert run(*options, "-o", killed, "--resume").exit_code == 0
    one, two = weights_of(whole), weights_of(killed)
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)


def test_a_loss_that_is_not_finite_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*arguments: object) -> None:
        raise FloatingPointError("the loss of step 3 is nan: lower the rate")

    monkeypatch.setattr("deepinv_astro.training.Training.run", diverge)
    options = ("--images", folder, "--psf", FWHM, "-o", tmp_path / "o", *SHORT)
    result = run("train", *options)
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]  # below the progress bar
    assert last == "Error: the loss of step 3 is nan: lower the rate"
