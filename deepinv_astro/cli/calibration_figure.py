"""The figure of ``calibrate``: PSF, residuals and parameters, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepinv_astro.optim.radial import radial_profile
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI, CalibrationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.optim.self_calibration import SelfCalibration

#: Largest residual shown, in standard deviations at its separation.
MOST = 4.0


def write_figure(path: Path, problem: Problem, before: ADI, found: SelfCalibration) -> None:
    """
    Draw the PSF if it was free, the residuals, and the parameters with their errors.

    :param pathlib.Path path: where to.
    :param Problem problem: data and operator.
    :param ADI before: the operator as it was.
    :param SelfCalibration found: what was found.
    """
    from matplotlib.figure import Figure

    free_psf = any(name.startswith("psf") for name in found.report.names)
    figure = Figure(figsize=(13, 12.5 if free_psf else 8.5), layout="constrained")
    rows = "abc;def;ggg" if free_psf else "def;ggg"
    axes = figure.subplot_mosaic(rows)
    if free_psf:
        _psfs([axes[k] for k in "abc"], before, found.physics)
    y = problem.sequence.y
    pairs = ((before, found.first), (found.physics, found.image))
    _residuals([axes[k] for k in "def"], [_derotated(y - p.A(x), p) for p, x in pairs], problem)
    _parameters(axes["g"], found.report)
    figure.savefig(path, dpi=120)


def _psfs(axes: list[Axes], before: ADI, after: ADI) -> None:
    """On one scale, of the square root; and the change in per cent of the peak."""
    stamps = [p.filter[0].mean((0, 1)).cpu() for p in (before, after)]
    top = float(torch.stack(stamps).max())
    for axis, when, stamp in zip(axes, ("before", "after"), stamps, strict=False):
        shown = (stamp.clamp_min(0) / top).sqrt().numpy()
        picture = axis.imshow(shown, origin="lower", vmin=0, vmax=1, cmap="inferno")
        axis.set(title=f"PSF {when}", xlabel="column (px)", ylabel="row (px)")
        _bar(picture, axis, "square root of PSF / peak")
    change = 100 * (stamps[1] - stamps[0]) / top
    most = max(float(change.abs().max()), 0.1)  # less is nothing
    picture = axes[2].imshow(change.numpy(), origin="lower", vmin=-most, vmax=most, cmap="RdBu_r")
    axes[2].set(title="PSF, after - before", xlabel="column (px)")
    _bar(picture, axes[2], "% of the peak")


def _residuals(axes: list[Axes], residuals: list[Tensor], problem: Problem) -> None:
    """Over their scatter at each separation before, and their difference."""
    size = (residuals[0].shape[0], residuals[0].shape[1])
    distance = separation(size, problem.sky_center).to(residuals[0].device)
    scale = radial_profile(residuals[0][None, None].double(), distance, problem.fwhm / 2, "scale")[
        0, 0
    ].to(residuals[0])
    scale = scale.clamp_min(1e-3 * float(scale.max()))
    shown = [(r / scale).cpu() for r in residuals]
    shown.append(shown[1] - shown[0])
    for axis, title, image in zip(axes, ("before", "after", "after - before"), shown, strict=True):
        picture = axis.imshow(image.numpy(), origin="lower", vmin=-MOST, vmax=MOST, cmap="RdBu_r")
        rms = float(image.square().mean().sqrt())
        axis.set(title=f"residual, {title} (rms {rms:.2f})", xlabel="column (px), North up")
        axis.plot(problem.sky_center[1], problem.sky_center[0], "k+")
        _bar(picture, axis, "scatter before, at this separation")
    axes[0].set_ylabel("row (px)")


def _bar(picture: Any, axis: Axes, label: str) -> None:
    axis.figure.colorbar(picture, ax=axis, shrink=0.8, label=label)


def _derotated(residual: Tensor, physics: ADI) -> Tensor:
    """Mean over frames of a residual less its mean, North up."""
    centred = (residual - residual.nanmean(2, keepdim=True)).nan_to_num()
    weight = physics.A_adjoint(torch.ones_like(centred))
    weight = weight.clamp_min(0.1 * float(weight.max()))
    return (physics.A_adjoint(centred) / weight)[0].mean(0)


def _parameters(axis: Axes, table: CalibrationReport) -> None:
    """All, one after the other, in prior standard deviations, with their errors."""
    change = ((table.values - table.prior_mean) / table.prior_std).cpu()
    kinds = [name.split("[")[0] for name in table.names]
    gap = 2 + len(kinds) // 10
    places = torch.tensor([k + gap * len(set(kinds[: k + 1])) for k in range(len(kinds))])
    axis.axhspan(-1, 1, color="0.92", zorder=0)
    axis.axhline(0, color="0.6", lw=0.8, zorder=0)
    ticks = []
    for kind in dict.fromkeys(kinds):
        own = [k for k, other in enumerate(kinds) if other == kind]
        error = table.ratio[own].cpu().numpy()
        axis.errorbar(places[own], change[own].numpy(), error, fmt="o", ms=4)
        unit = f" ({table.units[own[0]]})" if table.units[own[0]] else ""
        std = float(table.prior_std[own].mean())
        ticks.append((float(places[own].double().mean()), f"{kind}{unit}\nprior ± {std:.3g}"))
    axis.set_xticks([t[0] for t in ticks], [t[1] for t in ticks])
    axis.set(
        ylabel="change / prior error",
        title="Parameters, frame after frame; bars: error after, grey: error before",
    )
