"""deepinv's own tests of losses, as its wheel ships them, run against ours.

Their module is loaded from the installed package and its makers of losses are replaced; nothing is
copied. A family of losses joins by a line in a table.
"""

from __future__ import annotations

import deepinv
import pytest
import torch
from deepinv.transform import Shift
from deepinv_tests import load, their_device, their_rng  # noqa: F401

from deepinv_astro.loss import (
    EquivariantLoss,
    EquivariantSplittingLoss,
    FittedNoise,
    MultiOperatorLoss,
    PoissonGaussian,
    RecorruptedLoss,
    RegionVariances,
    StationaryKernel,
    SUREGaussianLoss,
    SUREPoissonGaussianLoss,
    UNSURELoss,
)
from deepinv_astro.physics import DetectorNoise, HeteroscedasticNoise, StationaryNoise
from deepinv_astro.transform import Scale

pytestmark = pytest.mark.filterwarnings("default")  # their code, their warnings

_KERNEL = 0.05 * torch.tensor([[1.0, 1.0], [1.0, 1.0]])


def _learned(family, multipliers):
    """UNSURE that has learned these multipliers: theirs starts at the truth as well."""
    loss, truth = UNSURELoss(family), torch.tensor(multipliers)
    state = {"multipliers": truth, "ceiling": 4 * truth.abs(), "started": torch.tensor(True)}
    loss.load_state_dict({**loss.state_dict(), **state})
    return loss


#: Losses that estimate the mean square error of noise, by name: a pair of loss and noise.
RISKS = {
    "GaussianOfTheirs": lambda: (SUREGaussianLoss(), deepinv.physics.GaussianNoise(0.1)),
    "Heteroscedastic": lambda: (
        SUREGaussianLoss(),
        HeteroscedasticNoise(torch.tensor([0.05, 0.1, 0.2]), per="channel"),
    ),
    "Correlated": lambda: (SUREGaussianLoss(), StationaryNoise(_KERNEL)),
    "PoissonGaussianOfTheirs": lambda: (
        SUREPoissonGaussianLoss(),
        deepinv.physics.PoissonGaussianNoise(sigma=0.1, gain=0.1),
    ),
    "Detector": lambda: (SUREPoissonGaussianLoss(), DetectorNoise(10.0, 1.0, 0.5)),
    "PoissonOfTheirs": lambda: (SUREPoissonGaussianLoss(), deepinv.physics.PoissonNoise(0.1)),
    "GaussianUnknown": lambda: (
        _learned(RegionVariances(), [0.01]),
        deepinv.physics.GaussianNoise(0.1),
    ),
    "CorrelatedUnknown": lambda: (
        _learned(StationaryKernel(2), [0.01, 0.005, 0.0025, 0.005, 0.0025]),
        StationaryNoise(_KERNEL),
    ),
    "PoissonGaussianUnknown": lambda: (
        _learned(PoissonGaussian(), [0.01, 0.1]),
        deepinv.physics.PoissonGaussianNoise(sigma=0.1, gain=0.1),
    ),
}

#: Losses that recorrupt, by name: a pair of loss and noise.
RECORRUPTED = {
    "PoissonOfTheirs": lambda: (RecorruptedLoss(alpha=0.9999), deepinv.physics.PoissonNoise(1.0)),
    "Gaussian": lambda: (RecorruptedLoss(alpha=0.999), HeteroscedasticNoise(0.1)),
    "GaussianOfTheirs": lambda: (
        RecorruptedLoss(alpha=0.999),
        deepinv.physics.GaussianNoise(0.1),
    ),
    "Correlated": lambda: (RecorruptedLoss(alpha=0.999), StationaryNoise(_KERNEL)),
    "Detector": lambda: (RecorruptedLoss(alpha=0.9999), DetectorNoise(1.0)),
    "GammaOfTheirs": lambda: (RecorruptedLoss(alpha=0.999), deepinv.physics.GammaNoise(10.0)),
}


def _robust(fidelity, noise=None):
    """A fidelity and equivariance to shifts, as published for robust equivariant imaging."""
    return [fidelity, EquivariantLoss(Shift(n_trans=2), noise_model=noise)]


def _unknown():
    fidelity = UNSURELoss()
    return _robust(fidelity, FittedNoise(fidelity))


def _masks():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 1, 3, 15, 10, generator=generator).round()  # of their images
    return [deepinv.loss.MCLoss(), MultiOperatorLoss([{"mask": mask} for mask in masks])]


def _scaled():
    scale = Scale(rng=torch.Generator().manual_seed(0))
    return [deepinv.loss.MCLoss(), EquivariantLoss(scale, stop_gradient=True)]


#: Losses with which a network is trained by Trainer on masked images, and must improve.
TRAINED = {
    "sure": lambda: [SUREGaussianLoss(HeteroscedasticNoise(0.01))],
    "sure_correlated": lambda: [SUREGaussianLoss(StationaryNoise(0.1 * _KERNEL))],
    "sure_photons": lambda: [SUREPoissonGaussianLoss(DetectorNoise(1e4, 1.0))],
    "recorrupted": lambda: [RecorruptedLoss(HeteroscedasticNoise(0.1))],
    "unsure": lambda: [UNSURELoss()],
    "unsure_correlated": lambda: [UNSURELoss(StationaryKernel(2))],
    "unsure_photons": lambda: [UNSURELoss(PoissonGaussian())],
    "robust_recorrupted": lambda: _robust(RecorruptedLoss(HeteroscedasticNoise(0.1))),
    "robust_unknown": _unknown,
    "scale": _scaled,
    "multi_operator": _masks,
    "splitting": lambda: [EquivariantSplittingLoss(Shift(), consistency=deepinv.loss.MCLoss())],
}


_theirs = load("test_loss")
_theirs.choose_sure = lambda noise_type: RISKS[noise_type]()
_theirs.choose_r2r = lambda noise_type: RECORRUPTED[noise_type]()
_theirs.choose_loss = lambda loss_name, *args, **kwargs: TRAINED[loss_name]()
# in place: the marks of their tests hold the same lists
_theirs.LIST_SURE[:], _theirs.LIST_R2R[:], _theirs.LOSSES[:] = RISKS, RECORRUPTED, TRAINED

test_sure = _theirs.test_sure
test_r2r = _theirs.test_r2r
test_losses = _theirs.test_losses
imsize, physics, dataset = _theirs.imsize, _theirs.physics, _theirs.dataset
non_blocking_plots = _theirs.non_blocking_plots


@pytest.mark.parametrize(
    ("test", "name", "table"),
    [
        (test_sure, "noise_type", RISKS),
        (test_r2r, "noise_type", RECORRUPTED),
        (test_losses, "loss_name", TRAINED),
    ],
    ids=["test_sure", "test_r2r", "test_losses"],
)
def test_their_tests_aim_at_ours(test, name, table):
    """A new deepinv may rename its tests: then this module must not pass by being empty."""
    (names,) = (mark.args[1] for mark in test.pytestmark if mark.args[0] == name)
    assert set(names) == set(table)
