r"""Noise and saturation in the units of a detector."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

from deepinv_astro.physics.noise import batched, check_measurements, nonnegative, over_pixels, white

__all__ = ["DetectorNoise", "Saturation"]


class DetectorNoise(NoiseModel):
    r"""Photon and read-out noise in the units of a detector.

    .. math::

        y = \frac{\mathcal P\big( g\, (z + \beta) \big) + r\, w}{g} - \beta, \qquad w \sim \mathcal N(0, 1),

    with :math:`g` electrons per unit of the data (ADU), :math:`r` electrons of read-out noise (rms)
    and :math:`\beta` a background that was subtracted but whose photons were counted. So
    :math:`\mathbb E\, y = z` and :math:`\operatorname{var} y = (z + \beta) / g + r^2 / g^2`.

    The gain of the detector has a name of its own, as :class:`deepinv_astro.physics.ADI` has a
    ``gain`` for each frame, and ``physics.update(gain=...)`` reaches both.

    :param torch.Tensor, float conversion_gain: :math:`g` in electrons per ADU, ``()`` or ``(b,)``.
    :param torch.Tensor, float read_noise: :math:`r` in electrons, ``()`` or ``(b,)``.
    :param torch.Tensor, float background: :math:`\beta` in ADU, ``()``, ``(b,)``, or a map
        ``(H, W)`` or ``(b, H, W)``.
    :param bool clip_positive: take negative rates :math:`z + \beta` for zero instead of refusing
        them, as deepinv does; then :math:`\mathbb E\, y > z` there.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if a shape does not fit, the gain is not positive, or a level is negative.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import DetectorNoise
        >>> noise = DetectorNoise(conversion_gain=4.0, read_noise=12.0, background=30.0)
        >>> noise.variance(torch.full((1, 1, 1, 2), 10.0))
        tensor([[[[19., 19.]]]])
    """

    names = ("conversion_gain", "read_noise", "background")

    def __init__(
        self,
        conversion_gain: Tensor | float = 1.0,
        read_noise: Tensor | float = 0.0,
        background: Tensor | float = 0.0,
        *,
        clip_positive: bool = False,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(noise_model=self._count, rng=rng)
        self.clip_positive = clip_positive
        self.update_parameters(
            conversion_gain=conversion_gain, read_noise=read_noise, background=background
        )

    def forward(self, x: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:
        r"""Count photons and read them out.

        :param torch.Tensor x: clean measurements :math:`z` in ADU.
        :param int seed: seed of the generator given to the constructor.
        :param kwargs: new parameters.
        :return: (:class:`torch.Tensor`) noisy measurements, in the precision of ``x``.
        :raises ValueError: if a rate is negative.
        """
        self.update_parameters(**kwargs)
        self.rng_manual_seed(seed)
        return self._count(x)

    def update_parameters(self, **kwargs: Any) -> None:
        r"""Change parameters.

        :param kwargs: values named as in the constructor; others are left to the operator.
        :raises ValueError: if a value does not fit.
        """
        for name in self.names:
            if kwargs.get(name) is None:
                continue
            value = torch.as_tensor(kwargs[name])
            axes = ("H", "W") if name == "background" and value.ndim > 1 else ()
            value = nonnegative(name, batched(name, value, axes))
            if name == "conversion_gain" and not bool((value > 0).all()):
                raise ValueError(f"conversion_gain must be positive, got {value.min():.3g}")
            self.register_buffer(name, value)

    def parameters_for(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Parameters of each image of a batch, with as many axes as ``like``.

        :param torch.Tensor like: measurements, for their shape, dtype and device.
        :return: :math:`g`, :math:`r` and :math:`\beta`.
        :raises ValueError: if the shapes do not fit.
        """
        check_measurements(like)
        gain, noise, background = (
            over_pixels(name, getattr(self, name), like) for name in self.names
        )
        return gain, noise, background

    def variance(self, mean: Tensor) -> Tensor:
        r"""Variance of measurements of a given mean.

        :param torch.Tensor mean: clean measurements :math:`z`, or an unbiased estimate of them.
        :return: (:class:`torch.Tensor`) :math:`(z + \beta) / g + r^2 / g^2`, of the shape of
            ``mean``; without bias, and perhaps negative, if ``mean`` is noisy.
        """
        gain, noise, background = self.parameters_for(mean)
        return (mean + background) / gain + (noise / gain).square()

    def _count(self, x: Tensor) -> Tensor:
        gain, noise, background = self.parameters_for(x)
        rate = gain * (x + background)
        if self.clip_positive:
            rate = rate.clamp_min(0)
        elif not bool((rate >= 0).all()):
            raise ValueError(
                f"photons need rates that are not negative, got {float(rate.min()):.3g} electrons: "
                "give the background, or set clip_positive=True"
            )
        electrons = torch.poisson(rate, generator=self.rng) + noise * white(x, self.rng)
        return electrons / gain - background


class Saturation(torch.nn.Module):
    r"""Full well of a detector: :math:`y = \min(y_0, \ell)`, a sensor of deepinv.

    It acts after the noise: ``ADI(..., sensor_model=Saturation(level))``.

    :param torch.Tensor, float level: :math:`\ell` in the units of the data, after the subtraction
        of the background: ``()``, ``(b,)``, or a map ``(H, W)`` or ``(b, H, W)``.
    :raises ValueError: if the shape does not fit.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import Saturation
        >>> sensor = Saturation(2.0)
        >>> y = sensor(torch.tensor([[[[1.0, 2.5, 2.0]]]]))
        >>> y
        tensor([[[[1., 2., 2.]]]])
        >>> sensor.saturated(y)
        tensor([[[[False,  True,  True]]]])
    """

    level: Tensor

    def __init__(self, level: Tensor | float) -> None:
        super().__init__()
        self.update_parameters(level=level)

    def forward(self, y: Tensor) -> Tensor:
        r"""Clip measurements.

        :param torch.Tensor y: noisy measurements.
        :return: (:class:`torch.Tensor`) clipped ones; gradients are zero where they are clipped.
        """
        return torch.minimum(y, self._level_for(y))

    def saturated(self, y: Tensor) -> Tensor:
        r"""Measurements that reach the level, and of which only a lower bound is known.

        :param torch.Tensor y: measurements.
        :return: (:class:`torch.Tensor`) boolean, of the shape of ``y``.
        """
        return y >= self._level_for(y)

    def update_parameters(self, **kwargs: Any) -> None:
        r"""Change the level; other keywords are ignored.

        :param kwargs: ``level``, as in the constructor.
        """
        if kwargs.get("level") is not None:
            level = torch.as_tensor(kwargs["level"])
            level = batched("level", level, ("H", "W") if level.ndim > 1 else ())
            if bool(level.isnan().any()):
                raise ValueError("level must not be NaN: use infinity for pixels without a limit")
            self.register_buffer("level", level)

    def _level_for(self, y: Tensor) -> Tensor:
        check_measurements(y)
        return over_pixels("level", self.level, y)
