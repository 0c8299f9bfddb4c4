r"""Parameters of a point-spread function from its measured image, with their covariance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

__all__ = ["PSFFit", "fit_psf"]

Array = NDArray[np.float64]
Bound = tuple[float, float]

#: A direction of parameters is undetermined if it changes the model by less than this fraction of
#: what each parameter alone does, squared.
_SINGULAR = 1e-12
#: A parameter has no effect where its derivative is smaller than the largest by this.
_NO_EFFECT = 1e-12
#: A parameter is at a bound when nearer to it than this fraction of what the bounds allow.
_AT_BOUND = 1e-6


@dataclass(frozen=True)
class PSFFit:
    r"""Parameters found by :func:`fit_psf`.

    :param tuple names: of all parameters; elements of a vector as ``name[0]``, ...
    :param torch.Tensor values: ``(P,)``.
    :param torch.Tensor covariance: ``(P, P)``. Of a parameter at a bound NaN: its error is not
        Gaussian, and the errors of the others are those for it held there. Of an undetermined
        parameter infinite on the diagonal, zero beside it.
    :param dict parameters: those of the model by name, as tensors of their shapes.
    :param torch.Tensor psf: the model's PSF at the centre of the stamp, of unit sum.
    :param torch.Tensor model: fitted image, flux and background included.
    :param float reduced_chi2: :math:`\chi^2` over the degrees of freedom; 1 by construction where
        no noise was given.
    :param tuple at_bound: names of the parameters that ended at a bound.
    :param tuple undetermined: names of the parameters that the data do not determine.
    :param bool converged: whether the solver did.
    """

    names: tuple[str, ...]
    values: Tensor
    covariance: Tensor
    parameters: dict[str, Tensor]
    psf: Tensor
    model: Tensor
    reduced_chi2: float
    at_bound: tuple[str, ...]
    undetermined: tuple[str, ...]
    converged: bool

    @property
    def std(self) -> Tensor:
        """Standard deviations ``(P,)``."""
        return self.covariance.diagonal().sqrt()

    def __getitem__(self, name: str) -> tuple[float, float]:
        """Value and standard deviation of a parameter."""
        index = self.names.index(name)
        return float(self.values[index]), float(self.std[index])


def fit_psf(
    stamp: Tensor,
    psf: Callable[..., Tensor],
    start: Mapping[str, Tensor | float],
    *,
    noise: Tensor | float | None = None,
    bounds: Mapping[str, Bound] | None = None,
    fixed: Mapping[str, float] | None = None,
    max_evaluations: int = 200,
) -> PSFFit:
    r"""Least-squares fit of a PSF to the image of a star.

    .. math::

        \hat\theta, \hat F, \hat p_0, \hat b = \arg\min \sum_p
        \frac{[y(p) - F\, h_\theta(p - p_0) - b]^2}{\sigma(p)^2}, \qquad
        \operatorname{Cov} = (J^\top \Sigma^{-1} J)^{-1}

    with flux, position and background as nuisance parameters, and the Jacobian :math:`J` from
    the derivatives of the PSF. In a stack ``(C, k, l)`` each image has its flux and its
    background, and all share the position and the parameters.

    The covariance speaks of noise alone. Where the reduced :math:`\chi^2` is far above 1 the PSF is
    not of that shape, and the errors are larger than stated.

    :param torch.Tensor stamp: :math:`y`, ``(k, l)`` or ``(..., k, l)``, the star within two pixels of
        ``(k // 2, l // 2)``.
    :param psf: function of keywords, the names of ``start`` and ``offset``, that returns stamps of
        unit sum of the shape of ``stamp``; for example ``functools.partial(moffat_psf, (39, 39))``.
    :param dict start: first guess of each parameter, a number or a tensor.
    :param torch.Tensor, float noise: :math:`\sigma`, one value or of the shape of ``stamp``; infinite
        for pixels to leave out. ``None``: uniform, estimated from the residuals.
    :param dict bounds: lowest and highest value of a parameter, its elements alike. Bounds of
        ``row``, ``column``, ``flux`` and ``background`` too; the position is kept within 3 pixels.
    :param dict fixed: ``row``, ``column``, ``flux`` or ``background`` held at a value.
    :param int max_evaluations: of the model.
    :return: :class:`PSFFit`, in double precision.
    :raises ValueError: if a name is unknown, a guess out of bounds, or there are fewer data
        than parameters.

    |sep|

    :Examples:

        >>> import functools, torch
        >>> from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
        >>> offset = torch.tensor([0.2, -0.3], dtype=torch.float64)
        >>> star = 500 * gaussian_psf((15, 17), 3.0, offset=offset) + 2
        >>> model = functools.partial(gaussian_psf, (15, 17))
        >>> fit = fit_psf(star, model, {"fwhm": 2.0}, noise=0.1)
        >>> fit.names
        ('fwhm', 'row', 'column', 'flux', 'background')
        >>> [round(v, 3) for v in fit.values.tolist()]
        [3.0, 0.2, -0.3, 500.0, 2.0]
    """
    problem = _Problem(stamp, psf, start, noise, bounds or {}, fixed or {})
    found = least_squares(
        problem.residuals,
        problem.start,
        problem.jacobian,
        bounds=problem.bounds,
        x_scale="jac",
        xtol=1e-10,
        ftol=1e-10,
        gtol=1e-10,
        max_nfev=max_evaluations,
    )
    free = problem.data - len(found.x)
    chi2 = 2 * float(found.cost) / free
    jacobian = found.jac
    if noise is None and chi2 > 0:
        jacobian, chi2 = jacobian / math.sqrt(chi2), 1.0
    held = problem.at_bound(found.x)
    covariance, unknown = _covariance(jacobian, held)
    x = torch.from_numpy(found.x)
    parts = problem.split(x)
    own = {name: parts[name] for name in problem.own}
    with torch.no_grad():
        centred = psf(**own, offset=torch.zeros(2, dtype=x.dtype))
        model = problem.model(x)
    names = np.array(problem.names)
    return PSFFit(
        names=problem.names,
        values=x,
        covariance=torch.from_numpy(covariance),
        parameters=own,
        psf=centred,
        model=model,
        reduced_chi2=chi2,
        at_bound=tuple(names[held].tolist()),
        undetermined=tuple(names[unknown].tolist()),
        converged=bool(found.success),
    )


class _Problem:
    """Weighted residuals of a stamp as a function of one vector of parameters."""

    def __init__(
        self,
        stamp: Tensor,
        psf: Callable[..., Tensor],
        start: Mapping[str, Tensor | float],
        noise: Tensor | float | None,
        bounds: Mapping[str, Bound],
        fixed: Mapping[str, float],
    ) -> None:
        self.stamp = stamp.detach().double().cpu()
        self.psf = psf
        self.weight = _weight(noise, self.stamp)
        self.fixed = dict(fixed)
        self.own = list(start)
        guess = {k: torch.as_tensor(v).detach().double().cpu() for k, v in start.items()}
        _check_names({*start}, {*bounds}, {*fixed})
        guess |= _nuisance(self.stamp, self.weight, psf, guess, self.fixed)
        self.shapes = {k: v.shape for k, v in guess.items()}
        self.start = torch.cat([v.flatten() for v in guess.values()]).numpy()
        limits = {"row": (-3.0, 3.0), "column": (-3.0, 3.0), **bounds}
        spans = [
            limits.get(k, (-math.inf, math.inf)) for k, v in guess.items() for _ in v.flatten()
        ]
        self.bounds = tuple(np.array(spans).T)
        self.names = tuple(n for k, v in guess.items() for n in _labels(k, v.shape))
        self.data = int((self.weight > 0).sum())
        outside = (self.start < self.bounds[0]) | (self.start > self.bounds[1])
        if outside.any():
            at = int(outside.argmax())
            raise ValueError(
                f"the first guess {self.start[at]:g} of {self.names[at]} is out of its bounds "
                f"{spans[at]}"
            )
        if self.data <= len(self.start):
            raise ValueError(f"{self.data} pixels cannot determine {len(self.start)} parameters")

    def at_bound(self, x: Array) -> NDArray[np.bool_]:
        """Which parameters are as good as at a bound; the solver itself stays just inside."""
        low, high = self.bounds
        span = np.where(np.isfinite(high - low), high - low, np.maximum(1.0, np.abs(x)))
        near: NDArray[np.bool_] = np.minimum(x - low, high - x) <= _AT_BOUND * span
        return near

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Parameters by name, the fixed ones included."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), torch.split(x, sizes), strict=True)
        free = {name: piece.reshape(shape) for (name, shape), piece in pieces}
        return free | {k: x.new_tensor(v) for k, v in self.fixed.items()}

    def model(self, x: Tensor) -> Tensor:
        p = self.split(x)
        offset = torch.stack([p["row"], p["column"]])
        image = self.psf(**{name: p[name] for name in self.own}, offset=offset)
        return p["flux"][..., None, None] * image + p["background"][..., None, None]

    def weighted(self, x: Tensor) -> Tensor:
        difference = (self.model(x) - self.stamp) * self.weight
        return difference.flatten()

    def residuals(self, x: Array) -> Array:
        with torch.no_grad():
            weighted: Array = self.weighted(torch.from_numpy(x)).numpy()
        return weighted

    def jacobian(self, x: Array) -> Array:
        # J^T v is linear in v, so its derivatives with respect to v are the columns of J:
        # one pass per parameter, where plain reverse mode needs one per pixel
        at = torch.from_numpy(x).requires_grad_()
        weighted = self.weighted(at)
        v = torch.zeros_like(weighted, requires_grad=True)
        (product,) = torch.autograd.grad(weighted, at, v, create_graph=True)
        basis = torch.eye(len(at), dtype=at.dtype)
        (rows,) = torch.autograd.grad(product, v, basis, is_grads_batched=True)
        jacobian: Array = rows.T.numpy()
        # what rounding leaves of a derivative that is zero, such as that by the angle of a circle,
        # would be taken for a scale
        effect = np.linalg.norm(jacobian, axis=0) * np.maximum(1.0, np.abs(x))
        jacobian[:, effect <= _NO_EFFECT * effect.max()] = 0.0
        return jacobian


def _weight(noise: Tensor | float | None, stamp: Tensor) -> Tensor:
    """Inverse of the noise, and zero where the stamp is missing."""
    sigma = torch.as_tensor(1.0 if noise is None else noise).detach().to(stamp)
    if not bool((sigma > 0).all()):
        raise ValueError("noise is a standard deviation and must be positive in every pixel")
    if not bool(torch.isfinite(stamp).all()):
        raise ValueError(
            "stamp must be finite: set missing pixels to 0 and their noise to infinity"
        )
    return (1 / sigma).expand(stamp.shape)


def _nuisance(
    stamp: Tensor,
    weight: Tensor,
    psf: Callable[..., Tensor],
    guess: dict[str, Tensor],
    fixed: Mapping[str, float],
) -> dict[str, Tensor]:
    """First position, the brightest pixel near the middle, and the flux and background for it."""
    seen = torch.where(weight > 0, stamp, -math.inf).reshape(-1, *stamp.shape[-2:]).sum(0)
    middle = [s // 2 for s in seen.shape]
    top, left = (max(0, m - 2) for m in middle)
    near = seen[top : middle[0] + 3, left : middle[1] + 3]
    row, column = divmod(int(near.argmax()), near.shape[1])
    star = stamp.new_tensor([top + row - middle[0], left + column - middle[1]])
    start = {"row": star[0], "column": star[1]}
    offset = stamp.new_tensor([fixed.get(k, float(v)) for k, v in start.items()])
    with torch.no_grad():
        image = psf(**guess, offset=offset)
    if image.shape != stamp.shape:
        raise ValueError(
            f"the model makes stamps of shape {tuple(image.shape)}, the data are "
            f"{tuple(stamp.shape)}"
        )
    design = torch.stack([image, torch.ones_like(image)], -1).flatten(-3, -2)
    w = weight.flatten(-2)[..., None]
    solution = torch.linalg.lstsq(design * w, stamp.flatten(-2)[..., None] * w).solution[..., 0]
    start |= {"flux": solution[..., 0], "background": solution[..., 1]}
    return {k: v.double() for k, v in start.items() if k not in fixed}


def _check_names(own: set[str], bounds: set[str], fixed: set[str]) -> None:
    nuisance = {"row", "column", "flux", "background"}
    wrong = own & (nuisance | {"offset"}) | fixed - nuisance | bounds - (own | nuisance - fixed)
    if wrong:
        raise ValueError(
            f"{sorted(wrong)}: start holds parameters of the PSF, fixed some of {sorted(nuisance)}, "
            "bounds those that are free"
        )


def _labels(name: str, shape: torch.Size) -> list[str]:
    """Names of the elements of a parameter."""
    if not shape:
        return [name]
    indices = np.ndindex(*shape)
    return [f"{name}[{', '.join(map(str, index))}]" for index in indices]


def _covariance(jacobian: Any, held: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """Inverse of the Fisher information of the free parameters, and which are undetermined."""
    count = jacobian.shape[1]
    covariance = np.zeros((count, count))
    unknown = np.zeros(count, dtype=bool)
    free = np.flatnonzero(~held)
    scale = np.linalg.norm(jacobian[:, free], axis=0)
    safe = np.where(scale > 0, scale, 1.0)
    _, singular, directions = np.linalg.svd(jacobian[:, free] / safe, full_matrices=False)
    lost = singular**2 <= _SINGULAR * max(1.0, float(singular.max(initial=0.0)) ** 2)
    inverse = np.where(lost, 0.0, 1 / np.where(lost, 1.0, singular) ** 2)
    part = (directions.T * inverse) @ directions / np.outer(safe, safe)
    missing = (scale == 0) | (np.abs(directions[lost]) > 1e-3).any(axis=0)
    part[missing] = part[:, missing] = 0.0
    part[missing, missing] = math.inf
    covariance[np.ix_(free, free)] = part
    covariance[held] = covariance[:, held] = math.nan
    unknown[free] = missing
    return covariance, unknown
