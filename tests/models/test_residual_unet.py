"""The linear reconstruction against a dense twin, and the network that corrects it."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Inpainting
from torch import Tensor

from deepinv_astro.models.residual_unet import ResidualUNet
from deepinv_astro.models.tikhonov import Tikhonov, squared_gradient
from deepinv_astro.physics import Blur

PSF = torch.tensor([[0.0, 0.2, 0.1], [0.1, 0.3, 0.1], [0.05, 0.1, 0.05]], dtype=torch.float64)


def operator(factor: int = 1, height: int = 8, width: int = 6) -> Blur:
    return Blur(
        (1, height, width), PSF, factor, boundary="valid", sampling="mean", dtype=torch.float64
    )


def dense(apply, size: int, shape: tuple[int, ...]) -> Tensor:
    columns = torch.eye(size, dtype=torch.float64)
    return torch.stack([apply(c.reshape(1, *shape)).flatten() for c in columns], 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factor", [1, 2])
def test_tikhonov_solves_the_normal_equations(factor: int) -> None:
    physics, weight = operator(factor), 0.3
    a = dense(physics.A, 48, (1, 8, 6))
    rows = torch.diff(torch.eye(8, dtype=torch.float64), dim=0)
    columns = torch.diff(torch.eye(6, dtype=torch.float64), dim=0)
    along = torch.kron(rows, torch.eye(6)), torch.kron(torch.eye(8), columns)
    gradient = torch.cat(along).double()
    y = random(3, 1, *physics.detector_size)
    expected = torch.linalg.solve(
        a.T @ a + weight * gradient.T @ gradient, a.T @ y.flatten(1).T
    ).T.reshape(3, 1, 8, 6)
    found = Tikhonov(weight, 400, norm=1 / factor**2, condition=500.0)(y, physics)
    assert torch.allclose(found, expected, atol=1e-9)


def test_residuals_are_chebyshev_polynomials() -> None:
    """r_k = T_k((b + a - 2 l) / (b - a)) / T_k((b + a) / (b - a)) r_0 for an eigenvalue l."""
    values = torch.tensor([[[0.3, 0.5, 0.9, 1.0]]], dtype=torch.float64)
    physics = Inpainting((1, 1, 4), mask=values)
    y, k, condition = random(1, 1, 1, 4), 5, 12.0
    x = Tikhonov(1e-12, k, norm=1.0, condition=condition)(y, physics)
    first, last = (values * (y - values * v) for v in (y.mean(), x))
    high, low = 1.0, 1.0 / condition
    polynomial = torch.special.chebyshev_polynomial_t(
        torch.cat([(high + low - 2 * values**2).flatten(), torch.tensor([high + low])])
        / (high - low),
        k,
    )
    assert torch.allclose((last / first).flatten(), polynomial[:4] / polynomial[4], atol=1e-8)


def test_tikhonov_is_linear_after_few_steps_and_batches_do_not_mix() -> None:
    physics, model = operator(), Tikhonov(0.05, 5)
    y, z = random(2, 1, 6, 4), random(2, 1, 6, 4, seed=1)
    both = model(2 * y - 3 * z, physics)
    assert torch.allclose(both, 2 * model(y, physics) - 3 * model(z, physics), atol=1e-12)
    assert torch.allclose(model(y, physics)[1:], model(y[1:], physics), atol=1e-12)


def test_twenty_steps_are_enough_for_a_blur_of_two_pixels() -> None:
    line = torch.exp(-torch.arange(-6.0, 7.0).double().square() / 8)
    psf = torch.outer(line, line) / line.sum() ** 2
    physics = Blur((1, 40, 44), psf, boundary="valid", dtype=torch.float64)
    y = physics.A(random(1, 1, 40, 44).cumsum(-1)) + 0.02 * random(1, 1, 28, 32, seed=1)
    few, many = (Tikhonov(0.02, n)(y, physics)[..., 8:-8, 8:-8] for n in (20, 400))
    assert float((few - many).norm() / many.std() / many.numel() ** 0.5) < 0.05


def test_gradient_is_that_of_the_quadratic_form() -> None:
    x = random(1, 5, 7).requires_grad_()
    energy = x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum()
    (expected,) = torch.autograd.grad(energy / 2, x)
    assert torch.allclose(squared_gradient(x.detach()), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (5, 9)])
def test_network_takes_any_size(height: int, width: int) -> None:
    torch.manual_seed(0)
    model = ResidualUNet(Tikhonov(0.1), features=4)
    torch.nn.init.normal_(model.last.weight)
    x = random(2, 1, height, width).float()
    found = model.correction(x)
    assert found.shape == x.shape
    assert torch.allclose(model.correction(x[1:]), found[1:], atol=1e-5)


def test_network_follows_the_unit_and_the_level_of_the_images() -> None:
    torch.manual_seed(0)
    physics = operator().to(torch.float32)
    small = ResidualUNet(Tikhonov(0.1), features=4)
    torch.nn.init.normal_(small.last.weight)
    large = ResidualUNet(Tikhonov(0.1), features=4, offset=300.0, scale=50.0)
    weights = {k: v for k, v in small.state_dict().items() if k not in ("offset", "scale")}
    large.load_state_dict(weights, strict=False)
    y = random(1, 1, 6, 4).float()
    assert torch.allclose(large(300 + 50 * y, physics), 300 + 50 * small(y, physics), rtol=1e-4)


def test_data_that_need_a_gradient_get_the_whole_one() -> None:
    torch.manual_seed(0)
    physics, model = operator(), ResidualUNet(Tikhonov(0.1, 4), features=4).double()
    torch.nn.init.normal_(model.last.weight, std=0.1)
    y = random(1, 1, 6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: model(v, physics), (y,), atol=1e-5)
    model(y.detach(), physics).sum().backward()  # and the weights theirs without it
    assert float(model.last.bias.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"weight": 0.0}, "positive"), ({"weight": 1.0, "condition": 1.0}, "condition")],
)
def test_numbers_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tikhonov(**arguments)
    with pytest.raises(ValueError, match="scale must be positive"):
        ResidualUNet(Tikhonov(1.0), scale=0.0)
