"""Frames of the halo of a star: aberrations in the pupil, a coronagraph, a noisy detector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.datasets.coronagraph import Coronagraph, IdealCoronagraph
from deepinv_astro.io.stamps import fit_core, shift_image
from deepinv_astro.physics.functional.pupil import (
    VLT,
    PupilShape,
    focal_field,
    pupil_grid,
    telescope_pupil,
)

__all__ = [
    "NACO_LP",
    "SpeckleFrames",
    "SpeckleModel",
    "detect",
    "speckle_frames",
]


@dataclass(frozen=True)
class SpeckleModel:
    r"""What makes the halo of a star, and the detector that sees it.

    The wavefront of exposure :math:`e` of frame :math:`t` is, in nanometres,

    .. math::

        w_{t,e} = w_\text{static} + w_t^\text{drift} + \text{pointing}_{t,e}
        + e^{z_t}\, w_{t,e}^\text{AO}

    :math:`w_\text{static}` and :math:`w^\text{drift}` have power spectra :math:`f^{-p}` above one
    cycle per diameter, each with its exponent; the static part has the tilt that centres the star's
    core, the drift none. The drift is autoregressive over ``drift_frames``, and so is the pointing,
    which also jitters in each exposure. The residual of adaptive optics is new in
    each exposure: :math:`f^{-q}` inside the cutoff :math:`N_\text{act}/2` cycles per diameter,
    Kolmogorov's :math:`f^{-11/3}` outside; its strength follows the seeing :math:`z_t`,
    autoregressive over ``seeing_frames``. Slow pointing moves the star on the coronagraph, not the
    sky on the detector: frames are registered, as those of an observer.

    The defaults are fitted to the sequence of :func:`~deepinv_astro.datasets.BetaPictoris`.

    :param float wavelength: nanometres.
    :param float sampling: :math:`\lambda/D` in pixels.
    :param float static_rms: quasi-static aberrations, nm rms over the pupil.
    :param float static_slope: exponent :math:`p` of the quasi-static aberrations.
    :param float drift_rms: drifting aberrations, nm rms.
    :param float drift_slope: exponent :math:`p` of the drifting aberrations.
    :param float drift_frames: correlation time of the drift in frames.
    :param float pointing_rms: slow wander of the star on the coronagraph, per axis, in
        :math:`\lambda/D`.
    :param float jitter_rms: fast wander of the star and the sky.
    :param float residual_rms: residual of adaptive optics in one exposure, nm rms.
    :param float seeing_scatter: standard deviation of :math:`z_t`.
    :param float seeing_frames: correlation time of the seeing in frames.
    :param int actuators: across the diameter.
    :param float residual_slope: exponent :math:`q` inside the cutoff.
    :param int exposures: independent realisations of the residual averaged in a frame.
    :param float star_flux: flux of the star in the stamp of its PSF, in counts per frame.
    :param float sky_background: counts per pixel and frame, subtracted but for its noise.
    :param float read_noise: counts rms per pixel and frame.
    :param float electrons_per_count: gain of the detector, for photon noise.
    :param PupilShape pupil: of the telescope.
    :param Coronagraph coronagraph: ideal, Lyot or none.
    :param int pupil_size: pixels across the pupil.
    """

    wavelength: float = 3800.0
    sampling: float = 4.4
    static_rms: float = 180.0
    static_slope: float = 2.7
    drift_rms: float = 36.0
    drift_slope: float = 2.5
    drift_frames: float = 60.0
    pointing_rms: float = 0.06
    jitter_rms: float = 0.07
    residual_rms: float = 325.0
    seeing_scatter: float = 0.1
    seeing_frames: float = 4.0
    actuators: int = 14
    residual_slope: float = 1.4
    exposures: int = 80
    star_flux: float = 2.2e6
    sky_background: float = 400.0
    read_noise: float = 1.3
    electrons_per_count: float = 100.0
    pupil: PupilShape = VLT
    coronagraph: Coronagraph = field(default_factory=IdealCoronagraph)
    pupil_size: int = 64

    def __post_init__(self) -> None:
        """Refuse values that cannot be."""
        if self.sampling < 2:
            raise ValueError(
                f"sampling is lambda/D in pixels and must be at least 2 (Nyquist), "
                f"got {self.sampling}; bin the frames afterwards for coarser pixels"
            )
        for name in ("drift_frames", "seeing_frames", "exposures", "star_flux"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


#: A halo like that of beta Pictoris in VLT/NACO at L' behind its vortex (2013-01-31, 27.19 mas):
#: its temporal deviation is within a factor 2 of the real one at each radius from 5 to 48 pixels,
#: its first three principal components hold 60 to 90 % of the temporal variance.
NACO_LP = SpeckleModel()


class SpeckleFrames(NamedTuple):
    """A star seen through the instrument, without noise.

    :param torch.Tensor frames: halo behind the coronagraph, counts, ``(T, H, W)``.
    :param torch.Tensor psf: off-axis PSF of unit sum, mean of the sequence, ``(k, k)``, its core on
        the middle pixel.
    """

    frames: Tensor
    psf: Tensor


def speckle_frames(
    model: SpeckleModel,
    n_frames: int,
    shape: tuple[int, int],
    *,
    generator: torch.Generator,
    center: tuple[float, float] | None = None,
    psf_size: int = 39,
    dtype: torch.dtype = torch.float32,
) -> SpeckleFrames:
    r"""Halo of the star in each frame of a sequence, and the PSF of whatever is beside it.

    .. math::

        s_t = \frac{F}{E} \sum_{e=1}^{E} \left| \mathcal F \{ \mathcal C [
        P\, e^{2\pi i\, w_{t,e} / \lambda} ] \} \right|^2

    with the coronagraph :math:`\mathcal C` of the model. One frame is in memory at a time.

    :param SpeckleModel model: aberrations and instrument.
    :param int n_frames: :math:`T`.
    :param tuple shape: rows and columns of a frame.
    :param torch.Generator generator: source of randomness; its device is that of the result.
    :param tuple center: row and column of the star, default ``(H // 2, W // 2)``.
    :param int psf_size: side of the PSF's stamp, odd.
    :param torch.dtype dtype: of the result.
    :return: :class:`SpeckleFrames`.
    :raises ValueError: if ``psf_size`` is even, or the field so large that the sampled pupil would
        repeat the star in it.

    >>> model = SpeckleModel(pupil_size=32, exposures=2)
    >>> generator = torch.Generator().manual_seed(0)
    >>> stars = speckle_frames(model, 3, (21, 31), generator=generator, psf_size=15)
    >>> stars.frames.shape, stars.psf.shape, round(float(stars.psf.sum()), 5)
    (torch.Size([3, 21, 31]), torch.Size([15, 15]), 1.0)
    """
    if psf_size % 2 == 0:
        raise ValueError(f"psf_size must be odd, so that the star has a pixel, got {psf_size}")
    origin = center if center is not None else (shape[0] // 2, shape[1] // 2)
    reach = max(max(c, size - 1 - c) for c, size in zip(origin, shape, strict=True))
    if 2 * max(reach, psf_size // 2) > model.pupil_size * model.sampling:
        raise ValueError(
            f"a pupil of {model.pupil_size} pixels makes a field of "
            f"{model.pupil_size * model.sampling:g} pixels, too small for {shape}; "
            f"set pupil_size to {math.ceil(2 * reach / model.sampling) + 1} or more"
        )
    stamp, middle = (psf_size, psf_size), (psf_size // 2, psf_size // 2)
    n, device = model.pupil_size, generator.device
    pupil = telescope_pupil(n, model.pupil, dtype=dtype, device=device)
    open_pupil = model.coronagraph.stop(pupil)
    frames = torch.empty(n_frames, *shape, dtype=dtype, device=device)
    psf = torch.zeros(psf_size, psf_size, dtype=dtype, device=device)
    for t, (sky_path, off_axis) in enumerate(_wavefronts(model, n_frames, pupil, generator)):
        waves = _phasor(sky_path, model)
        star = model.coronagraph(pupil * _phasor(off_axis, model) * waves, pupil)
        frames[t] = _intensity(focal_field(star, model.sampling, shape, origin))
        beside = open_pupil * waves
        psf += _intensity(focal_field(beside, model.sampling, stamp, middle)) / n_frames
    return SpeckleFrames(model.star_flux * frames / psf.sum(), _recentred(psf / psf.sum()))


def detect(frames: Tensor, model: SpeckleModel, *, generator: torch.Generator) -> Tensor:
    r"""Photon and read-out noise of the detector, sky background subtracted.

    .. math::

        y = \frac{1}{\gamma} \mathcal P\{\gamma (s + b)\} - b + \mathcal N(0, \sigma^2)

    :param torch.Tensor frames: noiseless counts :math:`s`, any shape.
    :param SpeckleModel model: holds the gain :math:`\gamma`, background :math:`b` and read noise.
    :param torch.Generator generator: source of randomness.
    :return: noisy counts.

    >>> model = SpeckleModel(read_noise=0.0, sky_background=0.0, electrons_per_count=4.0)
    >>> generator = torch.Generator().manual_seed(0)
    >>> noisy = detect(torch.full((100, 100), 25.0), model, generator=generator)
    >>> round(float(noisy.mean())), round(float(noisy.var()))  # variance 25 / 4
    (25, 6)
    """
    gain, background = model.electrons_per_count, model.sky_background
    electrons = gain * (frames + background).clamp_min(0)
    counts = torch.poisson(electrons, generator=generator) / gain - background
    read = torch.empty_like(frames).normal_(generator=generator)
    return counts + model.read_noise * read


def _intensity(waves: Tensor) -> Tensor:
    """Mean over exposures of the squared modulus."""
    return (waves.real.square() + waves.imag.square()).mean(dim=0)


def _phasor(path: Tensor, model: SpeckleModel) -> Tensor:
    """Unit complex field of an optical path difference in nm."""
    phase = 2 * math.pi / model.wavelength * path
    return torch.complex(torch.cos(phase), torch.sin(phase))


def _wavefronts(
    model: SpeckleModel, n_frames: int, pupil: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Optical paths (E, n, n) of the sky and what the star has more (n, n), in nm, by frame."""
    draw_static = _screens(pupil, lambda f: f**-model.static_slope)
    draw_drift = _screens(pupil, lambda f: f**-model.drift_slope)
    draw_fast = _screens(pupil, partial(_residual_spectrum, model))
    modes = _low_modes(pupil)
    # One lambda/D is a slope of one wavelength across the diameter.
    tilts = model.wavelength * torch.stack(
        pupil_grid(model.pupil_size, dtype=pupil.dtype, device=pupil.device)
    )
    seeing = _autoregressive((n_frames,), model.seeing_frames, generator)
    pointing = _autoregressive((n_frames, 2), model.drift_frames, generator).to(pupil.dtype)
    jitter = torch.randn(
        n_frames, model.exposures, 2, generator=generator, device=pupil.device, dtype=pupil.dtype
    )
    static = model.static_rms * _clean(draw_static(1, generator), modes, pupil)
    static = _centred(static, tilts, pupil, model)
    memory = math.exp(-1 / model.drift_frames)
    drift = draw_drift(1, generator)
    for t in range(n_frames):
        slow = static + model.drift_rms * _project(drift, modes, pupil)
        strength = model.residual_rms * math.exp(model.seeing_scatter * float(seeing[t]))
        fast = strength * draw_fast(model.exposures, generator)
        fast += torch.einsum("ek,kij->eij", model.jitter_rms * jitter[t], tilts)
        off_axis = torch.einsum("k,kij->ij", model.pointing_rms * pointing[t], tilts)
        yield slow + fast, off_axis
        drift = memory * drift + math.sqrt(1 - memory**2) * draw_drift(1, generator)


def _centred(static: Tensor, tilts: Tensor, pupil: Tensor, model: SpeckleModel) -> Tensor:
    """Add the tilt that brings the core of the star, as an observer fits it, to its pixel."""
    middle = 2 * round(model.sampling)
    shape, center = (2 * middle + 1, 2 * middle + 1), (float(middle), float(middle))
    for _ in range(3):
        star = model.coronagraph.stop(pupil) * _phasor(static, model)
        image = _intensity(focal_field(star, model.sampling, shape, center))
        core = fit_core(image.cpu().numpy())
        offset = static.new_tensor([core.row - middle, core.column - middle]) / model.sampling
        static = static - torch.einsum("k,kij->ij", offset, tilts)
    return static


def _recentred(psf: Tensor) -> Tensor:
    """PSF with its core on the middle pixel, as an observer's; drift and jitter moved it a bit."""
    core = fit_core(psf.cpu().numpy())
    middle = psf.shape[-1] // 2
    moved = shift_image(psf.cpu().numpy(), middle - core.row, middle - core.column)
    centred = torch.from_numpy(moved).to(psf)
    return centred / centred.sum()


def _residual_spectrum(model: SpeckleModel, f: Tensor) -> Tensor:
    """Power of the residual of adaptive optics at f cycles per diameter, 1 at the cutoff."""
    x = f / (model.actuators / 2)
    return torch.where(x <= 1, x**-model.residual_slope, x ** (-11 / 3))


def _screens(
    pupil: Tensor, spectrum: Callable[[Tensor], Tensor]
) -> Callable[[int, torch.Generator], Tensor]:
    """A function that draws screens (N, n, n) of unit variance with a power spectrum.

    The grid is twice the pupil, so that opposite edges of a screen do not match, and is cut into
    four screens; nothing is slower than one cycle per diameter.
    """
    n = pupil.shape[-1]
    rows = torch.fft.fftfreq(2 * n, 1 / n, dtype=pupil.dtype, device=pupil.device)
    columns = torch.fft.rfftfreq(2 * n, 1 / n, dtype=pupil.dtype, device=pupil.device)
    f = torch.hypot(rows[:, None], columns)
    power = torch.where(f >= 1, spectrum(f.clamp_min(1)), torch.zeros_like(f))
    both = torch.ones_like(columns)
    both[1:-1] = 2  # the half of the plane that rfft2 leaves out
    amplitude = torch.sqrt(power * (2 * n) ** 2 / (power * both).sum())

    def draw(count: int, generator: torch.Generator) -> Tensor:
        size = (math.ceil(count / 4), 2 * n, 2 * n)
        white = torch.randn(size, dtype=pupil.dtype, device=pupil.device, generator=generator)
        screen: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=size[1:])
        quarters = screen.reshape(-1, 2, n, 2, n).transpose(2, 3).reshape(-1, n, n)
        return quarters[:count]

    return draw


def _low_modes(pupil: Tensor) -> Tensor:
    """Piston and both tilts times the pupil, orthonormal, (3, n, n)."""
    row, column = pupil_grid(pupil.shape[-1], dtype=pupil.dtype, device=pupil.device)
    basis = torch.stack([torch.ones_like(row), row, column]) * pupil
    orthonormal: Tensor = torch.linalg.qr(basis.flatten(1).T).Q.T
    return orthonormal.reshape(basis.shape)


def _project(screen: Tensor, modes: Tensor, pupil: Tensor) -> Tensor:
    """Screen without piston and tilt over the light of the pupil: the star does not wander."""
    weighted = screen * pupil
    coefficients = torch.einsum("nij,mij->nm", weighted, modes)
    weighted = weighted - torch.einsum("nm,mij->nij", coefficients, modes)
    return torch.where(pupil > 0, weighted / pupil.clamp_min(1e-6), torch.zeros_like(weighted))


def _clean(screen: Tensor, modes: Tensor, pupil: Tensor) -> Tensor:
    """Screen without piston and tilt, of exactly unit rms over the light of the pupil."""
    screen = _project(screen, modes, pupil)
    light = (pupil**2).sum()
    rms = torch.sqrt((pupil * screen).square().sum(dim=(-2, -1), keepdim=True) / light)
    return screen / rms


def _autoregressive(
    shape: tuple[int, ...], memory_frames: float, generator: torch.Generator
) -> Tensor:
    """Stationary AR(1) series of unit variance, in time along the first axis."""
    memory = math.exp(-1 / memory_frames)
    series = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
    for t in range(1, shape[0]):
        series[t] = memory * series[t - 1] + math.sqrt(1 - memory**2) * series[t]
    return series
