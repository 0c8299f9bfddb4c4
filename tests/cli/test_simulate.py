"""``deepinv-astro simulate``: files that hold the survey, whole, also after a kill."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner

from deepinv_astro.cli import app
from deepinv_astro.datasets import RicianHalo, SequenceFolder, SyntheticSurvey, check_manifest

#: The name in the package is that of the command.
module = importlib.import_module("deepinv_astro.cli.simulate")
OPTIONS = ["--size", "25", "--frames", "4", "--most-frames", "6", "--seed", "3", "--quick"]
FILES = {"cube.fits", "angles.fits", "psf.fits", "truth.fits"}


def _run(out: Path, survey: int = 3, options: list[str] = OPTIONS):
    return CliRunner().invoke(
        app, ["simulate", "--survey", str(survey), "--out", str(out), *options]
    )


def _survey(n: int) -> SyntheticSurvey:
    return SyntheticSurvey(n, 3, img_size=(25, 25), frames=(4, 6), halo=RicianHalo())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulate") / "new" / "survey"
    result = _run(out)
    assert result.exit_code == 0, result.output
    assert f"Wrote {out / 'manifest.json'}, 3 targets" in result.stdout
    return out


def test_files_hold_the_survey(written):
    folder, survey = SequenceFolder(written, with_truth=True), _survey(3)
    assert [e.target for e in folder.entries] == [survey.name(i) for i in range(3)]
    assert folder.shapes == [(1, *survey.shape(i)) for i in range(3)]
    for i in range(3):
        item, told, truth = folder[i], survey[i], survey.truth(i)
        assert torch.equal(item["y"], told["y"])
        assert torch.equal(item["x"], truth.x)
        torch.testing.assert_close(item["params"]["angles"], told["params"]["angles"])
        assert folder.sequence(i).unit.to_string() == "ct"
    assert check_manifest(folder.entries, deep=True) == ()


def test_truth_says_what_was_drawn(written):
    survey = _survey(3)
    disks = set()
    for i in range(3):
        truth = survey.truth(i)
        with fits.open(written / survey.name(i) / "truth.fits") as hdus:
            names = [h.name for h in hdus]
            assert names == ["PRIMARY", "DISK", "PSF", "DEVIATION", "PARAMETERS"]
            for name in ("disk", "psf", "deviation"):
                image = torch.from_numpy(hdus[name].data.astype("f4"))
                assert torch.equal(image, getattr(truth, name)[0])
            rows = hdus["PARAMETERS"].data
            table = {
                str(n): json.loads(v) for n, v in zip(rows["NAME"], rows["VALUE"], strict=True)
            }
        disks.add(truth.sky.disk is None)
        assert (table["disk"] is None) == (truth.sky.disk is None)
        if truth.sky.disk is not None:
            assert table["disk"] == pytest.approx(truth.sky.disk._asdict())
        assert [p["flux"] for p in table["planets"]] == [p.flux for p in truth.planets]
        assert table["mode_visibility"] == pytest.approx(truth.visibility().tolist())
    assert disks == {True, False}


def test_only_the_truth_holds_the_truth(written):
    """What an observer gets does not tell the sky nor the PSF that made the data."""
    truth = _survey(3).truth(0)
    for name in FILES - {"truth.fits"}:
        with fits.open(written / "train-000000" / name) as hdus:
            assert len(hdus) == 1
            if name == "psf.fits":
                told = torch.from_numpy(hdus[0].data.astype("f4"))
                assert not torch.allclose(told / told.sum(), truth.psf[0], rtol=1e-2)


def test_the_same_command_goes_on(tmp_path, monkeypatch, written):
    """Stopped in the third target: two are whole, the third is not there; then all are, as if never stopped."""
    plain, calls = module.write_truth, []

    def stopped(truth, path):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        plain(truth, path)

    out = tmp_path / "survey"
    monkeypatch.setattr(module, "write_truth", stopped)
    result = _run(out)
    assert result.exit_code == 130
    assert sorted(p.name for p in out.iterdir()) == ["survey.json", "train-000000", "train-000001"]
    assert all({f.name for f in p.iterdir()} == FILES for p in out.glob("train-*"))
    monkeypatch.setattr(module, "write_truth", plain)
    left = out / ".train-000002-1234-unfinished"  # by a kill
    left.mkdir()
    (left / "cube.fits").write_bytes(b"half")
    before = {f: f.stat().st_mtime_ns for f in out.glob("train-*/*")}
    assert _run(out).exit_code == 0
    assert not left.exists()
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    for name in ("cube.fits", "truth.fits"):
        again = (out / "train-000002" / name).read_bytes()
        assert again == (written / "train-000002" / name).read_bytes()
    assert _run(out, survey=4).exit_code == 0  # and a survey may grow
    assert len(SequenceFolder(out)) == 4


def test_wrong_use_is_told_in_one_line(tmp_path, written):
    def error(out: Path, options: list[str] = OPTIONS) -> str:
        before = sorted(out.rglob("*")) if out.is_dir() else None
        result = _run(out, options=options)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (line,) = result.stderr.strip().splitlines()
        assert "`" not in line
        assert before == (sorted(out.rglob("*")) if out.is_dir() else None)
        return line

    assert "other settings (frames, see" in error(
        written, ["--size", "25", "--frames", "4", "--seed", "3", "--quick"]
    )
    assert "other settings (part, seed, see" in error(
        written, [*OPTIONS[:-2], "1", "--quick", "--part", "test"]
    )
    assert "--part must be one of train" in error(tmp_path / "a", ["--part", "tests"])
    assert "--most-frames must be 9 or more" in error(
        tmp_path / "a", ["--frames", "9", "--most-frames", "4"]
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    assert "holds files but no survey; choose another folder with --out" in error(
        tmp_path / "thesis"
    )
    assert "is a file" in error(tmp_path / "thesis" / "thesis.tex")
    (tmp_path / "thesis" / "survey.json").write_text("{")
    assert "survey.json cannot be read" in error(tmp_path / "thesis")


def test_full_size_gets_a_pupil_that_is_large_enough():
    settings = {"size": 321, "frames": [61, 61], "seed": 0, "part": "test", "quick": False}
    survey = module.make_survey(7, settings)
    model = survey.halo.model
    assert model.pupil_size * model.sampling > 321
    assert (len(survey), survey.part.value, survey.img_size) == (7, "test", (321, 321))
    small = module.make_survey(7, {**settings, "size": 101})
    assert small.halo.model.pupil_size == 64


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    """A real kill -9: whatever folder is there is whole."""
    out = tmp_path / "survey"
    command = [
        sys.executable,
        "-m",
        "deepinv_astro.cli",
        "simulate",
        "--survey",
        "40",
        "--out",
        str(out),
        *OPTIONS,
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while len(list(out.glob("train-*"))) < 3 and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = list(out.glob("train-*"))
    assert 3 <= len(done) < 40
    assert all({f.name for f in p.iterdir()} == FILES for p in done)
    assert len(SequenceFolder(out)) == len(done)
    assert _run(out, survey=40).exit_code == 0
    folder = SequenceFolder(out)
    assert len(folder) == 40
    survey = _survey(40)
    assert all(torch.equal(folder[i]["y"], survey[i]["y"]) for i in range(40))
