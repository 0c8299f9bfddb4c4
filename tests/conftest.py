"""What every test may use."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import deepinv_astro

matplotlib.use("Agg")


def pytest_configure() -> None:
    # One thread: the order of sums, hence the last digits, does not depend on the machine.
    torch.set_num_threads(1)


def pytest_report_header() -> list[str]:
    data = os.environ.get("DEEPINV_ASTRO_DATA", "not set, tests on real files are skipped")
    return [
        f"deepinv_astro {deepinv_astro.__version__} from {Path(deepinv_astro.__file__).parent}",
        f"DEEPINV_ASTRO_DATA: {data}",
    ]


@pytest.fixture(autouse=True)
def _global_state_is_restored() -> Iterator[None]:
    """Seed the global generators, and undo what a test changed in torch's defaults."""
    dtype = torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - deepinv draws from the global generators
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator on the CPU, fresh for each test."""
    return torch.Generator().manual_seed(20261)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real files, named by DEEPINV_ASTRO_DATA."""
    name = os.environ.get("DEEPINV_ASTRO_DATA")
    if not name:
        pytest.skip("needs real files: set DEEPINV_ASTRO_DATA to the folder that holds them")
    root = Path(name)
    if not root.is_dir():
        raise FileNotFoundError(f"DEEPINV_ASTRO_DATA names {root}, which is not a folder")
    return root
