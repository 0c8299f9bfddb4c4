"""What a training on a survey leaves to look at."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure

from deepinv_astro.models import PilotNetwork
from deepinv_astro.training.survey import SurveyTraining

__all__ = ["draw_survey_training"]


def draw_survey_training(training: SurveyTraining, star: int = 0) -> Figure:
    r"""
    A star held out as the pilot and as the network see it, what the network changed, and the risks so far,
    with the step that is kept.

    Images are :math:`x / \sigma`, in units of the noise of a pixel's flux, which does not fall with the
    separation as the brightness does.

    :param SurveyTraining training: after its first validation.
    :param int star: number of the star held out.
    :return: (matplotlib.figure.Figure) the figure.
    """
    model: PilotNetwork = training.result()  # type: ignore[assignment]
    equations = training.validate.observation(star).whole
    with torch.no_grad():
        images = [
            (x / equations.scale)[0, 0].cpu() for x in (equations.start, model.refine(equations))
        ]
    high = max(3.0, float(torch.quantile(images[1].flatten(), 0.998)))
    change = images[1] - images[0]
    most = max(1.0, float(torch.quantile(change.abs().flatten(), 0.998)))
    figure = Figure(figsize=(15.0, 3.7), layout="constrained")
    axes = figure.subplots(1, 4)
    panels = ((f"star {star} held out: first image", images[0], 0.0, high, "inferno"),
              ("network", images[1], 0.0, high, "inferno"),
              ("network - first image", change, -most, most, "RdBu_r"))  # fmt: skip
    for axis, (title, image, low, top, colours) in zip(axes, panels, strict=False):
        shown = axis.imshow(
            image.numpy(), origin="lower", vmin=low, vmax=top, cmap=colours, interpolation="nearest"
        )
        axis.set(title=title, xlabel="column (px)", ylabel="row (px)")
        figure.colorbar(shown, ax=axis, label="flux / its noise", shrink=0.85)
    lines = training.history
    axes[3].plot([v.step for v in lines], [v.validation for v in lines], "o-", label="held out")
    trained = [v for v in lines if math.isfinite(v.train)]
    axes[3].plot([v.step for v in trained], [v.train for v in trained], label="training")
    kept = training.chosen
    axes[3].plot(
        kept.step,
        kept.validation,
        "o",
        ms=12,
        mfc="none",
        color="black",
        label=f"kept: step {kept.step}",
    )
    axes[3].set(title="risk without truth", xlabel="step", ylabel="per pixel; an empty image has 0")
    axes[3].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
