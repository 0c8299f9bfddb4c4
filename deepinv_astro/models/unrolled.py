r"""Networks that look at the data in every step, and one that looks at them once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from deepinv.models import Reconstructor
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.nn import functional

from deepinv_astro.models.normal_equations import NormalEquations
from deepinv_astro.models.pilot import MarginalPilot, Pilot

#: Image to correct, first image, and level of the noise: what a proximal network sees.
FEATURES = 3


class PilotNetwork(Reconstructor, ABC):
    r"""Networks that start from the equations of a pilot, whose image they correct.

    No gradient flows through what the pilot made. Where it is used again, :meth:`prepare` it once and
    :meth:`refine` it in each step of a training.

    :param Callable pilot: makes the equations: :class:`MarginalPilot` (default),
        :class:`WhitePilot`.
    :param bool positive: whether the result is cut at 0, outside of training: there a pixel below
        0 would have no gradient to come back by, and a whole image has been seen to stay dark.
    :param torch.dtype precision: of the convolutions of the networks by autocast, such as
        ``torch.bfloat16``; operators and metrics keep theirs. Default: that of the weights.
    """

    def __init__(
        self,
        pilot: Pilot | None = None,
        *,
        positive: bool = True,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.pilot = MarginalPilot() if pilot is None else pilot
        self.positive, self.precision = positive, precision

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: sequences ``(B, C, T, h, w)``, or what the pilot takes.
        :param deepinv.physics.LinearPhysics physics: their operator.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``.
        """
        return self.refine(self.prepare(y, physics))

    def prepare(self, y: Tensor, physics: LinearPhysics) -> NormalEquations:
        r"""What does not depend on the weights.

        :param torch.Tensor y: as in :meth:`forward`.
        :param deepinv.physics.LinearPhysics physics: their operator. It is used by the equations as
            long as they are: give a copy if it will be updated.
        :return: (:class:`NormalEquations`)
        """
        return self.pilot(y, physics)

    def refine(self, equations: NormalEquations) -> Tensor:
        r"""The part that the weights make.

        :param NormalEquations equations: of a pilot.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``.
        """
        x = self.seen(equations)
        if self.training:
            return x
        x = equations.with_least(x)
        return x.clamp_min(0) if self.positive else x

    def seen(self, equations: NormalEquations) -> Tensor:
        r"""What the weights make of what the data see; the rest is that of the first image.

        :param NormalEquations equations: of a pilot.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``, which may be negative.
        """
        first = equations.start / equations.scale
        return equations.with_first(equations.scale * self.corrected(first, equations))

    @abstractmethod
    def corrected(self, first: Tensor, equations: NormalEquations) -> Tensor:
        r"""The image in units of its noise, from the first one.

        :param torch.Tensor first: :math:`x_0 / \sigma`, ``(B, C, H, W)``.
        :param NormalEquations equations: of a pilot.
        :return: (:class:`torch.Tensor`) of the same shape.
        """

    def correction(self, net: nn.Module, v: Tensor, first: Tensor) -> Tensor:
        r"""What a network adds to an image, channel by channel.

        .. math::

            n\!\left( \frac{v}{q}, \frac{x_0}{q \sigma}, \frac1q \right), \qquad
            q = \sqrt{1 + \overline{(x_0 / \sigma)^2}} .

        :param torch.nn.Module net: :math:`n`, from ``(B, 3, H, W)`` to ``(B, 1, H, W)``.
        :param torch.Tensor v: image in units of its noise, ``(B, C, H, W)``.
        :param torch.Tensor first: :math:`x_0 / \sigma`, of the same shape.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        q = (1 + first.square().mean((-2, -1), keepdim=True)).sqrt()
        features = torch.stack([v / q, first / q, (1 / q).expand_as(v)], 2).flatten(0, 1)
        with torch.autocast(v.device.type, self.precision, self.precision is not None):
            out: Tensor = net(features)
        return out.to(v.dtype).view_as(v)


class UnrolledADI(PilotNetwork):
    r"""Proximal unrolled network for sequences with speckles, or any linear operator.

    From the first image :math:`x_0` and the metric :math:`W` of a pilot,

    .. math::

        x_{k+1} = \mathrm{prox}_k\!\left( x_k - \tau_k\, \sigma^2 A^\top W (A x_k - y) \right),
        \qquad k = 0, \dots, K - 1,

    with :math:`\sigma` the noise of each pixel's flux (:class:`NormalEquations`) and :math:`\tau_k`
    learned, in units of the inverse of the largest eigenvalue of
    :math:`\sigma A^\top W A\, \sigma`. The proximal networks are residual and see

    .. math::

        \mathrm{prox}_k(v) = v + \sigma\, n_k\!\left( \frac{v}{q \sigma},
        \frac{x_0}{q \sigma}, \frac1q \right), \qquad
        q = \sqrt{1 + \overline{(x_0 / \sigma)^2}} ,

    the image in units of :math:`q` times its noise, and the level :math:`1 / q` of the noise in these
    units. Corrections come in units of the noise: of a disk that is brighter than those of the training
    they change no more than the noise could have changed. Where the pilot is homogeneous, so is the network:
    :math:`f(a y) = a f(y)` for :math:`a > 0`. It takes any number of frames, any angles, PSF and image
    size; each wavelength is an image of its own to :math:`n_k`.

    What the data say nothing of, for ADI the part that is invariant by rotation about the star, is not left
    to the networks: no loss without ground truth tests it, and training would change it at random. In
    training it is that of :math:`x_0`, in the end the least that agrees with the rest
    (:class:`~deepinv_astro.models.invariant.InvariantPart`).

    :param Callable pilot: makes the equations: :class:`MarginalPilot` (default),
        :class:`WhitePilot`.
    :param Iterable prox: the networks :math:`n_k`, from ``(B, 3, H, W)`` to ``(B, 1, H, W)``; the
        same one may appear more than once. Default: four of :class:`SmallUNet`, which start at 0.
    :param bool positive: whether the result is cut at 0, outside of training: there a pixel below
        0 would have no gradient to come back by, and a whole image has been seen to stay dark.
    :param torch.dtype precision: of the convolutions of the networks by autocast, such as
        ``torch.bfloat16``; operators and metrics keep theirs. Default: that of the weights.
    :raises ValueError: if there is no network.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import SmallUNet, UnrolledADI
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 16, 15), torch.linspace(0, 80, 9))
        >>> y = torch.randn(2, 1, 9, 16, 15, generator=torch.Generator().manual_seed(0))
        >>> model = UnrolledADI(prox=[SmallUNet(8)] * 3)  # shared
        >>> model(y, physics).shape
        torch.Size([2, 1, 16, 15])
        >>> sum(p.numel() for p in UnrolledADI().parameters()) < 500_000
        True
    """

    def __init__(
        self,
        pilot: Pilot | None = None,
        prox: Iterable[nn.Module] | None = None,
        *,
        positive: bool = True,
        precision: torch.dtype | None = None,
    ):
        super().__init__(pilot, positive=positive, precision=precision)
        self.prox = nn.ModuleList([SmallUNet() for _ in range(4)] if prox is None else prox)
        if not len(self.prox):
            raise ValueError("`prox` is empty: give one network for each step")
        self.log_steps = nn.Parameter(torch.zeros(len(self.prox)))

    def corrected(self, first: Tensor, equations: NormalEquations) -> Tensor:
        """Steps to the data, each followed by a network; see :meth:`PilotNetwork.corrected`."""
        u, unit = first, 1 / equations.largest_eigenvalue()
        for log_step, net in zip(self.log_steps, self.prox, strict=True):
            v = u - log_step.exp() * unit * equations.gradient(u)
            u = v + self.correction(net, v, first)
        return u


class PilotCorrection(PilotNetwork):
    r"""Artifact removal: a network that corrects the image of a pilot, and does not see the data again.

    .. math::

        f(y) = x_0 + \sigma\, n\!\left( \frac{x_0}{q \sigma}, \frac{x_0}{q \sigma}, \frac1q \right)

    with the notation of :class:`UnrolledADI`: the baseline of it, as
    :class:`deepinv.models.ArtifactRemoval` is with :math:`x_0 = A^\dagger y`.

    :param Callable pilot: gives :math:`x_0` and :math:`\sigma`. Default: :class:`MarginalPilot`.
    :param torch.nn.Module net: :math:`n`, from ``(B, 3, H, W)`` to ``(B, 1, H, W)``:
        :class:`SmallUNet` (default), or :class:`DenoiserCorrection` of a denoiser.
    :param bool positive: as for :class:`UnrolledADI`.
    :param torch.dtype precision: as for :class:`UnrolledADI`.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.models import MedianFilter
        >>> from deepinv_astro.models import DenoiserCorrection, PilotCorrection
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 16, 15), torch.linspace(0, 80, 9))
        >>> y = torch.randn(1, 1, 9, 16, 15, generator=torch.Generator().manual_seed(0))
        >>> PilotCorrection(net=DenoiserCorrection(MedianFilter()))(y, physics).shape
        torch.Size([1, 1, 16, 15])
    """

    def __init__(
        self,
        pilot: Pilot | None = None,
        net: nn.Module | None = None,
        *,
        positive: bool = True,
        precision: torch.dtype | None = None,
    ):
        super().__init__(pilot, positive=positive, precision=precision)
        self.net = SmallUNet(32) if net is None else net

    def corrected(self, first: Tensor, equations: NormalEquations) -> Tensor:
        """One correction; see :meth:`PilotNetwork.corrected`."""
        return first + self.correction(self.net, first, first)


class DenoiserCorrection(nn.Module):
    r"""A denoiser :math:`D` of deepinv as a proximal network, :math:`n(v, x_0, s) = (D(v, s) - v) / s`.

    With it :class:`deepinv.models.DRUNet`, :class:`deepinv.models.RAM` and others take the place of
    :class:`SmallUNet`, with the weights that you have. Images
    come in units of :math:`q \sigma`, of standard deviation about 1, and :math:`s = 1 / q`.

    :param torch.nn.Module denoiser: called with images of one channel and, by keyword, the level
        ``sigma`` of their noise ``(B,)``.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import DenoiserCorrection
        >>> shrink = DenoiserCorrection(lambda v, sigma: v / (1 + sigma.view(-1, 1, 1, 1) ** 2))
        >>> features = torch.tensor([6.0, 4.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        >>> shrink(features)[0, 0, 0]  # (6 / 5 - 6) / 2
        tensor([-2.4000, -2.4000])
    """

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, features: Tensor) -> Tensor:
        """Correction of the first of the features, ``(B, 3, H, W)`` to ``(B, 1, H, W)``."""
        v, level = features[:, :1], features[:, 2, 0, 0]
        out: Tensor = self.denoiser(v, sigma=level)
        return (out - v) / level.view(-1, 1, 1, 1)


class SmallUNet(nn.Module):
    r"""Convolutions at three scales, :math:`1, \tfrac12, \tfrac14` of the resolution, with skips.

    .. math::

        a = B_1 f, \quad b = B_2\, {\downarrow} a, \quad c = B_3\, {\downarrow} b, \quad
        b' = B_4 (b, {\uparrow} c), \quad a' = B_5 (a, {\uparrow} b'), \quad n = C a',

    each :math:`B_i` two convolutions of 3 x 3 pixels followed by leaky rectifiers, :math:`\downarrow`
    the mean of 2 x 2 pixels and :math:`\uparrow` bilinear (Ronneberger+ 2015). The convolution
    :math:`C` is zero at the start: an untrained network corrects nothing. Images of any size: they
    are extended by their borders.

    :param int width: channels at full resolution; twice as many at a half and at a quarter of it.
    :param int features: channels of the input.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import SmallUNet
        >>> SmallUNet(4)(torch.ones(2, 3, 7, 10)).abs().sum()
        tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(self, width: int = 16, features: int = FEATURES):
        super().__init__()
        self.fine = _block(features, width)
        self.middle = _block(width, 2 * width)
        self.coarse = _block(2 * width, 2 * width)
        self.up_middle = _block(4 * width, 2 * width)
        self.up_fine = _block(3 * width, width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, features: Tensor) -> Tensor:
        """From ``(B, features, H, W)`` to ``(B, 1, H, W)``."""
        height, width = features.shape[-2:]
        padded = functional.pad(features, (0, -width % 4, 0, -height % 4), mode="replicate")
        fine = self.fine(padded)
        middle = self.middle(functional.avg_pool2d(fine, 2))
        coarse = self.coarse(functional.avg_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([middle, _doubled(coarse)], 1))
        out: Tensor = self.last(self.up_fine(torch.cat([fine, _doubled(middle)], 1)))
        return out[..., :height, :width]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    first, second = (nn.Conv2d(n, outputs, 3, padding=1) for n in (inputs, outputs))
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, a=math.sqrt(0.02))
    return nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1))


def _doubled(v: Tensor) -> Tensor:
    return functional.interpolate(v, scale_factor=2, mode="bilinear", align_corners=False)
