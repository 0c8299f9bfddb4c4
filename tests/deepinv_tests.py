"""deepinv's own tests, as its wheel ships them: loaded, and aimed at our objects. Nothing is copied."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import deepinv
import pytest
import torch


def load(name: str) -> types.ModuleType:
    """A module of their tests, with its neighbours at hand while it is loaded."""
    folder = Path(deepinv.__file__).parent / "tests"
    own = {key: sys.modules.pop(key, None) for key in ("conftest", "dummy")}
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"deepinv_own_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        for key, value in own.items():
            sys.modules.pop(key, None)
            if value is not None:
                sys.modules[key] = value
    return module


def aimed(
    module: types.ModuleType,
    argument: str,
    names: Sequence[str],
    is_theirs: Callable[[Sequence[str]], bool] = lambda names: True,
) -> dict[str, Callable]:
    """Their tests that run over a list of names, to run over ours instead.

    Only those of which the marks give values to ``argument``, and these values satisfy ``is_theirs``.
    """

    def aim(test: types.FunctionType) -> types.FunctionType | None:
        marks, ours = [], False
        for mark in getattr(test, "pytestmark", []):
            if mark.name == "parametrize" and mark.args[0] == argument and is_theirs(mark.args[1]):
                mark, ours = pytest.mark.parametrize(argument, list(names)).mark, True
            marks.append(mark)
        if not ours:
            return None
        copy = types.FunctionType(
            test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__
        )
        copy.pytestmark = marks
        return copy

    found = {n: aim(f) for n, f in vars(module).items() if n.startswith("test_")}
    return {name: test for name, test in found.items() if test is not None}


@pytest.fixture(name="device", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def their_device(request: pytest.FixtureRequest) -> torch.device:
    """Their tests ask for a device."""
    return torch.device(request.param)


@pytest.fixture(name="rng")
def their_rng(device: torch.device) -> torch.Generator:
    """On that device."""
    return torch.Generator(device).manual_seed(0)
