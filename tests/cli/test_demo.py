"""``demo``: what it shows of the methods, on a small sequence, and the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from matplotlib.figure import Figure
from PIL import Image
from scipy.signal import fftconvolve
from typer.testing import CliRunner, Result

from deepinv_astro import datasets
from deepinv_astro.cli import app, methods
from deepinv_astro.cli.comparison import METHODS, Comparison, Score, Shown, draw, nearest
from deepinv_astro.cli.demo import DATA, write_files
from deepinv_astro.cli.methods import Method
from deepinv_astro.cli.options import SequenceFiles
from deepinv_astro.cli.problem import Problem, prepare
from deepinv_astro.cli.progress import Stages
from deepinv_astro.datasets import Planet, SimulatedSequence, SpeckleModel, simulate_sequence
from deepinv_astro.models import read_weights_card
from deepinv_astro.physics.functional.psf import half_maximum_width


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def small() -> SimulatedSequence:
    """A bar North of the star with a planet on its end, the star not in the middle."""
    disk = torch.zeros(41, 46)
    disk[26:28, 3:32] = 600.0
    return simulate_sequence(
        torch.linspace(0, 70, 14), img_size=(41, 46), center=(20.3, 23.6), psf_size=21, disk=disk,
        planets=[Planet(10.6, 311.0, 1e-2)], model=SpeckleModel(pupil_size=32, exposures=2),
    )  # fmt: skip


def read(folder: Path) -> Problem:
    return prepare(SequenceFiles(*(folder / name for name in DATA)).read())


def scores_by_hand(image: np.ndarray, small: SimulatedSequence, psf: np.ndarray) -> list[float]:
    """Those of an image of the sky, by scipy and numpy."""
    found, x, disk = (
        fftconvolve(part.astype("float64"), psf, mode="same")
        for part in (image, small.x[0, 0].numpy(), small.disk[0, 0].numpy())
    )
    rows, columns = np.indices(image.shape)
    planet = small.planets[0]
    fwhm = half_maximum_width(torch.from_numpy(psf))
    beside = np.hypot(rows - planet.row, columns - planet.column) > 2 * fwhm
    region, part = x > 0.05 * x.max(), (disk > 0.2 * disk.max()) & beside
    return [
        -10 * np.log10(((found - x) ** 2).sum() / (x**2).sum()),
        -10 * np.log10(((found - x)[region] ** 2).sum() / (x[region] ** 2).sum()),
        found[part].sum() / disk[part].sum(),
    ]


def test_methods_are_compared_by_their_images(
    small: SimulatedSequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "demo_sequence", lambda seed: small)
    out = tmp_path / "demo"
    result = run("demo", "--out", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "comparison.json").read_text())
    assert list(content["images"]) == ["pca", "rexpaco", "marginal", "learned"]
    problem, psf = read(out), small.sequence.psf[0].numpy()
    with Stages() as stages:
        images = {
            m: methods.solve(m, problem, stages, 10).image[0, 0].numpy()
            for m in (Method.LEARNED, Method.REXPACO)
        }
    images[Method.MARGINAL] = fits.getdata(out / "result" / "image.fits")
    for method, image in images.items():
        found = content["images"][method.value]
        names = ("whole_db", "support_db", "disk_flux_ratio")
        expected = scores_by_hand(image, small, psf)
        assert [found[name] for name in names] == pytest.approx(expected, abs=0.02), method
        assert found["seconds"] > 0
        line = next(line for line in result.output.splitlines() if f" {method.value} " in line)
        assert line.split()[1:] == [
            f"{found['whole_db']:.1f}", f"{found['support_db']:.1f}",
            f"{found['disk_flux_ratio']:.2f}", f"{found['seconds']:.1f}",
        ]  # fmt: skip
    digest = read_weights_card().digest
    assert digest in "".join(content["notes"])
    assert "Adapted" not in "".join(content["notes"])  # that is asked for by --adapt
    assert digest in result.output
    with Image.open(out / "comparison.png") as picture:
        assert picture.text["Source"] == f"weights {digest}"


def test_pca_has_the_components_that_are_best_by_the_truth(
    small: SimulatedSequence, tmp_path: Path
) -> None:
    from deepinv_astro.cli.comparison import best_components
    from deepinv_astro.models import PCA

    write_files(small.sequence, tmp_path, overwrite=False)
    problem = read(tmp_path)
    images = [
        PCA(n_components=k)(problem.sequence.y, problem.physics).nan_to_num() for k in range(1, 13)
    ]
    for wanted in (2, 7):
        assert best_components(problem, images[wanted - 1] + 1e-3) == wanted


def test_nothing_is_done_while_a_result_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("mine")
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert "comparison.json" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


def test_the_images_are_drawn_in_the_stretch_of_the_truth(
    small: SimulatedSequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(small.sequence, tmp_path, overwrite=False)
    problem, truth = read(tmp_path), small.x
    shown = {
        method: Shown(number * truth, Score(number, 0.0, 0.0), 0.0)
        for number, method in enumerate(METHODS, 2)
    }
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    draw(tmp_path / "x.png", problem, Comparison(small, truth, shown, 3, ()), "0")
    axes = [a for a in kept[0].axes if a.get_title()]
    titles = [
        "One frame of the data", "Truth, blurred by the PSF", "pca, components: 3 (2.0 dB)",
        "rexpaco (3.0 dB)", "marginal (4.0 dB)", "learned, weights of the package (5.0 dB)",
    ]  # fmt: skip
    assert [a.get_title() for a in axes] == titles
    pictures = [a.get_images()[0] for a in axes[1:]]
    for number, picture in enumerate(pictures, 1):
        np.testing.assert_array_equal(picture.get_array(), number * truth[0, 0].numpy())
        assert picture.norm is pictures[0].norm
    assert pictures[0].norm.vmax == pytest.approx(float(truth.max()))


def test_the_planet_is_the_nearest_source_within_two_pixels(small: SimulatedSequence) -> None:
    planet = small.planets[0]

    def source(down: float, across: float) -> dict[str, Any]:
        return {"row": planet.row + down, "column": planet.column + across}

    assert nearest([source(1.5, 1.5), source(0.0, -2.1)], small) is None
    assert nearest([source(1.9, 0.0), source(0.0, -0.4), source(0.5, 0.5)], small) == source(
        0, -0.4
    )


def test_demo_files_are_read_as_they_were(small: SimulatedSequence, tmp_path: Path) -> None:
    simulated = small.sequence
    write_files(simulated, tmp_path, overwrite=False)
    again = SequenceFiles(*(tmp_path / name for name in DATA)).read()
    assert torch.equal(again.y, simulated.y)
    assert torch.equal(again.angles, simulated.angles)
    assert again.center == pytest.approx(simulated.center)
    assert again.pixel_scale.to_value(u.mas) == pytest.approx(27.19)
    assert again.unit == u.ct
    torch.testing.assert_close(again.star_flux, simulated.star_flux, rtol=1e-3, atol=0.0)


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert "deepinv-astro reconstruct" in result.output
    content = json.loads((tmp_path / "demo" / "result" / "report.json").read_text())
    points = [s for s in content["sources"] if s["kind"] == "point"]
    assert len(points) == 1
    assert points[0]["separation_px"] == pytest.approx(18.5, abs=0.5)
    assert points[0]["position_angle_deg"] == pytest.approx(310, abs=1.5)
    assert points[0]["contrast"] == pytest.approx(6e-4, rel=0.15)
    images = json.loads((tmp_path / "demo" / "comparison.json").read_text())["images"]
    for name in ("rexpaco", "marginal", "learned"):
        assert images[name]["whole_db"] > images["pca"]["whole_db"] + 4
    assert run("demo", "--out", tmp_path / "demo").exit_code == 2
