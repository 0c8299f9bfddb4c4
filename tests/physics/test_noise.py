"""Covariances against dense twins built from their definition, and against draws."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from deepinv.physics import Denoising

from deepinv_astro.optim import PatchCovariance, Patches, PatchLikelihood
from deepinv_astro.optim.regions import annuli
from deepinv_astro.physics import (
    ADI,
    GaussianModel,
    HeteroscedasticNoise,
    LowRankNoise,
    PatchNoise,
    StationaryNoise,
    tile_index,
)
from deepinv_astro.testing import assert_batches_independent, assert_linear, dense_matrix

SIZE = (3, 4)
LABELS = torch.tensor([[0, 0, 1, 2], [0, 1, 1, -1], [2, 2, 1, -1]])


def _random(seed: int, *shape: int, low: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + torch.rand(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Case:
    """A model with parameters for a batch of two, and the covariance that its definition gives."""

    name: str
    shape: tuple[int, ...]
    model: GaussianModel
    entry: object  # of element i with element j of image n: (n, i, j) -> float

    def __str__(self) -> str:
        return self.name

    @cache  # noqa: B019 - cases live as long as the tests
    def dense(self, n: int) -> torch.Tensor:
        elements = list(product(*map(range, self.shape)))
        values = [[float(self.entry(n, i, j)) for j in elements] for i in elements]
        return torch.tensor(values, dtype=torch.float64)

    def like(self, batch: int = 2) -> torch.Tensor:
        return torch.zeros(batch, *self.shape, dtype=torch.float64)


def _heteroscedastic(per, shape, sigma, level, labels=None) -> Case:
    model = HeteroscedasticNoise(sigma, per=per, labels=labels)
    name = f"{per}-{len(shape) + 1}d"
    return Case(name, shape, model, lambda n, i, j: (i == j) * level(sigma, n, i) ** 2)


def _stationary(shape, kernel, boundary) -> Case:
    k = kernel if kernel.ndim == 4 else kernel.expand(2, 1, *kernel.shape)

    def entry(n, i, j):
        if i[:-2] != j[:-2]:
            return 0.0
        own = k[n, i[0] if k.shape[1] > 1 else 0]
        places = list(product(range(own.shape[0]), range(own.shape[1])))
        shift = [j[a] - i[a] for a in (-2, -1)]
        total = 0.0
        for p, q in product(places, places):
            lag = [q[a] - p[a] - shift[a] for a in (0, 1)]
            if boundary == "periodic":
                lag = [one % size for one, size in zip(lag, shape[-2:], strict=True)]
            total += own[p] * own[q] * (lag == [0, 0])
        return total

    name = f"stationary-{boundary}-{len(shape) + 1}d"
    return Case(name, shape, StationaryNoise(kernel, boundary), entry)


def _low_rank(name, shape, modes, sigma) -> Case:
    whole = modes.ndim > 4

    def entry(n, i, j):
        own = modes[n % len(modes)]
        level = sigma[n % len(sigma)]
        level = level if level.ndim == 0 else level[i if level.ndim > 2 else i[-2:]]
        total = (i == j) * level**2
        if whole or i[:-2] == j[:-2]:
            total = total + sum(m[i if whole else i[-2:]] * m[j if whole else j[-2:]] for m in own)
        return total

    return Case(f"low-rank-{name}", shape, LowRankNoise(modes, sigma), entry)


def _patches(shape, channels) -> Case:
    factor = _random(7, 2, channels, 3, 4, 4, low=-0.4) + 0.5 * torch.eye(4).double()
    places = {}
    for label in range(3):
        pixels = (label == LABELS).nonzero().tolist()
        places |= {tuple(pixel): (label, place) for place, pixel in enumerate(pixels)}

    def entry(n, i, j):
        if i[:-2] != j[:-2] or i[-2:] not in places or j[-2:] not in places:
            return 0.0
        (p, a), (q, b) = places[i[-2:]], places[j[-2:]]
        own = factor[n, i[0] if channels > 1 else 0, p]
        return (own @ own.T)[a, b] if p == q else 0.0

    model = PatchNoise(factor, tile_index(LABELS), SIZE)
    return Case(f"patches-{len(shape) + 1}d", shape, model, entry)


IMAGE, SEQUENCE = (2, *SIZE), (2, 3, *SIZE)
CASES = [
    _heteroscedastic("image", IMAGE, _random(0, 2), lambda s, n, i: s[n]),
    _heteroscedastic("channel", IMAGE, _random(0, 2, 2), lambda s, n, i: s[n, i[0]]),
    _heteroscedastic("channel", SEQUENCE, _random(0, 2, 2), lambda s, n, i: s[n, i[0]]),
    _heteroscedastic("frame", SEQUENCE, _random(1, 2, 3), lambda s, n, i: s[n, i[1]]),
    _heteroscedastic("pixel", IMAGE, _random(2, 2, *SIZE), lambda s, n, i: s[n][i[-2:]]),
    _heteroscedastic("pixel", SEQUENCE, _random(2, *SIZE), lambda s, n, i: s[i[-2:]]),
    _heteroscedastic("element", IMAGE, _random(3, 2, *IMAGE), lambda s, n, i: s[n][i]),
    _heteroscedastic("element", SEQUENCE, _random(3, 2, *SEQUENCE), lambda s, n, i: s[n][i]),
    _heteroscedastic(
        "region",
        SEQUENCE,
        _random(4, 2, 3),
        lambda s, n, i: s[n, LABELS[i[-2:]]] if LABELS[i[-2:]] >= 0 else 0.0,
        LABELS,
    ),
    _stationary(IMAGE, _random(5, 2, 2, 2, 3, low=-0.4), "valid"),
    _stationary(SEQUENCE, _random(5, 3, 2, low=-0.4), "valid"),
    _stationary(IMAGE, _random(5, 2, 2, 2, 3, low=-0.4), "periodic"),
    _stationary(SEQUENCE, _random(5, 2, 1, 3, 2, low=-0.4), "periodic"),
    _low_rank("frames", IMAGE, _random(6, 2, 2, *SIZE, low=-0.5), _random(6, 2)),
    _low_rank("frames-map", SEQUENCE, _random(6, 2, 2, *SIZE, low=-0.5), _random(6, 2, *SIZE)),
    _low_rank("frames-all", SEQUENCE, _random(6, 1, 2, *SIZE, low=-0.5), _random(6, 2, *SEQUENCE)),
    _low_rank("whole", IMAGE, _random(6, 2, 3, *IMAGE, low=-0.5), _random(6, 2, *SIZE)),
    _low_rank("whole-sequence", SEQUENCE, _random(6, 1, 2, *SEQUENCE, low=-0.5), _random(6, 2)),
    _patches(IMAGE, 2),
    _patches(SEQUENCE, 1),
]

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def _dense(case: Case, product_with) -> list[torch.Tensor]:
    """Matrices of the two images; the others must not mix in."""
    m = case.like()[0].numel()
    whole = dense_matrix(product_with, case.like())
    assert not whole[:m, m:].any()
    assert not whole[m:, :m].any()
    return [whole[:m, :m], whole[m:, m:]]


@each_case
def test_covariance_is_the_definition(case):
    for n, found in enumerate(_dense(case, case.model.covariance)):
        expected = case.dense(n)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert expected.abs().max() > 0.04


@each_case
def test_variance_is_the_diagonal(case):
    found = case.model.variance(case.like())
    assert found.shape == case.like().shape
    for n in range(2):
        torch.testing.assert_close(found[n].flatten(), case.dense(n).diagonal(), atol=1e-12, rtol=0)


@each_case
def test_precision_is_the_pseudo_inverse(case):
    if case.name.startswith("stationary-valid"):
        with pytest.raises(NotImplementedError, match="by CG"):
            case.model.precision(case.like())
        return
    for n, found in enumerate(_dense(case, case.model.precision)):
        expected = torch.linalg.pinv(case.dense(n), hermitian=True)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@each_case
def test_draws_have_the_covariance(case):
    number = 10_000
    generator = torch.Generator().manual_seed(1)
    draws = case.model.sample(case.like(2 * number), generator)
    for n in range(2):  # image n uses the parameters n mod b
        own = draws[n::2].flatten(1)
        sigma = case.dense(n)
        found = own.T @ own / number
        spread = (sigma.diagonal().outer(sigma.diagonal()) + sigma.square()) / number
        z = (found - sigma).abs() / spread.sqrt().clamp_min(1e-9)
        assert float(z.max()) < 5
        assert (
            float((own.mean(0).abs() / (sigma.diagonal() / number).sqrt().clamp_min(1e-9)).max())
            < 5
        )


@each_case
def test_linear_and_batches_do_not_mix(case):
    assert_linear(case.model.covariance, case.like())
    assert_batches_independent(case.model.covariance, case.like())


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_measurements(case, dtype):
    v = _random(9, 4, *case.shape).to(dtype)
    for out in (case.model(v), case.model.covariance(v), case.model.variance(v)):
        assert out.dtype == dtype
        assert out.shape == v.shape
    close = case.model.covariance(v.double())
    torch.testing.assert_close(case.model.covariance(v).double(), close, rtol=1e-4, atol=1e-5)


@each_case
def test_seed_state_and_copies(case):
    model = copy.deepcopy(case.model)
    model.rng = torch.Generator()
    x = case.like(4)
    first = model(x, seed=3)
    assert torch.equal(first, model(x, seed=3))
    assert not torch.equal(first, model(x))
    other = copy.deepcopy(model)
    other.update_parameters(**{name: 2 * getattr(model, name) for name in model.names})
    assert not torch.equal(first, other(x, seed=3))
    assert torch.equal(first, model(x, seed=3))  # nothing is shared
    other.load_state_dict(model.state_dict())
    assert torch.equal(first, other(x, seed=3))


@each_case
def test_gradients_reach_the_parameters(case):
    v = _random(10, 2, *case.shape)
    for name in case.model.names:
        model = copy.deepcopy(case.model)
        value = getattr(model, name).clone().requires_grad_()
        model.update_parameters(**{name: value})
        model.covariance(v).square().sum().backward()
        assert value.grad.abs().sum() > 0


def test_parameters_given_to_the_operator():
    """deepinv passes keywords of physics(...) and of update to the noise."""
    physics = Denoising(HeteroscedasticNoise(1.0))
    x = torch.ones(2, 1, 3, 4)
    y = physics(x, sigma=torch.tensor([0.0, 1e-3]))
    assert torch.equal(y[0], x[0])
    assert not torch.equal(y[1], x[1])
    physics.update(sigma=torch.tensor(0.0))
    assert torch.equal(physics(x), x)


def test_gain_of_the_operator_is_not_a_parameter_of_the_noise():
    noise = HeteroscedasticNoise(torch.zeros(3), per="frame")
    physics = ADI((1, 5, 4), torch.tensor([0.0, 10.0, 50.0]), gain=torch.ones(3), noise_model=noise)
    x = torch.rand(1, 1, 5, 4)
    torch.testing.assert_close(
        physics(x, gain=torch.full((3,), 2.0)), 2 * physics.A(x, gain=torch.ones(3))
    )


def test_products_of_models_add_both():
    first, second = (HeteroscedasticNoise(s) for s in (3.0, 4.0))
    y = (first * second)(torch.zeros(1, 1, 200, 200))
    assert float(y.std()) == pytest.approx(5.0, rel=0.02)


def test_annuli_of_the_likelihood():
    labels = annuli((9, 7), (4.0, 3.0), 2.0, fewest=4)
    sigma = 1.0 + torch.arange(int(labels.max()) + 1)
    noise = HeteroscedasticNoise(sigma, per="region", labels=labels)
    assert torch.equal(noise.std(torch.zeros(1, 1, 2, 9, 7))[0, 0, 0], 1.0 + labels)


def test_patch_noise_is_the_likelihood_of_patches():
    """Noise from estimated statistics has the precision that the likelihood uses."""
    r = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 12, 4, 5)))
    statistics = PatchCovariance(Patches.grid((4, 5), (2, 3))).estimate(r)
    noise = PatchNoise.from_covariance(
        statistics.precision[:, :, :, 0].inverse(), statistics.patches.index, (4, 5)
    )
    likelihood = PatchLikelihood(statistics)
    centred = r - r.mean(2, keepdim=True)
    cost, gradient = likelihood.of_residual(r)
    torch.testing.assert_close(noise.precision(centred), gradient)
    torch.testing.assert_close(0.5 * (centred * noise.precision(centred)).sum(), cost[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeteroscedasticNoise(-1.0), "must be finite and not negative, got -1"),
        (lambda: HeteroscedasticNoise(torch.tensor([1.0, torch.nan])), "got nan"),
        (lambda: HeteroscedasticNoise(torch.ones(2, 2)), r"\(\) or \(b,\), got \(2, 2\)"),
        (lambda: HeteroscedasticNoise(torch.ones(3), per="pixel"), r"\(H, W\) or \(b, H, W\)"),
        (lambda: HeteroscedasticNoise(torch.ones(3), per="element"), r"\(b, C, T, H, W\)"),
        (lambda: HeteroscedasticNoise(torch.ones(3), per="region"), "labels missing"),
        (lambda: HeteroscedasticNoise(torch.ones(3), labels=LABELS), "labels given"),
        (lambda: HeteroscedasticNoise(torch.ones(4), "region", LABELS), "from 0 to 2"),
        (lambda: HeteroscedasticNoise(torch.ones(1), "region", -LABELS.abs() - 1), "excluded"),
        (lambda: HeteroscedasticNoise(torch.ones(1), "region", LABELS.double()), "integers"),
        (lambda: StationaryNoise(torch.ones(3)), r"\(k, l\) or \(b, k, l\)"),
        (lambda: StationaryNoise(torch.full((1, 1), torch.inf)), "finite"),
        (lambda: StationaryNoise(torch.ones(1, 1), "zero"), "'valid' or 'periodic'"),
        (lambda: LowRankNoise(torch.ones(3, 4), 1.0), r"\(r, H, W\)"),
        (lambda: LowRankNoise(torch.ones(1, 3, 4), -1.0), "not negative"),
        (lambda: PatchNoise(torch.ones(2, 2, 2), tile_index(LABELS), SIZE), "3 matrices of 4 x 4"),
        (lambda: PatchNoise(torch.ones(1, 1, 1), torch.tensor([[99]]), SIZE), "between 0 and 12"),
        (lambda: PatchNoise(torch.ones(1, 2, 2), torch.tensor([[1, 1]]), SIZE), "overlap"),
        (
            lambda: PatchNoise.from_covariance(
                -torch.eye(4).expand(3, 4, 4), tile_index(LABELS), SIZE
            ),
            "3 covariances are not positive definite",
        ),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (HeteroscedasticNoise(1.0), (3, 4), "must be real, of shape"),
        (
            HeteroscedasticNoise(torch.ones(2)),
            (3, 1, 3, 4),
            "batch of 3 cannot use sigma in a batch of 2",
        ),
        (
            HeteroscedasticNoise(torch.ones(3), "channel"),
            (1, 1, 3, 4),
            r"\(3,\) for each image.* need \(1,\)",
        ),
        (HeteroscedasticNoise(torch.ones(1), "channel"), (1, 3, 3, 4), r"need \(3,\)"),
        (HeteroscedasticNoise(torch.ones(4), "frame"), (1, 1, 3, 4), "need a sequence"),
        (HeteroscedasticNoise(torch.ones(1), "frame"), (1, 1, 2, 3, 4), r"need \(2,\)"),
        (HeteroscedasticNoise(torch.ones(1, 4), "pixel"), (1, 1, 3, 4), r"need \(3, 4\)"),
        (
            HeteroscedasticNoise(torch.ones(1, 1, 3, 4), "element"),
            (1, 2, 3, 4),
            r"need \(2, 3, 4\)",
        ),
        (HeteroscedasticNoise(torch.ones(3), "region", LABELS), (1, 1, 4, 3), r"need \(4, 3\)"),
        (StationaryNoise(torch.ones(2, 1, 1)), (1, 1, 3, 4), "2 channels"),
        (StationaryNoise(torch.ones(4, 1), "periodic"), (1, 1, 3, 4), "does not fit"),
        (LowRankNoise(torch.ones(1, 1, 4), 1.0), (1, 1, 3, 4), r"need \(3, 4\)"),
        (LowRankNoise(torch.ones(1, 1, 1, 3, 4), 1.0), (1, 1, 2, 3, 4), r"need \(1, 2, 3, 4\)"),
        (LowRankNoise(torch.ones(1, 3, 4), torch.ones(1, 4)), (1, 1, 3, 4), "sigma is of shape"),
        (PatchNoise(torch.ones(3, 4, 4), tile_index(LABELS), SIZE), (1, 1, 4, 3), "frames of"),
        (PatchNoise(torch.ones(2, 3, 4, 4), tile_index(LABELS), SIZE), (1, 1, 3, 4), "2 channels"),
    ],
)
def test_nothing_is_broadcast(model, shape, message):
    for call in (model, model.covariance, model.variance):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


def test_three_axes_of_a_kernel_are_channels():
    noise = StationaryNoise(torch.tensor([[[1.0]], [[2.0]]]))
    found = noise.variance(torch.zeros(1, 2, 3, 4))
    assert torch.equal(found[0, :, 0, 0], torch.tensor([1.0, 4.0]))


def test_singular_precision_is_refused():
    with pytest.raises(ValueError, match="sigma > 0"):
        LowRankNoise(torch.ones(1, 3, 4), 0.0).precision(torch.ones(1, 1, 3, 4))
    with pytest.raises(ValueError, match="singular"):
        PatchNoise(torch.zeros(3, 4, 4), tile_index(LABELS), SIZE).precision(torch.ones(1, 1, 3, 4))
