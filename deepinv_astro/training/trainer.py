"""Training from measured images, which stops and goes on at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from deepinv.loss import Loss
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from deepinv_astro.datasets.images import grid_crops, random_crops
from deepinv_astro.training.loop import Loop
from deepinv_astro.training.recipe import Recipe

__all__ = ["Training"]


class Training(Loop):
    r"""Minimise losses over crops of measured images.

    The losses are those of deepinv, called with ``x_net, y, physics, model``; none sees a ground
    truth. :class:`deepinv.Trainer` takes the same losses; this one is for runs that are
    interrupted: see :class:`Loop`, which it is.

    Validation is the sum of the same losses on held-out crops. Several processes would all see the
    same crops: it is for one.

    :param torch.nn.Module model: :math:`f`, called with ``(y, physics)``; trained in place.
    :param deepinv.physics.LinearPhysics physics: operator of a crop, with its noise model.
    :param train: measured images ``(C, h, w)``.
    :param validate: held-out images.
    :param Recipe recipe: parts and weights.
    :param losses: makes losses from a generator. Default: those of the recipe.
    :param float scale: contrast of the images; losses are divided by its square.
    :param int seed: of all that is random.
    :raises ValueError: if the crop does not fit the operator or the images.
    """

    recipe: Recipe

    def __init__(
        self,
        model: nn.Module,
        physics: LinearPhysics,
        train: Sequence[Tensor],
        validate: Sequence[Tensor],
        recipe: Recipe,
        *,
        losses: Callable[[torch.Generator], Sequence[Loss]] | None = None,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, images in (("train", train), ("validate", validate)):
            least = min((min(i.shape[-2:]) for i in images), default=0)
            if least < recipe.crop:
                raise ValueError(
                    f"crops of {recipe.crop} pixels do not fit in images of {least} ({name}): "
                    "give larger images or a smaller `crop`"
                )
        super().__init__(
            model, recipe, losses=lambda rng: list((losses or recipe.losses)(rng)), seed=seed
        )
        self.physics, self.scale, self.train = physics, scale, train
        self.validate = grid_crops(validate, recipe.crop, recipe.validation_crops)
        noise = physics.noise_model
        if getattr(noise, "rng", None) is not None:
            noise.rng = self.rng  # one generator, which checkpoints hold

    def batch_loss(self) -> Tensor:
        """
        Loss on random crops.

        :return: (:class:`torch.Tensor`) a number.
        """
        y = random_crops(self.train, self.recipe.crop, self.recipe.batch, self.rng)
        return self.objective(self.model, y)

    def validation_loss(self) -> Tensor:
        """
        Loss of the held-out crops, for the averaged weights.

        :return: (:class:`torch.Tensor`) sum and number of crops.
        """
        batches = self.validate.split(self.recipe.batch)
        total = sum(float(self.objective(self.average, y)) * len(y) for y in batches)
        return torch.tensor([total, len(self.validate)], dtype=torch.float64)

    def objective(self, model: nn.Module, y: Tensor) -> Tensor:
        r"""
        Sum of the losses on a batch of crops, in units of the squared contrast.

        :param torch.nn.Module model: the trained one, or the average.
        :param torch.Tensor y: crops ``(B, C, h, w)``.
        :return: (:class:`torch.Tensor`) a number.
        """
        x_net = model(y, self.physics)
        terms = [
            loss(x=None, x_net=x_net, y=y, physics=self.physics, model=model).mean()
            for loss in self.losses
        ]
        return torch.stack(terms).sum() / self.scale**2
