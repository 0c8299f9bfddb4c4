r"""A small network that corrects a linear reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, relu

__all__ = ["ResidualUNet"]

#: Pixels of the image behind one pixel of the coarsest features.
_COARSEST = 4


class ResidualUNet(nn.Module):
    r"""Correction of a first reconstruction by a convolutional network of two scales.

    .. math::

        f(y) = x_0 + s\, N\!\left(\frac{x_0 - o}{s}\right), \qquad x_0 = f_0(y),

    with :math:`f_0` a reconstruction without learned weights, such as :class:`Tikhonov`, the level
    :math:`o` and the contrast :math:`s` of the images, and :math:`N` a U-Net on blocks of 2 x 2 and
    4 x 4 pixels, zero at the beginning. 20 features make some 95 000 weights. Images of any size:
    they are mirrored up to a whole number of blocks.

    :math:`f_0` is differentiated only where :math:`y` needs a gradient; losses that differ
    :math:`f` by finite steps, and equivariance that holds its images fixed, do without.

    :param torch.nn.Module start: :math:`f_0`, called with ``(y, physics)``.
    :param int channels: of the images.
    :param int features: of the finer scale; twice as many of the coarser one.
    :param float offset: :math:`o`, in units of the images.
    :param float scale: :math:`s`, in units of the images.
    :raises ValueError: if the scale is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models.residual_unet import ResidualUNet
        >>> from deepinv_astro.models.tikhonov import Tikhonov
        >>> from deepinv_astro.physics import Blur
        >>> physics = Blur((1, 12, 9), torch.full((3, 3), 1 / 9), boundary="valid")
        >>> y = torch.arange(70.0).view(1, 1, 10, 7)
        >>> start = Tikhonov(0.01)
        >>> x = ResidualUNet(start)(y, physics)
        >>> x.shape, torch.equal(x, start(y, physics))  # not trained yet
        (torch.Size([1, 1, 12, 9]), True)
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        start: nn.Module,
        channels: int = 1,
        features: int = 20,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        c = features
        self.start = start
        self.first, self.second = _layer(4 * channels, c), _layer(c, c)
        self.down, self.up = _layer(4 * c, 2 * c), _layer(2 * c, 4 * c)
        self.coarse = nn.ModuleList([_layer(2 * c, 2 * c), _layer(2 * c, 2 * c)])
        self.third, self.last = _layer(c, c), _layer(c, 4 * channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.register_buffer("offset", torch.tensor(float(offset)))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, y: Tensor, physics: LinearPhysics, **kwargs: Any) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: measurements ``(B, C, h, w)``.
        :param deepinv.physics.LinearPhysics physics: the operator.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and y.requires_grad):
            x = self.start(y, physics)
        return x + self.scale * self.correction((x - self.offset) / self.scale)

    def correction(self, x: Tensor) -> Tensor:
        r"""Apply :math:`N`.

        :param torch.Tensor x: images ``(B, C, H, W)`` of level 0 and contrast 1.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        height, width = x.shape[-2:]
        missing = (-height % _COARSEST, -width % _COARSEST)
        whole = pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
        fine = relu(self.first(pixel_unshuffle(whole, 2)))
        fine = fine + relu(self.second(fine))
        coarse = relu(self.down(pixel_unshuffle(fine, 2)))
        coarse = coarse + self.coarse[1](relu(self.coarse[0](coarse)))
        fine = fine + pixel_shuffle(self.up(coarse), 2)
        fine = fine + relu(self.third(fine))
        found: Tensor = pixel_shuffle(self.last(fine), 2)
        return found[..., :height, :width]


def _layer(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
