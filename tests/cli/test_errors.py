"""What a user is told when something is wrong: in one line, at once, in the words of the command line."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
from astropy.io import fits
from typer.testing import CliRunner

import deepinv_astro.io
from deepinv_astro.cli import app
from deepinv_astro.cli.errors import _ARGUMENT, as_options, heard_warnings

FRAMES, SIZE = 6, 21


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    down = np.arange(-5.0, 6)
    psf = 4e4 * np.exp(-(down[:, None] ** 2 + down**2) / 4)
    noise = np.random.default_rng(3).normal(size=(FRAMES, SIZE, SIZE))
    arrays = {"cube": noise, "angles": np.linspace(0.0, 60.0, FRAMES), "psf": psf}
    for name, array in arrays.items():
        fits.PrimaryHDU(array.astype(np.float32)).writeto(tmp_path / f"{name}.fits")
    return [tmp_path / f"{name}.fits" for name in arrays]


def error_of(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert "`" not in result.stderr
    return result.stderr


def options(*names: str) -> set[str]:
    commands = typer.main.get_command(app).commands
    return {o for n in names for p in commands[n].params for o in (*p.opts, p.name.upper())}


def messages(path: Path) -> list[str]:
    """The texts of a module, less its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def test_every_argument_that_the_reader_names_is_an_option() -> None:
    folder = Path(deepinv_astro.io.__file__).parent
    named = {
        match[0]
        for path in folder.glob("*.py")
        for text in messages(path)
        for match in _ARGUMENT.finditer(text)
    } - {"`y`", "`frames`"}  # of the dataclass; the reader speaks of files instead
    assert len(named) > 8
    known = options("reconstruct", "train")  # sequences and images
    for argument in named:
        assert as_options(argument).split()[0] in known, argument


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--pixel-scale", "27.19"], "--pixel-scale '27.19 mas'"),
        (["--pixel-scale", "3m"], "--pixel-scale: found '3m'"),
        (["--angles-unit", "turns"], "--angles-unit 'deg'"),
        (["--dialect", "martian"], "--dialect 'generic'"),
        (["--center", "51"], "--center: found '51'"),
        (["--center", "90,2"], "--center: found (90, 2)"),
        (["--star-flux-aperture", "7"], "--star-flux-aperture"),
        (["--star-flux", "-3"], "--star-flux: found [-3.0]"),
        (["--star-flux", "3", "--star-flux-aperture", "3,4"], "--star-flux and --star-flux-ap"),
        (["--true-north", "nan"], "--true-north 0"),
        (["--wavelength", "1.6um,1.7um"], "--wavelength: found 2 values"),
        (["--wavelength", "3s"], "--wavelength"),
        (["--hdu", "NOPE"], "--hdu"),
        (["--center", "10,10", "--sky-size", "400"], "at most 31 pixels"),
        (["--device", "abacus"], "--device: found 'abacus'"),
    ],
)
def test_errors_name_the_option(
    files: list[Path], tmp_path: Path, extra: list[str], told: str
) -> None:
    assert told in error_of("reconstruct", *files, *extra, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_in_the_way(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("precious")
    text = error_of("reconstruct", *files, "--out", tmp_path)
    assert "pass --overwrite, or" in text
    assert (tmp_path / "report.json").read_text() == "precious"


def test_radians_without_a_unit(files: list[Path], tmp_path: Path) -> None:
    radians = tmp_path / "radians.txt"
    radians.write_text("\n".join(f"{a:.4f}" for a in np.radians(np.linspace(0, 60, FRAMES))))
    text = error_of("reconstruct", files[0], radians, files[2], "--out", tmp_path / "out")
    assert "--angles-unit 'rad' or --angles-unit 'deg'" in text


@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(
    files: list[Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def absent(*_: object, **__: object) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check\nmore")

    monkeypatch.setattr(torch, "zeros", absent)
    text = error_of("reconstruct", *files, "--device", name, "--out", tmp_path / "out")
    assert f"'{name}' here (Found no NVIDIA driver on your system); pass --device cpu" in text


def test_the_cube_as_psf(files: list[Path], tmp_path: Path) -> None:
    cube, angles, _ = files
    assert "both as CUBE and as PSF" in error_of("reconstruct", cube, angles, cube)
    copy = tmp_path / "copy.fits"
    copy.write_bytes(cube.read_bytes())
    text = error_of("reconstruct", cube, angles, copy, "--out", tmp_path / "out")
    assert "copy.fits (psf): found shape (6, 21, 21)" in text
    assert "not the frames of the cube" in text


def test_files_in_the_wrong_order(files: list[Path], tmp_path: Path) -> None:
    cube, angles, psf = files
    text = error_of("inspect", angles, cube, psf)
    assert "angles.fits: found HDU 0 'PRIMARY': 1D" in text
    assert "with --hdu the extension" in text
    text = error_of("inspect", cube, psf, angles)
    assert "angles.fits: found HDU 0 'PRIMARY': 1D" in text
    assert "--hdu" not in text  # which names an extension of the cube


def test_a_psf_of_negative_sum(files: list[Path], tmp_path: Path) -> None:
    cube, angles, psf = files
    fits.PrimaryHDU(-fits.getdata(psf)).writeto(psf, overwrite=True)
    text = error_of("reconstruct", cube, angles, psf, "--out", tmp_path / "out")
    assert "expected a positive sum" in text


def test_a_frame_of_nan(files: list[Path], tmp_path: Path) -> None:
    frames = fits.getdata(files[0])
    frames[2] = np.nan
    fits.PrimaryHDU(frames).writeto(files[0], overwrite=True)
    text = error_of("reconstruct", *files, "--out", tmp_path / "out")
    assert "no finite pixel in (channel 0, frame 2)" in text


@pytest.mark.parametrize("name", ["proc", "file"])
def test_a_folder_that_cannot_be_made(files: list[Path], name: str) -> None:
    folder = {"proc": Path("/proc/result"), "file": files[0] / "result"}[name]
    if not Path("/proc").is_dir():
        pytest.skip("no folder that nobody can write")
    assert "cannot make the folder" in error_of(
        "reconstruct", *files, "--center", "10,10", "--out", folder
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("inspect", ["no.fits", "angles.fits"]),
        ("reconstruct", ["cube.fits", "no.fits", "psf.fits"]),
        ("reconstruct", ["cube.fits", "angles.fits"]),
        ("reconstruct", ["cube.fits", "angles.fits", "cube.fits"]),
        ("reconstruct", ["cube.fits", "angles.fits", "psf.fits", "--center", "5"]),
        ("reconstruct", ["cube.fits", "angles.fits", "psf.fits", "--pixel-scale", "5"]),
        ("reconstruct", ["cube.fits", "angles.fits", "psf.fits", "--dialect", "x"]),
        ("reconstruct", ["cube.fits", "angles.fits", "psf.fits", "--angles-unit", "x"]),
        ("reconstruct", ["cube.fits", "angles.fits", "psf.fits", "--device", "x"]),
        ("reconstruct", ["cube.fits", "angles.fits", "psf.fits", "--out", "taken"]),
        ("demo", ["--out", "taken"]),
    ],
)
def test_wrong_arguments_are_told_before_torch_is_loaded(
    command: str, arguments: list[str], files: list[Path]
) -> None:
    folder = files[0].parent
    for taken in (folder / "taken", folder / "taken" / "result"):
        taken.mkdir()
        (taken / "report.json").touch()
    code = (
        "import sys; from typer.testing import CliRunner; from deepinv_astro.cli import app; "
        "r = CliRunner().invoke(app, sys.argv[1:]); assert r.exit_code == 2, r.output; "
        "heavy = {'torch', 'deepinv', 'matplotlib', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_reading_does_not_load_deepinv(files: list[Path]) -> None:
    code = (
        "import sys; from deepinv_astro.io import read_sequence; read_sequence(*sys.argv[1:]); "
        "assert 'deepinv' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_warnings_of_the_library_are_heard_and_spelled() -> None:
    package = logging.getLogger("deepinv_astro")
    before = package.level, list(package.handlers)
    with heard_warnings() as sentences:
        logging.getLogger("deepinv_astro.io.fits").warning("Pass `star_flux` of %d.", 3)
        logging.getLogger("deepinv_astro.io.fits").info("nothing")
    logging.getLogger("deepinv_astro.io.fits").warning("after")
    assert sentences == ["Pass --star-flux of 3."]
    assert (package.level, package.handlers) == before


def test_a_rescaled_psf_is_said_once(files: list[Path], tmp_path: Path) -> None:
    psf = fits.getdata(files[2])
    fits.PrimaryHDU(psf / psf.sum()).writeto(files[2], overwrite=True)
    result = CliRunner().invoke(
        app, ["inspect", *map(str, files), "--center", "10,10", "--target", "HD 7"]
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert text.count("--star-flux or --star-flux-aperture") == 1
    assert "star_flux" not in text
    assert "No warnings" not in text
    assert "HD 7" in text
