"""Denoisers learned from noisy images alone, with the noise unknown: UNSURE against known noise.

Experiments: ``bernoulli`` (a closed form), ``annuli`` (four noise levels, and ten starts),
``correlated`` (a 3 x 3 kernel of unknown values), ``ascents`` (how multipliers should move), ``cost``
(5000 steps; a run that is killed and resumed). Images are dead leaves: discs that hide each other, with
slopes, seen through a PSF. The denoiser shrinks coefficients of a cosine transform by functions with free
weights. It is linear in its weights, so that every loss is compared at its exact minimum, on the
same images, and the training with :class:`UNSURELoss` with the exact saddle. Settings were chosen on
seed 100. Run::

    python docs/benchmarks/unsure.py bernoulli annuli correlated ascents cost
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepinv.physics import Denoising
from targets import RESULTS, parser, store, table
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deepinv_astro.loss import (
    CovarianceFamily,
    RegionVariances,
    StationaryKernel,
    UNSURELoss,
    estimate_noise,
)
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import HeteroscedasticNoise, StationaryNoise

SIZE, CROP, TEST = 64, 48, 48
LEVELS = torch.tensor([0.15, 0.3, 0.6, 1.2])
BOX = 0.25
#: Standard deviation of the Gaussian PSF, in pixels (a FWHM of 3.9).
PSF = 1.66
STARTS = torch.logspace(-1, 1, 10)
IDENTITY = Denoising()


# ---------------------------------------------------------------- data, network, training
def dead_leaves(
    count: int, size: int, seed: int, radii: tuple[float, float] = (8.0, 32.0)
) -> Tensor:
    """Discs of random radius (density r^-3), brightness and slope, seen through a PSF."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = torch.full((count, size, size), 0.5)
    free = torch.ones_like(images, dtype=torch.bool)
    inner, outer = (1 / r**2 for r in radii)
    for _ in range(120):
        u = torch.rand(count, 6, 1, 1, generator=generator).unbind(1)
        radius = (u[0] * (inner - outer) + outer).rsqrt()
        y, x = (rows - u[1] * (size + 20) + 10, columns - u[2] * (size + 20) + 10)
        slope = torch.cos(2 * math.pi * u[4]) * y + torch.sin(2 * math.pi * u[4]) * x
        inside = (y.square() + x.square() < radius.square()) & free
        images = torch.where(inside, u[3] + 0.3 * u[5] * slope / radius, images)
        free &= ~inside
    offsets = torch.arange(-6.0, 7.0)
    psf = torch.exp(-0.5 * (offsets[:, None].square() + offsets.square()) / PSF**2)
    kernel = (psf / psf.sum())[None, None]
    return functional.conv2d(functional.pad(images[:, None], (6,) * 4, mode="reflect"), kernel)


class Data(NamedTuple):
    """Images and their noisy measurements, to train and to test."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def measured(
    noise: nn.Module, seed: int, radii: tuple[float, float], train: int = 120, size: int = SIZE
) -> Data:
    """Images of a seed with noise of the same seed."""
    x = dead_leaves(train + TEST, size, 1000 + seed, radii)
    y = noise(x, seed=seed)
    return Data(x[:train], y[:train], x[train:], y[train:])


def hide(y: Tensor, share: float = 0.08) -> tuple[Tensor, Tensor]:
    """Data with some pixels replaced by a random neighbour, and which ones."""
    around = [s for s in itertools.product((-1, 0, 1), repeat=2) if s != (0, 0)]
    neighbours = torch.stack([y.roll(shift, (-2, -1)) for shift in around])
    picked = neighbours.gather(0, torch.randint(len(around), (1, *y.shape)))[0]
    hidden = torch.rand_like(y) < share
    return torch.where(hidden, picked, y), hidden


def psnr(model: nn.Module, data: Data) -> float:
    """Mean over the test images of the PSNR in dB, for a range of 1."""
    with torch.no_grad():
        error = (model(data.test_y) - data.test_x).square().flatten(1).mean(1)
    return float(-10 * error.log10().mean())


# ---------------------------------------------------------------- a denoiser
class Shrinkage(nn.Module):
    """Sum over bands of cosine channels and shapes of shrinkage, linear in its weights.

    f(y) = sum_k a_rk u D_k^T phi_k(D_k y / u), with phi the identity and two that spare small
    coefficients, a level u for each pixel (the pilot), and weights a for each region r and band k,
    one channel or several. Risks are quadratic in a, so each loss has an exact minimum.
    """

    def __init__(
        self,
        y: Tensor,
        labels: Tensor | None = None,
        bands: Tensor | None = None,
        side: int = 8,
        stride: int = 1,
    ) -> None:
        super().__init__()
        n = torch.arange(side)
        rows = torch.cos(math.pi * n[:, None] * (n + 0.5) / side)
        rows = rows / rows.norm(dim=1, keepdim=True)
        self.filters = torch.einsum("ai,bj->abij", rows, rows).reshape(-1, 1, side, side)
        self.bands = torch.arange(side**2) if bands is None else bands
        self.side, self.stride = side, stride
        labels = torch.zeros(y.shape[-2:], dtype=torch.long) if labels is None else labels
        self.regions = functional.one_hot(labels).permute(2, 0, 1).to(y)
        self.level = RegionVariances(labels).pilot(y).sqrt()[labels]
        median = self._analyse(y[:40]).abs().transpose(0, 1).flatten(1).median(1).values
        self.scale = median.clamp_min(1e-6)[:, None, None] / 0.6745
        count, channels = len(self.regions), int(self.bands.max()) + 1
        identity = torch.cat([torch.ones(channels), torch.zeros(2 * channels)]).double()
        self.identity = identity.expand(count, -1)
        self.root = torch.eye(3 * channels, dtype=torch.float64).expand(count, -1, -1)
        self.weights = nn.Parameter(self.identity.float())

    def _analyse(self, y: Tensor) -> Tensor:
        edge = self.side - 1
        padded = functional.pad(y / self.level, (edge,) * 4, mode="reflect")
        return functional.conv2d(padded, self.filters, stride=self.stride)

    def features(self, y: Tensor, b: Tensor | None = None) -> Tensor:
        """Each u D_k^T phi_k(D_k y / u), or their derivatives along b."""
        c = self._analyse(y)
        d = c if b is None else self._analyse(b)
        shaped = [d]
        for width in (2.0, 4.0):
            r = (c / (width * self.scale)).square()
            shaped.append(d * torch.exp(-r) * (1 if b is None else 1 - 2 * r))
        edge = self.side - 1
        maps = [self._synthesise(v) for v in shaped]
        return torch.cat(maps, 1)[..., edge:-edge, edge:-edge] * (
            self.level * (self.stride / self.side) ** 2
        )

    def _synthesise(self, c: Tensor) -> Tensor:
        maps = functional.conv_transpose2d(c, self.filters, stride=self.stride, groups=c.shape[1])
        sums = maps.new_zeros(len(maps), int(self.bands.max()) + 1, *maps.shape[2:])
        return sums.index_add(1, self.bands, maps)

    def whiten(self, gram: Tensor) -> None:
        """Take coordinates z in which the features are orthonormal: a = L^-T z, gram = L L^T."""
        self.root = torch.linalg.inv(torch.linalg.cholesky(gram)).mT

    def set(self, a: Tensor) -> Shrinkage:
        """Set the weights of the features."""
        with torch.no_grad():
            self.weights.copy_(torch.linalg.solve(self.root, a[..., None])[..., 0])
        return self

    def forward(self, y: Tensor, physics: Any = None) -> Tensor:
        with torch.no_grad():
            features = self.features(y)
        a = (self.root.to(y) @ self.weights[..., None])[..., 0]
        return torch.einsum("rhw,brhw->bhw", self.regions, _mixed(a, features))[:, None]


def _mixed(a: Tensor, features: Tensor) -> Tensor:
    return (a @ features.flatten(2)).unflatten(-1, features.shape[-2:])


class Moments(NamedTuple):
    """Of the features in each region, over the training data, per measurement."""

    gram: Tensor
    with_x: Tensor
    with_y: Tensor
    traces: list[Tensor]


def moments(model: Shrinkage, data: Data, families: list[CovarianceFamily], seed: int) -> Moments:
    """Gram matrix, products with truth and data, and traces of each basis, from one probe."""
    generator = torch.Generator().manual_seed(seed + 500_000)  # not the seed of the noise
    gram, with_x, with_y, traces = 0.0, 0.0, 0.0, [0.0] * len(families)
    for x, y in zip(data.x.split(2), data.y.split(2), strict=True):
        b = 1 - 2 * (torch.rand(y.shape, generator=generator) < 0.5).to(y)
        f, jb = (v.transpose(0, 1).double() for v in (model.features(y), model.features(y, b)))
        inside = (model.regions.double()[:, None, None] * f).flatten(2)
        gram = gram + inside @ f.flatten(1).mT
        with_x = with_x + inside @ x.double().flatten()
        with_y = with_y + inside @ y.double().flatten()
        inside = (model.regions.double()[:, None, None] * jb).flatten(2)
        for k, family in enumerate(families):
            traces[k] = traces[k] + inside @ family.fields(b, y).flatten(1).double().mT
    m = data.y.numel()
    return Moments(steady(gram) / m, with_x / m, with_y / m, [t / m for t in traces])


def steady(gram: Tensor, share: float = 1e-7) -> Tensor:
    """A Gram matrix that can be inverted."""
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return gram + share * size * torch.eye(gram.shape[-1], dtype=gram.dtype)


def minimum(gram: Tensor, product: Tensor) -> Tensor:
    """Weights of each region that minimise a quadratic risk."""
    return torch.linalg.solve(gram, product[..., None])[..., 0]


def saddle(found: Moments, k: int) -> tuple[Tensor, Tensor]:
    """Weights and multipliers at the saddle: G a + T eta = y and T^T a = 0."""
    traces = found.traces[k]
    steps = torch.linalg.solve(found.gram, traces)
    q = torch.einsum("rki,rkj->ij", traces, steps)
    eta = torch.linalg.solve(q, torch.einsum("rki,rk->i", steps, found.with_y))
    return minimum(found.gram, found.with_y - traces @ eta), eta


def noise2void(model: Shrinkage, data: Data, seed: int) -> Tensor:
    """Exact minimum of Noise2Void: hidden pixels from features of data with others in their place."""
    torch.manual_seed(seed + 600_000)
    gram, product = 0.0, 0.0
    for y in data.y.split(2):
        shown, hidden = hide(y)
        f = model.features(shown).transpose(0, 1).double()
        inside = (model.regions[:, None, None] * hidden[:, 0] * f).flatten(2)
        gram, product = gram + inside @ f.flatten(1).mT, product + inside @ y.double().flatten()
    return minimum(steady(gram, 1e-6), product)


def ascend(
    model: Shrinkage, loss: UNSURELoss, data: Data, steps: int, seed: int, memory: float = 0.97
) -> nn.Module:
    """Train the weights with the loss, by gradient descent in whitened coordinates."""
    torch.manual_seed(seed + 700_000)
    model.set(model.identity)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(memory))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * min(1.0, 2.2 - 2 * step / steps)
        y = data.y[torch.randint(len(data.y), (2,))]
        value = loss(x_net=model(y), x=None, y=y, physics=IDENTITY, model=model)
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
    return averaged.module.eval()


# ---------------------------------------------------------------- 1. a closed form
class Pointwise(nn.Module):
    """A function of one pixel: y plus straight lines between knots."""

    def __init__(self, largest: float = 10.0, knots: int = 201) -> None:
        super().__init__()
        self.largest = largest
        self.values = nn.Parameter(torch.zeros(knots))

    def forward(self, y: Tensor, physics: Any = None) -> Tensor:
        last = len(self.values) - 1
        place = ((y / self.largest + 1) * (last / 2)).clamp(0, last - 1e-3)
        left = place.floor()
        line = torch.lerp(self.values[left.long()], self.values[left.long() + 1], place - left)
        return y + line


def posterior_mean(y: Tensor, share: float, spread: float, sigma: float) -> Tensor:
    """Of x, which is 0 but for a share that is Gaussian, from y = x + noise."""
    total = spread**2 + sigma**2
    log_odds = math.log(share / (1 - share)) + 0.5 * math.log(sigma**2 / total)
    weight = torch.sigmoid(log_odds + 0.5 * y.square() * (1 / sigma**2 - 1 / total))
    return weight * y * spread**2 / total


def bernoulli(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Excess error and noise level against the closed form."""
    share, spread, sigma = 0.03, 2.0, 0.25
    torch.manual_seed(seed)
    model, loss = Pointwise(), UNSURELoss(rate=0.02)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = spread * torch.randn(count, 1, 64, 64) * (torch.rand(count, 1, 64, 64) < share)
        return x, x + sigma * torch.randn_like(x)

    for step in range(options.closed_steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / options.closed_steps) + 1e-5
        y = draw(16)[1]
        optimizer.zero_grad()
        loss(x_net=model(y), y=y, physics=IDENTITY, model=model).mean().backward()
        optimizer.step()
    x, y = draw(800)
    best = posterior_mean(y, share, spread, sigma)
    with torch.no_grad():
        found = model(y)
    mmse = float((best - x).square().mean())
    # E (f - E[x|y])^2 is the excess itself, without the noise of the MMSE
    excess = float((found - best).square().mean())
    estimate = estimate_noise(loss, draw(40)[1], IDENTITY, model, smooth=1, quantile=0.3)
    ratio = mmse / sigma**2
    return {
        "mmse_ratio": ratio,
        "excess": excess,
        "excess_over_first_order": excess / (mmse * ratio),
        "excess_over_exact": excess / (mmse * ratio / (1 - ratio)),
        "eta_over_theory": float(loss.multipliers) / (sigma**2 / (1 - ratio)),
        "sigma_uncorrected": math.sqrt(float(loss.multipliers)) / sigma,
        "sigma_corrected": math.sqrt(float(estimate.variance)) / sigma,
    }


# ---------------------------------------------------------------- 2. four annuli
def annuli(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """PSNR of each loss, over the field and in each annulus; multipliers over the true variances.

    With a weight for each of the 64 channels, 768 in all, every loss without truth was fitted to the
    noise of its own risk: SURE, which knows the levels, lay 1.5 dB below supervised training (2.4 dB
    with half of the images), mostly in the noisiest annulus, and the last 66 images that the training
    saw decided its weights. One weight for channels of about equal frequency, a sixth of the weights,
    costs 0.02 dB of the supervised score (blocks at every second pixel, for speed, cost all rows
    0.2 dB), and the average of the weights now runs over 270 images.
    """
    labels = (separation((CROP, CROP), (CROP // 2, CROP // 2)) / 7).long().clamp_max(3)
    noise = HeteroscedasticNoise(LEVELS, "region", labels, rng=torch.Generator())
    data = measured(noise, seed, (8.0, 32.0), 300, CROP)
    variance = LEVELS.square()
    order = torch.arange(8)
    bands = (order[:, None].square() + order.square()).sqrt().round().long().flatten()
    model = Shrinkage(data.y, labels, bands, stride=2)
    found = moments(model, data, [RegionVariances(labels), RegionVariances()], seed)
    model.whiten(found.gram / variance.double()[:, None, None])  # as the loss is normalized

    def learn(start: float | None) -> tuple[nn.Module, UNSURELoss]:
        init = None if start is None else start * variance
        loss = UNSURELoss(RegionVariances(labels), init, normalized=True, rate=0.02)
        return ascend(model, loss, data, options.annuli_steps, seed, 0.985), loss

    known = found.with_y - found.traces[0] @ variance.double()
    best, eta = saddle(found, 0)
    solutions = {
        "supervised": minimum(found.gram, found.with_x),
        "sure": minimum(found.gram, known),
        "noise2void": noise2void(model, data, seed),
        "saddle_one": saddle(found, 1)[0],
        "saddle_annuli": best,
    }
    result: dict[str, Any] = {"noisy": psnr(lambda y: y, data)}  # type: ignore[arg-type]
    for name, a in solutions.items():
        result |= psnr_by_region(name, model.set(a), data, labels)
    trained, loss = learn(None)
    estimate = estimate_noise(loss, data.y[:64], IDENTITY, trained)
    result |= psnr_by_region("unsure_annuli", trained, data, labels)
    levels = {"eta_saddle": eta, "eta": loss.multipliers, "corrected": estimate.variance}
    for name, values in levels.items():
        result |= {f"{name}_{k}": float(v) for k, v in enumerate(values / variance)}
    if seed == options.first:
        ends = torch.stack([learn(start)[1].multipliers / variance for start in STARTS.tolist()])
        result["starts"] = ends.tolist()
        result["starts_spread"] = float((ends.amax(0) / ends.amin(0) - 1).max())
    return result


def psnr_by_region(name: str, model: nn.Module, data: Data, labels: Tensor) -> dict[str, float]:
    """PSNR under a name, and of each region under the name with its number."""
    with torch.no_grad():
        error = (model(data.test_y) - data.test_x).square().mean((0, 1))
    regions = range(int(labels.max()) + 1)
    return {name: psnr(model, data)} | {
        f"{name}_{k}": float(-10 * error[labels == k].mean().log10()) for k in regions
    }


# ---------------------------------------------------------------- 3. correlated noise
def correlated(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """PSNR of each loss, for noise correlated by a 3 x 3 box."""
    result: dict[str, Any] = {}
    for name, radii in (("smooth", (24.0, 96.0)), ("busy", (8.0, 32.0))):
        noise = StationaryNoise(torch.full((3, 3), BOX / 3), rng=torch.Generator())
        data = measured(noise, seed, radii)
        sizes = {"white": 1, "3x3": 3, "5x5": 5}
        families: dict[str, CovarianceFamily] = {k: StationaryKernel(n) for k, n in sizes.items()}
        model = Shrinkage(data.y)
        found = moments(model, data, list(families.values()), seed)
        model.whiten(found.gram)
        box = functional.conv2d(noise.kernel, noise.kernel, padding=2)[0, 0].double()
        truth = torch.stack([box[2 + i, 2 + j] for i, j in families["3x3"].lags])

        def solve(product: Tensor, gram: Tensor = found.gram) -> Tensor:
            return torch.linalg.solve(gram, product[..., None])[..., 0]

        scores = {
            "noisy": psnr(lambda y: y, data),  # type: ignore[arg-type]
            "supervised": psnr(model.set(solve(found.with_x)), data),
            "sure": psnr(model.set(solve(found.with_y - found.traces[1] @ truth)), data),
            "noise2void": psnr(model.set(noise2void(model, data, seed)), data),
        }
        for k, (label, family) in enumerate(families.items()):
            a, eta = saddle(found, k)
            scores[f"saddle_{label}"] = psnr(model.set(a), data)
            result[f"{name}_eta_saddle_{label}"] = (eta[:3] / BOX**2).tolist()
            if name == "busy" or label == "white":
                continue  # the saddle shows what there is to show
            loss = UNSURELoss(family, rate=0.02)
            trained = ascend(model, loss, data, options.ascent_steps, seed)
            scores[f"unsure_{label}"] = psnr(trained, data)
            result[f"{name}_eta_{label}"] = (loss.multipliers[:3] / BOX**2).tolist()
        result |= {f"{name}_{key}": value for key, value in scores.items()}
    return result


def ascents(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Steps that the multipliers need, with the best denoiser at each: equal or weighted steps."""
    noise = StationaryNoise(torch.full((3, 3), BOX / 3), rng=torch.Generator())
    data = measured(noise, seed, (24.0, 96.0))
    family, model = StationaryKernel(3), Shrinkage(data.y)
    found = moments(model, data, [family], seed)
    best, target = saddle(found, 0)
    score = psnr_of_weights(model, data)
    reached = score(best[0]) - 0.5
    traces = found.traces[0][0]
    dual = traces.mT @ torch.linalg.solve(found.gram[0], traces)
    values = torch.linalg.eigvalsh(dual)
    start = torch.zeros(family.count, dtype=torch.float64)
    start[0] = 0.25 * BOX**2

    def steps(move: Callable[[Tensor, Tensor], Tensor], largest: int = 200_000) -> float:
        eta, check = start, 1
        for step in range(1, largest + 1):
            eta = move(eta, dual @ (target - eta))  # the slope is tr(Psi J) / m of the best f
            if step == check:
                a = minimum(found.gram, found.with_y - found.traces[0] @ eta)
                if score(a[0]) > reached:
                    return float(step)
                check = math.ceil(1.2 * step)
        return float(largest)

    return {
        "condition": float(values[-1] / values[0]),
        "equal_steps": steps(lambda eta, g: eta + g / values[-1]),
        "weighted_steps": steps(lambda eta, g: family.ascend(eta, g, 0.1)),
        "white_eta": float(1 / dual[0, 0] * (dual[0] @ target)) / BOX**2,
    }


def psnr_of_weights(model: Shrinkage, data: Data) -> Callable[[Tensor], float]:
    """PSNR of any weights of one region, from quadratic forms of the test images."""
    truth = data.test_x.flatten(1).double()
    forms = []
    for x, y in zip(truth, data.test_y, strict=True):
        f = model.features(y[None])[0].flatten(1).double()
        forms.append((f @ f.mT / x.numel(), f @ x / x.numel(), x.square().mean()))
    gram, product, square = (torch.stack(parts) for parts in zip(*forms, strict=True))

    def score(a: Tensor) -> float:
        error = torch.einsum("i,bij,j->b", a, gram, a) - 2 * product @ a + square
        return float(-10 * error.log10().mean())

    return score


# ---------------------------------------------------------------- 4. cost of a step, and resuming
COST_STEPS, BLOCK = 5000, 500


def long_run(folder: Path, kill_at: int) -> None:
    """5000 steps with checkpoints, from the last one if there is one; killed at a step if asked."""
    torch.manual_seed(0)
    x = dead_leaves(64, 24, 1)
    noise = StationaryNoise(torch.full((3, 3), BOX / 3), rng=torch.Generator())
    y = noise(x, seed=0)
    conv = partial(nn.Conv2d, kernel_size=3, padding=1)
    model = nn.Sequential(conv(1, 8), nn.ReLU(), conv(8, 1))
    loss = UNSURELoss(StationaryKernel(3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    parts = {"model": model, "loss": loss, "optimizer": optimizer}
    path, done, seconds = folder / "checkpoint.pt", 0, []
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        done, seconds = state["step"], state["seconds"]
    reconstruct = _Plain(model)
    for step in range(done, COST_STEPS):
        if step % BLOCK == 0:
            start = time.process_time()
        batch = y[torch.randint(len(y), (4,))]
        value = loss(x_net=reconstruct(batch), y=batch, physics=IDENTITY, model=reconstruct)
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        if step + 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if (step + 1) % BLOCK == 0:
            seconds.append((time.process_time() - start) / BLOCK)
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"random": torch.get_rng_state(), "step": step + 1, "seconds": seconds}
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


class _Plain(nn.Module):
    """A network that does not look at the operator."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, y: Tensor, physics: Any = None) -> Tensor:
        return self.net(y)


def cost(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Milliseconds of a step, and the largest difference between a resumed and a whole run."""
    states = []
    for kills in ((), (2700,)):
        with tempfile.TemporaryDirectory() as folder:
            for kill in (*kills, 0):
                command = [sys.executable, __file__, "--long-run", folder, "--kill-at", str(kill)]
                code = subprocess.run(command, check=False).returncode
                if code != (-signal.SIGKILL if kill else 0):
                    raise RuntimeError(f"a run ended with {code}")
            states.append(torch.load(Path(folder) / "checkpoint.pt", weights_only=True))
    whole, resumed = states
    differences = [
        float((a - resumed[part][name]).abs().max())
        for part in ("model", "loss")
        for name, a in whole[part].items()
        if a.is_floating_point()
    ]
    return {
        "steps": COST_STEPS,
        "milliseconds_of_blocks": [round(1e3 * s, 3) for s in whole["seconds"]],
        "killed_at": 2700,
        "largest_difference": max(differences),
    }


# ---------------------------------------------------------------- all
EXPERIMENTS = {
    "bernoulli": bernoulli,
    "annuli": annuli,
    "correlated": correlated,
    "ascents": ascents,
    "cost": cost,
}


def summary(results: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean and standard deviation of all that is a number, over the seeds that have it."""
    found = {}
    for name in results[0]:
        values = [r[name] for r in results if isinstance(r.get(name), float)]
        if values:
            found[name] = [statistics.mean(values), statistics.stdev(values) if values[1:] else 0.0]
    return found


def main() -> None:
    """Run experiments, print their tables, keep what other experiments stored."""
    options = parser(__doc__ or "")
    options.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--first", type=int, default=0, help="first seed (0); tuned on 100")
    options.add_argument("--closed-steps", type=int, default=2000)
    options.add_argument("--ascent-steps", type=int, default=300, help="of correlated (300)")
    options.add_argument("--annuli-steps", type=int, default=400, help="of annuli (400)")
    options.add_argument("--long-run", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--kill-at", type=int, default=0, help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.long_run:
        long_run(given.long_run, given.kill_at)
        return
    start = time.perf_counter()
    path = (given.out or RESULTS) / "unsure.json"
    kept = json.loads(path.read_text())["experiments"] if path.exists() else {}
    for name in given.experiments or EXPERIMENTS:
        seeds = range(given.first, given.first + (1 if name == "cost" else given.seeds))
        results = []
        for seed in seeds:
            results.append(EXPERIMENTS[name](given, seed))
            kept[name] = {
                "command": shlex.join(["python", "docs/benchmarks/unsure.py", *sys.argv[1:]]),
                "seconds": round(time.perf_counter() - start, 1),
                "seeds": results,
                "mean_std": summary(results),
            }
            store("unsure", given, {"experiments": kept}, start)
        rows = [(k, f"{m:.4g}", f"{s:.2g}") for k, (m, s) in kept[name]["mean_std"].items()]
        print(f"{name}\n" + table(("", "mean", "std"), rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
