"""Training on a survey: tasks made once of each star, and a loop that knows no truth."""

from __future__ import annotations

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deepinv_astro.io import write_json
from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.models import MarginalPilot, PilotNetwork
from deepinv_astro.training.loop import Loop, Share
from deepinv_astro.training.noise_levels import NoiseLevels, steeper
from deepinv_astro.training.packing import pack, unpack
from deepinv_astro.training.reobservation import Reobservation
from deepinv_astro.training.star_calibration import StarCalibration
from deepinv_astro.training.survey_recipe import Precision, SurveyRecipe
from deepinv_astro.training.tasks import (
    Device,
    Observation,
    Task,
    consistency,
    measured,
    observe,
    recorrupted,
    risk,
    splitting,
    truth,
    unsure,
    values,
)

__all__ = ["Stars", "SurveyTasks", "SurveyTraining"]


class Stars(Protocol):
    """A survey: :class:`SyntheticSurvey`, :class:`SequenceFolder`, or any list of their items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


#: Kind of the task that holds the equations of all frames.
_WHOLE = "whole"
#: File of the folder of tasks that tells how they were made, and of which kind it is.
_SETTINGS, _VERSION = "settings.json", 2
#: Steps after which the window moves by one task: making its tables costs as much as half a step.
_DWELL = 2
#: Makes tasks of a star.
Maker = Callable[[Observation, MarginalPilot, torch.Generator], Task]


class SurveyTasks:
    r"""Tasks of the stars of a survey, which do not depend on the weights, made once.

    Most of the time of a training goes into pilots. They are made before it, stored in a folder if
    there is one, and found there by a later run. Processes that share a training share them out.

    :param Stars stars: the survey.
    :param MarginalPilot pilot: of the model.
    :param dict makers: from the name of a kind of task to what makes it.
    :param int draws: tasks of each kind and star.
    :param int seed: of splits, probes and noises.
    :param folder: where tasks are stored; must be shared by all processes. Default: memory.
    :param device: where they are used.
    :param StarCalibration calibration: fitted to each star first.
    :param options: what else the tasks depend on, kept in the folder beside the calibration.
    :raises ValueError: by :meth:`prepare`, if the folder holds tasks that were made in another way.
    """

    def __init__(
        self,
        stars: Stars,
        pilot: MarginalPilot,
        makers: dict[str, Maker],
        *,
        calibration: StarCalibration | None = None,
        draws: int = 1,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        device: Device = "cpu",
        **options: float,
    ) -> None:
        self.settings = {
            "version": _VERSION, "calibration": repr(calibration), **options,
        }  # fmt: skip
        self.stars, self.pilot, self.makers, self.draws = stars, pilot, makers, draws
        self.seed, self.device, self.calibration = seed, device, calibration
        self.folder = None if folder is None else Path(folder)
        self._packed: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self.stars)

    def prepare(self, progress: Callable[[int], None] | None = None) -> None:
        """
        Make what is missing, of the share of this process.

        :param progress: called with the number of stars done.
        """
        share = Share.own()
        if self.folder is not None:
            self._check_folder(self.folder)
            share.sum(torch.zeros(()))  # all have looked before the first one writes
            if share.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / _SETTINGS, self.settings, overwrite=True)
            share.sum(torch.zeros(()))
        own = range(share.rank, len(self), share.world) if self.folder else range(len(self))
        for done, star in enumerate(own, 1):
            self._make(star)
            if progress is not None:
                progress(min(done * share.world, len(self)))
        share.sum(torch.zeros(()))  # wait for the others

    def _check_folder(self, folder: Path) -> None:
        if (folder / _SETTINGS).exists():
            found = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
            other = {k: v for k, v in found.items() if self.settings.get(k) != v}
            if not other:
                return
            told = f"other settings ({', '.join(f'{k} {v}' for k, v in other.items())})"
        elif next(folder.glob("*.pt"), None) is None:
            return
        else:
            told = "unknown settings"
        raise ValueError(
            f"`folder`: the tasks in {folder} were made with {told}: name another folder, or delete it"
        )

    def shape(self, star: int) -> tuple[int, ...]:
        """
        Size of the image of a star.

        :param int star: number.
        :return: ``(1, C, H, W)``.
        """
        return tuple(self._read(star, _WHOLE)[0]["parts"][0]["equations"]["start"].shape)

    def observation(self, star: int) -> Observation:
        """
        A star with its data and the equations of all frames.

        :param int star: number.
        :return: (:class:`Observation`)
        """
        y, _ = measured(self.stars[star], self.device)
        whole = unpack(self._read(star, _WHOLE)[0], self.device)[0].given
        return Observation(y, whole.normal.physics, whole)  # type: ignore[attr-defined]

    def task(self, star: int, kind: str, draw: int) -> Task:
        """
        One of the tasks of a star.

        :param int star: number.
        :param str kind: of the makers.
        :param int draw: number of it.
        :return: the task, whose operators have no tables yet.
        """
        made = self._read(star, kind)
        if draw >= len(made):
            raise ValueError(
                f"`draws`: {self.folder} has {len(made)} of each star and kind: name another folder, or delete it"
            )
        return unpack(made[draw], self.device)

    def _make(self, star: int) -> None:
        missing = [kind for kind in (_WHOLE, *self.makers) if not self._exists(star, kind)]
        if not missing:
            return
        if _WHOLE in missing:
            seen = observe(self.stars[star], self.pilot, self.device, self.calibration)
        else:
            item = self.stars[star]
            seen = self.observation(star)._replace(
                x=item["x"][None].to(self.device) if "x" in item else None
            )
        for kind in missing:
            seed = zlib.crc32(f"{self.seed} {star} {kind}".encode())
            rng = torch.Generator().manual_seed(seed)
            if kind == _WHOLE:
                self._write(star, kind, [pack(consistency(seen))])
            else:
                make = self.makers[kind]
                made = [pack(make(seen, self.pilot, rng)) for _ in range(self.draws)]
                self._write(star, kind, made)

    def _file(self, star: int, kind: str) -> Path | None:
        return self.folder and self.folder / f"{star:06d}-{kind}.pt"

    def _exists(self, star: int, kind: str) -> bool:
        file = self._file(star, kind)
        return (star, kind) in self._packed or (file is not None and file.exists())

    def _write(self, star: int, kind: str, made: list[dict[str, Any]]) -> None:
        file = self._file(star, kind)
        if file is None:
            self._packed[star, kind] = made
            return
        with atomic_path(file, overwrite=True) as temporary:
            torch.save(made, temporary)

    def _read(self, star: int, kind: str) -> list[dict[str, Any]]:
        if (star, kind) not in self._packed:
            file = self._file(star, kind)
            if file is None or not file.exists():
                raise RuntimeError("call prepare() before the tasks are used")
            self._packed[star, kind] = torch.load(file, weights_only=True)
        return self._packed[star, kind]


class SurveyTraining(Loop):
    r"""Train a reconstructor on a survey without ground truth, by a :class:`SurveyRecipe`.

    A :class:`Loop`: it stops and goes on at any step, and is shared by processes of ``torchrun``.
    Validation is the risk by frames held out (:func:`splitting`) on stars of their own, whatever the
    recipe: it is unbiased, for the reconstruction from half of the frames.

    :param PilotNetwork model: :math:`f`, with :class:`MarginalPilot`; trained in place.
    :param Stars train: stars to learn from.
    :param Stars validate: stars held out.
    :param SurveyRecipe recipe: parts and weights.
    :param Reobservation reobservation: how stars are observed again.
    :param int seed: of all that is random.
    :param folder: where tasks are stored, see :class:`SurveyTasks`.
    :param device: where it runs.
    :raises ValueError: if there is no star, or the pilot is another one.

    |sep|

    :Examples:

        >>> from deepinv_astro.datasets import SyntheticSurvey
        >>> from deepinv_astro.models import SmallUNet, UnrolledADI
        >>> from deepinv_astro.training import SurveyRecipe, SurveyTraining
        >>> stars = SyntheticSurvey.small(1, seed=2).split(4, 2, 1)
        >>> model = UnrolledADI(prox=[SmallUNet(4)] * 2)
        >>> recipe = SurveyRecipe(steps=4, warmup=1, batch=2, draws=1, validate_every=2)
        >>> training = SurveyTraining(model, stars.train, stars.validation, recipe)
        >>> training.prepare()
        >>> training.run()
        >>> [line.step for line in training.history]
        [0, 2, 4]
    """

    recipe: SurveyRecipe
    model: PilotNetwork
    average: PilotNetwork

    def __init__(
        self,
        model: PilotNetwork,
        train: Stars,
        validate: Stars,
        recipe: SurveyRecipe,
        *,
        reobservation: Reobservation | None = None,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        device: Device = "cpu",
    ) -> None:
        if not len(train) or not len(validate):
            raise ValueError(
                f"{len(train)} stars to learn from and {len(validate)} held out: give one or more of "
                "both"
            )
        if not isinstance(model.pilot, MarginalPilot):
            raise ValueError("a survey is learned from with MarginalPilot: give it to the model")
        model.precision = torch.bfloat16 if recipe.precision == Precision.MIXED.value else None
        levels = NoiseLevels(recipe.rings).to(device) if recipe.unsure else None
        super().__init__(
            model.to(device), recipe, losses=lambda rng: [levels] if levels else [], seed=seed
        )
        self.levels = levels
        self.device = device
        self.reobservation = reobservation or Reobservation()
        split = partial(splitting, block=recipe.block)
        every: dict[str, Maker] = {
            "consistency": lambda seen, pilot, rng: consistency(seen),
            "risk": risk,
            "unsure": partial(unsure, rings=recipe.rings),
            "recorrupted": recorrupted,
            "splitting": split,
            "truth": lambda seen, pilot, rng: truth(seen),
        }
        makers = {kind: every[kind] for kind in recipe.weights() if kind != "again"}
        inside = None if folder is None else Path(folder)
        self.train = SurveyTasks(
            train, model.pilot, makers, draws=recipe.draws, seed=2 * seed, device=device,
            folder=inside and inside / "train", calibration=recipe.calibration(), block=recipe.block,
            rings=recipe.rings,
        )  # fmt: skip
        self.validate = SurveyTasks(
            validate, model.pilot, {"splitting": split}, seed=2 * seed + 1, device=device,
            folder=inside and inside / "validate", calibration=recipe.calibration(),
            block=recipe.block,
        )  # fmt: skip
        self.again: list[dict[str, Any]] = []
        order = torch.Generator().manual_seed(seed)
        self.order = {
            kind: [divmod(int(k), recipe.draws) for k in
                   torch.randperm(len(train) * recipe.draws, generator=order)]
            for kind in makers
        }  # fmt: skip
        self._live: OrderedDict[tuple[Any, ...], Task] = OrderedDict()
        self._held: dict[int, Task] = {}

    def prepare(self, progress: Callable[[int], None] | None = None) -> None:
        """
        Make the tasks of all stars; those found in the folder are taken.

        :param progress: called with the number of stars done.
        """
        self.train.prepare(progress)
        count = len(self.train)
        self.validate.prepare(None if progress is None else lambda done: progress(count + done))

    def batch_loss(self) -> Tensor:
        """
        Loss of some stars, each by one of the parts of the recipe.

        :return: (:class:`torch.Tensor`) a number.
        """
        recipe, share = self.recipe, self.share
        weights = self._active()
        kinds = list(weights)
        if "again" in weights and (not self.again or self.step % recipe.again_every == 0):
            self._observe_again()
        draw = torch.rand(recipe.batch * share.world, 2, generator=self.rng).tolist()
        chosen = [self._choose(kinds, list(weights.values()), *pair) for pair in draw]
        tasks = [self._task(*key) for key in chosen[share.rank :: share.world]]
        if self.levels is None:
            return values(self.model, tasks).mean()
        used = sum(kind == "unsure" for kind, *_ in chosen)
        levels = steeper(self.levels(), len(chosen) / max(used, 1))
        # a process whose tasks do not use them takes part in their step as well
        return values(self.model, tasks, levels).mean() + 0 * levels.sum()

    def validation_loss(self) -> Tensor:
        """
        Risk of the stars held out, for the averaged weights.

        :return: (:class:`torch.Tensor`) sum and number of stars.
        """
        own = range(self.share.rank, len(self.validate), self.share.world)
        total = sum(float(values(self.average, [self._held_task(star)])) for star in own)
        return torch.tensor([total, len(own)], dtype=torch.float64)

    def _held_task(self, star: int) -> Task:
        """The task of a star held out; half a window of them keep their tables."""
        if star in self._held:
            return self._held[star]
        task = self.validate.task(star, "splitting", 0)
        if 2 * len(self._held) < self.recipe.window:
            self._held[star] = task
        return task

    def state_dict(self) -> dict[str, Any]:
        """
        All that changes while it trains.

        :return: (dict) tensors, numbers, and lists of them.
        """
        return {**super().state_dict(), "again": self.again}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on where a checkpoint was written.

        :param dict state: of :meth:`state_dict`.
        :raises ValueError: if it was written with another recipe.
        """
        super().load_state_dict(state)
        self.again = state["again"]
        self._live.clear()

    def _active(self) -> dict[str, float]:
        """Parts and weights of this step."""
        weights = self.recipe.weights()
        if self.step < self.recipe.again_after * self.recipe.steps:
            weights.pop("again", None)
        return weights

    def _choose(
        self, kinds: Sequence[str], weights: Sequence[float], which: float, where: float
    ) -> tuple[Any, ...]:
        """Kind and number of a task, of the window of this step."""
        edges = torch.tensor(weights).cumsum(0)
        kind = kinds[int((edges < which * float(edges[-1])).sum())]
        if kind == "again":
            return kind, len(self.again) - 1 - int(where * len(self.again))
        order = self.order[kind]
        window = min(max(self.recipe.window // len(self.order), 1), len(order))
        return kind, *order[(self.step // _DWELL + int(where * window)) % len(order)]

    def _task(self, kind: str, *number: int) -> Task:
        """A task, with the tables of its operators if it was used not long ago."""
        key = (kind, *number)
        if kind == "again":  # what is in one place changes
            key = (kind, self.again[number[0]]["serial"])
        if key not in self._live:
            made = (
                unpack(self.again[number[0]], self.device)
                if kind == "again"
                else self.train.task(number[0], kind, number[1])
            )
            self._live[key] = made
            if len(self._live) > self.recipe.window:
                self._live.popitem(last=False)
        self._live.move_to_end(key)
        return self._live[key]

    def _observe_again(self) -> None:
        """One more star, with the instrument of another one whose images are of the same size."""
        count = len(self.train)
        sky, instrument = torch.randint(count, (2,), generator=self.rng).tolist()
        if not self.reobservation.exchange:
            sky = instrument
        for k in range(count):
            if self.train.shape((sky + k) % count) == self.train.shape(instrument):
                sky = (sky + k) % count
                break
        stars = [self.train.observation(k) for k in (sky, instrument)]
        self.average.eval()
        task = self.reobservation(self.average, stars[0], stars[1], self.rng)
        serial = self.again[-1]["serial"] + 1 if self.again else 0
        self.again.append({**pack(task), "serial": serial})
        self.again = self.again[-self.recipe.again_kept :]
