r"""Deblurring and super-resolution of images: the operator of a measurement, and a trained model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from deepinv_astro.datasets.images import grid_crops
from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.io.files import existing_file
from deepinv_astro.models.residual_unet import ResidualUNet
from deepinv_astro.models.tikhonov import Tikhonov
from deepinv_astro.physics import Blur, HeteroscedasticNoise

__all__ = ["Restoration", "noise_level"]

#: Median of the absolute value of a standard normal variable.
_NORMAL_MEDIAN = 0.6745
#: Weights of the linear reconstruction to choose from, times sigma^2 / contrast^2 of the images.
_WEIGHTS = tuple(10 ** (k / 4) for k in range(-2, 17))
#: That for images too small to choose it.
_DEFAULT_WEIGHT = 80.0
#: How much images are scaled down for the choice, and pixels of those: most of one, least of one.
_DOWN, _SMALL, _LEAST = 0.4, 96, 12
_FORMAT = "deepinv_astro restoration 1"


def noise_level(images: Sequence[Tensor]) -> float:
    r"""Standard deviation of white noise in images that are blurred.

    .. math::

        \hat\sigma = \frac{\operatorname{median} |d * y|}{0.6745\, \|d\|}, \qquad
        d = (1, -2, 1)^\top (1, -2, 1),

    over all images: second differences along both axes leave little of a blurred sky, and the median
    ignores stars and edges. What the sky has at the finest scale is taken for noise: without blur
    the estimate is too high.

    :param images: measured images ``(C, h, w)``, 3 pixels high and wide or more.
    :return: (float) :math:`\hat\sigma`, in units of the images.
    :raises ValueError: if there is no noise, as in images that are constant or saturated.

    |sep|

    :Examples:

        >>> import torch
        >>> rng = torch.Generator().manual_seed(0)
        >>> y = torch.linspace(0, 50, 300).expand(1, 200, 300)
        >>> round(noise_level([y + 0.5 * torch.randn(y.shape, generator=rng)]), 2)
        0.5
    """
    line = torch.tensor([1.0, -2.0, 1.0])
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.norm())[None, None]
    found = [conv2d(y[:, None].float(), kernel).abs().flatten() for y in images]
    sigma = float(torch.cat(found).median()) / _NORMAL_MEDIAN
    if not sigma > 0:
        raise ValueError(
            "`noise`: the images show no noise (constant, saturated or rounded pixels); "
            "pass its standard deviation as `noise=0.02`"
        )
    return sigma


class Restoration(nn.Module):
    r"""Images deblurred, or on a finer grid, by a network.

    .. math::

        y = S_r (h * x) + n, \qquad n \sim \mathcal N(0, \sigma^2), \qquad \hat x = f(y),

    with the PSF :math:`h` on the pixels of :math:`x`, and detector pixels that are means of
    :math:`r \times r` of those (:class:`~deepinv_astro.physics.Blur` with boundary ``"valid"``: the
    sky beyond the edge of the detector is unknown, not mirrored). :math:`f` is a
    :class:`~deepinv_astro.models.ResidualUNet` that corrects
    :class:`~deepinv_astro.models.Tikhonov`, whose weight is the one of least error on the images
    scaled down to 0.4: they are sharp enough, and have little enough noise, to serve as truths. (The
    risk in the measurements, SURE, is nearly flat there: its least value is at a fifth of that.)

    :param torch.Tensor psf: :math:`h`, ``(k, k)``; divided by its sum.
    :param float noise: :math:`\sigma`, in units of the images.
    :param int factor: :math:`r`.
    :param images: measured images ``(1, h, w)``, for the weight of the linear reconstruction and
        the level and contrast of the network's input.
    :param int features: of the network.
    :param int seed: of the network's first weights.
    :raises ValueError: if a number is not positive or the PSF has no positive sum.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.training import Restoration
        >>> y = torch.randn(1, 40, 30, generator=torch.Generator().manual_seed(0)).cumsum(-1)
        >>> restoration = Restoration(torch.ones(3, 3), noise=1.0, factor=2, images=[y])
        >>> restoration(y).shape
        torch.Size([1, 80, 60])
    """

    psf: Tensor

    def __init__(
        self,
        psf: Tensor,
        noise: float,
        factor: int = 1,
        images: Sequence[Tensor] = (),
        *,
        features: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        psf = torch.as_tensor(psf).float()
        if psf.ndim != 2 or not bool(torch.isfinite(psf).all()) or not float(psf.sum()) > 0:
            raise ValueError(
                f"`psf` must be an image (k, k) of positive sum, got shape {tuple(psf.shape)} and "
                f"sum {float(psf.sum()):g}"
            )
        if not noise > 0:
            raise ValueError(f"`noise` must be positive, got {noise}")
        self.register_buffer("psf", psf / psf.sum())
        self.noise, self.factor = float(noise), factor
        level, scale, weight = 0.0, 1.0, 1.0
        if images:
            level, scale = contrast(images)
            weight = self._best_weight(images, scale)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        self.model = ResidualUNet(
            Tikhonov(weight, norm=self._norm()), features=features, offset=level, scale=scale
        )
        torch.set_rng_state(state)
        self.features = features

    def physics(self, height: int, width: int) -> Blur:
        r"""Operator of a measurement.

        :param int height: rows of the measurement.
        :param int width: columns of the measurement.
        :return: (Blur) with its noise; the sky is larger by what the PSF reaches.
        """
        (rows, columns), r = self.psf.shape, self.factor
        size = (1, r * height + rows - 1, r * width + columns - 1)
        noise = HeteroscedasticNoise(self.noise, rng=torch.Generator().manual_seed(0))
        return Blur(
            size, self.psf, r, boundary="valid", sampling="mean", noise_model=noise,
            device=self.psf.device,
        )  # fmt: skip

    def seen(self, x: Tensor) -> Tensor:
        r"""The part of the sky that lies on the detector.

        :param torch.Tensor x: sky of :meth:`physics`, ``(..., H, W)``.
        :return: (:class:`torch.Tensor`) ``(..., r h, r w)``.
        """
        for axis, k in zip((-2, -1), self.psf.shape, strict=True):
            x = x.narrow(axis, k - 1 - k // 2, x.shape[axis] - k + 1)
        return x

    def forward(self, y: Tensor) -> Tensor:
        r"""Restore images.

        :param torch.Tensor y: measured images ``(1, h, w)`` or ``(B, 1, h, w)``.
        :return: (:class:`torch.Tensor`) images on the detector's field, ``r`` times finer.
        """
        batch = y if y.ndim == 4 else y[None]
        x: Tensor = self.seen(self.model(batch, self.physics(*y.shape[-2:])))
        return x if y.ndim == 4 else x[0]

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write all that :meth:`load` needs.

        :param path: the file; it appears whole or not at all.
        :param bool overwrite: whether an existing file may be replaced.
        :raises OSError: if the file exists, or cannot be written.
        """
        with atomic_path(path, overwrite) as temporary:
            torch.save(self.content(), temporary)

    def content(self) -> dict[str, Any]:
        """Tensors and numbers that make the same restoration again.

        :return: (dict) for ``torch.save``.
        """
        return {
            "format": _FORMAT,
            "noise": self.noise,
            "factor": self.factor,
            "features": self.features,
            "state": self.state_dict(),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Restoration:
        """Read what :meth:`save` wrote.

        :param path: the file.
        :return: (Restoration) in ``eval`` mode.
        :raises ValueError: if the file is something else.
        """
        path = existing_file(Path(path), "weights")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            known = isinstance(content, dict) and content.get("format") == _FORMAT
        except Exception as error:
            raise _foreign(path) from error
        if not known:
            raise _foreign(path)
        made = cls(
            content["state"]["psf"],
            content["noise"],
            content["factor"],
            features=content["features"],
        )
        made.load_state_dict(content["state"])
        return made.eval()

    def _norm(self) -> float:
        """Bound of the squared norm of the operator."""
        return float(self.psf.abs().sum()) ** 2 / self.factor**2

    def _best_weight(self, images: Sequence[Tensor], scale: float) -> float:
        """Weight of the linear reconstruction of least error on images scaled down."""
        k, unit = max(self.psf.shape), (self.noise / scale) ** 2
        size = min(_SMALL, *(math.floor(_DOWN * n) for image in images for n in image.shape[-2:]))
        size = (size - k + 1) // self.factor
        if size < _LEAST:
            return _DEFAULT_WEIGHT * unit
        physics = self.physics(size, size)
        small = [
            interpolate(image[None], scale_factor=_DOWN, mode="bicubic", antialias=True)[0]
            for image in images
        ]
        height, width = physics.img_size[1:]
        x = grid_crops(small, max(height, width), 8)
        x = x[..., :height, :width]
        noise = torch.randn(len(x), 1, size, size, generator=torch.Generator().manual_seed(0))
        y, errors = physics.A(x) + self.noise * noise, []
        for weight in _WEIGHTS:
            found = Tikhonov(weight * unit, 40, norm=self._norm())(y, physics)
            errors.append(float(self.seen(found - x).square().mean()))
        return _WEIGHTS[errors.index(min(errors))] * unit


def contrast(images: Sequence[Tensor]) -> tuple[float, float]:
    """Level and contrast of images: the median, and the range of the inner 99 % of the values.

    :param images: of any size.
    :return: (tuple) both, in units of the images.
    :raises ValueError: if the images are constant.

    >>> contrast([torch.arange(1001.0)])
    (500.0, 990.0)
    """
    values = torch.cat([image.flatten().double() for image in images])
    values = values[:: -(-len(values) // 1_000_000)].sort().values
    low, middle, high = (float(values[round(q * (len(values) - 1))]) for q in (0.005, 0.5, 0.995))
    if not high > low:
        raise ValueError("`images` are constant: there is nothing to learn from them")
    return middle, high - low


def _foreign(path: Path) -> ValueError:
    return ValueError(
        f"{path} is no trained restoration: pass `weights`, a file that deepinv-astro train wrote for images "
        "(those of a survey are for reconstruct)"
    )
