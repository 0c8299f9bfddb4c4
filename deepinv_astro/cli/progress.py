"""Progress bars: one for each stage of the work."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """
    Bars that appear as stages begin; a stage that ends early is shown as complete.

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

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        self._progress.stop()

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
        return lambda done: self._progress.update(task, completed=min(done, total))

    def finish(self) -> None:
        """Show the current stage as complete."""
        if self._current is not None:
            task = self._progress.tasks[self._tasks[self._current]]
            self._progress.update(task.id, completed=task.total)
            self._progress.stop_task(task.id)
            self._current = None
