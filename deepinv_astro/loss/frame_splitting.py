r"""Splitting of a sequence over its frames: reconstruct from some, compare with the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from deepinv.loss import Loss
from torch import Tensor
from torch.nn import Module

from deepinv_astro.identifiability import mode_visibility
from deepinv_astro.loss.sure import mean_product, without_temporal_mean
from deepinv_astro.optim.temporal import TemporalModel
from deepinv_astro.physics import ADI

__all__ = [
    "FrameSplit",
    "FrameSplittingLoss",
    "FrameSplittingModel",
    "draw_split",
    "frame_subset",
    "temporal_metric",
]

#: A symmetric linear map of sequences.
Map = Callable[[Tensor], Tensor]

#: Draws among which the first with enough diversity is taken, or else the one with the most.
_TRIALS = 20


class FrameSplit(NamedTuple):
    """Two sets of frames without a common one.

    :param torch.Tensor given: indices of the frames that the reconstructor sees, in order.
    :param torch.Tensor held: indices of those it is compared with.
    """

    given: Tensor
    held: Tensor


def draw_split(
    angles: Tensor,
    *,
    block: int = 3,
    fraction: float = 0.5,
    diversity: float = 0.5,
    generator: torch.Generator | None = None,
) -> FrameSplit:
    r"""Draw a split of a sequence by blocks of frames, with rotation in both parts.

    The sequence, closed to a circle, is cut at a random place into blocks of consecutive frames (the
    last takes the remainder), and some blocks are held out. Speckles that are correlated over less
    than a block are then nearly independent in both parts, but for neighbouring ends. Of each part
    it is asked that the angular mode 1 is visible in it
    (:func:`deepinv_astro.identifiability.mode_visibility`) at least at :math:`\delta` times its
    visibility in the whole sequence: for a small rotation, the variance of the angles. One block of
    many never has it; if no draw of 20 has it, the best of them is taken.

    :param torch.Tensor angles: derotation angles in degrees, ``(T,)`` or ``(b, T)``; a batch is
        split in one way, and all of it must have the diversity.
    :param int block: frames of a block.
    :param float fraction: share of the blocks that is held out, rounded; at least one is, and one
        is given.
    :param float diversity: :math:`\delta`.
    :param torch.Generator generator: source of randomness.
    :return: (:class:`FrameSplit`) sorted indices.
    :raises ValueError: if there are less than four frames or two blocks, or a number is out of
        range.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import draw_split
        >>> rng = torch.Generator().manual_seed(1)
        >>> draw_split(torch.linspace(0, 60, 12), generator=rng)
        FrameSplit(given=tensor([ 0,  1,  5,  6,  7, 11]), held=tensor([ 2,  3,  4,  8,  9, 10]))
    """
    frames = angles.shape[-1]
    if block < 1 or not 0 < fraction < 1 or not 0 <= diversity <= 1:
        raise ValueError(
            "block must be positive, fraction between 0 and 1 and diversity in [0, 1], "
            f"got {block}, {fraction} and {diversity}"
        )
    if frames < max(4, 2 * block):
        raise ValueError(
            f"{frames} frames cannot be split into blocks of {block} with rotation in both parts: "
            "at least 4 frames and 2 blocks are needed; reduce `block`"
        )
    whole = mode_visibility(angles, 2)[..., 1]
    best, found = -1.0, None
    for _ in range(_TRIALS):
        split = _blocks(frames, block, fraction, generator)
        if min(len(split.given), len(split.held)) < 2:
            continue
        parts = [mode_visibility(angles[..., part.to(angles.device)], 2)[..., 1] for part in split]
        least = float((torch.stack(parts) / whole.clamp_min(1e-30)).min())
        if least > best:
            best, found = least, split
        if best >= diversity:
            break
    if found is None:
        raise ValueError(
            f"no split of {frames} frames in blocks of {block} leaves two frames in both parts: "
            "increase `block`, or bring `fraction` closer to 1/2"
        )
    return found


def _blocks(
    frames: int, block: int, fraction: float, generator: torch.Generator | None
) -> FrameSplit:
    """Hold out some blocks, cut at a random phase of the sequence closed to a circle."""
    number = frames // block
    shift = torch.randint(frames, (), generator=generator)
    label = (((torch.arange(frames) + shift) % frames) // block).clamp_max(number - 1)
    held = min(max(round(fraction * number), 1), number - 1)
    chosen = torch.randperm(number, generator=generator)[:held]
    out = torch.isin(label, chosen)
    return FrameSplit(torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0])


def frame_subset(physics: ADI, frames: Tensor) -> ADI:
    r"""Operator of some of the frames, with their angles, gains, smears, centres and PSFs.

    :param ADI physics: the operator of the sequence.
    :param torch.Tensor frames: indices, as for ``y[:, :, frames]``.
    :return: (:class:`deepinv_astro.physics.ADI`) a copy; its noise model is a copy as well, and is
        not cut to these frames.
    :raises ValueError: if this is not ADI, or there is no frame.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import frame_subset
        >>> from deepinv_astro.physics import ADI
        >>> angles, gain = torch.tensor([0.0, 20.0, 50.0]), torch.tensor([1.0, 2.0, 3.0])
        >>> physics = ADI((1, 6, 5), angles, gain=gain)
        >>> part = frame_subset(physics, torch.tensor([2, 0]))
        >>> part.angles, part.gain
        (tensor([[50.,  0.]]), tensor([[3., 1.]]))
    """
    if not isinstance(physics, ADI):
        raise ValueError(f"frames are those of ADI, got {type(physics).__name__}")
    if frames.numel() == 0:
        raise ValueError("frames is empty: give one index or more")
    index = frames.to(physics.angles.device)
    own: dict[str, Tensor] = {"angles": physics.angles[:, index]}
    for name, axis in {"gain": 1, "smear": 1, "center": 1, "filter": 2}.items():
        value = getattr(physics, name)
        if value is not None:
            shared = name in ("center", "filter") and value.shape[axis] == 1
            own[name] = value if shared else value.index_select(axis, index)
    return physics.variant(**own)


def temporal_metric(y: Tensor, physics: ADI) -> Map:
    r"""Whitening of speckles that are correlated in time, estimated on the sequences themselves.

    :class:`deepinv_astro.optim.temporal.FrozenMetric` of :math:`y`, its temporal mean removed, scaled
    such that :math:`\|y\|_W^2 = \|y - \bar y\|^2`: weighted and plain errors are alike in size.
    Right or wrong, it does not change with the image that is judged.

    :param torch.Tensor y: sequences ``(B, C, T, h, w)``.
    :param ADI physics: their operator.
    :return: (Callable) the map of sequences of this shape.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import temporal_metric
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 16, 15), torch.linspace(0, 80, 9))
        >>> y = torch.randn(2, 1, 9, 16, 15, generator=torch.Generator().manual_seed(0))
        >>> W = temporal_metric(y, physics)
        >>> W(y + 7).allclose(W(y), atol=1e-2)  # blind to what is static
        True
    """
    metrics = []
    with torch.no_grad():
        for n in range(len(y)):
            own = y[n : n + 1]
            model = TemporalModel.for_sequence(own, physics.sample(n))
            filled = model.fill(own)
            metric = model(filled).freeze(filled)
            size = mean_product(filled, metric(filled))
            variance = mean_product(filled, without_temporal_mean(filled))
            metrics.append((metric, (variance / size).view(1, 1, 1, 1, 1)))

    def apply(v: Tensor) -> Tensor:
        pairs = zip(metrics, v.split(1), strict=True)
        return torch.cat([factor * metric(part) for (metric, factor), part in pairs])

    return apply


class FrameSplittingLoss(Loss):
    r"""Reconstruction from some frames, judged by the others.

    A split draws frames :math:`a` that are given and frames :math:`b` that are held out:

    .. math::

        \frac{1}{m_b} \left\| P_b \left( y_b - A_b\, f(y_a, A_a) \right) \right\|_W^2,
        \qquad P_b = I - \tfrac1{T_b} 1 1^\top \text{ in time},

    which eliminates the static halo of the held-out frames. If the noise of both parts is
    independent, its expectation over the noise is the risk of :math:`f` at the given frames, plus a
    constant of the training:

    .. math::

        \frac{1}{m_b} \mathbb E \left\| P_b A_b \left( x - f(y_a, A_a) \right) \right\|_W^2
        + \frac{1}{m_b} \operatorname{tr}\left( P_b W P_b\, \Sigma_b \right) .

    No level of the noise is needed. What no held-out frame sees, an image that is invariant by
    rotation for one, has no part in it. This is the splitting of
    :class:`deepinv.loss.SplittingLoss` (Yaman+ 2020, Hendriksen+ 2020), by blocks of frames
    (:func:`draw_split`).

    The model must be adapted, as :class:`deepinv.Trainer` does: ``model = loss.adapt_model(model)``
    gives it :math:`y_a, A_a` in training mode. In ``eval`` mode it sees all frames, or the mean
    over several splits is taken.

    :param int block: frames of a block, more than the speckles are correlated over.
    :param float fraction: share of the blocks that is held out.
    :param float diversity: angular diversity of both parts, relative to the sequence.
    :param Callable metric: ``metric(y_b, A_b)`` gives :math:`W`, a symmetric map of sequences that
        does not depend on the image, e.g. :func:`temporal_metric`. Default: the identity.
    :param int eval_splits: number of splits averaged in ``eval`` mode; 0 for all frames at once.
    :param torch.Generator rng: source of the splits.
    :raises ValueError: if a number is out of range.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import FrameSplittingLoss
        >>> from deepinv_astro.physics import ADI
        >>> class Nothing(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return 0 * physics.A_adjoint(y)
        >>> physics = ADI((1, 6, 5), torch.linspace(0, 60, 8))
        >>> loss = FrameSplittingLoss(block=2, rng=torch.Generator().manual_seed(0))
        >>> model = loss.adapt_model(Nothing())
        >>> y = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 6, 5)
        >>> x_net = model(y, physics, update_parameters=True)
        >>> model.split.held
        tensor([0, 3, 4, 7])
        >>> loss(x_net=x_net, y=y, physics=physics, model=model)  # variance of 0, 3, 4, 7
        tensor([6.2500])
    """

    def __init__(
        self,
        block: int = 3,
        fraction: float = 0.5,
        diversity: float = 0.5,
        metric: Callable[[Tensor, ADI], Map] | None = None,
        eval_splits: int = 0,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if eval_splits < 0:
            raise ValueError(f"eval_splits must not be negative, got {eval_splits}")
        self.block = block
        self.fraction = fraction
        self.diversity = diversity
        self.metric = metric
        self.eval_splits = eval_splits
        self.rng = rng

    def forward(
        self, x_net: Tensor, y: Tensor, physics: ADI, model: Module, **kwargs: Any
    ) -> Tensor:
        r"""Compare the reconstruction of the given frames with the frames held out.

        :param torch.Tensor x_net: output of the adapted model, called with ``update_parameters``.
        :param torch.Tensor y: sequences ``(B, C, T, h, w)``, all frames; NaN takes no part.
        :param ADI physics: their operator.
        :param torch.nn.Module model: the adapted model.
        :return: (:class:`torch.Tensor`) one value for each sequence, ``(B,)``.
        :raises ValueError: if the model was not adapted or not called in training mode.
        """
        split = getattr(model, "split", None)
        if not isinstance(split, FrameSplit):
            raise ValueError(
                "there is no split for these sequences: use model = loss.adapt_model(model) and, "
                "in training mode, x_net = model(y, physics, update_parameters=True)"
            )
        held, operator = y[:, :, split.held], frame_subset(physics, split.held)
        residual = _centred(held - operator.A(x_net), torch.isfinite(held))
        if self.metric is None:
            return mean_product(residual, residual)
        weight = self.metric(held, operator)
        return mean_product(residual, without_temporal_mean(weight(residual)))

    def adapt_model(self, model: Module, **kwargs: Any) -> Module:
        r"""Give a model a part of the frames in training mode.

        :param torch.nn.Module model: reconstructor :math:`f`, called with ``(y, physics)``.
        :return: (:class:`FrameSplittingModel`) the adapted one.
        """
        if isinstance(model, FrameSplittingModel):
            return model
        return FrameSplittingModel(model, self)


class FrameSplittingModel(Module):
    r"""A reconstructor of a part of the frames in training mode, of all of them in ``eval`` mode.

    Made by :meth:`FrameSplittingLoss.adapt_model`. Splits in ``eval`` mode are always the same.

    :param torch.nn.Module model: :math:`f`.
    :param FrameSplittingLoss loss: how to split.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import FrameSplittingLoss, FrameSplittingModel
        >>> from deepinv_astro.physics import ADI
        >>> class Count(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return torch.tensor([y.shape[2], physics.frames])
        >>> physics, y = ADI((1, 6, 5), torch.linspace(0, 60, 8)), torch.zeros(1, 1, 8, 6, 5)
        >>> model = FrameSplittingModel(Count(), FrameSplittingLoss(block=2, fraction=0.5))
        >>> model.train()(y, physics).sum() < 16, model.eval()(y, physics)
        (tensor(True), tensor([8, 8]))
    """

    def __init__(self, model: Module, loss: FrameSplittingLoss) -> None:
        super().__init__()
        self.model = model
        self.block, self.fraction, self.diversity = loss.block, loss.fraction, loss.diversity
        self.eval_splits = loss.eval_splits
        self.rng = loss.rng
        # from a call with update_parameters to the loss; no part of the state
        self.split: FrameSplit | None = None

    def forward(
        self, y: Tensor, physics: ADI, update_parameters: bool = False, **kwargs: Any
    ) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: sequences ``(B, C, T, h, w)``.
        :param ADI physics: their operator.
        :param bool update_parameters: keep the split for the loss, in training mode, as
            :class:`deepinv.Trainer` asks for.
        :param kwargs: given to the model.
        :return: (:class:`torch.Tensor`) the reconstruction.
        """
        if self.training:
            split = self._draw(physics, self.rng)
            if update_parameters:
                self.split = split
            return self._part(y, physics, split, **kwargs)
        if update_parameters:  # what has seen all frames has none left to be compared with
            self.split = None
        if self.eval_splits == 0:
            out: Tensor = self.model(y, physics, **kwargs)
            return out
        fixed = torch.Generator().manual_seed(0)
        splits = [self._draw(physics, fixed) for _ in range(self.eval_splits)]
        return torch.stack([self._part(y, physics, split, **kwargs) for split in splits]).mean(0)

    def _draw(self, physics: ADI, generator: torch.Generator | None) -> FrameSplit:
        return draw_split(
            physics.angles,
            block=self.block,
            fraction=self.fraction,
            diversity=self.diversity,
            generator=generator,
        )

    def _part(self, y: Tensor, physics: ADI, split: FrameSplit, **kwargs: Any) -> Tensor:
        part: Tensor = self.model(
            y[:, :, split.given.to(y.device)], frame_subset(physics, split.given), **kwargs
        )
        return part


def _centred(residual: Tensor, seen: Tensor) -> Tensor:
    """Residual without its mean over the frames that see a pixel, zero where none was measured."""
    filled = torch.where(seen, residual, 0)
    mean = filled.sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp_min(1)
    return torch.where(seen, residual - mean, 0)
