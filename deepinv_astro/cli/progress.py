"""Progress bars: one for each stage of the work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """
    Bars that appear as stages begin; a stage that ends early is shown as complete.

    A Ctrl-C that Python loses, because it came while an object was finalised, interrupts at the next step.

    :param rich.console.Console console: where to draw; default standard error, so that the
        standard output holds results only.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=36),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._current: str | None = None
        self._interrupted, self._handles = False, False

    def __enter__(self) -> Stages:
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._handles = default and threading.current_thread() is threading.main_thread()
        if self._handles:
            signal.signal(signal.SIGINT, self._interrupt)
        self._progress.start()
        return self

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        self._progress.stop()
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def begin(self, name: str, total: int) -> Callable[[int], None]:
        """
        Begin a stage; the one before is complete.

        :param str name: of the stage.
        :param int total: its steps.
        :return: to be called with the number of steps done.
        """
        if name != self._current:
            self.finish()
            self._tasks[name] = self._progress.add_task(name, total=total)
            self._current = name
        task = self._tasks[name]

        def advance(done: int) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._progress.update(task, completed=min(done, total))

        return advance

    def finish(self) -> None:
        """Show the current stage as complete."""
        if self._current is not None:
            task = self._progress.tasks[self._tasks[self._current]]
            self._progress.update(task.id, completed=task.total)
            self._progress.stop_task(task.id)
            self._current = None
