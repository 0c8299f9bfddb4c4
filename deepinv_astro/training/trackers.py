"""A training shown in TensorBoard, Weights & Biases or MLflow while it goes on."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from deepinv_astro.io.strict_json import write_json
from deepinv_astro.training.loop import Loop

__all__ = ["Tracker", "tracked"]

_logger = logging.getLogger(__name__)
#: File with the name of the run in each service, beside the checkpoint.
_RUNS = "logger.json"
_Facts = Mapping[str, Any]


class Tracker(Protocol):
    """A run in a service, which calls it ``run``."""

    run: str

    def log(self, step: int, numbers: _Facts, picture: Path | None) -> None:
        """Show numbers of a step, and the file of a picture if there is one."""

    def close(self, complete: bool) -> None:
        """End the run; one that is not complete may be continued."""


def _pixels(picture: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(picture).convert("RGB"))


class _TensorBoard:
    def __init__(self, service: Any, folder: Path, facts: _Facts, run: str | None) -> None:
        self.run = run or "tensorboard"
        # a new run hides what an earlier one left in the folder
        self.writer = service.SummaryWriter(folder / self.run, purge_step=None if run else 0)
        if run is None:
            plain = {k: v if isinstance(v, int | float) else str(v) for k, v in facts.items()}
            self.writer.add_hparams(plain, {}, run_name=".")

    def log(self, step: int, numbers: _Facts, picture: Path | None) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        if picture is not None:
            self.writer.add_image("progress", _pixels(picture), step, dataformats="HWC")
        self.writer.flush()  # a kill loses nothing

    def close(self, complete: bool) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, service: Any, folder: Path, facts: _Facts, run: str | None) -> None:
        self.image, quiet = service.Image, service.Settings(console="off")  # no progress bars
        self.active = service.init(
            dir=folder, name=folder.name, id=run, resume="allow", config=dict(facts), settings=quiet
        )
        self.run = self.active.id

    def log(self, step: int, numbers: _Facts, picture: Path | None) -> None:
        images = {} if picture is None else {"progress": self.image(str(picture))}
        self.active.log({**numbers, **images}, step=step)

    def close(self, complete: bool) -> None:
        self.active.finish(exit_code=0 if complete else 1)


class _MLflow:
    def __init__(self, service: Any, folder: Path, facts: _Facts, run: str | None) -> None:
        self.service = service
        self.run = service.start_run(run_id=run, run_name=folder.name).info.run_id
        if run is None:
            service.log_params(dict(facts))

    def log(self, step: int, numbers: _Facts, picture: Path | None) -> None:
        self.service.log_metrics(dict(numbers), step=step)
        if picture is not None:
            self.service.log_image(_pixels(picture), key="progress", step=step)

    def close(self, complete: bool) -> None:
        self.service.end_run("FINISHED" if complete else "KILLED")


#: Of each service: its module, and how a run is opened. The packages have the names of the services.
_SERVICES: dict[str, tuple[str, Callable[[Any, Path, _Facts, str | None], Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "wandb": ("wandb", _Wandb),
    "mlflow": ("mlflow", _MLflow),
}


def _open(name: str, folder: Path, facts: _Facts, resume: bool) -> Tracker:
    if name not in _SERVICES:
        raise ValueError(f"`logger`: found {name!r}; expected one of {', '.join(_SERVICES)}")
    (module, start), file = _SERVICES[name], folder / _RUNS
    runs = json.loads(file.read_text(encoding="utf-8")) if resume and file.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tracker = start(importlib.import_module(module), folder.resolve(), facts, runs.get(name))
    except ImportError as error:
        raise ValueError(f"`logger={name}`: {error}; pip install {name}") from error
    except Exception as error:
        raise ValueError(f"`logger={name}` did not start: {error}") from error
    write_json(file, {**runs, name: tracker.run}, overwrite=True)
    return tracker


@contextmanager
def tracked(
    name: str | None, folder: Path, facts: _Facts, *, resume: bool = False
) -> Iterator[Callable[..., None]]:
    r"""
    Show the validations of a training in a service, while the block runs.

    What is yielded is called with a :class:`Loop` after a validation, and with the file of a picture if
    there is one: ``Loop.run(log=...)`` takes it. It shows both losses, :math:`\eta_k` and the seconds. A
    service that fails is told once and left: the training goes on, and has files of its own.

    :param name: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``, or None to show nothing.
    :param pathlib.Path folder: of the results; ``logger.json`` in it names the run.
    :param dict facts: hyper-parameters, written once.
    :param bool resume: continue the run of the folder, if there is one.
    :raises ValueError: if the service is not installed or does not start.
    """
    tracker = None if name is None else _open(name, folder, facts, resume)

    def attempt(act: Callable[[Tracker], None]) -> None:
        nonlocal tracker
        if tracker is None:
            return
        try:
            act(tracker)
        except Exception as error:
            tracker = None
            text = " ".join(str(error).split())
            _logger.error("%s failed and is left; the training goes on: %s", name, text)
            _logger.debug("the failure", exc_info=True)

    def show(now: Loop, picture: Path | None = None) -> None:
        step, train, validation, seconds = now.history[-1]
        numbers = {"loss/validation": validation, "seconds": seconds}
        numbers["learning_rate"] = now.recipe.rate(step)
        if step:  # before the first one there is no loss while training
            numbers["loss/train"] = train
        attempt(lambda run: run.log(step, numbers, picture))

    complete = False
    try:
        yield show
        complete = True
    finally:
        attempt(lambda run: run.close(complete))
