r"""Gaussian noise: what its models share, and levels that vary over frames, channels, pixels or regions."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

__all__ = ["GaussianModel", "HeteroscedasticNoise", "Per"]


class GaussianModel(NoiseModel):
    r"""Additive Gaussian noise, :math:`y = z + n` with :math:`n \sim \mathcal N(0, \Sigma)`.

    The base of the models with a covariance. They give what losses need of it: products
    :math:`\Sigma v` (:meth:`covariance`), draws :math:`\Sigma^{1/2} w` (:meth:`sample`), the
    diagonal (:meth:`variance`) and, where it is cheap, :math:`\Sigma^+ v` (:meth:`precision`).

    Measurements are images ``(B, C, H, W)`` or sequences ``(B, C, T, H, W)``. Parameters are
    buffers with a leading batch axis ``b`` that divides ``B``: image ``n`` uses parameter
    ``n mod b``. They are changed by keyword, in ``forward`` or in :meth:`update_parameters`.

    :param torch.Generator rng: source of randomness, on the device of the measurements.
    """

    #: Names of the parameters that can be changed.
    names: tuple[str, ...] = ()

    def __init__(self, rng: torch.Generator | None = None) -> None:
        # products of noise models call this function, not forward
        super().__init__(noise_model=self._add, rng=rng)

    def forward(self, x: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:
        r"""Add noise.

        :param torch.Tensor x: clean measurements :math:`z`.
        :param int seed: seed of the generator given to the constructor.
        :param kwargs: new parameters.
        :return: (:class:`torch.Tensor`) noisy measurements, in the precision of ``x``.
        """
        self.update_parameters(**kwargs)
        self.rng_manual_seed(seed)
        return self._add(x)

    def _add(self, x: Tensor) -> Tensor:
        return x + self.sample(x, self.rng)

    def update_parameters(self, **kwargs: Any) -> None:
        r"""Change parameters.

        :param kwargs: values named as in the constructor; others are left to the operator.
        :raises ValueError: if a value does not fit.
        """
        for name in self.names:
            if kwargs.get(name) is not None:
                self.register_buffer(name, self._shaped(name, kwargs[name]))

    def _shaped(self, name: str, value: Any) -> Tensor:
        """Parameter with all its axes, checked."""
        raise NotImplementedError

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw noise :math:`\Sigma^{1/2} w`, with :math:`w \sim \mathcal N(0, I)`.

        :param torch.Tensor like: measurements, for their shape, dtype and device.
        :param torch.Generator generator: source of randomness. Default: torch's own.
        :return: (:class:`torch.Tensor`) noise of the shape of ``like``.
        """
        raise NotImplementedError

    def covariance(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma v`.

        :param torch.Tensor v: of the shape of measurements.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        raise NotImplementedError

    def precision(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma^+ v`; the pseudo-inverse is zero where there is no noise.

        :param torch.Tensor v: of the shape of measurements.
        :return: (:class:`torch.Tensor`) of the same shape.
        :raises NotImplementedError: if it is not cheap; solve by conjugate gradients instead.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no cheap inverse: solve with its covariance by CG"
        )

    def variance(self, like: Tensor) -> Tensor:
        r"""Variance of each measurement, the diagonal of :math:`\Sigma`.

        :param torch.Tensor like: measurements, for their shape, dtype and device.
        :return: (:class:`torch.Tensor`) of the shape of ``like``.
        """
        raise NotImplementedError


class Per(str, Enum):
    """What has a noise level of its own."""

    IMAGE = "image"
    CHANNEL = "channel"
    FRAME = "frame"
    PIXEL = "pixel"
    REGION = "region"
    ELEMENT = "element"


#: Axes of the levels after the batch axis.
_AXES = {
    Per.IMAGE: (),
    Per.CHANNEL: ("C",),
    Per.FRAME: ("T",),
    Per.PIXEL: ("H", "W"),
    Per.REGION: ("R",),
}


class HeteroscedasticNoise(GaussianModel):
    r"""Independent Gaussian noise with a level for each image, channel, frame, pixel or region.

    .. math::

        y_i = z_i + \sigma_{u(i)} w_i, \qquad w_i \sim \mathcal N(0, 1)

    with :math:`u(i)` the channel, the frame, ... of measurement :math:`i`.

    :param torch.Tensor, float sigma: standard deviations :math:`\sigma`, one for each unit:
        ``()`` or ``(b,)`` per image, ``(C,)`` or ``(b, C)`` per channel, ``(T,)`` or ``(b, T)`` per
        frame, ``(H, W)`` or ``(b, H, W)`` per pixel, ``(R,)`` or ``(b, R)`` per region, and
        ``(b, C, H, W)`` or ``(b, C, T, H, W)`` per element. No axis is broadcast.
    :param Per per: ``"image"``, ``"channel"``, ``"frame"``, ``"pixel"``, ``"region"`` or
        ``"element"``.
    :param torch.Tensor labels: for regions, integers ``(H, W)`` from 0 to ``R - 1``, as those of
        :func:`deepinv_astro.optim.regions.annuli`; pixels with a negative label have no noise.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if a shape does not fit, or a level is negative or not finite.

    |sep|

    :Examples:

        Two annuli, the right-most pixel excluded:

        >>> import torch
        >>> from deepinv_astro.physics import HeteroscedasticNoise
        >>> labels = torch.tensor([[0, 1, -1], [1, 1, -1]])
        >>> noise = HeteroscedasticNoise(torch.tensor([1.0, 3.0]), per="region", labels=labels)
        >>> noise.covariance(torch.ones(1, 1, 2, 3))
        tensor([[[[1., 9., 0.],
                  [9., 9., 0.]]]])
        >>> noise.update_parameters(sigma=torch.tensor([0.0, 0.0]))
        >>> noise(torch.ones(1, 1, 2, 3)).sum()
        tensor(6.)
    """

    names = ("sigma",)

    def __init__(
        self,
        sigma: Tensor | float,
        per: Per | str = Per.IMAGE,
        labels: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(rng=rng)
        self.per = Per(per)
        if (labels is None) == (self.per is Per.REGION):
            raise ValueError(
                "labels go with per='region', and only with it: "
                f"got labels {'missing' if labels is None else 'given'} and per={self.per.value!r}"
            )
        self.register_buffer("labels", None if labels is None else checked_labels(labels))
        self.update_parameters(sigma=sigma)

    def _shaped(self, name: str, value: Any) -> Tensor:
        if self.per is Per.ELEMENT:
            value = torch.as_tensor(value)
            if value.ndim not in (4, 5):
                raise ValueError(
                    "sigma per element must be of shape (b, C, H, W) or (b, C, T, H, W), "
                    f"got {tuple(value.shape)}"
                )
            sigma = batched(name, value, tuple("CTHW"[: value.ndim - 1]))
        else:
            sigma = batched(name, value, _AXES[self.per])
        if self.labels is not None and sigma.shape[1] != int(self.labels.max()) + 1:
            raise ValueError(
                f"sigma is given for {sigma.shape[1]} regions, "
                f"the labels go from 0 to {int(self.labels.max())}"
            )
        return nonnegative(name, sigma)

    def std(self, like: Tensor) -> Tensor:
        r"""Standard deviation of each measurement, of axes that broadcast to ``like``.

        :param torch.Tensor like: measurements, for their shape, dtype and device.
        :return: (:class:`torch.Tensor`) :math:`\sigma_{u(i)}`, with as many axes as ``like``.
        :raises ValueError: if the shapes do not fit.
        """
        check_measurements(like)
        sigma = of_batch("sigma", self.sigma, like)
        if self.labels is not None:
            labels = self.labels.to(like.device)
            sigma = torch.where(labels >= 0, sigma[:, labels.clamp_min(0)], 0)
        per, free = self.per, like.ndim - 4
        if per is Per.FRAME and not free:
            raise ValueError(
                f"levels per frame need a sequence (B, C, T, H, W), got {tuple(like.shape)}"
            )
        axes = {
            Per.IMAGE: (),
            Per.CHANNEL: (1,),
            Per.FRAME: (2,),
            Per.ELEMENT: tuple(range(1, like.ndim)),
        }.get(per, (like.ndim - 2, like.ndim - 1))
        wanted = tuple(like.shape[axis] for axis in axes)
        if tuple(sigma.shape[1:]) != wanted:
            raise ValueError(
                f"sigma per {per.value} is of shape {tuple(sigma.shape[1:])} for each image, "
                f"measurements of shape {tuple(like.shape)} need {wanted}"
            )
        shape = [like.shape[axis] if axis in axes else 1 for axis in range(1, like.ndim)]
        return sigma.reshape(len(sigma), *shape)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw noise; see :meth:`GaussianModel.sample`."""
        return self.std(like) * white(like, generator)

    def covariance(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma v`; see :meth:`GaussianModel.covariance`."""
        return self.std(v).square() * v

    def precision(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma^+ v`; see :meth:`GaussianModel.precision`."""
        std = self.std(v)
        return torch.where(std > 0, v / torch.where(std > 0, std, 1).square(), 0)

    def variance(self, like: Tensor) -> Tensor:
        r"""Variance of each measurement; see :meth:`GaussianModel.variance`."""
        return self.std(like).square().expand(like.shape)


def white(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent standard normal numbers of the shape of ``like``, without its graph."""
    device = like.device if generator is None else generator.device
    made = torch.empty_like(like, requires_grad=False, device=device)
    return made.normal_(generator=generator).to(like.device)


def batched(name: str, value: Any, axes: tuple[str, ...]) -> Tensor:
    """A copy of a parameter with a batch axis before the named axes; floats become single precision."""
    value = torch.as_tensor(value)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    shape = tuple(value.shape)
    if len(shape) not in (len(axes), len(axes) + 1) or 0 in shape:
        listed = ", ".join(axes)
        raise ValueError(
            f"{name} must be of shape ({listed}{',' * (len(axes) == 1)}) or (b, {listed})".replace(
                "(b, )", "(b,)"
            )
            + f", got {shape}"
        )
    value = value.clone(memory_format=torch.contiguous_format)
    return value if len(shape) > len(axes) else value[None]


def nonnegative(name: str, value: Tensor) -> Tensor:
    """The parameter, if all its values are finite and not negative."""
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        worst = value[~(torch.isfinite(value) & (value >= 0))][0]
        raise ValueError(f"{name} must be finite and not negative, got {float(worst):.3g}")
    return value


def finite(name: str, value: Tensor) -> Tensor:
    """The parameter, if all its values are finite."""
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return value


def checked_labels(labels: Tensor) -> Tensor:
    """Integer labels ``(H, W)`` with at least one region."""
    if labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be integers of shape (H, W), got {labels.dtype} {tuple(labels.shape)}"
        )
    if not bool((labels >= 0).any()):
        raise ValueError("every pixel is excluded: labels must hold one that is not negative")
    return labels.clone().long()


def check_measurements(like: Tensor) -> None:
    """Raise if these are neither images nor sequences."""
    if like.ndim not in (4, 5) or not like.is_floating_point():
        raise ValueError(
            "measurements must be real, of shape (B, C, H, W) or (B, C, T, H, W), "
            f"got {like.dtype} {tuple(like.shape)}"
        )


def of_batch(name: str, value: Tensor, like: Tensor) -> Tensor:
    """Parameter of each image of a batch, image ``n`` takes ``n mod b``; in the precision of ``like``."""
    batch, given = len(like), len(value)
    if given == 1:
        return value.to(like)
    if batch % given:
        raise ValueError(
            f"a batch of {batch} cannot use {name} in a batch of {given}: "
            "their number must divide the number of images"
        )
    return value.to(like).repeat(batch // given, *[1] * (value.ndim - 1))


def over_pixels(name: str, value: Tensor, like: Tensor) -> Tensor:
    """A number ``(b,)`` or a map ``(b, H, W)`` for each image, with as many axes as ``like``."""
    value = of_batch(name, value, like)
    if value.ndim > 1 and value.shape[1:] != like.shape[-2:]:
        raise ValueError(
            f"{name} is a map of {tuple(value.shape[1:])} pixels, "
            f"the measurements have {tuple(like.shape[-2:])}"
        )
    return value.reshape(len(value), *[1] * (like.ndim - value.ndim), *value.shape[1:])
