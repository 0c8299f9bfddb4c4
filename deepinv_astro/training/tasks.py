r"""Problems whose answers can be judged without the truth, made of one sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepinv_astro.loss.frame_splitting import draw_split, frame_subset
from deepinv_astro.models import MarginalPilot, NormalEquations, PilotNetwork
from deepinv_astro.models.pilot import WhitenedOperator
from deepinv_astro.physics import ADI
from deepinv_astro.training.noise_levels import ring_labels, steeper
from deepinv_astro.training.star_calibration import StarCalibration

__all__ = [
    "Observation",
    "Part",
    "Task",
    "consistency",
    "measured",
    "observe",
    "recorrupted",
    "risk",
    "splitting",
    "truth",
    "unsure",
    "values",
]

Device = torch.device | str


class Observation(NamedTuple):
    """
    One sequence of one star, and what is made of it once.

    :param torch.Tensor y: the sequence ``(1, C, T, h, w)``; NaN where nothing was measured.
    :param ADI physics: its operator, with its own parameters.
    :param NormalEquations whole: equations of all frames, of :class:`MarginalPilot`.
    :param torch.Tensor x: the truth ``(1, C, H, W)``, where somebody knows it.
    """

    y: Tensor
    physics: ADI
    whole: NormalEquations
    x: Tensor | None = None


def observe(
    item: Mapping[str, Any],
    pilot: MarginalPilot,
    device: Device = "cpu",
    calibration: StarCalibration | None = None,
) -> Observation:
    r"""
    One target of a survey with its operator and its equations.

    :param item: of :class:`~deepinv_astro.datasets.SyntheticSurvey` or
        :class:`~deepinv_astro.datasets.SequenceFolder`: ``{"y": (C, T, h, w), "params": {...}}``,
        with the truth ``"x"`` or without.
    :param MarginalPilot pilot: makes the equations.
    :param device: where all of it is put.
    :param StarCalibration calibration: fitted to the sequence first; none for an operator that is known.
    :return: (:class:`Observation`)
    """
    y, physics = measured(item, device)
    if calibration is not None:
        physics = calibration(y, physics, pilot)
    with torch.no_grad():
        x = item["x"][None].to(device) if "x" in item else None
        return Observation(y, physics, pilot(y, physics), x)


def measured(item: Mapping[str, Any], device: Device = "cpu") -> tuple[Tensor, ADI]:
    """
    The sequence of an item, as a batch of one, and its operator.

    Frames of gain zero, where a survey has no data, are left out; pixels of transmission zero become
    NaN.

    :param item: as for :func:`observe`.
    :param device: where both are put.
    :return: sequence and operator.
    """
    y, params = item["y"], dict(item["params"])
    if "gain" in params:
        there = params["gain"] != 0
        y = y[:, there]
        params |= {name: params[name][there] for name in ("angles", "gain")}
    if "transmission" in params:
        y = torch.where(params["transmission"] > 0, y, torch.nan)
    channels, _, height, width = y.shape
    batch = {name: value[None].to(device) for name, value in params.items()}
    return y[None].to(device), ADI((channels, height, width), **batch, device=device)


class Part(NamedTuple):
    r"""
    Equations that a network is given, and a quadratic form of what it makes of them.

    .. math::

        \ell(f) = \hat x^\top N' \hat x - 2 \Big( b' + \sum_j \eta_j s_j \Big)^{\!\top} \hat x ,
        \qquad \hat x = f(N, b, x_0, \sigma)

    :param NormalEquations given: :math:`N, b, x_0, \sigma`.
    :param normal: the map :math:`N'`; none for zero.
    :param torch.Tensor back: :math:`b'`, ``(1, C, H, W)``.
    :param torch.Tensor slopes: :math:`s_j`, ``(J, C, H, W)``, where the level :math:`\eta_j` of the noise is
        not known; else none.
    """

    given: NormalEquations
    normal: Callable[[Tensor], Tensor] | None
    back: Tensor
    slopes: Tensor | None = None

    def target(self, levels: Tensor | None) -> Tensor:
        r"""
        What the image is compared with, :math:`b' + \sum_j \eta_j s_j`.

        :param torch.Tensor levels: :math:`\eta`, ``(J,)``; ones if not given.
        :return: (:class:`torch.Tensor`) ``(1, C, H, W)``.
        """
        if self.slopes is None:
            return self.back
        if levels is None:
            return self.back + self.slopes.sum(0)
        return self.back + torch.tensordot(levels.to(self.slopes), self.slopes, 1)


#: The loss of a task is the sum over its parts.
Task = tuple[Part, ...]


def consistency(seen: Observation) -> Task:
    r"""Consistency with the measurements that the network has seen, :math:`\|A \hat x - y\|_W^2`.

    It is no risk: what fits the noise has the least.

    :param Observation seen: the sequence.
    :return: the task.
    """
    return (Part(seen.whole, seen.whole.normal, seen.whole.back),)


def risk(
    seen: Observation,
    pilot: MarginalPilot,
    generator: torch.Generator | None = None,
    *,
    tau: float = 0.05,
) -> Task:
    r"""Stein's unbiased risk in the metric :math:`W = \Sigma^{-1}` of the sequence, which is frozen.

    .. math::

        \| A \hat x - y \|_W^2 + 2 \operatorname{tr} \frac{\partial A \hat x}{\partial y} , \qquad
        \operatorname{tr} \frac{\partial A \hat x}{\partial y} \approx
        p^\top W A\, \frac{f(y + \tau p) - f(y)}{\tau}, \quad p \sim \Sigma .

    The probe :math:`p` is the residual of the pilot with random signs of its modes in time
    (:meth:`~deepinv_astro.optim.temporal.FrozenMetric.resigned`), turned about the star by a quarter of a
    turn or more: unturned, its patterns are those of the noise, which a metric made of the data follows,
    and the trace has the wrong sign. The derivative is that of the whole reconstruction: the pilot is
    run again at :math:`y + \tau p`.

    :math:`W` is that of the residual, in which less is left of the noise than there was. Therefore the
    trace is too small, by a factor of about five for 24 frames of 65 x 65 pixels, and by more where
    annuli have few pixels for each frame: see :func:`unsure`.

    :param Observation seen: the sequence.
    :param MarginalPilot pilot: makes the equations.
    :param torch.Generator generator: source of the probe.
    :param float tau: :math:`\tau`.
    :return: the task, of two parts.
    """
    probe, normal = _probe(seen, generator), _operator(seen.whole)
    slope = seen.physics.A_adjoint(normal.metric(probe)) / tau
    moved = pilot(seen.y + tau * probe, seen.physics)
    return (
        Part(seen.whole, normal, seen.whole.back + slope),
        Part(moved, None, -slope),
    )


def unsure(
    seen: Observation,
    pilot: MarginalPilot,
    generator: torch.Generator | None = None,
    *,
    rings: int = 4,
    tau: float = 0.05,
) -> Task:
    r"""Risk for speckles whose level is not known: UNSURE (Tachella+ 2025), one multiplier for each ring.

    .. math::

        \| A \hat x - y \|_W^2
        + 2 \sum_j \eta_j \operatorname{tr} P_j \frac{\partial A \hat x}{\partial y} ,

    with :math:`P_j` the pixels of ring :math:`j`. The covariance in time of each pixel is
    :math:`\eta_j W^{-1}`: :func:`risk` is the case :math:`\eta = 1`, the estimated level. The network descends,
    :math:`\eta` ascends (:class:`~deepinv_astro.training.NoiseLevels`), until nothing is left of the trace in any
    ring, on the mean over the stars. What is found is larger than the noise,
    :math:`\sigma^2 / (1 - \mathrm{MMSE} / \sigma^2)`. Probe and derivative are those of :func:`risk`.

    :param Observation seen: the sequence.
    :param MarginalPilot pilot: makes the equations.
    :param torch.Generator generator: source of the probe.
    :param int rings: number of rings, see :func:`~deepinv_astro.training.noise_levels.ring_labels`.
    :param float tau: step of the derivative along the probe.
    :return: the task, of two parts.
    """
    probe, normal, physics = _probe(seen, generator), _operator(seen.whole), seen.physics
    labels = ring_labels(physics.detector_size, _star(physics), rings).to(seen.y.device)
    weighted = normal.metric(probe) / tau
    slopes = torch.cat([physics.A_adjoint(weighted * (labels == j)) for j in range(rings)])
    moved = pilot(seen.y + tau * probe, physics)
    return (
        Part(seen.whole, normal, seen.whole.back, slopes),
        Part(moved, None, torch.zeros_like(seen.whole.back), -slopes),
    )


def recorrupted(
    seen: Observation,
    pilot: MarginalPilot,
    generator: torch.Generator | None = None,
    *,
    strength: float = 0.5,
) -> Task:
    r"""Reconstruction from data with more noise, judged by data with the opposite noise.

    .. math::

        \| A f(y + \alpha p) - (y - p / \alpha) \|_W^2 , \qquad p \sim \Sigma ,

    whose expectation is the risk at the noise :math:`(1 + \alpha^2) \Sigma` if the noise is Gaussian
    (Pang+ 2021, Monroy+ 2025). :math:`p` as for :func:`risk`.

    :param Observation seen: the sequence.
    :param MarginalPilot pilot: makes the equations.
    :param torch.Generator generator: source of the noise.
    :param float strength: :math:`\alpha`.
    :return: the task.
    """
    noise, normal = _probe(seen, generator), _operator(seen.whole)
    given = pilot(seen.y + strength * noise, seen.physics)
    less = seen.physics.A_adjoint(normal.metric(noise)) / strength
    return (Part(given, normal, seen.whole.back - less),)


def splitting(
    seen: Observation,
    pilot: MarginalPilot,
    generator: torch.Generator | None = None,
    *,
    block: int = 3,
) -> Task:
    r"""Reconstruction from half of the frames, judged by the others: :math:`\| A_b \hat x_a - y_b \|_{W_b}^2`.

    Blocks of frames keep angular diversity in both halves
    (:func:`~deepinv_astro.loss.draw_split`); :math:`W_b` is that of the residual of the held-out
    frames at the image of the whole sequence.

    :param Observation seen: the sequence.
    :param MarginalPilot pilot: makes the equations.
    :param torch.Generator generator: source of the split.
    :param int block: frames of a block; fewer if the sequence is short.
    :return: the task.
    """
    frames = seen.y.shape[2]
    split = draw_split(
        seen.physics.angles, block=max(1, min(block, frames // 4)), generator=generator
    )
    given = pilot(seen.y[:, :, split.given], frame_subset(seen.physics, split.given))
    held = pilot.at(
        seen.whole.start, seen.y[:, :, split.held], frame_subset(seen.physics, split.held)
    )
    return (Part(given, held.normal, held.back),)


def truth(seen: Observation) -> Task:
    r"""Error of the reconstruction in the metric of the data, :math:`\|A (\hat x - x)\|_W^2`: for references.

    :param Observation seen: the sequence, with its truth.
    :return: the task.
    :raises ValueError: if there is no truth.
    """
    if seen.x is None:
        raise ValueError(
            "`truth`: these stars have none; simulate a survey with `with_truth=True`, or give this "
            "part no weight"
        )
    return (Part(seen.whole, seen.whole.normal, seen.whole.normal(seen.x)),)


def values(model: PilotNetwork, tasks: list[Task], levels: Tensor | None = None) -> Tensor:
    r"""Loss of each task, per pixel and in units of the brightness of what was given.

    .. math::

        \frac{\ell(f)}{n\, q^2}, \qquad q^2 = 1 + \overline{(x_0 / \sigma)^2} .

    An empty image has the value zero, the best one a negative value. Reconstructions of one size are
    computed together.

    :param PilotNetwork model: :math:`f`.
    :param list tasks: problems of any sizes.
    :param torch.Tensor levels: :math:`\eta` of :func:`unsure`, ``(J,)``; ones if not given.
    :return: (:class:`torch.Tensor`) a value for each task.
    """
    parts = [(k, part) for k, task in enumerate(tasks) for part in task]
    shapes = dict.fromkeys(part.given.start.shape for _, part in parts)
    total = [parts[0][1].back.new_zeros(()) for _ in tasks]
    for shape in shapes:
        group = [(k, part) for k, part in parts if part.given.start.shape == shape]
        images = model.refine(NormalEquations.stack([part.given for _, part in group]))
        for (k, part), x in zip(group, images.split(1), strict=True):
            first = tasks[k][0].given
            level = 1 + (first.start / first.scale).square().mean()
            # a brighter star has no less of a say in the level of the noise
            slope = -2 * part.target(None if levels is None else steeper(levels, float(level)))
            if part.normal is not None:
                slope = slope + part.normal(x)
            total[k] = total[k] + (x * slope).mean() / level
    return torch.stack(total)


def _operator(equations: NormalEquations) -> WhitenedOperator:
    if not isinstance(equations.normal, WhitenedOperator):
        raise TypeError("these equations have no metric in time: make them by MarginalPilot")
    return equations.normal


def _probe(seen: Observation, generator: torch.Generator | None) -> Tensor:
    """Residual of the pilot with other signs, turned; zero where nothing was measured."""
    metric, (row, column) = _operator(seen.whole).metrics[0], _star(seen.physics)
    residual = seen.y - seen.physics.A(seen.whole.start)
    noise = metric.resigned(residual.nan_to_num(0.0), generator)
    angle = math.pi * (0.5 + float(torch.rand((), generator=generator)))
    there = torch.isfinite(seen.y)
    usable = there.flatten(0, 2).any(0)
    return torch.where(there, turned(noise, (row, column), angle, usable), 0.0)


def _star(physics: ADI) -> tuple[float, float]:
    """Mean position on the detector."""
    row, column = physics.center[0].mean(0).tolist()
    return row, column


def turned(
    noise: Tensor, center: tuple[float, float], angle: float, usable: Tensor | None = None
) -> Tensor:
    r"""
    Images turned about a point, by the nearest pixel, so that each stays in its ring.

    Where the pixel that comes to a place lies outside, or is of no use, the place is filled by other angles:
    :math:`-\alpha`, half of a turn, :math:`\alpha \pm` a quarter. What has no partner stays.

    :param torch.Tensor noise: ``(..., h, w)``.
    :param tuple center: row and column.
    :param float angle: :math:`\alpha` in radians, counter-clockwise as displayed.
    :param torch.Tensor usable: pixels that may be taken, ``(h, w)``; all by default.
    :return: (:class:`torch.Tensor`) of the same shape.

    >>> import torch
    >>> from deepinv_astro.training.tasks import turned
    >>> turned(torch.tensor([[0, 0, 0], [0, 0, 7], [0, 0, 0]]), (1.0, 1.0), torch.pi / 2)
    tensor([[0, 0, 0],
            [0, 0, 0],
            [0, 7, 0]])
    """
    height, width = noise.shape[-2:]
    may = torch.ones(height, width, dtype=torch.bool) if usable is None else usable.cpu()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    i, j = rows - center[0], columns - center[1]
    open_ = torch.ones_like(may)
    for turn in (angle, -angle, math.pi, angle + math.pi / 2, angle - math.pi / 2):
        cos, sin = math.cos(turn), math.sin(turn)
        row = (cos * i - sin * j + center[0]).round().long()
        column = (sin * i + cos * j + center[1]).round().long()
        found = open_ & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        found &= may[row.clamp(0, height - 1), column.clamp(0, width - 1)]
        rows, columns = torch.where(found, row, rows), torch.where(found, column, columns)
        open_ &= ~found
    return noise[..., rows.to(noise.device), columns.to(noise.device)]
