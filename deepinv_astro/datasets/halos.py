"""Halos of the stars of a survey: each star has its own night."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deepinv_astro.datasets.speckles import NACO_LP, SpeckleModel, speckle_frames
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf

__all__ = ["Halo", "PupilHalo", "RicianHalo", "Star", "temporal_deviation"]

Range = tuple[float, float]


class Star(NamedTuple):
    """A star of a survey behind the coronagraph, without noise.

    :param torch.Tensor frames: its halo, counts, ``(T, H, W)``.
    :param torch.Tensor psf: off-axis PSF of unit sum, ``(k, k)``.
    :param SpeckleModel detector: its flux, and the noise of the detector.
    """

    frames: Tensor
    psf: Tensor
    detector: SpeckleModel


class Halo(Protocol):
    """Anything that draws stars."""

    def draw(
        self, n_frames: int, shape: tuple[int, int], psf_size: int, generator: torch.Generator
    ) -> Star:
        """One star, its own seeing and speckles drawn from the generator, at ``(H // 2, W // 2)``."""


@dataclass(frozen=True)
class PupilHalo:
    r"""Halos by physical optics, of nights that differ.

    .. math::

        \sigma_\mathrm{AO} = \bar\sigma_\mathrm{AO}\, e^{u_1}, \qquad
        \sigma_\mathrm{drift} = \bar\sigma_\mathrm{drift}\, e^{u_2}, \qquad
        \sigma_\mathrm{pointing} = \bar\sigma_\mathrm{pointing}\, e^{u_2}

    with the aberrations of :class:`~deepinv_astro.datasets.SpeckleModel`: the seeing :math:`e^{u_1}`
    and the stability :math:`e^{u_2}` of each night are log-uniform in their ranges.

    :param SpeckleModel model: instrument and mean night.
    :param tuple seeing: range of the factor of the residual of adaptive optics.
    :param tuple drift: range of the factor of drift and slow pointing.
    :raises ValueError: if a range is not positive or runs backwards.

    |sep|

    :Examples:

        >>> import torch
        >>> halo = PupilHalo(SpeckleModel(pupil_size=16, exposures=2), seeing=(0.5, 0.5))
        >>> star = halo.draw(3, (21, 31), 11, torch.Generator().manual_seed(0))
        >>> star.frames.shape, star.psf.shape, star.detector.residual_rms
        (torch.Size([3, 21, 31]), torch.Size([11, 11]), 162.5)
    """

    model: SpeckleModel = NACO_LP
    seeing: Range = (0.8, 1.25)
    drift: Range = (0.5, 2.0)

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        _check_ranges(seeing=self.seeing, drift=self.drift)

    def draw(
        self, n_frames: int, shape: tuple[int, int], psf_size: int, generator: torch.Generator
    ) -> Star:
        """One star."""
        seeing, drift = _log_uniform(generator, self.seeing, self.drift)
        night = replace(
            self.model,
            residual_rms=seeing * self.model.residual_rms,
            drift_rms=drift * self.model.drift_rms,
            pointing_rms=drift * self.model.pointing_rms,
        )
        frames, psf = speckle_frames(night, n_frames, shape, generator=generator, psf_size=psf_size)
        return Star(frames, psf, night)


@dataclass(frozen=True)
class RicianHalo:
    r"""Halos that are quick to draw: a speckle field that drifts, of the statistics of speckles.

    .. math::

        s_t(p) = I(r_p) \left| \sqrt{1 - q}\, E_0(p) + \sqrt q\, E_t(p) \right|^2, \qquad
        I(r) = \beta\, I_0 \left[ 1 + (r / r_0)^2 \right]^{-p/2}

    :math:`E_0` and :math:`E_t` are circular complex Gaussian fields of unit mean square whose
    correlation is that of the amplitude of the PSF; :math:`E_t` is autoregressive over ``memory``
    frames. The intensity of a pixel follows a modified Rician law (Aime and Soummer 2004): speckles
    :math:`E_0` are static, and brighter ones vary more. The PSF is an elliptical Gaussian.

    :param tuple fwhm: range of the width of the PSF, pixels, uniform.
    :param tuple ratio: range of its axis ratio, uniform; its direction is random.
    :param tuple brightness: range of :math:`\beta`, log-uniform.
    :param tuple drift: range of :math:`q`, log-uniform, within (0, 1].
    :param float memory: in frames.
    :param float peak: :math:`I_0`, counts.
    :param float core: :math:`r_0`, pixels.
    :param float slope: :math:`p`.
    :param SpeckleModel detector: flux of the star, and noise of the detector.
    :raises ValueError: if a range is not positive or runs backwards, or ``drift`` exceeds 1.

    |sep|

    :Examples:

        >>> import torch
        >>> star = RicianHalo().draw(4, (21, 31), 11, torch.Generator().manual_seed(0))
        >>> star.frames.shape, bool(star.frames[:, 10, 15].mean() > star.frames[:, 0].mean())
        (torch.Size([4, 21, 31]), True)
    """

    fwhm: Range = (3.2, 4.4)
    ratio: Range = (0.9, 1.0)
    brightness: Range = (0.5, 2.0)
    drift: Range = (0.003, 0.03)
    memory: float = 8.0
    peak: float = 3000.0
    core: float = 4.0
    slope: float = 2.4
    detector: SpeckleModel = field(default=NACO_LP, repr=False)

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        ranges = {name: getattr(self, name) for name in ("fwhm", "ratio", "brightness", "drift")}
        _check_ranges(**ranges)
        if self.drift[1] > 1:
            raise ValueError(f"drift is a fraction of the field, at most 1, got {self.drift}")
        for name in ("memory", "peak", "core"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def draw(
        self, n_frames: int, shape: tuple[int, int], psf_size: int, generator: torch.Generator
    ) -> Star:
        """One star."""
        brightness, q = _log_uniform(generator, self.brightness, self.drift)
        u = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        fwhm = self.fwhm[0] + (self.fwhm[1] - self.fwhm[0]) * u[0]
        ratio = self.ratio[0] + (self.ratio[1] - self.ratio[0]) * u[1]
        psf = gaussian_psf((psf_size, psf_size), fwhm, ratio=ratio, angle=180 * u[2])
        fields = _correlated_fields(n_frames + 1, shape, fwhm, generator)
        memory = math.exp(-1 / self.memory)
        for t in range(2, n_frames + 1):
            fields[t] = memory * fields[t - 1] + math.sqrt(1 - memory**2) * fields[t]
        waves = math.sqrt(1 - q) * fields[0] + math.sqrt(q) * fields[1:]
        mean = (1 + (_distance(shape) / self.core) ** 2) ** (-self.slope / 2)
        frames = brightness * self.peak * mean * (waves.real**2 + waves.imag**2)
        return Star(frames, psf, self.detector)


def temporal_deviation(star: Star) -> Tensor:
    r"""Standard deviation in time of a pixel, the same at all pixels of one distance from the star.

    .. math::

        \sigma^2(r) = \left\langle \mathrm{Var}_t\, s_t(p) + \frac{\bar s(p) + b}{\gamma}
        + \sigma_\mathrm{read}^2 \right\rangle_{|p| \approx r}

    Halo, photons of halo and background, and read-out noise; rings are one pixel wide.

    :param Star star: halo and detector.
    :return: (:class:`torch.Tensor`) :math:`\sigma`, ``(H, W)``.

    >>> star = Star(torch.zeros(3, 5, 7), torch.ones(1, 1), replace(NACO_LP, read_noise=0.0))
    >>> float(temporal_deviation(star)[0, 0])  # 400 counts of background, 100 electrons per count
    2.0
    """
    detector = star.detector
    photons = (star.frames.mean(0) + detector.sky_background) / detector.electrons_per_count
    variance = star.frames.var(0) + photons + detector.read_noise**2
    ring = _distance((variance.shape[0], variance.shape[1])).round().long()
    total = variance.new_zeros(int(ring.max()) + 1).index_add(0, ring.flatten(), variance.flatten())
    return (total / torch.bincount(ring.flatten()).clamp_min(1)).sqrt()[ring]


def _distance(shape: tuple[int, int]) -> Tensor:
    """Distance of each pixel from the star at (H // 2, W // 2), ``(H, W)``."""
    rows = torch.arange(float(shape[0]))[:, None] - shape[0] // 2
    return torch.hypot(rows, torch.arange(float(shape[1])) - shape[1] // 2)


def _correlated_fields(
    count: int, shape: tuple[int, int], fwhm: float, generator: torch.Generator
) -> Tensor:
    """Complex Gaussian fields (N, H, W) of unit mean square, made of the PSF's amplitude."""
    # the square root of a Gaussian is wider by the square root of two
    sigma = math.sqrt(2) * fwhm / (2 * math.sqrt(2 * math.log(2)))
    rows, columns = (n + math.ceil(3 * sigma) for n in shape)  # opposite edges do not meet
    squared = torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.fftfreq(columns) ** 2
    transfer = torch.exp(-2 * (math.pi * sigma) ** 2 * squared)
    transfer = transfer / transfer.square().mean().sqrt()
    white = torch.randn(count, rows, columns, 2, generator=generator)
    spectrum = torch.view_as_complex(white) * transfer
    fields: Tensor = torch.fft.ifft2(spectrum, norm="ortho")[:, : shape[0], : shape[1]]
    return fields / math.sqrt(2)  # real and imaginary part have unit variance


def _log_uniform(generator: torch.Generator, *bounds: Range) -> list[float]:
    """A value between each pair of bounds."""
    units = torch.rand(len(bounds), generator=generator, dtype=torch.float64).tolist()
    return [
        math.exp(math.log(low) + u * math.log(high / low))
        for u, (low, high) in zip(units, bounds, strict=True)
    ]


def _check_ranges(**ranges: Range) -> None:
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} must be an increasing pair above 0, got {(low, high)}")
