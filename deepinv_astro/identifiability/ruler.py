r"""What an operator, alone or with transformations, lets a network learn without ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from deepinv.physics import LinearPhysics
from deepinv.transform import Transform
from torch import Tensor

from deepinv_astro.identifiability.gain import decibels, power_law, wiener_error
from deepinv_astro.identifiability.spectrum import (
    Spectrum,
    dense_spectrum,
    lanczos_spectrum,
    random_signs,
    smallest_vectors,
)
from deepinv_astro.identifiability.virtual import (
    Gram,
    Map,
    Progress,
    Through,
    draw_maps,
    inner_matrix,
)

#: Relative difference of two normal maps up to which they are said to be the same.
SAME = 0.05
#: Share of the unseen directions: less is nothing, more than 1 - FEW is all.
FEW = 0.02
#: Visibility of an image below which it is said not to be identifiable.
UNSEEN = 0.01
#: Decibels from which a loss is explained.
LOST = 0.05
#: Visibility below which it is said to be weakly identifiable.
WEAK = 0.5


@dataclass(frozen=True)
class Identifiability:
    r"""What an operator sees, alone and together with transformations.

    :param Spectrum alone: eigenvalues of :math:`M_A = A^\top P^\top P A`.
    :param Spectrum joint: eigenvalues of :math:`\tfrac12 (M_A + M_T)`, the data term and the
        equivariance term of a loss in equal parts; ``None`` without transformations.
    :param float floor: :math:`\epsilon`: directions below :math:`\epsilon \lambda_{\max}` are not
        seen.
    :param float departure: :math:`\|M_T - M_A\|_F / \|M_A\|_F`; 0 where the transformations are
        unitary and commute with the operator.
    :param float opened: mean of :math:`u^\top M_T u / \lambda_{\max}(M_T)` over the directions
        :math:`u` that the operator alone does not see; 0 where the transformations keep them to
        themselves.
    :param torch.Tensor null_images: directions that stay unseen ``(k, C, H, W)``, of unit norm,
        the most likely under the prior first; empty if there are none.
    :param torch.Tensor visibility_alone: of the given images, ``(B,)``.
    :param torch.Tensor visibility_transformed: the same through the transformations alone.
    :param float gain_db: expected gain of the Wiener estimate, with the given noise. Less than 0
        where the transformations show less than the half of the data term whose place they take.
    :param str transform: name of the transformations.
    """

    alone: Spectrum
    joint: Spectrum | None
    floor: float
    departure: float | None
    opened: float | None
    null_images: Tensor
    visibility_alone: Tensor | None
    visibility_transformed: Tensor | None
    gain_db: float | None
    transform: str

    @property
    def rank(self) -> float:
        """Effective rank of the operator alone."""
        return self.alone.rank(self.floor)

    @property
    def joint_rank(self) -> float:
        """Effective rank with the transformations; that of the operator without any."""
        return (self.joint or self.alone).rank(self.floor)

    @property
    def rank_gain(self) -> float:
        """Ratio of both ranks."""
        return self.joint_rank / self.rank

    @property
    def found(self) -> float:
        """Share of the directions unseen by the operator that the transformations make visible."""
        unseen = self.alone.size - self.rank
        return 0.0 if unseen <= 0 else max(0.0, (self.joint_rank - self.rank) / unseen)

    @property
    def verdict(self) -> str:
        """Sentences: what can be learned, and which of the given images can not."""
        return " ".join([_verdict(self), *_about_images(self)])

    def __str__(self) -> str:
        n = self.alone.size
        lines = [
            self.verdict,
            f"  directions above {self.floor:.2g} of the largest: {self.rank:.0f} of {n:.0f} alone",
        ]
        if self.joint is not None:
            lines[1] += f", {self.joint_rank:.0f} with {self.transform} (x {self.rank_gain:.2f})"
            lines.append(
                f"  M changes by {self.departure:.3f}; mean visibility of what was unseen {self.opened:.4f}"
            )
        for name, seen in (
            ("alone", self.visibility_alone),
            ("transformed", self.visibility_transformed),
        ):
            if seen is not None:
                values = ", ".join(f"{v:.3f}" for v in seen.tolist())
                lines.append(f"  visibility of the images, {name}: {values}")
        if self.gain_db is not None:
            lines.append(f"  Wiener estimate: {self.gain_db:+.2f} dB")
            if self.gain_db < -LOST:
                lines[-1] += (
                    ": the loss gives the transformations half of its weight, and what they show is "
                    "worth less than the half of the measurements that they replace"
                )
        return "\n".join(lines)


def _verdict(result: Identifiability) -> str:
    n, name = result.alone.size, result.transform
    unseen = n - result.rank
    left = n - result.joint_rank
    if unseen < 1:
        return "The operator alone sees every direction: no transformation is needed."
    if result.joint is None or result.departure is None:
        return f"Not identifiable from this operator alone: {unseen:.0f} of {n:.0f} directions."
    rest = f"{left:.0f} of {n:.0f} directions are not identifiable."
    if result.departure < SAME:
        return f"{name} commutes with this operator: training with it adds no information. {rest}"
    if result.found < FEW:
        return (
            f"{name} maps what this operator does not see onto itself, as transforms that commute "
            f"with it do: training with it adds no information. {rest}"
        )
    if result.found > 1 - FEW:
        return f"{name} lifts what this operator does not see above the floor: all is identifiable in principle."
    return f"{name} makes {result.found:.0%} of what this operator does not see visible. {rest}"


def _about_images(result: Identifiability) -> list[str]:
    """Sentences about the given images that are hardly seen."""
    seen = result.visibility_alone
    if seen is None:
        return []
    if result.visibility_transformed is not None:
        seen = torch.maximum(seen, result.visibility_transformed)
    sentences = []
    for number, v in enumerate(seen.tolist()):
        if v < UNSEEN:
            sentences.append(f"Image {number} is not identifiable (visibility {v:.3f}).")
        elif v < WEAK:
            sentences.append(
                f"Image {number} is weakly identifiable: visibility {v:.2f}, errors grow by {1 / v:.0f}."
            )
    return sentences


def identify(
    physics: LinearPhysics,
    like: Tensor,
    transform: Transform | Map | Sequence[Transform | Map] | None = None,
    *,
    projection: Map | None = None,
    draws: int | Sequence[Mapping[str, Any]] = 8,
    through: Through | str = Through.INVERSE,
    support: Tensor | None = None,
    images: Tensor | None = None,
    noise: float | None = None,
    prior: Map | None = None,
    floor: float = 1e-3,
    name: str | None = None,
    null_images: int = 6,
    dense_up_to: int = 2500,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Identifiability:
    r"""Measure what an operator lets a network learn from its measurements alone.

    With :math:`P` the projection that removes the nuisance and :math:`T_g` transformations under
    which the distribution of the images does not change,

    .. math::

        M_A = A^\top P^\top P A, \qquad M_T = \mathbb{E}_g\, T_g^{+\top} M_A\, T_g^+ .

    A direction :math:`u` of the images whose variance the loss can learn lies in the range of
    :math:`\tfrac12 (M_A + M_T)`; the user guide derives why the pseudo-inverse :math:`T_g^+`
    stands here for semigroups (for groups it is the transformation of another element). See
    Tachella, Chen & Davies, JMLR 24(39), 2023, for the necessary condition, and
    :func:`~deepinv_astro.identifiability.wiener_error` for the gain in decibels.

    Up to ``dense_up_to`` pixels the spectra are exact; above, they are estimated by Lanczos
    quadrature, and unseen directions come from restarted Lanczos.

    :param deepinv.physics.LinearPhysics physics: :math:`A`, with images of the batch size 64.
    :param torch.Tensor like: an image ``(1, C, H, W)``, for shape, dtype and device; float64 is
        advised.
    :param Transform, Callable transform: as in
        :func:`~deepinv_astro.identifiability.draw_maps`; ``None`` for the operator alone.
    :param Callable projection: :math:`P`, linear, on measurements, e.g.
        :func:`~deepinv_astro.identifiability.remove_mean`.
    :param int draws: parameters drawn per transform, or a list of them.
    :param Through through: ``"inverse"`` for what training with the transform learns from,
        ``"forward"`` for the operators :math:`A T_g`.
    :param torch.Tensor support: booleans ``(H, W)``: pixels where images may differ from zero.
    :param torch.Tensor images: ``(B, C, H, W)`` whose visibility is asked for: the fraction
        :math:`x^\top M x / x^\top M_\text{full} x`, with :math:`M_\text{full}` without the
        projection, or without operator and projection where there is no projection.
    :param float noise: standard deviation of the measurements, for the gain in decibels.
    :param Callable prior: symmetric square root of the prior covariance; default
        :func:`~deepinv_astro.identifiability.power_law`.
    :param float floor: :math:`\epsilon`, e.g. the noise variance over that of the images.
    :param str name: of the transformations in sentences; default their classes.
    :param int null_images: how many directions that stay unseen are returned at most.
    :param int dense_up_to: largest number of pixels for exact spectra.
    :param torch.Generator generator: of all that is drawn; default seed 0.
    :param Callable progress: called with the steps done and the steps in all, for each spectrum.
    :return: (:class:`Identifiability`)
    :raises ValueError: if an argument does not fit, or the operator sees nothing at all.

    |sep|

    :Examples:

        Every second pixel is seen. A flip keeps the others unseen, a shift does not:

        >>> import torch
        >>> from deepinv.physics import Inpainting
        >>> from deepinv.transform import Reflect, Shift
        >>> seen = torch.zeros(1, 3, 5)
        >>> seen[:, :, ::2] = 1.0
        >>> physics = Inpainting((1, 3, 5), mask=seen)
        >>> like = torch.zeros(1, 1, 3, 5)
        >>> identify(physics, like, Reflect(dim=[-1])).verdict.split(". ")[0]
        'Reflect commutes with this operator: training with it adds no information'
        >>> identify(physics, like, Shift()).verdict
        'Shift lifts what this operator does not see above the floor: all is identifiable in principle.'
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def measure(x: Tensor) -> Tensor:
        y = physics.A(x)
        return y if projection is None else projection(y)

    maps = []
    if transform is not None:
        maps = draw_maps(transform, like, draws, through=through, generator=generator)
    alone, moved = Gram(measure, like, support=support), Gram(measure, like, maps, support)
    root = power_law(like) if prior is None else prior
    parts = (_exact if like.numel() <= dense_up_to else _estimated)(
        _Question(alone, moved, bool(maps), root, floor, noise, null_images, generator, progress)
    )
    full: Map = (lambda x: x) if projection is None else physics.A
    seen = [_seen(g, full, images) for g in (alone, moved)]
    return Identifiability(
        **parts._asdict(),
        floor=floor,
        visibility_alone=seen[0],
        visibility_transformed=seen[1] if maps else None,
        transform=name or _name(transform),
    )


class _Question(NamedTuple):
    alone: Gram
    moved: Gram
    transformed: bool
    root: Map
    floor: float
    noise: float | None
    number: int
    generator: torch.Generator
    progress: Progress | None


class _Answer(NamedTuple):
    alone: Spectrum
    joint: Spectrum | None
    departure: float | None
    opened: float | None
    null_images: Tensor
    gain_db: float | None


def _exact(q: _Question) -> _Answer:
    """From matrices."""
    inner = inner_matrix(q.alone.measure, q.alone.like, q.progress)
    m_a = q.alone.dense(inner)
    alone, vectors = dense_spectrum(m_a)
    _check_seen(alone)
    blind = vectors[alone.values <= q.floor * alone.largest]
    if not q.transformed:
        return _Answer(alone, None, None, None, _likely(blind, q), None)
    m_t = q.moved.dense(inner)
    m_j = (m_a + m_t) / 2
    joint, vectors = dense_spectrum(m_j)
    left = vectors[joint.values <= q.floor * joint.largest]
    top = float(torch.linalg.eigvalsh(m_t)[-1])
    opened = float(((blind @ m_t) * blind).sum(1).mean()) / top if len(blind) else 0.0
    gain = None
    if q.noise is not None:
        errors = [wiener_error(q.alone, q.noise, q.root, matrix=m) for m in (m_a, m_j)]
        gain = decibels(*errors)
    departure = float((m_t - m_a).norm() / m_a.norm())
    return _Answer(alone, joint, departure, opened, _likely(left, q), gain)


def _estimated(q: _Question) -> _Answer:
    """From products alone."""
    like = q.alone.vectors(q.alone.like)[0]
    alone = lanczos_spectrum(q.alone, like, q.generator, progress=q.progress)
    _check_seen(alone)
    number = min(2 * q.number, len(like) - 1)
    blind = smallest_vectors(q.alone, like, number, q.generator)
    blind = _below(blind, q.alone, q.floor * alone.largest)
    if not q.transformed:
        return _Answer(alone, None, None, None, _likely(blind, q), None)
    count = len(q.moved.maps)
    both = Gram(
        q.alone.measure,
        q.alone.like,
        [*q.alone.maps, *q.moved.maps],
        q.moved.images(torch.ones_like(like)[None])[0, 0] > 0,
        [0.5, *[0.5 / count] * count],
    )
    joint = lanczos_spectrum(both, like, q.generator, progress=q.progress)
    left = _below(smallest_vectors(both, like, number, q.generator), both, q.floor * joint.largest)
    signs = torch.stack([random_signs(like, q.generator) for _ in range(4)])
    m_a, m_t = q.alone(signs), q.moved(signs)
    top = lanczos_spectrum(q.moved, like, q.generator, steps=20, probes=1).largest
    opened = float((q.moved(blind) * blind).sum(1).mean()) / top if len(blind) else 0.0
    gain = None
    if q.noise is not None:
        errors = [  # the same signs for both, so that their noise cancels
            wiener_error(g, q.noise, q.root, generator=torch.Generator().manual_seed(0))
            for g in (q.alone, both)
        ]
        gain = decibels(*errors)
    departure = float((m_t - m_a).norm() / m_a.norm())
    return _Answer(alone, joint, departure, opened, _likely(left, q), gain)


def _check_seen(alone: Spectrum) -> None:
    if not alone.largest > 0:
        raise ValueError("the operator (after the projection) maps every image to zero")


def _below(vectors: Tensor, gram: Gram, limit: float) -> Tensor:
    return vectors[(gram(vectors) * vectors).sum(1) <= limit]


def _likely(blind: Tensor, q: _Question) -> Tensor:
    """Orthonormal directions of a subspace, those of the largest prior variance first."""
    with torch.no_grad():
        shown = q.root(q.alone.images(blind)).flatten(1)
        _, turn = torch.linalg.eigh(shown @ shown.mT)
        return q.alone.images(turn.mT.flip(0)[: q.number] @ blind)


def _seen(gram: Gram, full: Map, images: Tensor | None) -> Tensor | None:
    if images is None:
        return None
    whole = Gram(full, gram.like, gram.maps).energy(images)
    tiny = torch.finfo(whole.dtype).tiny
    return torch.where(whole > 0, gram.energy(images) / whole.clamp_min(tiny), 0.0)


def _name(transform: Any) -> str:
    if transform is None:
        return "none"
    given = [transform] if callable(transform) else list(transform)
    names = [type(t).__name__ if isinstance(t, Transform) else "the map" for t in given]
    return " and ".join(dict.fromkeys(names))
