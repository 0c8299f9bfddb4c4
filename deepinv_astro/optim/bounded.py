r"""Minimisation under bounds: scipy's L-BFGS-B on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    scale: Tensor | None = None,
    max_iter: int = 100,
    ftol: float = 1e-7,
    memory: int = 10,
    callback: Callback | None = None,
) -> Minimum:
    r"""Minimise a smooth cost with :math:`x \ge` ``lower`` by limited-memory quasi-Newton steps.

    L-BFGS-B (Byrd, Lu, Nocedal & Zhu, SIAM J. Sci. Comput. 16, 1995) as implemented in scipy. The
    solver works on :math:`x / s`, with :math:`s` a scale for each variable (the inverse square
    root of the curvature is the best), normalised so that its largest first gradient component is
    one: the path does not depend on the units.

    :param Callable cost_and_gradient: maps an image to its cost (a scalar) and gradient (its
        shape).
    :param torch.Tensor start: first image, any shape.
    :param float lower: bound, or ``None`` for none.
    :param torch.Tensor scale: positive scales :math:`s`, shape of ``start``; default 1.
    :param int max_iter: most iterations.
    :param float ftol: stop when the cost decreases by less than this fraction of its size.
    :param int memory: number of pairs kept of steps and gradient differences.
    :param Callable callback: called with the iteration's number and the cost.
    :return: (:class:`Minimum`) the image (dtype and device of ``start``), its cost, iterations,
        scipy's message.

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
    scale = torch.ones_like(start) if scale is None else scale.expand_as(start)
    scale = scale.detach().double().cpu().flatten()
    first = float((cost_and_gradient(start)[1].double().cpu().flatten() * scale).abs().max())
    sizes = (scale / first if first > 0 else scale).numpy()
    last = {"cost": float("nan"), "iterations": 0}

    def image(flat: Any) -> Tensor:
        return torch.from_numpy(flat * sizes).to(start).view_as(start)

    def evaluate(flat):  # type: ignore[no-untyped-def]
        cost, gradient = cost_and_gradient(image(flat))
        last["cost"] = float(cost)
        return last["cost"], gradient.detach().double().cpu().flatten().numpy() * sizes

    def report(_):  # type: ignore[no-untyped-def]
        last["iterations"] += 1
        if callback is not None:
            callback(int(last["iterations"]), last["cost"])

    result = minimize(
        evaluate,
        start.detach().double().cpu().flatten().numpy() / sizes,
        jac=True,
        method="L-BFGS-B",
        bounds=None if lower is None else [(lower / size, None) for size in sizes],
        callback=report,
        options={
            "maxiter": max_iter,
            "maxfun": 2 * max_iter,
            "ftol": ftol,
            "gtol": 0.0,
            "maxcor": memory,
        },
    )
    return Minimum(image(result.x), float(result.fun), int(result.nit), str(result.message))
