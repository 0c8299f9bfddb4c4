"""Trainings shown in services: what is told, that a run goes on, and that no service stops a training."""

from __future__ import annotations

import json
import logging
import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deepinv_astro.training import Loop, Schedule
from deepinv_astro.training.trackers import tracked

SERVICES = ("tensorboard", "wandb", "mlflow")
RECIPE = Schedule(steps=6, warmup=2, validate_every=2, learning_rate=0.1)
FACTS = {"steps": 6, "seed": 3, "factors": (0.5, 1.0), "precision": "float32"}


class Descent(Loop):
    """Fit a number to another one."""

    def batch_loss(self) -> Tensor:
        return (self.model.weight - 2).square().sum() + torch.rand(())

    def validation_loss(self) -> Tensor:
        return torch.stack([(self.average.weight - 2).square().sum(), torch.tensor(1.0)])


def make() -> Descent:
    torch.manual_seed(1)
    return Descent(nn.Linear(1, 1, bias=False), RECIPE)


class Recorder:
    """What services were told, in one form: (event, value), ..."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.trouble: set[str] = set()

    def tell(self, event: str, *values: Any) -> None:
        if event in self.trouble:
            raise RuntimeError(f"no\nroute for {event}")
        self.told.append((event, *values))

    def all(self, event: str) -> list[tuple[Any, ...]]:
        return [values for name, *values in self.told if name == event]  # type: ignore[misc]

    def tensorboard(self) -> Any:
        tell = self.tell

        class SummaryWriter:
            def __init__(self, log_dir: Path, purge_step: int | None = None) -> None:
                assert purge_step in (0, None)
                tell("run", None if purge_step == 0 else log_dir.name)

            def add_hparams(self, facts: dict[str, Any], metrics: Any, run_name: str) -> None:
                assert all(isinstance(v, int | float | str) for v in facts.values())
                assert run_name == "."
                tell("facts", facts)

            def add_scalar(self, name: str, value: float, step: int) -> None:
                tell("number", step, name, value)

            def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
                assert dataformats == "HWC"
                tell("picture", step, pixels.shape)

            def flush(self) -> None:
                tell("flush")

            def close(self) -> None:
                tell("close", None)

        return SimpleNamespace(SummaryWriter=SummaryWriter)

    def wandb(self) -> Any:
        def init(**given: Any) -> Any:
            assert given["resume"] == "allow"
            assert given["dir"].is_absolute()
            self.tell("run", given["id"])
            if given["id"] is None:
                self.tell("facts", given["config"])
            return SimpleNamespace(
                id=given["id"] or "w1",
                log=log,
                finish=lambda exit_code: self.tell("close", exit_code == 0),
            )

        def log(content: dict[str, Any], step: int) -> None:
            for name, value in content.items():
                if name == "progress":
                    self.tell("picture", step, value)
                else:
                    self.tell("number", step, name, value)

        def picture(file: str) -> tuple[int, ...]:
            return (*np.asarray(Image.open(file)).shape[:2], 3)

        return SimpleNamespace(init=init, Image=picture, Settings=lambda console: None)

    def mlflow(self) -> Any:
        def start_run(run_id: str | None, run_name: str) -> Any:
            self.tell("run", run_id)
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "m1"))

        def log_metrics(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                self.tell("number", step, name, value)

        return SimpleNamespace(
            start_run=start_run,
            log_params=lambda facts: self.tell("facts", facts),
            log_metrics=log_metrics,
            log_image=lambda image, key, step: self.tell("picture", step, image.shape),
            end_run=lambda status: self.tell("close", {"FINISHED": True, "KILLED": False}[status]),
        )


MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@pytest.fixture(params=SERVICES)
def service(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Recorder]:
    """A service by name, whose module is replaced, and what it is told."""
    recorder, name = Recorder(), request.param
    monkeypatch.setitem(sys.modules, MODULES[name], getattr(recorder, name)())
    return name, recorder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGBA", (30, 20), "red").save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_validations_are_shown(
    service: tuple[str, Recorder], tmp_path: Path, picture: Path
) -> None:
    name, seen = service
    training = make()
    with tracked(name, tmp_path / "out", FACTS) as show:
        training.run(log=lambda now: show(now, picture))
    assert [k for k, *_ in seen.told][:2] == ["run", "facts"]
    assert [run for (run,) in seen.all("run")] == [None]
    assert len(seen.all("facts")) == 1
    assert seen.all("facts")[0][0]["precision"] == "float32"
    expected = {
        (v.step, key): value
        for v in training.history
        for key, value in (
            ("loss/train", v.train), ("loss/validation", v.validation), ("seconds", v.seconds),
            ("learning_rate", RECIPE.rate(v.step)),
        ) if not math.isnan(value)
    }  # fmt: skip
    assert len(expected) == 4 * 4 - 1
    assert {(step, key): value for step, key, value in seen.all("number")} == expected
    assert seen.all("picture") == [[step, (20, 30, 3)] for step in (0, 2, 4, 6)]
    assert seen.told[-1] == ("close", None if name == "tensorboard" else True)


def test_a_resumed_training_goes_on_in_the_same_run(
    service: tuple[str, Recorder], tmp_path: Path
) -> None:
    name, seen = service
    first = make()

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tracked(name, tmp_path, FACTS) as show:
        first.run(tmp_path / "c.pt", stop, show)
    assert seen.told[-1] == ("close", None if name == "tensorboard" else False)
    seen.told.clear()
    rest = make()
    rest.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    with tracked(name, tmp_path, FACTS, resume=True) as show:
        rest.run(log=show)
    known = {"tensorboard": "tensorboard", "wandb": "w1", "mlflow": "m1"}[name]
    assert seen.all("run") == [[known]]
    assert seen.all("facts") == []
    assert sorted({step for step, *_ in seen.all("number")}) == [4, 6]
    assert json.loads((tmp_path / "logger.json").read_text()) == {name: known}


def test_a_training_that_begins_anew_is_another_run(
    service: tuple[str, Recorder], tmp_path: Path
) -> None:
    name, seen = service
    (tmp_path / "logger.json").write_text(json.dumps({name: "old", "other": "kept if resumed"}))
    for resume, run in ((True, "old"), (False, None)):
        seen.told.clear()
        with tracked(name, tmp_path, FACTS, resume=resume):
            pass
        assert seen.all("run") == [[run]]
        assert ("other" in json.loads((tmp_path / "logger.json").read_text())) == resume
    seen.told.clear()
    with tracked(name, tmp_path / "empty", FACTS, resume=True):
        pass
    assert seen.all("run") == [[None]]


@pytest.mark.parametrize("event", ["number", "close"])
def test_a_service_that_fails_does_not_stop_the_training(
    service: tuple[str, Recorder], event: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, seen = service
    expected = make()
    expected.run()
    training = make()
    with tracked(name, tmp_path, FACTS) as show:
        training.run(log=show)
        seen.trouble.add(event)
        before = len(seen.told)
        show(training)
        show(training)
    if event == "number":
        assert len(seen.told) == before  # it is left
    assert torch.equal(training.model.weight, expected.model.weight)
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert lines == [f"{name} failed and is left; the training goes on: no route for {event}"]


def test_a_service_that_fails_from_the_start_of_the_training(
    service: tuple[str, Recorder], tmp_path: Path
) -> None:
    name, seen = service
    seen.trouble.add("number")
    training = make()
    with tracked(name, tmp_path, FACTS) as show:
        training.run(tmp_path / "c.pt", log=show)
    assert training.step == 6
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 6
    assert seen.all("close") == []


def test_what_cannot_start_is_told_before_the_training(
    service: tuple[str, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = service
    seen.trouble.add("run")
    with pytest.raises(ValueError, match=f"`logger={name}` did not start: no\nroute for run"):
        tracked(name, tmp_path, FACTS).__enter__()
    assert not (tmp_path / "logger.json").exists()
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(ValueError, match=f"`logger={name}`: .*; pip install {name}$"):
        tracked(name, tmp_path, FACTS).__enter__()


def test_no_service_and_an_unknown_one(tmp_path: Path) -> None:
    training = make()
    with tracked(None, tmp_path / "none", FACTS) as show:
        training.run(log=show)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="found 'visdom'; expected one of tensorboard, wandb, mlf"):
        tracked("visdom", tmp_path, FACTS).__enter__()


# The services themselves, where they are installed.

Read = Callable[[Path], dict[str, list[tuple[int, float]]]]


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Images("progress")]
    assert (
        b"precision" in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    return {k: [(e.step, e.value) for e in events.Scalars(k)] for k in events.Tags()["scalars"]}


def read_mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    import mlflow

    client, run = mlflow.MlflowClient(), json.loads((folder / "logger.json").read_text())["mlflow"]
    data = client.get_run(run).data
    assert data.params["precision"] == "float32"
    assert client.list_artifacts(run, "images")
    return {k: [(m.step, m.value) for m in client.get_metric_history(run, k)] for k in data.metrics}


def read_wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of all files of the run: offline, each start makes one."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    run = json.loads((folder / "logger.json").read_text())["wandb"]
    for file in sorted(folder.glob(f"wandb/offline-run-*/run-{run}.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            for key in items:
                if not key.startswith(("_", "progress")):
                    found.setdefault(key, []).append((int(items["_step"]), float(items[key])))
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind a header of seven bytes, in blocks of 32 KiB."""
    place, parts = 7, b""
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or its last part
            yield parts
            parts = b""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "read"),
    [("tensorboard", read_tensorboard), ("wandb", read_wandb), ("mlflow", read_mlflow)],
)
def test_real_services_hold_a_training_that_was_resumed(
    name: str, read: Read, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "out"

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tracked(name, out, FACTS) as show:
        make().run(tmp_path / "c.pt", stop, lambda now: show(now, picture))
    rest = make()
    rest.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    with tracked(name, out, FACTS, resume=True) as show:
        rest.run(log=lambda now: show(now, picture))
    found = read(out)
    assert set(found) == {"loss/train", "loss/validation", "learning_rate", "seconds"}
    for key, k in (("loss/train", 1), ("loss/validation", 2), ("seconds", 3)):
        wanted = [(v.step, v[k]) for v in rest.history if not math.isnan(v[k])]
        assert [step for step, _ in found[key]] == [step for step, _ in wanted]
        values = [value for _, value in found[key]]
        assert values == pytest.approx([value for _, value in wanted], rel=1e-6)
    rates = [(step, RECIPE.rate(step)) for step in (0, 2, 4, 6)]
    assert found["learning_rate"] == [(step, pytest.approx(rate)) for step, rate in rates]
    plain = make()
    plain.run()
    assert torch.equal(plain.model.weight, rest.model.weight)  # nothing was drawn for the service
