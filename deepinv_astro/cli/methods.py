"""The methods of ``reconstruct`` by name."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from deepinv_astro.cli.learned import Network
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.cli.progress import Stages


class Method(str, Enum):
    """Reconstruction methods."""

    MARGINAL = "marginal"
    LEARNED = "learned"
    REXPACO = "rexpaco"
    WHITE = "white"
    IPCA = "ipca"
    PCA = "pca"
    MEDIAN = "median"

    @property
    def deconvolves(self) -> bool:
        """Whether the image is the sky itself, rather than the sky blurred by the PSF."""
        return self in (Method.MARGINAL, Method.LEARNED, Method.REXPACO, Method.WHITE)


class Solution(NamedTuple):
    """Image ``(1, C, H, W)``, the exact parameters that made it, and what the user should know of it."""

    image: Tensor
    parameters: dict[str, Any]
    notes: tuple[str, ...] = ()


def solve(
    method: Method,
    problem: Problem,
    stages: Stages,
    components: int,
    network: Network | None = None,
    seed: int = 0,
) -> Solution:
    """
    Reconstruct the image of a sequence.

    :param Method method: which.
    :param Problem problem: data and operator.
    :param Stages stages: where progress is shown.
    :param int components: principal components of PCA, last rank of iterative PCA.
    :param Network network: of the method ``learned``; default: the weights of the package.
    :param int seed: of what is random.
    :return: image and parameters.
    """
    if method is Method.LEARNED:
        from deepinv_astro.cli import learned

        return learned.solve(network or learned.read_network(), problem, stages, seed)
    if method is Method.MARGINAL:
        return _marginal(problem, stages)
    if method in (Method.REXPACO, Method.WHITE):
        return _patches(method, problem, stages)
    return _classical(method, problem, stages, components)


def _marginal(problem: Problem, stages: Stages) -> Solution:
    from deepinv_astro.optim.marginal import Marginal

    model = Marginal()
    totals = dict(zip(("pilot", "image"), model.iterations, strict=True))

    def progress(stage: str, iteration: int, cost: float) -> None:
        stages.begin(stage, totals[stage])(iteration)

    result = model.reconstruct(problem.sequence.y, problem.physics, callback=progress)
    names = ("smoothness", "sparsity", "nu", "iterations")
    return Solution(result.image, {name: getattr(model, name) for name in names})


def _patches(method: Method, problem: Problem, stages: Stages) -> Solution:
    from deepinv_astro.optim.rexpaco import REXPACO

    # patches of one pixel: noise that is white, with a variance of its own in each pixel
    white = method is Method.WHITE
    model = REXPACO(n_refinements=1, patch=(1, 1), max_iter=150) if white else REXPACO()
    total = model.n_refinements * model.max_iter * problem.sequence.img_size[0]
    advance = stages.begin(f"{method.value} image", total)
    image = model(problem.sequence.y, problem.physics, lambda done, cost: advance(done))
    names = ("n_refinements", "patch", "stride", "smoothness", "sparsity", "epsilon", "max_iter")
    parameters = {name: getattr(model, name) for name in names}
    choices = {name: getattr(model, name).value for name in ("refinement", "mean", "scale")}
    return Solution(image, parameters | choices)


def _classical(method: Method, problem: Problem, stages: Stages, components: int) -> Solution:
    from deepinv_astro.models import PCA, IterativePCA, MedianADI

    y, physics = problem.sequence.y, problem.physics
    stage = f"{method.value} image"
    if method is Method.IPCA:
        model = IterativePCA(rank=components)
        advance = stages.begin(stage, model.total)
        model.callback = lambda done, image: advance(done)
        parameters = {"rank": components, "iterations": model.iterations}
        return Solution(model(y, physics), parameters)
    stages.begin(stage, 1)
    if method is Method.PCA:
        return Solution(PCA(n_components=components)(y, physics), {"n_components": components})
    return Solution(MedianADI()(y, physics), {})
