"""The method ``learned``: a trained network, as it is or adapted to the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from deepinv_astro.cli.methods import Solution
from deepinv_astro.models import WeightsFile, load_weights, read_weights_card

if TYPE_CHECKING:
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.cli.progress import Stages
    from deepinv_astro.models import UnrolledADI
    from deepinv_astro.training import Adaptation

HIDDEN = (
    "Of light that is the same all round the star the image shows the least; what else this sequence hardly "
    "constrains follows the stars that the network was trained on."
)


class Network(NamedTuple):
    """A network, what its file says of it, and most steps of its adaptation; None for none."""

    model: UnrolledADI
    file: WeightsFile
    steps: int | None


def read_network(weights: Path | None = None, steps: int | None = None) -> Network:
    """
    Read the weights.

    :param pathlib.Path weights: the file; None for that of the package.
    :param int steps: of the weights in the adaptation; None for no adaptation.
    :return: the network.
    :raises ValueError: if there is no such file, or it is something else.
    """
    return Network(load_weights(weights), read_weights_card(weights), steps)


def solve(network: Network, problem: Problem, stages: Stages, seed: int) -> Solution:
    """
    The image of a network, adapted to the sequence before if that is asked for.

    :param Network network: of :func:`read_network`.
    :param Problem problem: data and operator.
    :param Stages stages: where progress is shown.
    :param int seed: of the adaptation.
    :return: image, parameters, and sentences for the user.
    """
    y, physics = problem.sequence.y, problem.physics
    model = network.model.to(y.device, y.dtype)
    file = network.file
    parameters: dict[str, Any] = {
        "weights": file.name,
        "weights_sha256": file.digest,
        "weights_card": file.card,
        "architecture": file.architecture,
    }
    data = f": {file.card['data'].rstrip('.')}" if "data" in file.card else ""
    notes = [f"Weights {file.name} (SHA-256 {file.digest}...){data}.", HIDDEN]
    if network.steps is not None:
        from deepinv_astro.training import adapt

        stages.begin("first images", 1)
        found = adapt(
            model, y, physics, steps=(steps := network.steps), seed=seed,
            progress=lambda done: stages.begin("adaptation", steps)(done),
        )  # fmt: skip
        parameters["adaptation"] = described(found)
        return Solution(found.image, parameters, (*notes, verdict(found)))
    with torch.no_grad():
        stages.begin("first image", 1)
        equations = model.prepare(y, physics)
        stages.begin("learned image", 1)
        return Solution(model.refine(equations), parameters, tuple(notes))


def described(found: Adaptation) -> dict[str, Any]:
    """What an adaptation did, for the report."""
    return {
        "steps": found.history[-1].step,
        "chosen_step": found.chosen,
        "risk_before": found.before,
        "risk_after": found.after,
        "ring_gains": found.gains.values.tolist(),
        "ring_gains_std": found.gains.std.tolist(),
        "history": [line._asdict() for line in found.history],
    }


def verdict(found: Adaptation) -> str:
    """
    What an adaptation did, in a sentence.

    >>> from types import SimpleNamespace
    >>> from deepinv_astro.training import AdaptationStep
    >>> lines = (AdaptationStep(0, -1.25, 0.05, 0.02), AdaptationStep(8, -1.29, 0.09, 0.04))
    >>> gains = SimpleNamespace(values=torch.tensor([1.1, 0.95]))
    >>> done = SimpleNamespace(history=lines, chosen=8, before=-1.2, after=-1.3, gains=gains)
    >>> for line in verdict(done).split(". "):
    ...     print(line)
    Adapted by gains of 2 rings (from the star outwards 1.10, 0.95) and 8 of 8 steps
    The risk in frames held out changed from -1.2 to -1.3 (less is better, an empty image has 0)
    Where gains are judged by frames they were not fitted to, it fell by 0.09 +- 0.04.
    >>> done.chosen, done.history = 0, (AdaptationStep(0, -1.19, -0.01, 0.02),)
    >>> verdict(done)[-71:]
    'to, it rose by 0.01 +- 0.02: these frames do not tell whether it helps.'
    >>> done.chosen, done.after = 0, -1.2
    >>> verdict(done)
    'Not adapted: nothing lowered the risk in frames held out (-1.2).'
    """
    if not found.after < found.before:
        return f"Not adapted: nothing lowered the risk in frames held out ({found.before:.4g})."
    steps, gains = found.history[-1].step, found.gains.values.tolist()
    line = next(line for line in found.history if line.step == found.chosen)
    text = ", ".join(f"{gain:.2f}" for gain in gains)
    weights = f" and {found.chosen} of {steps} steps" if found.chosen else ""
    kept = f" None of {steps} steps was better." if steps and not found.chosen else ""
    doubt = ": these frames do not tell whether it helps" if line.gain < line.error else ""
    return (
        f"Adapted by gains of {len(gains)} rings (from the star outwards {text}){weights}. "
        f"The risk in frames held out changed from {found.before:.4g} to {found.after:.4g} (less is better, an "
        "empty image has 0). Where gains are judged by frames they were not fitted to, it "
        f"{'rose' if line.gain < 0 else 'fell'} by {abs(line.gain):.2g} +- {line.error:.2g}{doubt}.{kept}"
    )
