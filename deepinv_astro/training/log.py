"""What a training leaves to look at: a table of its validations, and a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.training.loop import Validation
from deepinv_astro.training.restoration import Restoration

#: Width in units of the height from which the panels are two by two.
_WIDE = 1.3
#: Inches: least width of the curves; what labels and colour bars of a panel take.
_LEAST, _ROOM = 2.8, (1.3, 0.75)

__all__ = ["draw_restoration", "write_history"]


def write_history(path: str | os.PathLike[str], history: Sequence[Validation]) -> None:
    """
    Write the validations as CSV, in place of an earlier file.

    :param path: the file; it appears whole or not at all.
    :param history: lines of the log.
    """
    with (
        atomic_path(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Validation._fields)
        writer.writerows((v.step, *(f"{x:.6g}" for x in v[1:])) for v in history)


def draw_restoration(
    restoration: Restoration, y: Tensor, history: Sequence[Validation] = ()
) -> Figure:
    r"""
    Measurement, reconstruction, residual in units of the noise, and the validations so far.

    The residual is :math:`(y - A \hat x) / \sigma`: what is not noise in it was not explained.

    :param Restoration restoration: trained.
    :param torch.Tensor y: measured image ``(1, h, w)``.
    :param history: lines of the log.
    :return: (matplotlib.figure.Figure) the figure.
    """
    y = y.to(restoration.psf.device)
    physics = restoration.physics(*y.shape[-2:]).to(y.device)
    with torch.no_grad():
        sky = restoration.model(y[None], physics)
        residual = ((y - physics.A(sky)[0]) / restoration.noise)[0]
        x = restoration.seen(sky)[0, 0]
    ends = torch.quantile(y.flatten()[:1_000_000], torch.tensor([0.005, 0.995]).to(y))
    low, high = ends.tolist()
    figure, axes = _panels(y.shape[-1] / y.shape[-2])
    panels = (("measurement", y[0], low, high, "gray"), ("reconstruction", x, low, high, "gray"),
              ("residual / noise", residual, -4.0, 4.0, "RdBu_r"))  # fmt: skip
    for axis, (title, image, least, most, colours) in zip(axes, panels, strict=False):
        shown = axis.imshow(
            image.cpu().numpy(), origin="lower", vmin=least, vmax=most, cmap=colours,
            interpolation="nearest",
        )  # fmt: skip
        axis.set(title=title, xlabel="column (px)", ylabel="row (px)")
        figure.colorbar(shown, cax=axis.inset_axes((1.02, 0.0, 0.04, 1.0)))
    axes[3].plot([v.step for v in history], [v.validation for v in history], "o-", label="held out")
    axes[3].plot([v.step for v in history[1:]], [v.train for v in history[1:]], label="training")
    axes[3].set(title="loss without truth", xlabel="step")
    axes[3].legend(loc="upper right", frameon=False)
    return figure


def _panels(aspect: float) -> tuple[Figure, list[Axes]]:
    """Four panels without gaps, for images of a ratio of width to height: in a row, or two by two."""
    width, height = 3.2 * aspect**0.5, 3.2 * aspect**-0.5
    rows, columns = (2, 2) if aspect > _WIDE else (1, 4)
    last = max(width, _LEAST)  # a curve needs room
    ratios = [width, width, width, last] if rows == 1 else [last, last]
    size = (sum(ratios) + _ROOM[0] * columns, rows * (height + _ROOM[1]))
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, width_ratios=ratios).flat)
