"""What happens to the field of the star between the telescope's pupil and the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepinv_astro.physics.functional.pupil import PupilShape, focal_field, telescope_pupil

__all__ = ["Coronagraph", "IdealCoronagraph", "LyotCoronagraph", "NoCoronagraph"]


class Coronagraph(Protocol):
    """A coronagraph: a linear map of pupil fields, and a stop that off-axis light meets too."""

    def __call__(self, field: Tensor, pupil: Tensor) -> Tensor:
        """Field of the star behind the coronagraph, ``(..., n, n)``, complex."""

    def stop(self, pupil: Tensor) -> Tensor:
        """Pupil ``(n, n)`` seen by a source far from the axis."""


@dataclass(frozen=True)
class NoCoronagraph:
    """Let the star through.

    >>> NoCoronagraph()(torch.ones(1, 2, 2), torch.ones(2, 2)).sum().item()
    4.0
    """

    def __call__(self, field: Tensor, pupil: Tensor) -> Tensor:
        """Field unchanged."""
        return field

    def stop(self, pupil: Tensor) -> Tensor:
        """Pupil unchanged."""
        return pupil


@dataclass(frozen=True)
class IdealCoronagraph:
    r"""Take away the coherent part of the star, all that a perfect coronagraph can remove.

    .. math::

        A \mapsto A - \frac{\langle P, A \rangle}{\langle P, P \rangle} P

    (Cavarroc et al. 2006; Sauvage et al. 2010). A star without aberrations leaves nothing.

    >>> pupil = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    >>> flat = pupil * torch.exp(torch.tensor(0.3j))
    >>> float(IdealCoronagraph()(flat, pupil).abs().max()) < 1e-6
    True
    """

    def __call__(self, field: Tensor, pupil: Tensor) -> Tensor:
        """Field minus its projection on the pupil."""
        coherent = (field * pupil).sum(dim=(-2, -1), keepdim=True) / (pupil**2).sum()
        return field - coherent * pupil

    def stop(self, pupil: Tensor) -> Tensor:
        """Pupil unchanged."""
        return pupil


@dataclass(frozen=True)
class LyotCoronagraph:
    r"""Opaque spot in the focal plane, then a stop in the pupil (Lyot 1939).

    .. math::

        A \mapsto L \cdot (A - F^{*} M F A)

    :math:`M` is one on the spot; only the spot is computed (Soummer et al. 2007).

    :param float radius: of the spot, in :math:`\lambda / D`.
    :param float outer: diameter of the stop :math:`L`, in pupil diameters.
    :param float inner: diameter of its central obscuration.
    :param int samples: pixels per :math:`\lambda / D` on the spot.

    >>> pupil = telescope_pupil(32, PupilShape(0.14)).to(torch.complex128)
    >>> left = LyotCoronagraph()(pupil, pupil.real).abs().square().sum()
    >>> bool(left < 0.05 * pupil.abs().square().sum())
    True
    """

    radius: float = 3.0
    outer: float = 0.9
    inner: float = 0.25
    samples: int = 8

    def __call__(self, field: Tensor, pupil: Tensor) -> Tensor:
        """Field behind the stop."""
        n = field.shape[-1]
        half = math.ceil(self.radius * self.samples)
        size, center = (2 * half + 1, 2 * half + 1), (half, half)
        axis = torch.arange(-half, half + 1, dtype=pupil.dtype, device=pupil.device)
        spot = torch.hypot(axis[:, None], axis) <= self.radius * self.samples
        inside = spot * focal_field(field, self.samples, size, center)
        # The adjoint of the matrix transform leads back to the pupil.
        u = (torch.arange(n, dtype=pupil.dtype, device=pupil.device) + 0.5) / n - 0.5
        back = torch.exp(2j * math.pi / self.samples * u[:, None] * axis).to(field.dtype)
        blocked = back @ inside @ back.T / (n * self.samples)
        return self.stop(field - blocked)

    def stop(self, pupil: Tensor) -> Tensor:
        """Pupil, or a field in it, seen through the stop."""
        shape = PupilShape(obscuration=self.inner / self.outer)
        n = pupil.shape[-1]
        real = torch.empty(0, dtype=pupil.dtype).real.dtype if pupil.is_complex() else pupil.dtype
        return pupil * _scaled_pupil(n, shape, self.outer, real, pupil.device)


def _scaled_pupil(
    size: int, shape: PupilShape, diameter: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A pupil of a fraction of the diameter in the middle of the grid of the whole."""
    side = max(1, round(size * diameter))
    side -= (size - side) % 2  # keep it centred
    margin = (size - side) // 2
    small = telescope_pupil(side, shape, dtype=dtype, device=device)
    return torch.nn.functional.pad(small, (margin, margin, margin, margin))
