r"""Minimisation under bounds: scipy's L-BFGS-B on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize
from torch import Tensor

#: Called after each iteration with its number, counted from 1, and the cost.
Callback = Callable[[int, float], None]


class Minimum(NamedTuple):
    """Where a minimisation stopped."""

    x: Tensor
    cost: float
    iterations: int
    message: str


def minimize_bounded(
    cost_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    lower: float | None = 0.0,
    max_iter: int = 100,
    ftol: float = 1e-7,
    memory: int = 10,
    callback: Callback | None = None,
) -> Minimum:
    r"""Minimise a smooth cost with :math:`x \ge` ``lower`` by limited-memory quasi-Newton steps.

    L-BFGS-B (Byrd, Lu, Nocedal & Zhu, SIAM J. Sci. Comput. 16, 1995) as implemented in scipy. The variable is scaled so
    that the largest first gradient component is one, which makes the path independent of the units.

    :param Callable cost_and_gradient: maps an image to its cost (a scalar) and gradient (its shape).
    :param torch.Tensor start: first image, any shape.
    :param float lower: bound, or ``None`` for none.
    :param int max_iter: most iterations.
    :param float ftol: stop when the cost decreases by less than this fraction of its size.
    :param int memory: number of pairs kept of steps and gradient differences.
    :param Callable callback: called with the iteration's number and the cost.
    :return: (:class:`Minimum`) the image (dtype and device of ``start``), its cost, iterations, scipy's message.

    |sep|

    :Examples:

        >>> import torch
        >>> target = torch.tensor([3.0, -2.0], dtype=torch.float64)
        >>> found = minimize_bounded(
        ...     lambda x: (((x - target) ** 2).sum(), 2 * (x - target)), 0 * target
        ... )
        >>> found.x.round(decimals=4)
        tensor([3., 0.], dtype=torch.float64)
    """
    first = float(cost_and_gradient(start)[1].abs().max())
    scale = 1.0 / first if first > 0 else 1.0
    last = {"cost": float("nan"), "iterations": 0}

    def evaluate(flat):  # type: ignore[no-untyped-def]
        x = torch.from_numpy(flat * scale).to(start).view_as(start)
        cost, gradient = cost_and_gradient(x)
        last["cost"] = float(cost)
        return last["cost"], gradient.detach().double().cpu().flatten().numpy() * scale

    def report(_):  # type: ignore[no-untyped-def]
        last["iterations"] += 1
        if callback is not None:
            callback(int(last["iterations"]), last["cost"])

    result = minimize(
        evaluate,
        start.detach().double().cpu().flatten().numpy() / scale,
        jac=True,
        method="L-BFGS-B",
        bounds=None if lower is None else [(lower / scale, None)] * start.numel(),
        callback=report,
        options={
            "maxiter": max_iter,
            "maxfun": 2 * max_iter,
            "ftol": ftol,
            "gtol": 0.0,
            "maxcor": memory,
        },
    )
    x = torch.from_numpy(result.x * scale).to(start).view_as(start)
    return Minimum(x, float(result.fun), int(result.nit), str(result.message))
