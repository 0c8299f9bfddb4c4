"""The command line on small sequences, and on the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner, Result

from deepinv_astro.cli import app
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.points import point_image

# 5 px North and 9 px East of the star
PLANET, STAR, CENTER = (5.0, -9.0), 4e4, (20.4, 22.7)
HEIGHT, WIDTH, FRAMES = 41, 45, 14


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def make(folder: Path, turn: float = 80.0, sign: float = 1.0, **header: Any) -> list[Path]:
    """Files of a planet beside a static halo: cube, angles, PSF."""
    generator = torch.Generator().manual_seed(4)
    angles = torch.linspace(0.0, turn, FRAMES, dtype=torch.float64)
    down, across = torch.arange(-7.0, 8)[:, None], torch.arange(-7.0, 8)
    psf = torch.exp(-(down**2 + across**2) / (2 * 1.4**2))
    physics = ADI((1, HEIGHT, WIDTH), angles, psf / psf.sum(), CENTER)
    sky = point_image(
        (HEIGHT, WIDTH),
        torch.tensor([HEIGHT // 2 + PLANET[0]]),
        torch.tensor([WIDTH // 2 + PLANET[1]]),
    )
    radius = torch.hypot(torch.arange(HEIGHT)[:, None] - CENTER[0], torch.arange(WIDTH) - CENTER[1])
    halo = 300 * torch.exp(-radius / 8)
    y = halo + physics.A(400 * sky[:, None])[0, 0]
    y = y + torch.randn(y.shape, generator=generator)
    cards = fits.Header({"BUNIT": "adu", "OBJECT": "HD 1", **header})
    arrays = (y.numpy(), sign * angles.numpy(), (STAR * psf / psf.sum()).numpy())
    paths = [folder / name for name in ("cube.fits", "angles.fits", "psf.fits")]
    for path, array, head in zip(paths, arrays, (cards, None, None), strict=True):
        fits.PrimaryHDU(array, header=head).writeto(path)
    return paths


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return make(tmp_path)


@pytest.fixture
def given() -> list[str]:
    return ["--center", f"{CENTER[0]},{CENTER[1]}", "--pixel-scale", "20mas"]


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from deepinv_astro.cli import app; "
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0, r.output; "
        "heavy = {'torch', 'deepinv', 'astropy', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - start < 10  # under load; about 0.5 s alone


def test_version() -> None:
    from deepinv_astro import __version__

    assert __version__ in run("--version").output


@pytest.mark.parametrize("method", ["marginal", "rexpaco", "white", "ipca", "pca", "median"])
def test_reconstruct_finds_the_planet(
    files: list[Path], given: list[str], tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    result = run("reconstruct", *files, *given, "--method", method, "--components", 3, "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "report.json").read_text())
    [source] = content["sources"]
    assert content["method"] == method
    assert source["kind"] == "point"
    assert source["row"] - HEIGHT // 2 == pytest.approx(PLANET[0], abs=0.15)
    assert source["column"] - WIDTH // 2 == pytest.approx(PLANET[1], abs=0.15)
    assert source["separation_arcsec"] == pytest.approx(0.020 * np.hypot(*PLANET), abs=3e-3)
    # East of North: the planet is North-East
    assert source["position_angle_deg"] == pytest.approx(np.degrees(np.arctan2(9, 5)), abs=1)
    assert source["contrast"] == pytest.approx(400 / STAR, rel=0.1)
    assert source["snr"] > 5
    with fits.open(out / "image.fits") as hdus:
        names = [hdu.name for hdu in hdus]
        assert names[:4] == ["PRIMARY", "UNCERTAINTY", "SNR", "VISIBILITY"]
        image = np.nan_to_num(hdus[0].data)
        assert hdus[0].header["BUNIT"] == "adu"
        assert hdus[0].header["STARROW"] == HEIGHT // 2
        # noise of the flux of a point source: the planet's S/N is its flux over it
        at = (round(source["row"]), round(source["column"]))
        assert 0 < hdus["UNCERTAINTY"].data[at] < 80
        assert 0.2 < hdus["VISIBILITY"].data[at] < 1
    away = (
        np.hypot(*(np.indices(image.shape) - np.array([HEIGHT // 2, WIDTH // 2])[:, None, None]))
        > 6
    )
    peak = np.unravel_index(np.where(away, image, 0).argmax(), image.shape)
    assert np.hypot(peak[0] - source["row"], peak[1] - source["column"]) < 1.5
    assert (out / "quicklook.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in out.iterdir()) == ["image.fits", "quicklook.png", "report.json"]


def test_report_says_what_is_not_constrained(
    files: list[Path], given: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("reconstruct", *files, *given, "--method", "median", "--out", out)
    content = json.loads((out / "report.json").read_text())
    assert "face-on ring" in content["unconstrained"]
    assert "face-on ring" in result.output
    modes = content["visibility"]
    angles = np.radians(np.linspace(0, 80, FRAMES))
    for m in (0, 1, 3):
        expected = 1 - abs(np.exp(1j * m * angles).mean()) ** 2
        assert modes[m] == {"mode": m, "visibility": pytest.approx(expected, abs=1e-5)}
    assert set(content["versions"]) >= {"deepinv_astro", "torch", "python"}
    assert content["device"] == "cpu"
    assert content["seconds"]["image"] > 0


def test_center_is_estimated_and_said(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("reconstruct", *files, "--method", "median", "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "report.json").read_text())
    assert content["center"] == pytest.approx(CENTER, abs=0.1)
    assert "position is not given" in " ".join(result.output.split())
    assert any("estimated" in w for w in content["warnings"])
    assert content["sources"][0]["separation_arcsec"] is None
    assert any("--pixel-scale" in w for w in content["warnings"])


def test_nothing_is_overwritten(files: list[Path], given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("precious")
    options = [*files, *given, "--method", "median", "--out", out]
    result = run("reconstruct", *options)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert (out / "report.json").read_text() == "precious"
    assert [p.name for p in out.iterdir()] == ["report.json"]
    assert run("reconstruct", *options, "--overwrite").exit_code == 0
    assert json.loads((out / "report.json").read_text())["method"] == "median"


def test_the_image_survives_a_crash_of_the_search(
    files: list[Path], given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepinv_astro.cli.search.search", crash)
    out = tmp_path / "out"
    result = run("reconstruct", *files, *given, "--method", "median", "--out", out)
    assert result.exit_code == 130
    assert [p.name for p in out.iterdir()] == ["unfinished.fits"]
    assert fits.getdata(out / "unfinished.fits").shape == (HEIGHT, WIDTH)
    monkeypatch.undo()
    again = run("reconstruct", *files, *given, "--method", "median", "--out", out)
    assert again.exit_code == 0, again.output  # the same command
    assert sorted(p.name for p in out.iterdir()) == ["image.fits", "quicklook.png", "report.json"]


def _bad(kind: str, files: list[Path], folder: Path) -> list[object]:
    cube, angles, psf = files
    if kind == "missing file":
        return [folder / "no.fits", angles, psf]
    if kind == "number of angles":
        fits.PrimaryHDU(np.linspace(0.0, 60.0, FRAMES - 1)).writeto(angles, overwrite=True)
    if kind == "radians":
        radians = np.radians(np.linspace(0.0, 80.0, FRAMES))
        fits.PrimaryHDU(radians).writeto(angles, overwrite=True)
    if kind == "truncated":
        cube.write_bytes(cube.read_bytes()[:20000])
    if kind == "no PSF":
        return [cube, angles]
    if kind == "centre outside":
        return [*files, "--center", "90,2"]
    if kind == "centre not two numbers":
        return [*files, "--center", "51"]
    if kind == "unit of the pixel scale":
        return [*files, "--pixel-scale", "27.19"]
    if kind == "device":
        return [*files, "--device", "abacus"]
    if kind == "dialect":
        return [*files, "--dialect", "martian"]
    if kind == "method":
        return [*files, "--method", "magic"]
    return [*files]


BAD = {
    "missing file": "no.fits",
    "number of angles": f"{FRAMES - 1}",
    "radians": "radian",
    "truncated": "cube.fits",
    "no PSF": "third argument",
    "centre outside": "center",
    "centre not two numbers": "--center",
    "unit of the pixel scale": "27.19",
    "device": "--device",
    "dialect": "martian",
    "method": "magic",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_clear_line(kind: str, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("reconstruct", *_bad(kind, files, tmp_path), "--out", out)
    assert result.exit_code == 2, result.output
    assert BAD[kind] in result.output
    assert "Traceback" not in result.output
    if kind != "method":  # typer's own errors have a frame
        assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(
    files: list[Path], given: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "locked"
    out.mkdir(mode=0o500)
    assert run("reconstruct", *files, *given, "--out", out).exit_code == 2


def test_out_that_is_a_file(files: list[Path], given: list[str]) -> None:
    result = run("reconstruct", *files, *given, "--out", files[0])
    assert result.exit_code == 2
    assert "cube.fits" in result.output


def test_exit_code_of_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepinv_astro.cli", "inspect", "no.fits", "no.fits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_inspect_tells_the_facts(files: list[Path], given: list[str], tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    result = run("inspect", *files, *given, "--json", path)
    assert result.exit_code == 0, result.output
    facts = json.loads(path.read_text())
    assert (facts["frames"], facts["height"], facts["width"]) == (FRAMES, HEIGHT, WIDTH)
    assert facts["unit"] == "adu"
    assert facts["rotation_deg"] == pytest.approx(80)
    assert facts["psf_fwhm_px"] == pytest.approx(2.3548 * 1.4, rel=0.02)
    assert facts["star_flux"] == [pytest.approx(STAR, rel=1e-3)]
    assert facts["center_estimated"] == pytest.approx(CENTER, abs=0.1)
    first = facts["reach"][1]
    assert first["separation_arcsec"] == pytest.approx(0.02 * first["separation_px"])
    assert first["arc_px"] == pytest.approx(np.radians(80) * first["separation_px"])
    seen = [row["point_visibility"] for row in facts["reach"]]
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] < 1
    assert facts["warnings"] == []
    assert "No warnings" in result.output
    assert run("inspect", *files, *given, "--json", path).exit_code == 2


def test_inspect_warns_of_the_wrong_sign(tmp_path: Path, given: list[str]) -> None:
    wrong = make(tmp_path, sign=-1.0)
    result = run("inspect", *wrong, *given)
    assert result.exit_code == 0, result.output
    assert "wrong sign" in result.output
    assert "wrong sign" not in run("inspect", *wrong, *given, "--reverse-angles").output


def test_inspect_warns_of_little_rotation_missing_data_and_a_wrong_centre(tmp_path: Path) -> None:
    files = make(tmp_path, turn=6.0)
    frames = fits.getdata(files[0])
    frames[:, 3, 4] = np.nan
    fits.PrimaryHDU(frames).writeto(files[0], overwrite=True)
    text = " ".join(
        run("inspect", *files, "--center", "22,22", "--angles-unit", "deg").output.split()
    )
    assert "Little rotation: 6.0 degrees" in text
    assert "Missing data" in text
    assert "1 pixels have none in any frame" in text
    assert "from the assumed centre (22.00, 22.00)" in text


def test_inspect_without_a_psf(files: list[Path]) -> None:
    result = run("inspect", *files[:2])
    assert result.exit_code == 0, result.output
    assert "no PSF given" in result.output


@pytest.fixture
def two_channels(files: list[Path]) -> list[Path]:
    """The same sky in two channels, the second twice as bright."""
    cube, angles, psf = files
    for path in (cube, psf):
        data, header = fits.getdata(path, header=True)
        fits.PrimaryHDU(np.stack([data, 2 * data]), header).writeto(path, overwrite=True)
    return [cube, angles, psf]


def test_two_channels(two_channels: list[Path], given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--wavelength", "1.6um,1700nm", "--method", "median", "--target", "β Pic"]
    result = run("reconstruct", *two_channels, *given, *options, "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "report.json").read_text())
    assert content["target"] == "β Pic"
    assert sorted((s["name"], s["channel"]) for s in content["sources"]) == [("A", 0), ("A", 1)]
    first, second = sorted(content["sources"], key=lambda s: s["channel"])
    assert second["flux"] == pytest.approx(2 * first["flux"], rel=1e-3)
    assert second["contrast"] == pytest.approx(first["contrast"], rel=1e-3)
    assert first["row"] - HEIGHT // 2 == pytest.approx(PLANET[0], abs=0.15)
    assert "channel" in result.output
    with fits.open(out / "image.fits") as hdus:
        assert hdus[0].data.shape == (2, HEIGHT, WIDTH)
        assert hdus[0].header["OBJECT"] == "beta Pic"
        assert hdus["SNR"].data.shape == (2, HEIGHT, WIDTH)
        np.testing.assert_allclose(hdus["WAVELENGTHS"].data["WAVELENGTH"], [1.6, 1.7])


@pytest.mark.parametrize(("factor", "method"), [(1e30, "marginal"), (1e-30, "median")])
def test_huge_and_tiny_units_change_nothing_but_the_unit(
    files: list[Path], given: list[str], tmp_path: Path, factor: float, method: str
) -> None:
    contents = []
    for name, scale, how in (("one", 1.0, "median"), ("scaled", factor, method)):
        for path in (files[0], files[2]):
            data = (fits.getdata(path) * scale).astype(np.float32)
            fits.PrimaryHDU(data).writeto(path, overwrite=True)
        out = tmp_path / name
        result = run("reconstruct", *files, *given, "--method", how, "--out", out)
        assert result.exit_code == 0, result.output
        contents.append(json.loads((out / "report.json").read_text()))
    [one], [scaled] = (c["sources"] for c in contents)
    for key in ("row", "column", "contrast"):
        assert scaled[key] == pytest.approx(one[key], rel=1e-3)
    # in float32 the noise of the map is not the same to all digits
    assert scaled["snr"] == pytest.approx(one["snr"], rel=1e-2)
    assert scaled["flux"] == pytest.approx(factor * one["flux"], rel=1e-3)


def test_one_absurd_pixel_does_no_harm(files: list[Path], given: list[str], tmp_path: Path) -> None:
    frames = fits.getdata(files[0]).astype(np.float32)
    frames[3, 10, 10] = 1e30
    fits.PrimaryHDU(frames).writeto(files[0], overwrite=True)
    options = ["--method", "median", "--out", tmp_path / "out"]
    result = run("reconstruct", *files, *given, *options)
    assert result.exit_code == 0, result.output
    source = json.loads((tmp_path / "out" / "report.json").read_text())["sources"][0]
    assert source["contrast"] == pytest.approx(400 / STAR, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_command_leaves_nothing_in_its_own_way(
    files: list[Path], given: list[str], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "deepinv_astro.cli", "reconstruct", *files, *given]
    command += ["--method", "median", "--out", out]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # a shell that runs the tests in the background has interruptions ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out / "unfinished.fits").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)  # into the search: Python loses an interruption that falls into a destructor
    process.send_signal(getattr(signal, kind))
    _, told = process.communicate(timeout=60)
    left = sorted(p.name for p in out.iterdir())
    assert left == ["unfinished.fits"]
    assert fits.getdata(out / "unfinished.fits").shape == (HEIGHT, WIDTH)
    assert process.returncode == (130 if kind == "SIGINT" else -getattr(signal, kind))
    assert "Traceback" not in told
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert sorted(p.name for p in out.iterdir()) == ["image.fits", "quicklook.png", "report.json"]


def test_a_larger_sky(files: list[Path], given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--method", "median", "--sky-size", 61, "--out", out]
    assert run("reconstruct", *files, *given, *options).exit_code == 0
    [source] = json.loads((out / "report.json").read_text())["sources"]
    assert fits.getdata(out / "image.fits").shape == (61, 61)
    assert source["row"] == pytest.approx(30 + PLANET[0], abs=0.15)


BETA_PIC = ("cube", "pa", "psf")


def _beta_pictoris(root: Path) -> list[Path]:
    return [root / "naco_betapic" / f"naco_betapic_{name}.fits" for name in BETA_PIC]


OPTIONS = ["--pixel-scale", "27.19mas", "--true-north", "-104.39"]
APERTURE = ["--star-flux-aperture", "764939.6,4.8"]


def test_beta_pictoris_b(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [*OPTIONS, *APERTURE, "--center", "51,51", "--method", "median", "--out", out]
    result = run("reconstruct", *_beta_pictoris(data_root), *options)
    assert result.exit_code == 0, result.output
    [source] = json.loads((out / "report.json").read_text())["sources"]
    assert 1e3 * source["separation_arcsec"] == pytest.approx(452, abs=14)
    assert source["position_angle_deg"] == pytest.approx(210.6, abs=1.5)
    assert source["contrast"] == pytest.approx(9.4e-4, rel=0.15)
    assert source["kind"] == "point"


@pytest.mark.slow
def test_beta_pictoris_b_by_the_default_with_the_centre_from_the_data(
    data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = [*OPTIONS, *APERTURE, "--out", out]
    result = run("reconstruct", *_beta_pictoris(data_root), *options)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "report.json").read_text())
    source = content["sources"][0]
    assert content["method"] == "marginal"
    assert 1e3 * source["separation_arcsec"] == pytest.approx(452, abs=14)
    assert source["position_angle_deg"] == pytest.approx(210.6, abs=1.5)
    assert source["contrast"] == pytest.approx(9.4e-4, rel=0.15)


def test_inspect_beta_pictoris(data_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    result = run("inspect", *_beta_pictoris(data_root), *OPTIONS, *APERTURE, "--json", path)
    assert result.exit_code == 0, result.output
    facts = json.loads(path.read_text())
    assert np.hypot(*(np.array(facts["center_estimated"]) - 51)) < 0.5
    assert facts["sign_test"]["as_given"] > 6
    assert facts["sign_test"]["reversed"] < 5
    assert facts["warnings"] == []
