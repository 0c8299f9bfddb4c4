r"""Derivatives of a sequence in the parameters of its operator, and in the sky's own symmetries."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from deepinv_astro.physics import ADI, Calibration, CalibrationReport
from deepinv_astro.physics.adi import TransmissionOrder

#: Finite differences reach this many prior standard deviations to either side.
REACH = 0.05

#: Neighbours to either side of which a slope of the sky is made.
NEIGHBOURS = 12

#: Number of axes of parameters that may have one for the frames, and which it is.
_FRAME_AXIS = {
    "angles": (1, 0),
    "gain": (1, 0),
    "smear": (1, 0),
    "center": (3, 1),
    "filter": (5, 2),
}


@dataclass(frozen=True, eq=False)
class Tangents:
    r"""Derivatives :math:`\partial_j A_\theta x` of sequences in the elements of :math:`\theta`.

    A parameter of one frame changes this frame alone. Parameters of different frames share one
    derivative, and are told apart by the frames: 122 angles and gains of 61 frames need two.

    :param torch.Tensor fields: derivatives, ``(groups, N, C, T, h, w)``.
    :param torch.Tensor group: the one that each element belongs to, ``(n,)``.
    :param torch.Tensor frames: which frames each element changes, ``(n, T)``.
    """

    fields: Tensor
    group: Tensor
    frames: Tensor

    def columns(self, image: int = 0) -> Tensor:
        """The derivatives for one sky, ``(n, C, T, h, w)``."""
        seen = self.frames.to(self.fields)[:, None, :, None, None]
        return self.fields[self.group, image] * seen

    def pull(self, weights: Tensor) -> Tensor:
        r"""Inner products :math:`\sum_i \langle \partial_j A x_i, w_i \rangle`.

        :param torch.Tensor weights: sequences :math:`w`, ``(N, C, T, h, w)``.
        :return: (:class:`torch.Tensor`) ``(n,)``, double precision.
        """
        sums = (self.fields * weights).double().sum((1, 2, 4, 5))
        return (sums[self.group] * self.frames).sum(1)


@dataclass(frozen=True, eq=False)
class CalibratedADI:
    r"""An ADI operator that a calibration completes: :math:`u \mapsto A_{\theta(u)}`.

    :param ADI physics: the operator; copied, never changed.
    :param deepinv_astro.physics.Calibration calibration: its free parameters.
    """

    physics: ADI
    calibration: Calibration
    _last: list[tuple[Tensor, ADI]] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def _free(self) -> Calibration:
        """The calibration with nothing held, in double precision."""
        copied: Calibration = copy.deepcopy(self.calibration).double()
        copied.keep(copied.root[:, :0])
        return copied

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """Values for the operator of given parameters ``(n,)``, in their units."""
        with torch.no_grad():
            u = torch.linalg.solve(self._free.root, theta.double() - self._free.mean)
            return {k: v.to(self.physics.angles) for k, v in self._free.at(u).items()}

    def at(self, theta: Tensor) -> ADI:
        """The operator of given parameters ``(n,)``, in their units; the last two are kept."""
        theta = theta.double()
        for known, calibrated in self._last:
            if torch.equal(known, theta):
                return calibrated
        calibrated = self._make(theta)
        self._last[:] = [(theta.clone(), calibrated), *self._last[:1]]
        return calibrated

    def _make(self, theta: Tensor) -> ADI:
        return self.physics.variant(**self.values(theta))

    def frames(self, theta: Tensor) -> Tensor:
        """Which frames each element of the parameters changes, ``(n, T)``."""
        before = self.values(theta)
        changed = torch.zeros(len(theta), self.physics.frames, dtype=torch.bool)
        for j, step in enumerate(self._steps()):
            moved = theta.clone()
            moved[j] += step
            after = self.values(moved)
            for name, value in after.items():
                changed[j] |= _moved_frames(
                    name, (value != before[name]).detach().cpu(), self.physics.frames
                )
        return changed

    def tangents(self, theta: Tensor, skies: Tensor) -> Tangents:
        r"""Derivatives of sequences at given parameters.

        Those in gains, angles and centres are sequences of other skies (:class:`SkyMotions`);
        others are central differences.

        :param torch.Tensor theta: parameters ``(n,)``, in their units.
        :param torch.Tensor skies: ``(N, C, H, W)``.
        :return: (:class:`Tangents`)
        """
        theta = theta.double()
        frames, steps = self.frames(theta), self._steps()
        groups = _disjoint(frames)
        physics, before, seen = self.at(theta), self.values(theta), None
        fields = []
        for members in groups:
            move = torch.zeros_like(theta)
            move[members] = steps[members]
            ends = [self.values(theta + s) for s in (move, -move)]
            moved = {k for k in before if not torch.equal(*(e[k] for e in ends))}
            if moved <= _readable(physics):
                seen = SkyMotions.of(physics, skies) if seen is None else seen
                change = sum(seen.change(physics, k, ends[0][k] - ends[1][k]) for k in moved)
            else:
                change = self._make(theta + move).A(skies) - self._make(theta - move).A(skies)
            width = torch.ones(self.physics.frames, dtype=torch.float64, device=theta.device)
            for j in members:
                width[frames[j]] = 2 * steps[j]
            fields.append(change / width.to(change)[:, None, None])
        group = torch.zeros(len(theta), dtype=torch.long)
        for k, members in enumerate(groups):
            group[members] = k
        return Tangents(torch.stack(fields), group, frames)

    def filter_slopes(self, theta: Tensor) -> Tensor | None:
        r"""Derivatives of the PSF in its own parameters, ``(m, b, c, t, k, k)``; ``None`` if it is known."""
        theta, first = theta.double(), 0
        for spec in self.calibration.free:
            last = first + len(spec.labels)
            if spec.name == "filter":
                slopes = []
                for j in range(first, last):
                    step = torch.zeros_like(theta)
                    step[j] = self._steps()[j]
                    ends = [self._make(theta + s).filter for s in (step, -step)]
                    slopes.append((ends[0] - ends[1]) / (2 * float(step[j])))
                return torch.stack(slopes)
            first = last
        return None

    def _steps(self) -> Tensor:
        return REACH * self._free.root.square().sum(1).sqrt()


@dataclass(frozen=True, eq=False)
class SkyMotions:
    r"""Sequences of the sky, and of its derivatives when it is displaced or turned.

    .. math::

        A x, \qquad A\, \partial_r x, \qquad A\, \partial_c x, \qquad
        A \left( \partial_r (\delta_c x) - \partial_c (\delta_r x) \right)

    with :math:`\delta` the distance to the star. Frame :math:`t` reads the blurred sky at positions
    that move by :math:`-R(\theta_t) \Delta c` when the star moves by :math:`\Delta c` on the
    detector, and turn with the angle, as its PSF does: a change of centre, angle or gain is a
    combination of these in each frame.

    :param torch.Tensor sequences: ``(4, N, C, T, h, w)``, angles in degrees.
    """

    sequences: Tensor

    @classmethod
    def of(cls, physics: ADI, skies: Tensor) -> SkyMotions:
        """For skies ``(N, C, H, W)``."""
        rows, columns = (
            torch.arange(size).to(skies) - star
            for size, star in zip(skies.shape[-2:], physics.sky_center, strict=True)
        )
        turned = slope(skies * columns, -2) - slope(skies * rows[:, None], -1)
        motions = (skies, slope(skies, -2), slope(skies, -1), torch.deg2rad(turned))
        return cls(torch.stack([physics.A(motion) for motion in motions]))

    def change(self, physics: ADI, name: str, difference: Tensor) -> Tensor:
        """Change of the sequences with the gain, the angles or the centre, to first order."""
        still, down, across, turned = self.sequences
        if name == "gain":
            return still * (difference / physics.gain).view(-1, 1, 1)
        if name == "angles":
            return turned * difference.view(-1, 1, 1)
        theta = torch.deg2rad(physics.angles[0])
        row, column = difference.reshape(-1, 2).expand(physics.frames, 2).mT
        up = theta.cos() * row + theta.sin() * column
        left = theta.cos() * column - theta.sin() * row
        return -(down * up.view(-1, 1, 1) + across * left.view(-1, 1, 1))


def slope(x: Tensor, axis: int) -> Tensor:
    r"""Derivative along an axis, zero beyond the edge, by the differences that are flat to highest order.

    .. math::

        \partial x_p = \sum_{m=1}^{N} \frac{(-1)^{m+1}}{m} \frac{2\,(N!)^2}{(N-m)!\,(N+m)!}\;
        \frac{x_{p+m} - x_{p-m}}{2}, \qquad N = 12 .

    Right to 0.1 % for waves of 3.5 pixels and longer, which is all that a well sampled PSF lets through.

    :param torch.Tensor x: images.
    :param int axis: the axis, counted from the end.
    :return: (:class:`torch.Tensor`) shape of ``x``.

    |sep|

    :Examples:

        >>> import torch
        >>> x = torch.sin(torch.arange(60, dtype=torch.float64))
        >>> [round(float(s), 3) for s in (slope(x, -1)[30], torch.cos(torch.tensor(30.0)))]
        [0.154, 0.154]
    """
    x = x.movedim(axis, -1)
    length, out = x.shape[-1], torch.zeros_like(x)
    for m in range(1, min(NEIGHBOURS, length - 1) + 1):
        weight = math.comb(2 * NEIGHBOURS, NEIGHBOURS + m) / math.comb(2 * NEIGHBOURS, NEIGHBOURS)
        weight *= (-1) ** (m + 1) / m
        out[..., : length - m] += weight * x[..., m:]
        out[..., m:] -= weight * x[..., : length - m]
    return out.movedim(-1, axis)


def sky_symmetries(physics: ADI, x: Tensor, slopes: Tensor | None = None) -> Tensor:
    r"""What a sequence does when the sky is brighter, turned, displaced or blurred.

    .. math::

        A x, \qquad \partial_\varphi A R_\varphi x, \qquad \partial_d A T_d x, \qquad
        A (k_j * x), \quad \hat k_j(f) = \frac{\langle \partial_j \hat h\, \hat h^* \rangle_{|f|}}
        {\langle |\hat h|^2 \rangle_{|f|}} .

    The first four are what a common gain, a common angle, and a displacement of the star that turns
    with the sky do. The last are the blurs, the same in all directions (means over circles of
    frequencies), that come closest to what a parameter of the PSF :math:`h` does: all of it, if that is
    isotropic. The sky is known up to these: a parameter of the instrument that only does the same
    is not identifiable.

    :param ADI physics: the operator.
    :param torch.Tensor x: the sky ``(1, C, H, W)``.
    :param torch.Tensor slopes: :math:`\partial_j h`, ``(m, b, c, t, k, k)``, or ``None``.
    :return: (:class:`torch.Tensor`) ``(4 + m, C, T, h, w)``: flux, row, column, angle, blurs.
    """
    change = list(SkyMotions.of(physics, x).sequences)
    if slopes is not None and physics.filter is not None:
        for slope in slopes:
            change.append(physics.variant(filter=isotropic_part(slope, physics.filter)).A(x))
    return torch.cat(change)


def isotropic_part(slope: Tensor, psf: Tensor) -> Tensor:
    r"""What an isotropic kernel does to a PSF, the closest to a given change: :math:`k * h`.

    :param torch.Tensor slope: change of the PSF, ``(..., k, l)``; the kernel is one for all.
    :param torch.Tensor psf: :math:`h`, of the same shape.
    :return: (:class:`torch.Tensor`) ``(..., n, n)``, a larger stamp.

    |sep|

    :Examples:

        A wider Gaussian is all of it, a longer one that is as much narrower is nothing:

        >>> import torch
        >>> u = torch.arange(-8, 9, dtype=torch.float64)
        >>> r, c = u[:, None] ** 2, u**2
        >>> h = torch.exp(-(r + c) / 4)
        >>> for change in (r + c, r - c):
        ...     part = isotropic_part(change * h, h)[10:-10, 10:-10]
        ...     round(float((part * change * h).sum() / (change * h).square().sum()), 3)
        1.0
        0.0
    """
    size = 2 * max(psf.shape[-2:]) + 3
    size += 1 - size % 2
    wide = [_padded(stamp, size) for stamp in (slope, psf)]
    change, own = (torch.fft.fft2(torch.fft.ifftshift(w, dim=(-2, -1))) for w in wide)
    number = (torch.fft.fftfreq(size, dtype=torch.float64) * size).round()
    square = (number[:, None] ** 2 + number**2).long().to(psf.device)
    _, circle = square.unique(return_inverse=True)
    over, under = ((a * own.conj()).real.reshape(-1, size, size).sum(0) for a in (change, own))
    sums = [
        over.new_zeros(int(circle.max()) + 1).index_add_(0, circle.flatten(), v.flatten())
        for v in (over, under)
    ]
    floor = 1e-6 * sums[1].max() + torch.finfo(over.dtype).tiny
    kernel = (sums[0] / sums[1].clamp_min(floor))[circle]
    return torch.fft.fftshift(torch.fft.ifft2(own * kernel).real, dim=(-2, -1))


def calibration_modes(
    physics: ADI, x: Tensor, calibration: Calibration, report: CalibrationReport
) -> Tensor:
    r"""What errors of calibration do to a sequence: a factor of their covariance.

    .. math::

        \Sigma_\mathrm{cal} = J \operatorname{Cov}(\theta) J^\top = L L^\top, \qquad
        J = \partial_\theta A_\theta x .

    :param ADI physics: the operator.
    :param torch.Tensor x: the sky ``(1, C, H, W)``.
    :param deepinv_astro.physics.Calibration calibration: the free parameters of the operator.
    :param CalibrationReport report: their values and covariance.
    :return: (:class:`torch.Tensor`) columns :math:`L`, ``(1, n, C, T, h, w)``, for
        :class:`deepinv_astro.physics.LowRankNoise`.

    |sep|

    :Examples:

        A gain known to 10 %: the frame of 8 counts is uncertain by 0.8.

        >>> import torch
        >>> from deepinv_astro.physics import free_gain
        >>> physics = ADI((1, 1, 1), torch.tensor([0.0, 30.0]))
        >>> calibration = Calibration(free_gain(torch.ones(2), 0.1))
        >>> report = calibration.report(torch.zeros(2, 2))
        >>> modes = calibration_modes(physics, torch.full((1, 1, 1, 1), 8.0), calibration, report)
        >>> modes.square().sum(1).sqrt().flatten()
        tensor([0.8000, 0.8000])
    """
    tangents = CalibratedADI(physics, calibration).tangents(report.values, x)
    root = covariance_root(report.covariance).to(x)
    return torch.einsum("jctyx,jk->kctyx", tangents.columns(), root)[None]


def covariance_root(covariance: Tensor) -> Tensor:
    r""":math:`L` of :math:`\Sigma = L L^\top`, also where :math:`\Sigma` is singular."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return vectors * values.clamp_min(0).sqrt()


def _padded(stamp: Tensor, size: int) -> Tensor:
    """On a square stamp, the middle pixel in the middle."""
    rows, columns = stamp.shape[-2:]
    top, left = size // 2 - rows // 2, size // 2 - columns // 2
    return torch.nn.functional.pad(stamp, (left, size - columns - left, top, size - rows - top))


def _readable(physics: ADI) -> set[str]:
    """Parameters whose changes are those of :class:`SkyMotions`."""
    if physics.filter is None:  # a sky of single pixels has no slope
        return set()
    names = {"angles"}
    if physics.gain is not None and bool((physics.gain != 0).all()):
        names.add("gain")
    masked = physics.transmission is not None and physics.transmission_order is (
        TransmissionOrder.BEFORE_PSF
    )
    return names if masked or physics.smear is not None else names | {"center"}


def _moved_frames(name: str, changed: Tensor, frames: int) -> Tensor:
    """Which frames a changed value acts on: all, unless it has an axis of frames."""
    if not bool(changed.any()):
        return torch.zeros(frames, dtype=torch.bool)
    axes, axis = _FRAME_AXIS.get(name, (0, 0))
    if axes == 1:
        return changed.reshape(-1, frames).any(0)
    if axes and changed.ndim == axes and changed.shape[axis] == frames:
        return changed.movedim(axis, -1).flatten(0, -2).any(0)
    return torch.ones(frames, dtype=torch.bool)


def _disjoint(frames: Tensor) -> list[list[int]]:
    """Groups of parameters that change different frames."""
    groups: list[list[int]] = []
    taken: list[Tensor] = []
    for j, mine in enumerate(frames):
        for k, others in enumerate(taken):
            if not bool((others & mine).any()):
                groups[k].append(j)
                taken[k] = others | mine
                break
        else:
            groups.append([j])
            taken.append(mine)
    return groups
