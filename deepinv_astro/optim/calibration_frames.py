r"""Likelihood of calibration frames: images of a star without the object."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from deepinv_astro.optim.calibration import CalibrationLikelihood
from deepinv_astro.physics.blur import PixelSampling
from deepinv_astro.physics.functional.otf import centred_otf


class CalibrationFrames(CalibrationLikelihood):
    r"""Stamps of a star, of unknown flux, position and background.

    .. math::

        d_k = a_k\, S_r T_{s_k} h_\theta + b_k + n_k, \qquad n_k \sim \mathcal N(0, \sigma^2),

    with :math:`T_s` the (band-limited) displacement by :math:`s` pixels and :math:`S_r` the sampling
    of :class:`~deepinv_astro.physics.Blur`. The fluxes :math:`a_k` and backgrounds :math:`b_k` have
    flat priors and are eliminated in closed form,

    .. math::

        -\ln p = \tfrac{1}{2\sigma^2} \min_{a, b} \| d_k - a\, S_r T_{s_k} h_\theta - b \|^2 ,

    (up to terms that change little with :math:`\theta`), the displacements are nuisance parameters.
    Several PSFs of one star taken at different times differ by more than noise: give the scatter of
    the PSF among them as part of the prior, or of ``noise``.

    :param int number: number of stamps, ``K``.
    :param torch.Tensor, float noise: standard deviation :math:`\sigma`, a number or broadcast to
        ``(K, C, h, w)``.
    :param float shift_std: prior standard deviation of the displacements, in pixels of the stamps.
    :param int factor: pixels of the PSF per pixel of the stamps, and axis.
    :param PixelSampling sampling: how they are read.
    :raises ValueError: if the noise is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> psf = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.5, 0.2], [0.0, 0.1, 0.0]])
        >>> frames = CalibrationFrames(2, noise=0.1)
        >>> stamps = torch.stack([7 * psf, 3 * psf + 1])[:, None]
        >>> frames.cost({"filter": psf}, stamps, frames.nuisance).round(decimals=4).abs()
        tensor([0., 0.], grad_fn=<AbsBackward0>)
    """

    noise: Tensor

    def __init__(
        self,
        number: int,
        noise: Tensor | float,
        shift_std: float = 1.0,
        *,
        factor: int = 1,
        sampling: PixelSampling | str = PixelSampling.POINT,
    ):
        super().__init__(2 * number)
        noise = torch.as_tensor(noise, dtype=torch.get_default_dtype())
        if not (noise > 0).all() or not torch.isfinite(noise).all():
            raise ValueError("noise must be a positive standard deviation")
        self.register_buffer("noise", noise)
        self.number, self.shift_std, self.factor = number, shift_std, factor
        self.sampling = PixelSampling(sampling)

    def cost(self, values: Mapping[str, Tensor], y: Tensor, nuisance: Tensor) -> Tensor:
        """Half the weighted square of the residual of each stamp ``(K, C, h, w)``, ``(K,)``."""
        model = self._model(values["filter"], y, nuisance)
        residual = _without(y / self.noise, self._columns(model))[0]
        return residual.square().flatten(1).sum(1) / 2

    def features(self, values: Mapping[str, Tensor], y: Tensor, nuisance: Tensor) -> Tensor:
        """The model over the noise, without what flux and background could imitate."""
        model = self._model(values["filter"], y, nuisance)
        columns = self._columns(model).detach()
        flux = _without(y / self.noise, columns)[1][..., :1, None]
        return _without(flux * model / self.noise, columns)[0]

    def shifts(self) -> Tensor:
        """Displacements of the stamps in pixels, ``(K, 2)``."""
        return self.shift_std * self.nuisance.detach().view(-1, 2)

    def _columns(self, model: Tensor) -> Tensor:
        """What multiplies flux and background, over the noise: ``(K, C, h w, 2)``."""
        both = torch.stack([model, torch.ones_like(model)], -1) / self.noise[..., None]
        return both.flatten(2, 3)

    def _model(self, psf: Tensor, y: Tensor, nuisance: Tensor) -> Tensor:
        """Displaced and sampled PSFs of unit flux, ``(K, C, h, w)``."""
        if y.ndim != 4 or len(y) != self.number:
            raise ValueError(f"stamps must be ({self.number}, C, h, w), got {tuple(y.shape)}")
        if psf.ndim > 4 or psf.shape[:-3].numel() != 1:
            raise ValueError(
                f"the PSF must be one for all, (k, k) or (c, k, k), got {tuple(psf.shape)}"
            )
        psf = psf.reshape(-1, *psf.shape[-2:])
        r, (h, w) = self.factor, y.shape[-2:]
        size = tuple(
            next_fast_len(n * r + k, real=True) for n, k in zip((h, w), psf.shape[-2:], strict=True)
        )
        spectrum = centred_otf(psf, size)
        if self.sampling is PixelSampling.MEAN:
            box = torch.zeros(2 * r - 1, 2 * r - 1).to(psf)
            box[:r, :r] = 1 / r**2  # centre at (r - 1, r - 1): reads pixels 0 .. r - 1 ahead
            spectrum = spectrum * centred_otf(box, size)
        shift = self.shift_std * r * nuisance.view(-1, 1, 2, 1, 1)
        u = 2 * math.pi * torch.fft.fftfreq(size[0]).to(psf)[:, None]
        v = 2 * math.pi * torch.fft.rfftfreq(size[1]).to(psf)
        phase = u * shift[:, :, 0] + v * shift[:, :, 1]
        ramp = torch.complex(phase.cos(), -phase.sin())
        full = torch.fft.irfft2(spectrum * ramp, s=size)
        full = full.roll((h // 2 * r, w // 2 * r), (-2, -1))
        return full[..., : h * r : r, : w * r : r].expand(*y.shape)


def _without(y: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Residual of the least-squares fit of two columns to each stamp, and the coefficients."""
    flat = y.flatten(2)[..., None]
    gram = columns.mT @ columns
    coefficients = torch.linalg.solve(gram, columns.mT @ flat)
    return (flat - columns @ coefficients).view_as(y), coefficients[..., 0]
