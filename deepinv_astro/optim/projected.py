r"""Minimisation under a bound by projected quasi-Newton steps, in torch: any device, no other library's threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from deepinv_astro.optim.bounded import Callback, Minimum

#: Part of the decrease foreseen by the gradient that a step must reach (Armijo).
_SUFFICIENT = 1e-4

#: Trials of the length of a step.
_TRIALS = 12

#: Least cosine of the angle between step and difference of gradients of a pair that is used.
_LEAST_COSINE = 1e-6

#: A step of the variables and the difference of the gradients across it.
_Pair = tuple[Tensor, Tensor]


def minimize_projected(
    cost_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    lower: float = 0.0,
    scale: Tensor | None = None,
    max_iter: int = 100,
    tolerance: float = 0.0,
    memory: int = 10,
    callback: Callback | None = None,
) -> Minimum:
    r"""Minimise a smooth cost with :math:`x \ge` ``lower``, as far as the cost still falls.

    .. math::

        v_{k+1} = \left[ v_k - t\, B_k^{F} g_k \right]_+, \qquad
        F = \{ i : v_i > 0 \ \text{or}\ g_i < 0 \}

    in :math:`v = (x - \text{lower}) / s`, with :math:`B^F` the limited-memory BFGS estimate of the
    inverse Hessian from the last pairs restricted to the free variables :math:`F` (Bertsekas, SIAM
    J. Control Optim. 20, 1982; Nocedal & Wright, Numerical Optimization, algorithm 7.4), and
    :math:`t` halved, or so, until the cost falls enough. With few iterations, or a tolerance, an
    alternative to :func:`~deepinv_astro.optim.bounded.minimize_bounded`: it takes about as many.

    :param Callable cost_and_gradient: maps an image to its cost (a scalar) and gradient (its
        shape).
    :param torch.Tensor start: first image, any shape.
    :param float lower: bound.
    :param torch.Tensor scale: positive scales :math:`s`, broadcast to ``start``; default 1.
    :param int max_iter: most iterations.
    :param float tolerance: stop when two iterations in a row lower the cost by less than this. For
        a cost that is minus a log-likelihood, one is as little as data can tell.
    :param int memory: number of pairs kept of steps and gradient differences.
    :param Callable callback: called with the iteration's number and the cost.
    :return: (:class:`~deepinv_astro.optim.bounded.Minimum`) the image (dtype and device of
        ``start``), its cost, iterations, and why it stopped.

    |sep|

    :Examples:

        >>> import torch
        >>> target = torch.tensor([3.0, -2.0], dtype=torch.float64)
        >>> found = minimize_projected(
        ...     lambda x: (((x - target) ** 2).sum(), 2 * (x - target)), 0 * target
        ... )
        >>> found.x.round(decimals=4)
        tensor([3., 0.], dtype=torch.float64)
    """
    size = (torch.ones_like(start) if scale is None else scale.expand_as(start)).double().flatten()

    def image(v: Tensor) -> Tensor:
        return (lower + v * size).to(start).view_as(start)

    def evaluate(v: Tensor) -> tuple[float, Tensor]:
        cost, gradient = cost_and_gradient(image(v))
        return float(cost), gradient.detach().double().flatten() * size

    v = ((start.detach().double().flatten() - lower) / size).clamp_min(0)
    cost, gradient = evaluate(v)
    largest = float(gradient.abs().max())
    first = 1 / largest**2 if largest > 0 else 1.0  # as free of units as v
    pairs: deque[_Pair] = deque(maxlen=memory)
    small, message, iteration = 0, "max_iter", 0
    for iteration in range(1, max_iter + 1):
        free = ((v > 0) | (gradient < 0)).nonzero()[:, 0]
        inside = [(s[free], y[free]) for s, y in pairs]
        direction = torch.zeros_like(v)
        direction[free] = -_inverse_hessian(gradient[free], inside, first)
        found = _search(evaluate, v, cost, gradient, direction)
        if found is None:
            message, iteration = "no step lowers the cost", iteration - 1
            break
        new, new_cost, new_gradient = found
        pairs.append((new - v, new_gradient - gradient))
        small = small + 1 if cost - new_cost < tolerance else 0
        v, cost, gradient = new, new_cost, new_gradient
        if callback is not None:
            callback(iteration, cost)
        if small == 2:
            message = "tolerance"
            break
    return Minimum(image(v), cost, iteration, message)


def _inverse_hessian(g: Tensor, pairs: list[_Pair], first: float) -> Tensor:
    """Product of a vector with the estimate of the inverse Hessian: the two loops, newest pair first."""
    used = []
    for s, y in reversed(pairs):
        curvature, square = float(s @ y), float(y @ y)
        if curvature > _LEAST_COSINE * (float(s @ s) * square) ** 0.5:
            used.append((s, y, curvature, square))
    q, weights = g.clone(), []
    for s, y, curvature, _ in used:
        weights.append(float(s @ q) / curvature)
        q -= weights[-1] * y
    q *= used[0][2] / used[0][3] if used else first
    for (s, y, curvature, _), weight in zip(reversed(used), reversed(weights), strict=True):
        q += (weight - float(y @ q) / curvature) * s
    return q


def _search(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    v: Tensor,
    cost: float,
    gradient: Tensor,
    direction: Tensor,
) -> tuple[Tensor, float, Tensor] | None:
    """Point on the projected line whose cost is low enough, its cost and gradient, if there is one."""
    length, slope = 1.0, float(gradient @ direction)
    for _ in range(_TRIALS):
        new = (v + length * direction).clamp_min(0)
        new_cost, new_gradient = evaluate(new)
        foreseen = float(gradient @ (new - v))
        if foreseen < 0 and new_cost <= cost + _SUFFICIENT * foreseen:
            return new, new_cost, new_gradient
        bend = new_cost - cost - slope * length  # of the parabola through both costs
        best = -0.5 * slope * length**2 / bend if bend > 0 else 0.5 * length
        length = min(max(best, 0.1 * length), 0.5 * length)
    return None
