"""What a training leaves to look at: a table of its validations, and a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.training.loop import Validation
from deepinv_astro.training.restoration import Restoration

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
    physics = restoration.physics(*y.shape[-2:])
    with torch.no_grad():
        sky = restoration.model(y[None], physics)
        residual = ((y - physics.A(sky)[0]) / restoration.noise)[0]
        x = restoration.seen(sky)[0, 0]
    low, high = (
        float(v) for v in torch.quantile(y.flatten()[:1_000_000], torch.tensor([0.005, 0.995]))
    )
    panels = [("measurement", y[0], low, high, "gray"), ("reconstruction", x, low, high, "gray"),
              ("residual / noise", residual, -4.0, 4.0, "RdBu_r")]  # fmt: skip
    figure = Figure(figsize=(13.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, (title, image, least, most, colours) in zip(axes, panels, strict=False):
        shown = axis.imshow(
            image.numpy(), origin="lower", vmin=least, vmax=most, cmap=colours,
            interpolation="nearest",
        )  # fmt: skip
        axis.set(title=title, xlabel="column (px)", ylabel="row (px)")
        figure.colorbar(shown, ax=axis, shrink=0.75)
    axes[3].plot([v.step for v in history], [v.validation for v in history], "o-", label="held out")
    axes[3].plot([v.step for v in history[1:]], [v.train for v in history[1:]], label="training")
    axes[3].set(title="loss without truth", xlabel="step")
    axes[3].legend()
    return figure
