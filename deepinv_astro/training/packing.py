"""Tasks as plain tensors: for files and checkpoints, and to hold many without the tables of their operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepinv_astro.models import NormalEquations
from deepinv_astro.models.invariant import InvariantPart
from deepinv_astro.models.pilot import WhitenedOperator
from deepinv_astro.optim.temporal import FrozenMetric
from deepinv_astro.physics import ADI
from deepinv_astro.training.tasks import Part, Task

__all__ = ["pack", "unpack"]

_PARAMETERS = ("angles", "center", "filter", "transmission", "gain", "smear")


def pack(task: Task) -> dict[str, Any]:
    """
    A task as dictionaries and lists of tensors, which ``torch.load`` reads with ``weights_only``.

    Operators and metrics that appear twice are packed once.

    :param task: parts made by :class:`~deepinv_astro.models.MarginalPilot`.
    :return: (dict) for :func:`unpack`.
    """
    maps: list[WhitenedOperator] = []
    operators: list[ADI] = []

    def index(normal: Callable[[Tensor], Tensor] | None) -> int:
        if normal is None:
            return -1
        if not isinstance(normal, WhitenedOperator):
            raise TypeError("only equations of MarginalPilot can be packed")
        for k, known in enumerate(maps):
            if known is normal:
                return k
        maps.append(normal)
        if not any(normal.physics is known for known in operators):
            operators.append(normal.physics)
        return len(maps) - 1

    parts = [
        {
            "given": index(part.given.normal),
            "judge": index(part.normal),
            "back": part.back.detach(),
            "slopes": part.slopes,
            "equations": {
                "back": part.given.back.detach(),
                "scale": part.given.scale,
                "start": part.given.start,
                "largest": part.given.largest_eigenvalue(),
            },
        }
        for part in task
    ]
    where = [next(k for k, o in enumerate(operators) if o is m.physics) for m in maps]
    return {
        "parts": parts,
        "operators": [
            {n: v.detach() for n in _PARAMETERS if (v := getattr(o, n)) is not None}
            for o in operators
        ],
        "options": [_options(o) for o in operators],
        "maps": [
            {"operator": k, "metrics": [m.state() for m in own.metrics]}
            for k, own in zip(where, maps, strict=True)
        ],
    }


def unpack(packed: dict[str, Any], device: torch.device | str = "cpu") -> Task:
    """
    The task again; its operators make their tables when they are first used.

    :param dict packed: of :func:`pack`.
    :param device: where its tensors are put.
    :return: the parts.
    """

    def there(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in tensors.items()}

    operators = [
        ADI(**{**options, **there(own)}, dtype=own["angles"].dtype, device=device)
        for options, own in zip(packed["options"], packed["operators"], strict=True)
    ]
    maps = [
        WhitenedOperator(
            operators[own["operator"]],
            tuple(FrozenMetric.from_state(there(state)) for state in own["metrics"]),
        )
        for own in packed["maps"]
    ]
    return tuple(
        Part(
            NormalEquations(
                maps[part["given"]],
                **there(part["equations"]),
                unseen=InvariantPart.of(maps[part["given"]].physics),
            ),
            None if part["judge"] < 0 else maps[part["judge"]],
            part["back"].to(device),
            None if (slopes := part.get("slopes")) is None else slopes.to(device),
        )
        for part in packed["parts"]
    )


def _options(physics: ADI) -> dict[str, Any]:
    """What is no tensor of an operator."""
    row, column = physics.sky_center.tolist()
    return {
        "img_size": tuple(physics.img_size),
        "detector_size": tuple(physics.detector_size),
        "sky_center": (row, column),
        "transmission_order": physics.transmission_order.value,
        "interpolation": physics.interpolation.value,
        "smear_steps": physics.smear_steps,
    }
