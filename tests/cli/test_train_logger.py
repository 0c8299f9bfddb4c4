"""``train --logger``: both trainings tell a service their validations, and go on in the same run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from deepinv_astro.cli import app
from deepinv_astro.cli.options import Logger
from deepinv_astro.io.images import write_gray_image


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stand-in for mlflow was told; its runs fail where ``trouble`` is set."""
    told: dict[str, Any] = {"runs": [], "facts": [], "steps": [], "pictures": [], "ends": []}

    def start_run(run_id: str | None, run_name: str) -> Any:
        told["runs"].append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "m1"))

    def log_metrics(numbers: dict[str, float], step: int) -> None:
        if told.get("trouble"):
            raise RuntimeError("no route to host")
        told["steps"].append(step)

    module = SimpleNamespace(
        start_run=start_run, log_metrics=log_metrics, log_params=told["facts"].append,
        log_image=lambda pixels, key, step: told["pictures"].append((step, pixels.shape[2])),
        end_run=told["ends"].append, __spec__=SimpleNamespace(),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "mlflow", module)  # type: ignore[arg-type]
    return told


@pytest.fixture
def images(tmp_path: Path) -> list[object]:
    """A command that trains on three images of noise that is smooth."""
    g = torch.Generator().manual_seed(4)
    for k in range(3):
        y = torch.randn(60, 64, generator=g).cumsum(0).cumsum(1) / 30
        write_gray_image(tmp_path / "sky" / f"{k}.fits", y.numpy().astype(np.float32))
    return ["train", "--images", tmp_path / "sky", "--psf", 2, "--noise", 0.05, "--crop", 16,
            "--steps", 30, "--validate-every", 10, "-o", tmp_path / "out", "--logger", "mlflow"]  # fmt: skip


@pytest.fixture
def survey(tmp_path: Path) -> list[object]:
    """A command that trains on three stars."""
    folder = tmp_path / "survey"
    made = run("simulate", "--survey", 3, "--size", 17, "--frames", 6, "--quick", "--out", folder)
    assert made.exit_code == 0, made.output
    return ["train", "--survey", folder, "--batch", 1, "--draws", 1, "--steps", 30,
            "--validate-every", 10, "-o", tmp_path / "out", "--logger", "mlflow"]  # fmt: skip


@pytest.mark.parametrize("kind", ["images", "survey"])
def test_a_training_is_shown_and_goes_on_in_its_run(
    kind: str, told: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = request.getfixturevalue(kind)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert told["runs"] == [(None, "out")]
    assert told["steps"] == [0, 10, 20, 30]
    assert told["pictures"] == [(step, 3) for step in (0, 10, 20, 30)]
    assert told["ends"] == ["FINISHED"]
    facts = told["facts"].pop()
    expected = {"seed": 0, "steps": 30, "validate_every": 10}
    expected |= {"noise": 0.05, "task": "deblur"} if kind == "images" else {"splitting": 1.0}
    assert {k: facts[k] for k in expected} == expected
    result = run(*command, "--resume")
    assert result.exit_code == 0, result.output
    assert told["runs"][1:] == [("m1", "out")]
    assert told["facts"] == []
    assert told["steps"] == [0, 10, 20, 30]  # there was nothing left to do


def test_a_logger_that_fails_leaves_all_results(
    images: list[object], told: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told["trouble"] = True
    result = run(*images)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 5
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        "mlflow failed and is left; the training goes on: no route to host"
    ]


def test_other_processes_show_nothing(
    told: dict[str, Any], survey: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the second of two processes, whose first has made the folder."""
    module = importlib.import_module("deepinv_astro.cli.train_survey")
    seen: list[bool] = []
    monkeypatch.setattr(module, "_processes", lambda device: _Second())
    monkeypatch.setattr(module, "_run", lambda *arguments: seen.append(True))
    result = run(*survey)
    assert result.exit_code == 0, result.output
    assert seen == [True]
    assert told["runs"] == []


class _Second:
    def __enter__(self) -> tuple[int, str]:
        return 1, "cpu"

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("name", [logger.value for logger in Logger])
def test_what_is_not_installed_is_told_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    result = run("train", "--images", tmp_path / "none", "--psf", 2, "--logger", name)
    assert result.exit_code == 2
    assert result.stderr == f"Error: --logger {name} is not installed: pip install {name}\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_write_one_run(survey: list[object], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    command = [str(word) for word in survey[:-1]]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "deepinv_astro.cli", *command, "tensorboard"],
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/validation")] == [0, 10, 20, 30]
    assert [e.step for e in events.Images("progress")] == [0, 10, 20, 30]
