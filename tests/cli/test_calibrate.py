"""``deepinv-astro calibrate`` on a small sequence with a wrong centre and gains, and ``reconstruct`` after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner, Result

from deepinv_astro.cli import app
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.points import point_image

HEIGHT, WIDTH, FRAMES = 29, 27, 8
CENTER, TRUE_CENTER = (14.0, 13.0), (14.4, 12.7)
WIDTHS = (1.2, 1.5)  # of the PSF before and after
GAIN = (1.06, 0.93, 1.0, 1.08, 0.95, 0.97, 1.04, 0.97)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def star(down: float, across: float) -> torch.Tensor:
    u = torch.arange(-7.0, 8)
    h = torch.exp(-(u[:, None] ** 2) / (2 * down**2) - u**2 / (2 * across**2))
    return h / h.sum()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Cube, angles, PSF before and after; during the sequence the PSF is between."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = torch.Generator().manual_seed(5)
    angles = torch.linspace(0.0, 110.0, FRAMES, dtype=torch.float64)
    psfs = [star(1.3, width) for width in WIDTHS]
    physics = ADI((1, HEIGHT, WIDTH), angles, sum(psfs) / 2, TRUE_CENTER, gain=torch.tensor(GAIN))
    places = torch.tensor([[22.0, 17.0], [9.0, 20.0], [16.0, 4.0]])
    sky = 3000 * point_image((HEIGHT, WIDTH), places[:, 0], places[:, 1]).sum(0)[None, None]
    y = 200 + physics.A(sky)[0, 0] + 3 * torch.randn(FRAMES, HEIGHT, WIDTH, generator=rng)
    names = ("cube.fits", "angles.fits", "before.fits", "after.fits")
    arrays = (y.numpy(), angles.numpy(), *((4e4 * psf).numpy() for psf in psfs))
    paths = [folder / name for name in names]
    for path, array in zip(paths, arrays, strict=True):
        fits.PrimaryHDU(array).writeto(path)
    return paths


@pytest.fixture(scope="module")
def calibrated(files: list[Path]) -> tuple[Path, str]:
    """Folder of the results, and what was printed."""
    out = files[0].parent / "calibration"
    cube, angles, before, after = files
    center = f"{CENTER[0]},{CENTER[1]}"
    result = run(
        "calibrate", cube, angles, before, "--psf", after, "--center", center,
        "--center-std", 0.5, "--gain-std", 0.1, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out, result.output


def test_parameters_are_found_with_errors(calibrated):
    out, printed = calibrated
    content = json.loads((out / "calibration.json").read_text())
    rows = {p["name"]: p for p in content["parameters"]}
    for name, true in (("row", TRUE_CENTER[0]), ("column", TRUE_CENTER[1])):
        assert rows[name]["value"] == pytest.approx(true, abs=0.1)
        assert rows[name]["std"] < 0.1 < rows[name]["prior_std"]
    gain = torch.tensor([rows[f"gain[{t}]"]["value"] for t in range(FRAMES)])
    true = torch.tensor(GAIN)
    assert float((gain - true).abs().max()) < 0.03
    assert rows["psf[0]"]["prior_std"] == pytest.approx(1.0)
    assert content["operator"]["center"] == pytest.approx(
        [rows[n]["value"] for n in ("row", "column")]
    )
    assert content["kept"]  # the common gain at least
    assert (out / "calibration.png").stat().st_size > 10_000
    for words in (
        "row",
        "gain[7]",
        "Stays at the prior",
        "common to all frames",
        "calibration.json",
    ):
        assert words in printed


def test_reconstruct_reads_it(calibrated, files):
    """The operator and the position of the star are those of the file, and its gains."""
    out, _ = calibrated
    center = f"{CENTER[0]},{CENTER[1]}"
    cube, angles, before, _ = files
    image = out / "image"
    result = run(
        "reconstruct", cube, angles, before, "--center", center, "--calibration",
        out / "calibration.json", "--method", "white", "--out", image,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((image / "report.json").read_text())
    assert any("Calibrated by" in line for line in report["provenance"])
    brightest = max(report["sources"], key=lambda s: s["flux"])
    assert brightest["flux"] == pytest.approx(3000, rel=0.1)


def test_reconstruct_takes_the_psf_before_and_the_one_after(files, tmp_path):
    cube, angles, before, after = files
    command = ("reconstruct", cube, angles, before, "--center", "14.4,12.7", "--method", "white")
    result = run(*command, "--psf", after, "--out", tmp_path / "two")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert any("Calibrated the PSF between 2" in line for line in report["provenance"])
    assert report["settings"]["files"][-1].endswith("after.fits")
    result = run(*command, "--psf", after, "--calibration", cube, "--out", tmp_path / "both")
    assert result.exit_code == 2
    assert "leave --psf out" in result.output


def test_error_of_the_psf_is_about_the_sources(files):
    from deepinv_astro.cli.calibrated import calibrate_psf, with_psfs
    from deepinv_astro.cli.problem import prepare
    from deepinv_astro.io import read_sequence

    cube, angles, before, after = files
    sequence = read_sequence(cube, angles, before, center=TRUE_CENTER)
    sequence, psfs = with_psfs(sequence, [after])
    problem = calibrate_psf(prepare(sequence, "cpu"), psfs)
    std = problem.calibration_std[0, 0]
    assert float(std[22, 17]) > 10 * float(std[3, 3])
    assert float(std[22, 17]) < 0.2 * 3000
    assert torch.allclose(problem.sequence.psf.sum(), torch.tensor(1.0))


def test_operator_of_the_file_is_used(calibrated, files):
    from deepinv_astro.cli.calibrated import read_calibration
    from deepinv_astro.cli.problem import prepare
    from deepinv_astro.io import read_sequence

    out, _ = calibrated
    content = json.loads((out / "calibration.json").read_text())["operator"]
    sequence = read_sequence(*files[:3], center=CENTER)
    problem = read_calibration(out / "calibration.json", prepare(sequence))
    physics = problem.physics
    torch.testing.assert_close(physics.center.flatten(), torch.tensor(content["center"]))
    torch.testing.assert_close(physics.gain[0], torch.tensor(content["gain"]))
    torch.testing.assert_close(physics.filter[0, :, 0], torch.tensor(content["psf"]))
    assert problem.sequence.center == pytest.approx(content["center"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "no calibration in"), ("no json", "no calibration in"), ("[1]", "no calibration in")],
)
def test_wrong_file_is_one_clear_line(text, words, files, tmp_path):
    wrong = tmp_path / "calibration.json"
    wrong.write_text(text)
    result = run(
        "reconstruct",
        *files[:3],
        "--center",
        "14,13",
        "--calibration",
        wrong,
        "--out",
        tmp_path / "r",
    )
    assert result.exit_code == 2
    assert words in result.output
    assert "--calibration" in result.output


def reconstruct_with(content: dict, files, folder: Path, *more: object) -> Result:
    """``reconstruct`` with a changed file of ``calibrate``."""
    wrong = folder / "calibration.json"
    wrong.write_text(json.dumps(content))
    return run(
        "reconstruct", *files[:3], "--center", "14,13", "--calibration", wrong,
        "--method", "white", "--out", folder / "r", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 9}, "9 frames"),
        ({"target": "HD 1"}, "expected 'HD 2'"),
        ({"operator": {}}, "no 'center'"),
        ({"operator": {"gain": None}}, "NoneType"),
        ({"operator": {"gain": [1.0, 1.0]}}, "gain is given for 2 frames"),
        ({"flux_std": "none.fits"}, "none.fits"),
        ({"flux_std": 3}, "no such file"),
    ],
)
def test_changed_file_is_one_clear_line(change, words, calibrated, files, tmp_path):
    out, _ = calibrated
    content = json.loads((out / "calibration.json").read_text())
    for name, value in change.items():
        partial = isinstance(value, dict) and value
        content[name] = {**content[name], **value} if partial else value
    result = reconstruct_with(content, files, tmp_path, "--target", "HD 2")
    assert result.exit_code == 2
    assert words in result.output
    assert result.output.count("Error:") == 1
    assert not (tmp_path / "r").exists()


def test_error_of_the_calibration_is_in_the_map_and_in_the_sources(calibrated, files, tmp_path):
    """In quadrature, where the sky is: the flux is uncertain by the gain that no one knows."""
    out, _ = calibrated
    with fits.open(out / "calibration_std.fits") as hdus:
        std = hdus[0].data[0]
    common = 0.1 / FRAMES**0.5
    for row, column in ((22, 17), (9, 20), (16, 4)):
        assert 0.9 < std[row, column] / (common * 3000) < 1.4  # and the errors of centre and PSF
    assert std[4, 4] < 1e-3
    content = json.loads((out / "calibration.json").read_text())
    maps, sources = [], []
    for factor in (0.0, 1.0):
        folder = tmp_path / str(factor)
        folder.mkdir()
        fits.PrimaryHDU(
            (factor * std[None]).astype("float32"), fits.getheader(out / "calibration_std.fits")
        ).writeto(folder / "calibration_std.fits")
        result = reconstruct_with(content, files, folder, "--sky-size", 33)
        assert result.exit_code == 0, result.output
        maps.append(fits.getdata(folder / "r" / "image.fits", "UNCERTAINTY").squeeze())
        report = json.loads((folder / "r" / "report.json").read_text())
        sources.append({e["name"]: e for e in report["sources"]})
    grown = (maps[1] ** 2 - maps[0] ** 2).clip(0) ** 0.5
    # the star is at row 14, column 13 of the sky that was calibrated, at 16, 16 of this one
    assert grown[24, 20] == pytest.approx(std[22, 17], rel=1e-3)
    assert grown[6, 7] == pytest.approx(0, abs=1e-3)
    before, after = (s["A"]["flux_std"] for s in sources)
    assert 0.9 < (after**2 - before**2) ** 0.5 / (common * 3000) < 1.4


def test_nothing_is_begun_where_nothing_can_be_written(files, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("calibrate", *files[:3], "--center", "14,13", "--out", tmp_path / "file" / "sub")
    assert result.exit_code == 2
    assert "is a file" in result.output


def test_bad_requests_are_one_clear_line(calibrated, files, tmp_path):
    out, _ = calibrated
    result = run("calibrate", *files[:3], "--center", "14,13", "--out", out)
    assert result.exit_code == 2
    assert "calibration.png" in result.output
    result = run(
        "calibrate", *files[:3], "--center", "14,13", "--free", "psf", "--out", tmp_path / "c"
    )
    assert result.exit_code == 2
    assert "expected two or more" in result.output
    result = run("calibrate", *files[:3], "--psf", tmp_path / "none.fits", "--out", tmp_path / "c")
    assert result.exit_code == 2
    assert "none.fits" in result.output
    same = [
        "calibrate",
        *files[:3],
        "--psf",
        files[2],
        "--center",
        "14,13",
        "--out",
        tmp_path / "c",
    ]
    result = run(*same)
    assert result.exit_code == 2
    assert "copies of each other" in result.output
