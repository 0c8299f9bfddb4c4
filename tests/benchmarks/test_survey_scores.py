"""Scores of images whose answer is known."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deepinv_astro.datasets import SyntheticSurvey
from deepinv_astro.metric import remove_invisible, support
from deepinv_astro.physics.functional.psf import blur

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
DECIBELS = ("field", "support", "visible")


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("survey_scores")


@pytest.fixture
def cases(scores: ModuleType) -> list[Any]:
    """Small targets: with a disk and planets, and without a disk."""
    survey = SyntheticSurvey.small(40, seed=3, img_size=(33, 37), frames=4)
    both, empty = None, None
    for index in range(40):
        truth = survey.truth(index)
        if truth.sky.disk is not None and truth.planets:
            both = index if both is None else both
        if truth.sky.disk is None:
            empty = index if empty is None else empty
    assert both is not None
    assert empty is not None
    return [scores.survey_case(survey, index) for index in (both, empty)]


def test_a_fraction_of_the_truth(scores: ModuleType, cases: list[Any]) -> None:
    """0.9 x is 20 dB, 0.9 of the flux, seen or not, and a bias that neighbours do not hide."""
    case = cases[0]
    found = scores.score(case, 0.9 * case.truth.x)
    assert [found[k] for k in DECIBELS] == pytest.approx([20.0] * 3, abs=1e-3)
    assert found["flux"] == pytest.approx(0.9, abs=1e-5)
    assert found["invisible_flux"] == pytest.approx(0.9, abs=1e-5)


def test_nothing_and_everything(scores: ModuleType, cases: list[Any]) -> None:
    case = cases[0]
    nothing = scores.score(case, torch.zeros_like(case.truth.x))
    assert [nothing[k] for k in (*DECIBELS, "flux", "invisible_flux")] == [0.0] * 5
    truth = scores.score(case, case.truth.x)
    assert min(truth[k] for k in DECIBELS) > 100
    assert truth["flux"] == pytest.approx(1.0, abs=1e-5)
    assert truth["planets"] == pytest.approx([0.0] * len(case.truth.planets), abs=1e-5)
    assert truth["false_peak"] == pytest.approx(0.0, abs=1e-4)


def test_planets_alone(scores: ModuleType, cases: list[Any]) -> None:
    """Without its planets the image lacks all of their flux; without its disk, the disk's flux."""
    case = cases[0]
    found = scores.score(case, case.truth.disk)
    aperture = scores.planet_bias(-blur(case.truth.x - case.truth.disk, case.truth.psf), case.truth)
    assert found["planets"] == pytest.approx(aperture, abs=1e-4)
    assert max(found["planets"]) < -0.99
    alone = scores.score(case, case.truth.x - case.truth.disk)
    assert alone["flux"] < 0.5


def test_each_score_looks_at_its_own_pixels(scores: ModuleType, cases: list[Any]) -> None:
    """Errors beside the disk, on planets alone, and on the pixel of one planet."""
    case = cases[0]
    sky, disk = (blur(x.double(), case.truth.psf) for x in (case.truth.x, case.truth.disk))
    region, planets = support(disk), support(sky - disk)
    beside = scores.score_shown(case, sky + (~region & ~planets))
    assert beside["support"] > 100
    assert beside["field"] < 100
    assert scores.score_shown(case, sky + planets)["false_peak"] == pytest.approx(0.0, abs=1e-9)
    planet = case.truth.planets[0]
    spike = sky.clone()
    spike[0, 0, round(planet.row), round(planet.column)] += planet.flux
    assert scores.score_shown(case, spike)["planets"][0] > 1


def test_the_visible_part_alone(scores: ModuleType, cases: list[Any]) -> None:
    case = cases[0]
    shown = remove_invisible(blur(case.truth.x.double(), case.truth.psf))
    found = scores.score_shown(case, shown)
    assert found["invisible_flux"] == pytest.approx(0.0, abs=1e-9)
    assert found["visible"] > 100
    assert found["field"] < 20


def test_without_a_disk_only_what_is_made_up_counts(scores: ModuleType, cases: list[Any]) -> None:
    case = cases[1]
    assert case.kind == scores.EMPTY
    sky = blur(case.truth.x.double(), case.truth.psf)
    found = scores.score_shown(case, sky + 3 * case.truth.deviation)
    assert found["field"] is None
    assert found["flux"] is None
    assert found["false_rms"] == pytest.approx(3.0, abs=1e-6)
    beside = ~support(sky)[0, 0] if case.truth.planets else torch.ones(33, 37, dtype=torch.bool)
    row, column = beside.nonzero()[5].tolist()
    spike = sky.clone()
    spike[0, 0, row, column] -= 7 * float(case.truth.deviation[0, 0, row, column])
    assert scores.score_shown(case, spike)["false_peak"] == pytest.approx(7.0, abs=1e-4)


def test_summary_takes_medians_by_class(scores: ModuleType) -> None:
    empty = dict.fromkeys(scores.COLUMNS)
    rows = [
        {**empty, "method": "m", "kind": kind, "field": value, "planets": [value]}
        for kind, value in (("a < 3", 1.0), ("a < 3", 2.0), ("a < 3", 6.0), ("a > 10", 40.0))
    ]
    text = scores.summary(rows)
    assert "2.0 [1.5, 4.0]" in text
    assert "40.0 [40.0, 40.0]" in text
    assert "4.0 [1.8, 14.5]" in text
    assert scores.quartiles(rows[:3], "planets") == [1.5, 2.0, 4.0]
    assert scores.quartiles(rows, "flux") == []
    assert math.inf == scores.CLASSES["a > 10"]
