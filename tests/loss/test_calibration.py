"""The loss of a calibration, and its life in an unmodified deepinv Trainer."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from deepinv.physics import BlurFFT
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepinv_astro.loss import CalibrationLoss
from deepinv_astro.models import Calibrated
from deepinv_astro.optim import CalibrationFrames, FourierMarginal, Term, calibrate
from deepinv_astro.physics import Calibration, Free

SIZE, IMAGES = (16, 12), 6


def gaussian(log_width: Tensor) -> Tensor:
    r = torch.arange(9).to(log_width) - 4
    h = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * torch.exp(2 * log_width)))
    return (h / h.sum())[None, None]


def free_width(width: float = 1.8) -> Calibration:
    start = torch.tensor(math.log(width))
    return Calibration(Free("filter", start, std=math.log(1.2), link=gaussian))


def measurements(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    f = torch.hypot(torch.fft.fftfreq(SIZE[0])[:, None], torch.fft.fftfreq(SIZE[1]))
    white = torch.randn(IMAGES, 1, *SIZE, generator=generator)
    x = torch.fft.ifft2(torch.fft.fft2(white) * (1 + (f / 0.03) ** 2) ** -0.75).real
    y = BlurFFT((1, *SIZE), gaussian(torch.tensor(math.log(1.5)))).A(x)
    return y + 0.01 * torch.randn(y.shape, generator=generator)


class Network(dinv.models.Reconstructor):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, y, physics, **kwargs):
        return self.layer(physics.A_adjoint(y))


class Measured(Dataset):
    """Measurements alone."""

    def __init__(self):
        self.y = measurements()

    def __len__(self):
        return IMAGES

    def __getitem__(self, n):
        return {"y": self.y[n]}


class Multiplier(torch.nn.Module):
    """Noise state of another loss: a buffer that each step changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("eta", torch.zeros(()))


class Consistency(dinv.loss.Loss):
    """Some loss with a state, through the operator and the network."""

    def __init__(self, state: Multiplier):
        super().__init__()
        self.state = state

    def forward(self, x_net, x, y, physics, model, **kwargs):
        if model.training and torch.is_grad_enabled():
            self.state.eta += (y - physics.A(x_net)).detach().square().mean()
        return (y - physics.A(x_net)).square().mean((1, 2, 3)) * (1 + self.state.eta)


def test_sum_over_the_data_is_the_posterior(rng):
    """Mean over minibatches times N m equals the cost that `calibrate` minimises."""
    y = measurements()
    stamps = 30 * gaussian(torch.tensor(0.4)) + 0.01 * torch.randn(2, 1, 9, 9, generator=rng)
    calibration, likelihood = free_width(), FourierMarginal(1e-4)
    frames = CalibrationFrames(2, 0.05)
    loss = CalibrationLoss(calibration, likelihood, IMAGES, [Term(frames, stamps)])
    fit = calibrate(calibration, [Term(likelihood, y), Term(frames, stamps)], max_iter=5)
    assert len(list(loss.parameters())) == 3
    batches = [loss(None, None, part, None, None) for part in y.split(2)]
    assert [tuple(b.shape) for b in batches] == [(2,)] * 3
    total = float(torch.cat(batches).sum().detach()) * math.prod(SIZE)
    assert total == pytest.approx(fit.cost, rel=1e-4)


def test_only_the_calibration_gets_its_gradient():
    """And nothing else of the training moves it."""
    calibration, likelihood, state = free_width(), FourierMarginal(1e-4), Multiplier()
    model = Calibrated(Network(), calibration, [likelihood, state])
    physics = BlurFFT((1, *SIZE), gaussian(torch.tensor(0.0)))
    y = measurements()
    x_net = model(y, physics)
    torch.testing.assert_close(physics.filter, gaussian(torch.tensor(math.log(1.8))))
    Consistency(state)(x_net, None, y, physics, model).mean().backward()
    assert calibration.u.grad is None
    assert likelihood.nuisance.grad is None
    model.zero_grad()
    CalibrationLoss(calibration, likelihood, IMAGES)(
        x_net, None, y, physics, model
    ).mean().backward()
    assert model.model.layer.weight.grad is None
    assert float(calibration.u.grad.abs()) > 0


def trainer(folder: Path, epochs: int, checkpoint: str | None = None) -> dinv.Trainer:
    torch.manual_seed(3)
    calibration, likelihood, state = free_width(), FourierMarginal(1e-4), Multiplier()
    model = Calibrated(Network(), calibration, [likelihood, state])
    slow = list(model.model.parameters())
    fast = [calibration.u, likelihood.nuisance]
    return dinv.Trainer(
        model=model,
        physics=BlurFFT((1, *SIZE), gaussian(torch.tensor(math.log(1.8)))),
        optimizer=torch.optim.Adam([{"params": slow}, {"params": fast, "lr": 0.05}], lr=1e-3),
        train_dataloader=DataLoader(Measured(), batch_size=2),
        losses=[Consistency(state), CalibrationLoss(calibration, likelihood, IMAGES)],
        metrics=None,
        epochs=epochs,
        grad_clip=0.5,
        check_grad=True,
        ckp_interval=1,
        ckpt_pretrained=checkpoint,
        save_path=str(folder),
        device="cpu",
        non_blocking_transfers=False,
        verbose=False,
        show_progress_bar=False,
    )


@pytest.mark.filterwarnings("default")  # of deepinv's trainer
def test_trainer_trains_clips_saves_and_resumes(tmp_path):
    """Three epochs at once, and one, a new process' objects, and two more: the same parameters."""
    whole = trainer(tmp_path / "whole", 3)
    started = copy.deepcopy(whole.model.state_dict())
    trained = whole.train().state_dict()
    for name in ("calibration.u", "state.0.nuisance", "state.1.eta", "model.layer.weight"):
        assert not torch.equal(trained[name], started[name]), name
    part = trainer(tmp_path / "part", 1)
    part.train()
    (checkpoint,) = (tmp_path / "part").rglob("ckp_0.pth.tar")
    rest = trainer(tmp_path / "rest", 3, str(checkpoint))
    with torch.no_grad():  # what the checkpoint must overwrite
        rest.model.calibration.u += 1.0
        rest.model.state[1].eta += 1.0
    resumed = rest.train().state_dict()
    assert set(resumed) == set(trained)
    for name, value in trained.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("default")
def test_trainer_reaches_the_fit_of_the_solver(tmp_path):
    """Adam on minibatches ends at the posterior maximum of `calibrate`."""
    y = measurements()
    calibration, likelihood = free_width(), FourierMarginal(1e-4)
    fit = calibrate(calibration, [Term(likelihood, y)])
    assert fit.report.values.exp() == pytest.approx(1.5, rel=0.1)
    training = trainer(tmp_path, 100)
    training.grad_clip, training.check_grad, training.ckp_interval = None, False, 1000
    training.train()
    found = training.model.calibration
    error = float(found.theta.detach() - fit.report.values)
    assert abs(error) < 0.25 * float(fit.report.posterior_std)


def test_held_directions_do_not_move_under_adam():
    calibration = Calibration(Free("gain", torch.ones(2), std=1.0))
    calibration.keep(torch.tensor([[0.6], [0.8]]))
    optimizer = torch.optim.AdamW(calibration.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (calibration()["gain"] - torch.tensor([4.0, 9.0])).square().sum().backward()
        optimizer.step()
    moved = calibration.theta.detach() - 1
    assert float(moved.norm()) > 0.5
    assert float(moved @ torch.tensor([0.6, 0.8])) == pytest.approx(0, abs=1e-5)


def test_wrong_number_of_images():
    with pytest.raises(ValueError, match="size of the training set"):
        CalibrationLoss(free_width(), FourierMarginal(1.0), 0)
