r"""The law of risk estimates: their expectation is the true risk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor
from torch.nn import Module

from deepinv_astro.testing.losses import _evaluate, _seeded

#: True risk of a reconstruction: ``risk(x_net, x, physics)``, one number for each sample.
Risk = Callable[[Tensor, Tensor, Physics], Tensor]


def measurement_risk(x_net: Tensor, x: Tensor, physics: Physics) -> Tensor:
    r"""True risk in the space of the measurements.

    .. math::

        \frac1m \| A \hat x - A x \|^2

    :param torch.Tensor x_net: reconstruction :math:`\hat x`.
    :param torch.Tensor x: ground truth.
    :param deepinv.physics.Physics physics: the operator :math:`A`.
    :return: (:class:`torch.Tensor`) one risk for each sample, ``(B,)``.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.testing import measurement_risk
        >>> measurement_risk(torch.ones(2, 1, 2, 3), torch.zeros(2, 1, 2, 3), Denoising())
        tensor([1., 1.])
    """
    error: Tensor = physics.A(x_net) - physics.A(x)
    return error.square().flatten(1).mean(1)


def assert_unbiased(
    loss: Loss,
    physics: Physics,
    model: Module,
    x: Tensor,
    *,
    risk: Risk = measurement_risk,
    draws: int = 400,
    z: float = 4.0,
    resolution: float = 0.1,
    seed: int = 0,
) -> float:
    r"""The expectation of a loss is the true risk, by Monte Carlo.

    With :math:`d_i` the loss minus the true risk of draw :math:`i` of the noise, averaged over the
    batch, and :math:`s` their standard deviation over :math:`n` draws, the law is

    .. math::

        | \bar d | \le z\, s / \sqrt n .

    Both are taken from the same draw, which cancels most of the noise. A test that sees nothing
    does not pass: if :math:`z\, s / \sqrt n` exceeds ``resolution`` times the mean risk, there are
    too few draws.

    :param deepinv.loss.Loss loss: the loss; its ``adapt_model`` is applied to the model.
    :param deepinv.physics.Physics physics: operator with the noise model that is drawn from.
    :param torch.nn.Module model: reconstructor, evaluated in training mode as by
        :class:`deepinv.Trainer`, without gradients.
    :param torch.Tensor x: ground truth; each draw measures the whole batch.
    :param Callable risk: ``risk(x_net, x, physics)``, one number for each sample. Default
        :func:`measurement_risk`; add what the loss is known to have in excess, e.g. a noise floor.
    :param int draws: number :math:`n` of draws.
    :param float z: allowed deviation, in standard errors.
    :param float resolution: largest allowed error of the mean, relative to the mean risk.
    :param int seed: seed of the noise and of the probes, independent of each other.
    :return: (float) the deviation :math:`\bar d \sqrt n / s`.
    :raises AssertionError: if the law is broken, or could not have been seen to be.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.loss import SureGaussianLoss
        >>> from deepinv.physics import Denoising, GaussianNoise
        >>> from deepinv_astro.testing import assert_unbiased
        >>> class Shrink(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return 0.2 * y
        >>> physics, x = Denoising(GaussianNoise(0.5)), torch.ones(4, 1, 8, 8)
        >>> abs(assert_unbiased(SureGaussianLoss(0.5), physics, Shrink(), x)) < 4
        True
        >>> assert_unbiased(SureGaussianLoss(0.6), physics, Shrink(), x)
        Traceback (most recent call last):
        ...
        AssertionError: the loss is ... times the true risk ...
    """
    model = loss.adapt_model(model)
    loss.train()
    differences, risks = [], []
    with _seeded(seed, loss, physics, model), torch.no_grad():
        for _ in range(draws):
            found = _evaluate(loss, physics, model, x)
            true = risk(found.x_net, x, physics).mean()
            differences.append((found.loss.mean() - true).double())
            risks.append(true.double())
    difference, mean = torch.stack(differences), float(torch.stack(risks).mean())
    error = float(difference.std()) / draws**0.5
    if not z * error <= resolution * abs(mean):
        raise AssertionError(
            f"{draws} draws tell the mean to {z * error / abs(mean):.1%} of the true risk, "
            f"{resolution:.1%} is wanted: use more draws or larger images"
        )
    excess = float(difference.mean())
    if not abs(excess) <= z * error:
        raise AssertionError(
            f"the loss is {1 + excess / mean:.4f} times the true risk {mean:.4g}: "
            f"{excess / error if error else float('inf'):.1f} standard errors "
            f"from it in {draws} draws, allowed {z:.1f}"
        )
    return excess / error if error else 0.0
