r"""Weights of :class:`UnrolledADI` in one file, from which alone the network is made again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.files import existing_file
from deepinv_astro.models.pilot import MarginalPilot
from deepinv_astro.models.unrolled import FEATURES, SmallUNet, UnrolledADI
from deepinv_astro.optim.bounded import minimize_bounded
from deepinv_astro.optim.marginal import Marginal
from deepinv_astro.optim.projected import minimize_projected
from deepinv_astro.optim.regions import annular_regions

__all__ = ["WeightsFile", "load_weights", "read_weights_card", "save_weights"]

#: Name and version of the format; the file that comes with the package.
FORMAT, VERSION = "deepinv_astro.UnrolledADI", 1
SHIPPED = "survey.safetensors"
#: The entry of the metadata that holds the description.
_KEY = "deepinv_astro"
#: Numbers of :class:`deepinv_astro.optim.Marginal` that a pilot is made of.
_PILOT = ("smoothness", "sparsity", "nu")


class WeightsFile(NamedTuple):
    """
    What a file of weights says of itself.

    :param str name: of the file.
    :param str digest: first 12 hexadecimal digits of its SHA-256.
    :param dict architecture: ``steps``, ``width``, ``order`` (the network of each step; one that
        is shared appears more than once), ``positive``, and the numbers of the ``pilot``.
    :param dict card: what the author says of it: data, seed, command, scores, limits.
    """

    name: str
    digest: str
    architecture: dict[str, Any]
    card: dict[str, str]


def save_weights(
    path: str | os.PathLike[str],
    model: UnrolledADI,
    card: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """
    Write a network in the format safetensors: weights, architecture, and what to know of it.

    :param path: the file; it appears whole or not at all.
    :param UnrolledADI model: of :class:`SmallUNet` of one width, with a :class:`MarginalPilot`.
    :param Mapping card: names and sentences: data, seed, command, scores, limits.
    :param bool overwrite: whether an existing file may be replaced.
    :raises ValueError: if the network is made of other parts, or the card is not of text.
    :raises OSError: if the file exists, or cannot be written.

    |sep|

    :Examples:

        >>> import tempfile
        >>> from pathlib import Path
        >>> from deepinv_astro.models import SmallUNet, UnrolledADI, load_weights, save_weights
        >>> net = SmallUNet(4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "w.safetensors"
        ...     save_weights(path, UnrolledADI(prox=[net, net, SmallUNet(4)]), {"data": "none"})
        ...     made = load_weights(path)
        >>> len(made.prox), made.prox[0] is made.prox[1], made.prox[0] is made.prox[2]
        (3, True, False)
    """
    if not all(isinstance(text, str) for entry in card.items() for text in entry):
        raise ValueError(f"`card` must be names and texts, got {dict(card)}")
    networks = list(dict.fromkeys(model.prox))
    tensors = {"log_steps": model.log_steps}
    for k, net in enumerate(networks):
        tensors |= {f"networks.{k}.{name}": value for name, value in net.state_dict().items()}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": _architecture(model, networks),
        "card": dict(card),
    }
    # one entry: safetensors writes several in any order, and equal networks make equal files
    metadata = {_KEY: json.dumps(description)}
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)
    with atomic_path(path, overwrite) as temporary:
        temporary.write_bytes(content)


def load_weights(path: str | os.PathLike[str] | None = None) -> UnrolledADI:
    """
    The network of a file of :func:`save_weights`.

    :param path: the file. Default: the weights that come with the package, of a simulated survey.
    :return: (:class:`UnrolledADI`) in ``eval`` mode.
    :raises ValueError: if the file is missing, is something else, is cut off, or was written by a
        newer version; the message says which.
    """
    with _opened(path) as (name, content):
        architecture = _described(name, content).architecture
        tensors = load(content)
        try:
            model = _build(architecture, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _broken(name, "weights that do not fit their own description") from error
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise _broken(name, "weights that are not finite")
    return model.eval()


def read_weights_card(path: str | os.PathLike[str] | None = None) -> WeightsFile:
    """
    What a file of weights says of itself.

    :param path: as for :func:`load_weights`.
    :return: (:class:`WeightsFile`)
    :raises ValueError: as :func:`load_weights`.
    """
    with _opened(path) as (name, content):
        return _described(name, content)


@contextmanager
def _opened(path: str | os.PathLike[str] | None) -> Iterator[tuple[str, bytes]]:
    """Name and content; what is wrong with safetensors itself is told in our words."""
    if path is None:
        shipped = resources.files("deepinv_astro") / "weights" / SHIPPED
        if not shipped.is_file():
            raise SequenceError(
                "`weights`", f"no {SHIPPED} in this installation", "the weights of the package",
                "name a file of weights with `weights`",
            )  # fmt: skip
        name, content = SHIPPED, shipped.read_bytes()
    else:
        file = existing_file(Path(path), "weights")
        name, content = file.name, file.read_bytes()
    try:
        yield name, content
    except SafetensorError as error:
        raise _broken(name, "a file that is cut off, damaged or of another kind") from error


def _described(name: str, content: bytes) -> WeightsFile:
    """The description in the header: its length in 8 bytes, then JSON."""
    load(content)  # the whole of it, so that nothing else is read from a damaged file
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    try:
        found = json.loads(metadata.get(_KEY, "{}"))
        kind, version = found.get("format"), int(found.get("version", 0))
    except (AttributeError, TypeError, ValueError) as error:
        raise _broken(name, "no description of the network") from error
    if kind != FORMAT:
        raise _broken(name, f"the format {kind!r}")
    if version > VERSION:
        raise SequenceError(
            name, f"weights of format version {version}", f"{VERSION}, which this version knows",
            "update deepinv_astro",
        )  # fmt: skip
    architecture, card = found.get("architecture"), found.get("card")
    if not isinstance(architecture, dict) or not isinstance(card, dict):
        raise _broken(name, "no description of the network")
    return WeightsFile(name, hashlib.sha256(content).hexdigest()[:12], architecture, card)


def _architecture(model: UnrolledADI, networks: list[nn.Module]) -> dict[str, Any]:
    pilot = model.pilot
    if not isinstance(pilot, MarginalPilot) or pilot.method.regions is not annular_regions:
        raise ValueError(
            f"only networks with a MarginalPilot of annuli can be written, got {pilot}: "
            "write the others with torch.save"
        )
    widths = {_width(net) for net in networks}
    if len(widths) != 1 or None in widths:
        raise ValueError(
            "only networks of SmallUNet of one width, with "
            f"{FEATURES} features, can be written, got {sorted({type(n).__name__ for n in networks})} "
            f"of widths {sorted(str(w) for w in widths)}: write the others with torch.save"
        )
    return {
        "steps": len(model.prox),
        "width": widths.pop(),
        "order": [networks.index(net) for net in model.prox],
        "positive": model.positive,
        "pilot": {name: getattr(pilot.method, name) for name in _PILOT}
        | {"iterations": list(pilot.method.iterations), "tolerance": _tolerance(pilot.method)},
    }


def _tolerance(method: Marginal) -> float | None:
    """Tolerance of :func:`minimize_projected`; None of the default solver."""
    solver = method.solver
    if solver is minimize_bounded:
        return None
    if isinstance(solver, partial) and solver.func is minimize_projected and not solver.args:
        known = {"tolerance": 0.0} | solver.keywords
        if set(known) == {"tolerance"}:
            return float(known["tolerance"])
    raise ValueError(
        "only pilots with the solver minimize_bounded, or partial(minimize_projected, tolerance=...), "
        f"can be written, got {solver}: write the others with torch.save"
    )


def _width(net: nn.Module) -> int | None:
    """Width of a small U-net; None of another network."""
    if not isinstance(net, SmallUNet) or net.fine[0].in_channels != FEATURES:
        return None
    return int(net.last.in_channels)


def _build(architecture: dict[str, Any], tensors: dict[str, Tensor]) -> UnrolledADI:
    """A network of that description with those weights; sizes are compared before any is made."""
    order, width = architecture["order"], architecture["width"]
    number, steps = max(order) + 1, architecture["steps"]
    shape = tuple(tensors["networks.0.fine.0.weight"].shape)
    if shape[:2] != (width, FEATURES) or len(order) != steps or set(order) != set(range(number)):
        raise ValueError("width or steps do not fit")
    networks = nn.ModuleList(SmallUNet(width) for _ in range(number))
    start = "networks."
    networks.load_state_dict(
        {name.removeprefix(start): v for name, v in tensors.items() if name.startswith(start)}
    )
    pilot = architecture["pilot"]
    smoothness, sparsity, nu = (float(pilot[name]) for name in _PILOT)
    first, second = (int(number) for number in pilot["iterations"])
    tolerance = pilot["tolerance"]
    solver = (
        minimize_bounded
        if tolerance is None
        else partial(minimize_projected, tolerance=float(tolerance))
    )
    method = Marginal(smoothness, sparsity, nu, iterations=(first, second), solver=solver)
    model = UnrolledADI(
        MarginalPilot(method), [networks[k] for k in order], positive=bool(architecture["positive"])
    )
    model.log_steps.data.copy_(tensors["log_steps"].reshape(steps))
    return model


def _broken(name: str, found: str) -> SequenceError:
    return SequenceError(
        name, found, "weights of a network of deepinv_astro (safetensors)",
        "give a file that deepinv-astro train --survey or save_weights wrote, whole",
    )  # fmt: skip
