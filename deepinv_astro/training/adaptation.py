r"""A trained network, fitted to the one sequence that it is to reconstruct."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepinv_astro.loss.frame_splitting import frame_subset
from deepinv_astro.models import MarginalPilot, NormalEquations, PilotNetwork
from deepinv_astro.optim.temporal import LEAST_ROTATION
from deepinv_astro.physics import ADI
from deepinv_astro.training.ring_gains import RingGains, fit_ring_gains
from deepinv_astro.training.tasks import Part, values

__all__ = ["Adaptation", "AdaptationStep", "adapt", "with_visible_change"]

#: Largest norm of a gradient, steps until the rate is whole, and iterations of conjugate gradients.
_GRADIENT_NORM, _WARMUP, _ITERATIONS = 1.0, 5, 30


class AdaptationStep(NamedTuple):
    """
    One line of the history.

    :param int step: steps done.
    :param float risk: mean over the groups, each of which judges an image and gains that it had no part in.
    :param float gain: how far below that of the zero-shot image.
    :param float error: standard error of ``gain``, from its scatter over the groups.
    """

    step: int
    risk: float
    gain: float
    error: float


@dataclass(frozen=True)
class Adaptation:
    """
    What :func:`adapt` made.

    :param PilotNetwork model: network with the weights of the chosen step, in ``eval`` mode; the weights
        given if that is 0.
    :param torch.Tensor image: ``(1, C, H, W)``: of this network, with the gains, where the data see it;
        zero-shot elsewhere.
    :param RingGains gains: factors of the rings of the image.
    :param tuple history: of :class:`AdaptationStep`; step 0 has the gains alone.
    :param int chosen: step of the least risk; 0 where no other is below it by the margin.
    :param float before: risk of the zero-shot image; that of an empty one is 0.
    :param float after: risk of the image, with gains that were fitted to the frames that judge it; never above
        ``before``.
    """

    model: PilotNetwork
    image: Tensor
    gains: RingGains
    history: tuple[AdaptationStep, ...]
    chosen: int
    before: float
    after: float


def adapt(
    model: PilotNetwork,
    y: Tensor,
    physics: ADI,
    *,
    steps: int = 0,
    seed: int = 0,
    learning_rate: float = 5e-5,
    groups: int = 4,
    block: int = 3,
    every: int = 8,
    weight: float = 0.01,
    margin: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> Adaptation:
    r"""Fit a network to one sequence, as long as frames that it has not seen agree.

    The frames, in blocks, are dealt out to groups :math:`g`, which all turn as far as the sequence. One
    group after the other is held out and judges the image of the others: these images get a gain for each ring
    about the star, :func:`~deepinv_astro.training.fit_ring_gains`. That is all without ``steps``.

    With them, the weights :math:`w` descend as well, by Adam, on the frames that are not held out,

    .. math::

        \min_w \sum_{b \ne g} \ell_b\!\left( f_w(y_{-g-b}) \right), \qquad
        \ell_b(x) = \| P_b (A_b x - y_b) \|_{W_b}^2 - \| P_b\, y_b \|_{W_b}^2 ,

    with :math:`y_{-g-b}` the frames without groups :math:`g` and :math:`b`. After :math:`k` steps the
    risk is that of frames that took no part in it,

    .. math::

        R_k = \frac{1}{G n} \sum_g \ell_g\!\left( \hat x_k(y_{-g}) \right),

    per pixel of the image. :math:`W_g` whitens the residual of the zero-shot first image, and stays as
    it is: with a covariance that follows the image, the risk could be lowered by a wrong one. The
    weights returned descend in the same way on all frames, with as many steps as have the least risk; gains
    are fitted after them. No steps, and no gains, are among the choices: by this risk the result is
    never worse than zero-shot.

    Gains are fitted to the frames that judge: few numbers with a prior, whose most probable values need
    no other judge. Steps of the weights do: with the gains of the other groups, which is the risk of the
    history, they must be below zero-shot, and below the gains alone by ``margin`` standard errors of the
    difference over the groups. The risk weighs errors by the noise of the frames, and the decibels of an
    image do not: a few gains are safe where many weights are not.

    Of what the data do not see the risk says nothing, yet weights that change move it as well.
    :math:`\hat x_k` has the change of the network where it is seen, :func:`with_visible_change`.

    The first images and metrics do not depend on the weights and are made once. The model that is
    given stays as it is, whatever happens.

    :param PilotNetwork model: trained, with a :class:`~deepinv_astro.models.MarginalPilot`.
    :param torch.Tensor y: one sequence ``(1, C, T, h, w)``; NaN where nothing was measured.
    :param ADI physics: its operator.
    :param int steps: most steps of the weights; 0 for the gains alone.
    :param int seed: of the order of the splits.
    :param float learning_rate: of Adam, after a short warm-up.
    :param int groups: :math:`G`, at least 3.
    :param int block: consecutive frames that stay together; fewer in short sequences.
    :param int every: steps between two looks at the risk.
    :param float weight: :math:`\mu` of :func:`with_visible_change`.
    :param float margin: standard errors by which the risk must fall for the weights to be changed.
    :param Callable progress: called with the number of steps done.
    :return: (:class:`Adaptation`)
    :raises ValueError: if there is more than one sequence, too few frames or no rotation, or a number
        is out of range.
    """
    _check(model, y, physics, steps, groups, every, learning_rate, weight, margin)
    row, column = physics.sky_center.tolist()
    with torch.no_grad():
        labels = _groups(physics, groups, block)
        runs = _runs(model, y, physics, labels, seed, learning_rate, splits=steps > 0)
        zero = [run.image() for run in runs]
        before = [run.risk(x) for run, x in zip(runs[1:], zero[1:], strict=True)]
        found = _brightened(runs, zero, (row, column), weight)
        if not sum(found.fitted) < sum(before):
            one = found.gains._replace(values=torch.ones_like(found.gains.values))
            found = _Brightened(zero[0], one, before, before)
    history, weights = [_line(0, before, found.judged)], copy.deepcopy(model.state_dict())
    best, first = history[0], found
    for step in range(1, steps + 1):
        for run in runs:
            run.descend()
        if step % every == 0 or step == steps:
            with torch.no_grad():
                other = _brightened(runs, zero, (row, column), weight)
            history.append(_line(step, before, other.judged))
            more = _line(step, first.judged, other.judged)
            lower = more.risk < min(best.risk, sum(before) / len(before))
            lower = lower and sum(other.fitted) < sum(found.fitted)
            if lower and more.gain > margin * more.error:
                best, found = history[-1], other
                weights = copy.deepcopy(runs[0].model.state_dict())
        if progress is not None:
            progress(step)
    made = copy.deepcopy(model).eval()
    made.load_state_dict(weights)
    start, end = (sum(risks) / len(risks) for risks in (before, found.fitted))
    return Adaptation(made, found.image, found.gains, tuple(history), best.step, start, end)


def with_visible_change(
    equations: NormalEquations, first: Tensor, moved: Tensor, weight: float = 0.01
) -> Tensor:
    r"""An image, with the change to another one where the data see it.

    With :math:`u = x / \sigma` and :math:`\tilde N = \sigma N \sigma`, of largest eigenvalue
    :math:`\lambda`,

    .. math::

        \min_u\; (u - u_1)^\top \tilde N (u - u_1) + \mu \lambda\, \| u - u_0 \|^2
        \quad\Rightarrow\quad
        u = u_0 + (\tilde N + \mu \lambda I)^{-1} \tilde N\, (u_1 - u_0) ,

    by conjugate gradients. Modes that the data do not see stay those of :math:`x_0`.

    :param NormalEquations equations: :math:`N, \sigma`.
    :param torch.Tensor first: :math:`x_0`, ``(1, C, H, W)``.
    :param torch.Tensor moved: :math:`x_1`, of the same shape.
    :param float weight: :math:`\mu`.
    :return: (:class:`torch.Tensor`) :math:`x`.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import NormalEquations
        >>> from deepinv_astro.training import with_visible_change
        >>> seen = torch.tensor([[[[4.0, 0.0]]]])
        >>> zero, one = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
        >>> equations = NormalEquations(lambda x: seen * x, seen, torch.tensor(0.5), zero)
        >>> with_visible_change(equations, zero, one, weight=0.25)  # 1 / (1 + 1/4), and nothing
        tensor([[[[0.8000, 0.0000]]]])
    """
    scale, most = equations.scale, equations.largest_eigenvalue()

    def matrix(v: Tensor) -> Tensor:
        return scale * equations.normal(scale * v) + weight * most * v

    change = (moved - first) / scale
    rest = matrix(change) - weight * most * change
    size = float(rest.square().sum())
    out, along, square = torch.zeros_like(rest), rest, size
    for _ in range(_ITERATIONS):
        if square <= 1e-8 * size:
            break
        product = matrix(along)
        length = square / float((along * product).sum())
        out, rest = out + length * along, rest - length * product
        new = float(rest.square().sum())
        along, square = rest + new / square * along, new
    return first + scale * out


class _Run:
    """Weights on their way: the splits they descend on, the equations of all their frames, and a judge."""

    def __init__(
        self,
        model: PilotNetwork,
        splits: list[Part],
        whole: NormalEquations,
        judge: NormalEquations | None,
        seed: int,
        rate: float,
    ):
        self.model, self.splits, self.whole, self.judge = (
            copy.deepcopy(model), splits, whole, judge,
        )  # fmt: skip
        self.rng, self.rate, self.step = torch.Generator().manual_seed(seed), rate, 0
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate, betas=(0.9, 0.99))
        self.order = self._shuffled()

    def _shuffled(self) -> Iterator[Part]:
        """All splits, each once, in another order each time."""
        while True:
            for k in torch.randperm(len(self.splits), generator=self.rng).tolist():
                yield self.splits[k]

    def descend(self) -> None:
        """One step."""
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, self.step / _WARMUP)
        self.model.train()
        self.optimizer.zero_grad()
        values(self.model, [(next(self.order),)]).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimizer.step()

    def image(self) -> Tensor:
        """Of the weights as they are, from all frames of the run."""
        return self.model.eval().refine(self.whole)

    def changed(self, zero: Tensor, moved: Tensor, weight: float) -> Tensor:
        """The zero-shot image with what the data see of the change."""
        x = with_visible_change(self.whole, zero, moved, weight)
        return x.clamp_min(0) if self.model.positive else x

    def risk(self, x: Tensor) -> float:
        """In the frames held out, per pixel."""
        assert self.judge is not None  # noqa: S101  the first run has none, and is not asked
        return float((x * (self.judge.normal(x) - 2 * self.judge.back)).double().mean())


class _Brightened(NamedTuple):
    """Image of all frames with its gains; risks of those of the groups, with these gains and with the others'."""

    image: Tensor
    gains: RingGains
    fitted: list[float]
    judged: list[float]


def _brightened(
    runs: list[_Run], zero: list[Tensor], center: tuple[float, float], weight: float
) -> _Brightened:
    """What the weights show now, with gains."""
    images, groups = [run.image() for run in runs], runs[1:]
    judges = [run.judge for run in groups if run.judge is not None]
    gains = fit_ring_gains(images[1:], judges, center)

    def risks(own: list[RingGains]) -> list[float]:
        every = zip(groups, zero[1:], own, images[1:], strict=True)
        return [run.risk(run.changed(x, gain(image), weight)) for run, x, gain, image in every]

    others = [gains.leaving(g) for g in range(len(judges))]
    image = runs[0].changed(zero[0], gains(images[0]), weight)
    return _Brightened(image, gains, risks([gains] * len(judges)), risks(others))


def _runs(
    model: PilotNetwork,
    y: Tensor,
    physics: ADI,
    groups: list[Tensor],
    seed: int,
    rate: float,
    *,
    splits: bool = True,
) -> list[_Run]:
    """That of all frames, then one without each group; equations are shared between them."""
    pilot = model.pilot
    if not isinstance(pilot, MarginalPilot):
        raise ValueError(
            f"the pilot of the model must be a MarginalPilot, got {type(pilot).__name__}"
        )
    known: dict[frozenset[int], NormalEquations] = {}

    def without(*held: int) -> NormalEquations:
        key = frozenset(range(len(groups))) - set(held)
        if key not in known:
            frames = torch.cat([groups[g] for g in key]).sort().values
            found = pilot(y[:, :, frames.to(y.device)], frame_subset(physics, frames))
            known[key] = replace(found, largest=found.largest_eigenvalue())
        return known[key]

    whole = without()
    judges = [
        pilot.at(whole.start, y[:, :, frames.to(y.device)], frame_subset(physics, frames))
        for frames in groups
    ]
    runs = []
    for held in ((), *((g,) for g in range(len(groups)))):
        others = [g for g in range(len(groups)) if g not in held]
        parts = [
            Part(without(*held, b), judges[b].normal, judges[b].back) for b in others if splits
        ]
        judge = judges[held[0]] if held else None
        runs.append(_Run(model, parts, without(*held), judge, seed, rate))
    return runs


def _groups(physics: ADI, number: int, block: int) -> list[Tensor]:
    """Frames of each group: its blocks lie evenly over the sequence."""
    frames = physics.frames
    if frames < 2 * number:
        raise ValueError(
            f"{frames} frames are too few to adapt to: at least {2 * number} are needed, two for each group"
        )
    size = max(1, min(block, frames // (2 * number)))
    label = (torch.arange(frames) // size) % number
    found = [torch.nonzero(label == g)[:, 0] for g in range(number)]
    for held in found:
        own = physics.angles[:, held.to(physics.angles.device)]
        if float(own.amax() - own.amin()) < LEAST_ROTATION:
            raise ValueError(
                "the sky does not turn between the frames of a group: without rotation nothing can be "
                "learned from the sequence. Check the angles, or do not adapt"
            )
    return found


def _line(step: int, before: list[float], risks: list[float]) -> AdaptationStep:
    """Mean over the groups, and the gain with its error."""
    now = torch.tensor(risks, dtype=torch.float64)
    gain = torch.tensor(before, dtype=torch.float64) - now
    error = float(gain.std() / len(gain) ** 0.5)
    return AdaptationStep(step, float(now.mean()), float(gain.mean()), error)


def _check(
    model: PilotNetwork,
    y: Tensor,
    physics: ADI,
    steps: int,
    groups: int,
    every: int,
    rate: float,
    weight: float,
    margin: float,
) -> None:
    if not isinstance(physics, ADI):
        raise ValueError(f"adaptation is for sequences of ADI, got {type(physics).__name__}")
    if len(y) != 1:
        raise ValueError(f"adaptation is to one sequence (1, C, T, h, w), got {tuple(y.shape)}")
    if steps < 0 or every < 1 or groups < 3:
        raise ValueError(
            f"`steps` must be 0 or more, `every` positive and `groups` at least 3, got {steps}, {every} and {groups}"
        )
    if not rate > 0 or not weight > 0 or margin < 0:
        raise ValueError(
            "`learning_rate` and `weight` must be positive and `margin` not negative, "
            f"got {rate}, {weight} and {margin}"
        )
