"""Progress bars, and an interrupt that Python loses."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from deepinv_astro.cli.progress import Stages


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    """Also where the tests were started in the background, with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Last:
    """Interrupted while it goes: Python prints the exception and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        for _ in range(100_000):  # the signal is seen between two turns
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_interrupt_stops_at_the_next_step() -> None:
    before, done = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Stages(Console(quiet=True)) as stages:
            advance = stages.begin("work", 3)
            advance(1)
            last = Last()
            del last
            done.append("after the lost one")
            advance(2)
            done.append("too late")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the lost one"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_stops_at_once() -> None:
    done = []

    def work() -> None:
        with Stages(Console(quiet=True)) as stages:
            stages.begin("work", 3)
            signal.raise_signal(signal.SIGINT)
            for _ in range(100_000):
                pass
            done.append("too late")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == []
