r"""How long a training is, how fast it learns, and when it stops."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["Schedule"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    r"""Adam with a rate that rises over the first steps :math:`w` and falls as half a cosine,

    .. math::

        \eta_k = \eta \begin{cases} (k + 1) / w, & k < w, \\
        f + (1 - f)\, \tfrac12 \left( 1 + \cos \pi \tfrac{k - w}{K - w} \right), & k \ge w,
        \end{cases}

    and a moving average of the weights as result.

    :param int batch: examples of a step.
    :param int steps: :math:`K`, of the optimiser.
    :param float learning_rate: :math:`\eta`, the largest rate.
    :param int warmup: :math:`w`, steps of the rise.
    :param float final_rate: :math:`f`, last rate in units of the largest.
    :param float averaging: weight of the past in the moving average, of one step.
    :param float gradient_norm: longer gradients are shortened to it.
    :param int validate_every: steps between validations, each followed by a checkpoint.
    :param int patience: validations without a better one until the training stops, in the second
        half of the steps.
    :raises ValueError: if a number is out of range; the message names it.

    |sep|

    :Examples:

        >>> from deepinv_astro.training import Schedule
        >>> schedule = Schedule(steps=100, warmup=10, learning_rate=0.01)
        >>> [round(schedule.rate(step), 4) for step in (0, 9, 55, 100)]
        [0.001, 0.01, 0.0051, 0.0002]
    """

    batch: int = 4
    steps: int = 1500
    learning_rate: float = 3e-3
    warmup: int = 20
    final_rate: float = 0.02
    averaging: float = 0.995
    gradient_norm: float = 1.0
    validate_every: int = 100
    patience: int = 6

    def __post_init__(self) -> None:
        self.check_counts("batch", "steps", "validate_every", "patience")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"`warmup` must be in [0, {self.steps}), got {self.warmup}")
        for name in ("learning_rate", "gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if not (0 < self.final_rate <= 1 and 0 <= self.averaging < 1):
            raise ValueError(
                "`final_rate` must be in (0, 1] and `averaging` in [0, 1), "
                f"got {self.final_rate} and {self.averaging}"
            )

    def check_counts(self, *names: str) -> None:
        """Refuse what is no positive integer.

        :param str names: of fields.
        """
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value}")

    def check_weights(self, *names: str) -> None:
        """Refuse what is negative or no number.

        :param str names: of fields.
        """
        for name in names:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must not be negative, got {value}")

    def rate(self, step: int) -> float:
        r"""Learning rate of a step.

        :param int step: from 0.
        :return: (float) :math:`\eta_k`.
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        fall = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * fall
