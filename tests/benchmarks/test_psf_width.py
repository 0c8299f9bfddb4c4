"""The benchmark of a PSF known to 20 %, on seeds that it does not report."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("psf_width")


@pytest.mark.parametrize("seed", [1001, pytest.param(1002, marks=pytest.mark.slow)])
def test_the_marginal_likelihood_finds_the_width_and_nothing_else_does(benchmark, seed):
    """Width within 5 %, image as good as with the known PSF; the joint cost falls to one pixel, SURE is flat."""
    result = benchmark.one("fields, slope 3.4", seed, others=True)
    verdicts = benchmark.judge([result])
    assert len(verdicts) == 4
    assert all(v["passed"] for v in verdicts), verdicts
    assert result["db_believed"] < result["db_known"] - 1  # it was worth it
    # the joint cost falls all the way from the truth to one pixel, by far more than the prior resists
    joint = dict(zip(benchmark.GRID, result["joint"], strict=True))
    assert joint[0.3] < joint[0.9] - 100 < joint[1.5] - 200
