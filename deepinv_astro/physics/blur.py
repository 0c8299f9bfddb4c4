r"""Blur and super-resolution by a PSF that may be partly known."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import avg_pool2d

from deepinv_astro.physics.functional.otf import centred_otf


class Boundary(str, Enum):
    """What the blurred image sees beyond the edge of the sky."""

    #: The sky repeats itself.
    PERIODIC = "periodic"
    #: The sky is zero.
    ZERO = "zero"
    #: Nothing: only pixels whose whole PSF lies on the sky are observed.
    VALID = "valid"


class PixelSampling(str, Enum):
    """How a detector pixel reads the ``factor`` x ``factor`` fine pixels that it covers."""

    #: Their first one: the PSF already holds the integration over the detector pixel.
    POINT = "point"
    #: Their mean: the PSF is that of the optics alone.
    MEAN = "mean"


class Blur(LinearPhysics):
    r"""Blur and super-resolution.

    .. math::

        y = S_r (h * x), \qquad (h * x)_i = \sum_p h_p\, x_{i - p},

    with :math:`h` the PSF on the grid of :math:`x`, and :math:`S_r` the sampling by detector pixels
    of :math:`r \times r` fine pixels, each read at its first fine pixel, or as their mean. The
    convolution is computed exactly by fast Fourier transforms; the adjoint is the exact transpose.
    Sampling drops the last rows and columns where they do not fill a detector pixel.

    The PSF is a buffer: pass a new one to :meth:`A`, :meth:`A_adjoint`, or ``update``. Its batch
    axis ``b`` divides the batch of images ``B``; image ``n`` uses the PSF ``n mod b``. Gradients
    flow to the image and to the PSF.

    :param tuple img_size: sky image ``(C, H, W)``.
    :param torch.Tensor filter: PSF with its centre at ``(k // 2, k // 2)``: ``(k, k)``,
        ``(c, k, k)`` or ``(b, c, k, k)`` with ``c`` 1 or ``C``; unit sum keeps fluxes.
    :param int factor: :math:`r`, fine pixels per detector pixel and axis.
    :param Boundary boundary: ``"periodic"``, ``"zero"`` or ``"valid"``.
    :param PixelSampling sampling: ``"point"`` or ``"mean"``.
    :param torch.device, str device: where the buffers are made.
    :param torch.dtype dtype: of the PSF.
    :param kwargs: as in :class:`deepinv.physics.LinearPhysics`, such as ``noise_model``.
    :raises ValueError: if a shape does not fit.

    |sep|

    :Examples:

        A PSF that reaches one pixel to the right, on a sky of one row:

        >>> import torch
        >>> x = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 4.0]).view(1, 1, 1, 6)
        >>> psf = torch.tensor([[0.0, 0.5, 0.5]])
        >>> for boundary in ("periodic", "zero", "valid"):
        ...     physics = Blur((1, 1, 6), psf, boundary=boundary)
        ...     physics.A(x).flatten().round(decimals=4).abs()
        tensor([2.5000, 0.5000, 1.0000, 1.0000, 0.0000, 2.0000])
        tensor([0.5000, 0.5000, 1.0000, 1.0000, 0.0000, 2.0000])
        tensor([0.5000, 1.0000, 1.0000, 0.0000])

        Detector pixels of three fine ones:

        >>> physics = Blur((1, 3, 6), torch.ones(1, 1), factor=3, sampling="mean")
        >>> physics.A(torch.arange(18.0).view(1, 1, 3, 6)).round(decimals=4)
        tensor([[[[ 7., 10.]]]])
    """

    filter: Tensor

    def __init__(
        self,
        img_size: tuple[int, int, int],
        filter: Tensor,
        factor: int = 1,
        *,
        boundary: Boundary | str = Boundary.PERIODIC,
        sampling: PixelSampling | str = PixelSampling.POINT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ):
        super().__init__(img_size=img_size, **kwargs)
        sizes = tuple(img_size)
        if len(sizes) != 3 or not all(isinstance(s, int) and s > 0 for s in (*sizes, factor)):
            raise ValueError(
                "img_size must be three positive integers (C, H, W) and factor a positive integer, "
                f"got {img_size} and {factor}"
            )
        self.img_size: tuple[int, int, int] = sizes
        self.factor = factor
        self.boundary, self.sampling = Boundary(boundary), PixelSampling(sampling)
        self.register_buffer("filter", self._shaped(torch.as_tensor(filter).to(dtype)))
        if min(self._blurred_size()) < factor:
            raise ValueError(
                f"{self._blurred_size()} blurred pixels are less than one detector pixel of "
                f"{factor} x {factor}: give a larger sky or a smaller factor"
            )
        self.to(device)

    def A(self, x: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        r"""Blurred and sampled image, without noise.

        :param torch.Tensor x: sky ``(B, C, H, W)``.
        :param torch.Tensor filter: new PSF, as in the constructor.
        :return: (:class:`torch.Tensor`) measurement ``(B, C, h, w)``.
        :raises ValueError: if a shape does not fit.
        """
        self.update_parameters(filter=filter, **kwargs)
        self._check("x", x, self.img_size)
        size, (rows, columns) = self._fft_size(), self._window()
        full: Tensor = torch.fft.irfft2(
            torch.fft.rfft2(x, s=size) * self._otf(len(x), size), s=size
        )
        blurred, r = full[..., rows, columns], self.factor
        if self.sampling is PixelSampling.MEAN:
            return avg_pool2d(blurred, r) if r > 1 else blurred
        h, w = self.detector_size
        return blurred[..., : h * r : r, : w * r : r]

    def A_adjoint(self, y: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        r"""Transpose of :meth:`A`.

        :param torch.Tensor y: measurement ``(B, C, h, w)``.
        :param torch.Tensor filter: new PSF, as in the constructor.
        :return: (:class:`torch.Tensor`) sky ``(B, C, H, W)``.
        :raises ValueError: if a shape does not fit.
        """
        self.update_parameters(filter=filter, **kwargs)
        h, w = self.detector_size
        self._check("y", y, (self.img_size[0], h, w))
        size, (rows, columns), r = self._fft_size(), self._window(), self.factor
        spread = y.new_zeros(*y.shape[:2], *size)
        fine = spread[..., rows, columns][..., : h * r, : w * r]
        if self.sampling is PixelSampling.MEAN:
            fine.copy_(y.repeat_interleave(r, -2).repeat_interleave(r, -1) / r**2)
        else:
            fine[..., ::r, ::r] = y
        spectrum = torch.fft.rfft2(spread) * self._otf(len(y), size).conj()
        sky: Tensor = torch.fft.irfft2(spectrum, s=size)
        return sky[..., : self.img_size[1], : self.img_size[2]]

    @property
    def detector_size(self) -> tuple[int, int]:
        """Rows and columns of the measurement."""
        rows, columns = self._blurred_size()
        return rows // self.factor, columns // self.factor

    def update_parameters(self, **kwargs: Any) -> None:
        r"""Change the PSF.

        :param kwargs: ``filter``, as in the constructor; others are left to the noise model.
        :raises ValueError: if its shape does not fit.
        """
        if kwargs.get("filter") is not None:
            super().update_parameters(filter=self._shaped(kwargs["filter"]))

    def _shaped(self, value: Tensor) -> Tensor:
        """The PSF as (b, c, k, k)."""
        value = torch.as_tensor(value)
        value = value.to(self.filter) if hasattr(self, "filter") else value
        shape = tuple(value.shape)
        channels = self.img_size[0]
        full = (1,) * (4 - value.ndim) + shape
        if not 2 <= value.ndim <= 4 or 0 in shape or full[1] not in (1, channels):
            raise ValueError(
                "filter must be of shape (k, k), (c, k, k) or (b, c, k, k) with c 1 or "
                f"{channels}, got {shape}"
            )
        if not torch.isfinite(value).all():
            raise ValueError("filter must be finite, got NaN or infinite values")
        if self.boundary is Boundary.VALID and (
            full[2] > self.img_size[1] or full[3] > self.img_size[2]
        ):
            raise ValueError(
                f"no pixel sees a whole PSF of {full[2:]} on a sky of {self.img_size[1:]}: "
                "give a smaller PSF or another boundary"
            )
        if hasattr(self, "filter") and self.boundary is Boundary.VALID:
            old = tuple(self.filter.shape[2:])
            if full[2:] != old:
                raise ValueError(
                    f"with boundary 'valid' the PSF fixes the size of the measurement: "
                    f"it must stay {old}, got {full[2:]}"
                )
        return value.clone().reshape(full)  # a copy: what is loaded into it is ours

    def _blurred_size(self) -> tuple[int, int]:
        _, height, width = self.img_size
        if self.boundary is Boundary.VALID:
            return height - self.filter.shape[2] + 1, width - self.filter.shape[3] + 1
        return height, width

    def _fft_size(self) -> tuple[int, int]:
        """Grid on which the convolution is periodic without anyone seeing it."""
        _, height, width = self.img_size
        if self.boundary is Boundary.PERIODIC:
            return height, width
        if self.boundary is Boundary.ZERO:
            height, width = height + self.filter.shape[2] - 1, width + self.filter.shape[3] - 1
        return next_fast_len(height, real=True), next_fast_len(width, real=True)

    def _window(self) -> tuple[slice, slice]:
        """Rows and columns of the grid that are blurred pixels."""
        starts = [0, 0]
        if self.boundary is Boundary.VALID:
            starts = [k - 1 - k // 2 for k in self.filter.shape[2:]]
        rows, columns = (
            slice(start, start + n) for start, n in zip(starts, self._blurred_size(), strict=True)
        )
        return rows, columns

    def _otf(self, batch: int, size: tuple[int, int]) -> Tensor:
        given = len(self.filter)
        if given == 0 or batch % given:
            raise ValueError(
                f"a batch of {batch} cannot use {given} PSFs: "
                "their number must divide the number of images"
            )
        otf = centred_otf(self.filter, size)
        return otf if given == 1 else otf.repeat(batch // given, 1, 1, 1)

    def _check(self, name: str, value: Tensor, sizes: tuple[int, int, int]) -> None:
        if value.ndim != 4 or tuple(value.shape[1:]) != sizes:
            raise ValueError(f"{name} must be of shape (B, *{sizes}), got {tuple(value.shape)}")
        if value.dtype != self.filter.dtype:
            raise ValueError(
                f"{name} is {value.dtype}, the operator {self.filter.dtype}: "
                f"use {name}.to(physics.filter) or physics.to({value.dtype})"
            )
