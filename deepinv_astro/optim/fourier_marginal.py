r"""Marginal likelihood of a stationary image seen through a PSF, in Fourier space."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deepinv_astro.optim.calibration import CalibrationLikelihood
from deepinv_astro.physics.blur import PixelSampling
from deepinv_astro.physics.functional.otf import centred_otf

#: Prior of the spectrum: slope, knee in cycles per pixel, and how well they are known. Broad: the
#: power of natural images and of disks falls as the frequency to the power -2 to -4.
SLOPE, SLOPE_STD = 3.0, 1.5
KNEE, KNEE_LOG_STD = 0.03, 1.5
#: Most steps of Fisher scoring, or of bisection where it leaves the bracket, to the amplitude of an image.
AMPLITUDE_STEPS = 60


class FourierMarginal(CalibrationLikelihood):
    r"""The sky integrated out: how likely is the power spectrum of the data, given the PSF.

    A stationary Gaussian sky of spectrum :math:`S_x`, blurred by the PSF :math:`h_\theta`, sampled
    every :math:`r` pixels and seen in noise of spectrum :math:`S_n`, has the spectrum

    .. math::

        V_\theta(f) = S_n(f) + \tfrac{1}{r^2} \sum_{a} |\hat h_\theta(f_a)|^2 S_x(f_a)

    (the sum is over the aliases of :math:`f`), and the periodogram :math:`P_y` of the data the
    likelihood

    .. math::

        -\ln p(y \mid \theta) = \tfrac12 \sum_f \left[ \ln V_\theta(f) + P_y(f) / V_\theta(f) \right],
        \qquad
        S_x(f) = A \left( 1 + f^2 / f_0^2 \right)^{-p/2} .

    Knee :math:`f_0` and slope :math:`p`, common to all images, are estimated with :math:`\theta`, and
    so is the level of the noise within its prior; the amplitude :math:`A` of each image is
    eliminated: it is where the likelihood is the largest. Unlike the joint estimate of sky and PSF, which falls to a
    PSF of one pixel, this pays for each frequency that it makes visible (:math:`\ln V`).

    Data that are not periodic are multiplied by a ``window`` :math:`w`. Then :math:`V` is the
    expectation of the windowed periodogram (the autocovariance times that of the window), the mean
    and the frequencies next to it are left out, and the sum is multiplied by
    :math:`(\sum w^2)^2 / (N \sum w^4)`, the fraction of independent frequencies that remain.

    :param torch.Tensor, float noise: variance of the noise per pixel, or its spectrum ``(h, w)`` in
        the layout of ``torch.fft.fft2``, with the mean equal to that variance.
    :param float noise_log_std: prior standard deviation of the logarithm of the noise variance: 0
        if it is known.
    :param torch.Tensor window: apodisation ``(h, w)``, such as :func:`taper`; ``None`` for
        periodic data.
    :param int factor: :math:`r`, pixels of the PSF per pixel of the data, and axis.
    :param PixelSampling sampling: how the data read them, as in
        :class:`~deepinv_astro.physics.Blur`.
    :raises ValueError: if the noise is not positive.

    |sep|

    :Examples:

        A sky of slope 3 seen through a PSF of three pixels is not likely to be seen through none:

        >>> import torch
        >>> n, psf = 64, torch.tensor([[0.25, 0.5, 0.25]])
        >>> f = torch.hypot(torch.fft.fftfreq(n)[:, None], torch.fft.fftfreq(n))
        >>> white = torch.randn(1, 1, n, n, generator=torch.Generator().manual_seed(1))
        >>> x = torch.fft.ifft2(torch.fft.fft2(white) * (1 + (f / 0.03) ** 2) ** -0.75).real
        >>> y = 0.25 * x.roll(-1, 3) + 0.5 * x + 0.25 * x.roll(1, 3) + 0.001 * white.mT
        >>> likelihood = FourierMarginal(noise=0.001**2)
        >>> cost = [
        ...     likelihood.cost({"filter": h}, y, likelihood.nuisance)
        ...     for h in (psf, torch.ones(1, 1))
        ... ]
        >>> bool(cost[0] < cost[1] - 100)
        True
    """

    noise: Tensor
    window: Tensor | None

    def __init__(
        self,
        noise: Tensor | float,
        *,
        noise_log_std: float = 0.0,
        window: Tensor | None = None,
        factor: int = 1,
        sampling: PixelSampling | str = PixelSampling.POINT,
    ):
        super().__init__(3)
        noise = torch.as_tensor(noise, dtype=torch.get_default_dtype())
        if not (noise > 0).all() or not torch.isfinite(noise).all():
            raise ValueError("noise must be a positive variance")
        self.register_buffer("noise", noise)
        self.register_buffer("window", window)
        self.noise_log_std = noise_log_std
        self.factor, self.sampling = factor, PixelSampling(sampling)

    def cost(self, values: Mapping[str, Tensor], y: Tensor, nuisance: Tensor) -> Tensor:
        r"""Minus the log-likelihood of each image.

        :param Mapping values: PSF under ``filter``: ``(k, k)``, ``(c, k, k)`` or ``(b, c, k, k)``.
        :param torch.Tensor y: images ``(B, C, h, w)``.
        :param torch.Tensor nuisance: three coordinates: knee, slope, noise.
        :return: (:class:`torch.Tensor`) ``(B,)``.
        """
        signal, noise = self.expected(values["filter"], y, nuisance)
        periodogram, weights = self.periodogram(y), self.weights(y)
        amplitude = _best_amplitude(signal.detach(), noise.detach(), periodogram, weights)
        spectrum = amplitude * signal + noise
        terms = spectrum.log() + periodogram / spectrum
        return (weights * terms).flatten(1).sum(1) / 2

    def features(self, values: Mapping[str, Tensor], y: Tensor, nuisance: Tensor) -> Tensor:
        r"""Logarithm of the spectrum, weighted, without what the amplitude could imitate."""
        signal, noise = self.expected(values["filter"], y, nuisance)
        weights = self.weights(y)
        amplitude = _best_amplitude(signal.detach(), noise.detach(), self.periodogram(y), weights)
        spectrum = amplitude * signal + noise
        root = (weights / 2).sqrt()
        imitated = (root * amplitude * signal / spectrum).detach()
        features = root * spectrum.log()
        along = (imitated * features).sum((-2, -1), keepdim=True)
        return features - along * imitated / imitated.square().sum((-2, -1), keepdim=True)

    def sky_spectrum(self, frequency: Tensor, nuisance: Tensor) -> Tensor:
        r""":math:`S_x / A` at frequencies in cycles per pixel of the PSF."""
        knee = KNEE * torch.exp(KNEE_LOG_STD * nuisance[0])
        slope = SLOPE + SLOPE_STD * nuisance[1]
        return (1 + (frequency / knee) ** 2) ** (-slope / 2)

    def noise_spectrum(self, nuisance: Tensor) -> Tensor:
        r""":math:`S_n`, a number or ``(h, w)``."""
        return self.noise * torch.exp(self.noise_log_std * nuisance[2])

    def periodogram(self, y: Tensor) -> Tensor:
        r""":math:`P_y = |\mathcal F (w (y - \bar y))|^2 / \sum w^2`, in the layout of ``rfft2``."""
        if y.ndim != 4:
            raise ValueError(f"y must be images (B, C, h, w), got shape {tuple(y.shape)}")
        window = torch.ones_like(y[0, 0]) if self.window is None else self.window
        mean = (window * y).sum((-2, -1), keepdim=True) / window.sum()
        power = torch.fft.rfft2(window * (y - mean)).abs().square()
        return power / window.square().sum()

    def expected(self, psf: Tensor, y: Tensor, nuisance: Tensor) -> tuple[Tensor, Tensor]:
        r"""Expectations of the periodograms of the sky for :math:`A = 1` and of the noise, as of ``rfft2``."""
        h, w = y.shape[-2:]
        finer = 1 if self.window is None else 2  # lags up to the size of the image, both signs
        signal = self._blurred_spectrum(psf, (h * finer, w * finer), nuisance)
        if self.window is not None:
            lags = torch.fft.fft2(self.window, s=signal.shape[-2:]).abs().square()
            lags = torch.fft.ifft2(lags).real / self.window.square().sum()
            seen = torch.fft.fft2(torch.fft.ifft2(signal) * lags).real
            signal = seen[..., ::2, ::2].clamp(min=0)  # of rounding errors
        signal, noise = signal[..., : w // 2 + 1], self.noise_spectrum(nuisance)
        noise = noise[..., : w // 2 + 1] if noise.ndim else noise
        if len(y) % len(signal):
            raise ValueError(f"{len(y)} images cannot use {len(signal)} PSFs")
        return signal.repeat(len(y) // len(signal), 1, 1, 1), noise

    def _blurred_spectrum(self, psf: Tensor, size: tuple[int, int], nuisance: Tensor) -> Tensor:
        """Of the blurred and sampled sky, on a grid of data frequencies."""
        r = self.factor
        fine = (size[0] * r, size[1] * r)
        psf = psf.reshape(*(1,) * (4 - psf.ndim), *psf.shape)
        power = _full(centred_otf(psf, fine).abs().square(), fine)
        if self.sampling is PixelSampling.MEAN:
            pixel = torch.full((r, r), 1 / r**2).to(psf)
            power = power * _full(centred_otf(pixel, fine).abs().square(), fine)
        power = power * self.sky_spectrum(_frequency(fine, psf), nuisance)
        aliases = power.unflatten(-1, (r, size[1])).unflatten(-3, (r, size[0]))
        return aliases.mean((-4, -2))

    def weights(self, y: Tensor) -> Tensor:
        """How many frequencies of ``rfft2`` each stands for: less for a window, 0 for what the mean leaks to."""
        h, w = y.shape[-2:]
        reach = 0 if self.window is None else 2
        column = torch.arange(w // 2 + 1, device=y.device)
        row = torch.fft.fftfreq(h, 1 / h, device=y.device).abs() <= reach
        weights = (~(row[:, None] & (column <= reach))).to(y)
        weights = weights * (1 + ((column > 0) & (2 * column < w)).to(y))  # and its conjugate
        if self.window is not None:
            square = self.window.square()
            weights = weights * square.sum() ** 2 / (square.square().sum() * h * w)
        return weights


def taper(size: tuple[int, int], width: float = 0.25) -> Tensor:
    r"""Separable window of an image that is not periodic: flat, with cosine edges (Tukey's).

    .. math::

        w_i = \sin^2 (\pi d_i / \alpha) \text{ if } d_i < \alpha / 2 \text{ else } 1,

    with :math:`d_i` the distance to the nearest edge as a fraction of the size.

    :param tuple size: rows and columns.
    :param float width: :math:`\alpha`, fraction of rows and columns on which it is not flat, in (0,
        1]; 1 is Hann's window.
    :return: (:class:`torch.Tensor`) ``(h, w)``.
    :raises ValueError: if the width is not in (0, 1].

    |sep|

    :Examples:

        >>> taper((2, 3), width=1.0)
        tensor([[0.1250, 0.5000, 0.1250],
                [0.1250, 0.5000, 0.1250]])
    """
    if not 0 < width <= 1:
        raise ValueError(f"width must be in (0, 1], got {width}")
    edges = []
    for n in size:
        place = (torch.arange(n) + 0.5) / n
        distance = torch.minimum(place, 1 - place).clamp(max=width / 2)
        edges.append(torch.sin(math.pi * distance / width).square())
    return edges[0][:, None] * edges[1]


def _best_amplitude(signal: Tensor, noise: Tensor, power: Tensor, weights: Tensor) -> Tensor:
    """Amplitude of each image at which the likelihood is the largest, ``(B, C, 1, 1)``, without gradient."""
    axes = (-2, -1)

    def total(value: Tensor) -> Tensor:
        return (weights * value).sum(axes, keepdim=True)

    floor = 1e-6 * total(noise.expand(power.shape))  # an empty image
    start = (torch.maximum(total(power - noise), floor) / total(signal)).log()
    log_amplitude, low, high = start, start - 10, start + 10
    for _ in range(AMPLITUDE_STEPS):
        spectrum = log_amplitude.exp() * signal + noise
        share = log_amplitude.exp() * signal / spectrum
        slope = total(share * (1 - power / spectrum))  # of twice the cost
        low, high = (
            torch.where(slope < 0, log_amplitude, low),
            torch.where(slope < 0, high, log_amplitude),
        )
        scoring = slope / total(share.square()).clamp(min=torch.finfo(power.dtype).tiny)
        step = -scoring.clamp(-1, 1)
        inside = (log_amplitude + step >= low) & (log_amplitude + step <= high)
        step = torch.where(inside, step, (low + high) / 2 - log_amplitude)
        log_amplitude = log_amplitude + step
        if float(step.abs().max()) < 1e-9:
            break
    return log_amplitude.exp()


def _frequency(size: tuple[int, int], like: Tensor) -> Tensor:
    """Radial frequency in cycles per pixel, in the layout of fft2."""
    row, column = (torch.fft.fftfreq(n, dtype=like.dtype, device=like.device) for n in size)
    return torch.hypot(row[:, None], column)


def _full(half: Tensor, size: tuple[int, int]) -> Tensor:
    """Even spectrum in the layout of fft2 from that of rfft2."""
    rows = -torch.arange(size[0]) % size[0]
    columns = torch.arange(size[1] // 2 + 1, size[1])
    mirrored = half[..., rows[:, None], size[1] - columns]
    return torch.cat([half, mirrored], -1)
