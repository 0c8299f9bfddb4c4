"""Scaling along each axis against scipy, torch, dense matrices and finite differences."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn.functional import grid_sample, interpolate

from deepinv_astro.physics.functional.scaling import (
    Antialias,
    Continuation,
    Kernel,
    ScaleSampler,
    kernel_values,
    mirror,
)
from deepinv_astro.testing import dense_matrix

FACTOR = torch.tensor([0.6, 1.7], dtype=torch.float64)
CENTER = torch.tensor([[2.3, 1.1], [4.2, 2.7]], dtype=torch.float64)
CHOICES = [(k, a, b) for k in Kernel for a in Antialias for b in Continuation]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def sampler_of(
    factor: float, center: tuple[float, float], size: tuple[int, int], *choice: str
) -> ScaleSampler:
    return ScaleSampler(
        torch.tensor([factor], dtype=torch.float64),
        torch.tensor([center], dtype=torch.float64),
        size,
        *choice,
    )


def positions(size: int, factor: float, center: float) -> np.ndarray:
    return center + (np.arange(size) - center) / factor


@pytest.mark.parametrize(("kernel", "order"), [("spline", 3), ("linear", 1)])
@pytest.mark.parametrize("factor", [0.37, 0.75, 1.6])
def test_without_antialiasing_it_is_scipy(kernel, order, factor):
    x, center = noise(1, 1, 17, 12), (4.4, 8.1)
    sampler = sampler_of(factor, center, (17, 12), kernel, "none")
    grid = np.meshgrid(
        positions(17, factor, center[0]), positions(12, factor, center[1]), indexing="ij"
    )
    expected = map_coordinates(x[0, 0].numpy(), grid, order=order, mode="mirror")
    np.testing.assert_allclose(sampler.forward(x)[0, 0].numpy(), expected, atol=1e-5)


def test_bicubic_is_that_of_torch():
    x, factor, center = noise(1, 2, 13, 9), 0.45, (3.3, 5.9)
    rows, columns = (
        2 * torch.from_numpy(positions(n, factor, c)) / (n - 1) - 1
        for n, c in zip((13, 9), center, strict=True)
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None]
    expected = grid_sample(x, grid, "bicubic", "reflection", align_corners=True)
    sampler = sampler_of(factor, center, (13, 9), "bicubic", "none")
    torch.testing.assert_close(sampler.forward(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [1 / 2, 1 / 3])
def test_antialiased_triangles_are_those_of_torch(factor):
    """torch.nn.functional.interpolate scales about the outer corner, at (-1/2, -1/2)."""
    x = noise(1, 1, 36, 24)
    small = interpolate(
        x, scale_factor=(factor, factor), mode="bilinear", antialias=True, align_corners=False
    )
    sampler = sampler_of(factor, (-0.5, -0.5), (36, 24), "linear")
    rows, columns = small.shape[-2:]
    ours = sampler.forward(x)[..., 1 : rows - 1, 1 : columns - 1]  # theirs has no mirror images
    torch.testing.assert_close(ours, small[..., 1:-1, 1:-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", Kernel)
def test_kernels_interpolate_and_keep_constants(kernel):
    integers = torch.arange(-12.0, 13.0, dtype=torch.float64)
    delta = (integers == 0).double()
    torch.testing.assert_close(kernel_values(integers, kernel), delta, rtol=0, atol=1e-12)
    for fraction in (0.0, 0.2, 0.7):
        total = float(kernel_values(integers + fraction, kernel).sum())
        assert total == pytest.approx(1, abs=1e-5)


def test_mirror():
    assert mirror(torch.arange(-4, 9), 4).tolist() == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert mirror(torch.arange(-2, 3), 1).tolist() == [0] * 5


@pytest.mark.parametrize(("kernel", "antialias", "boundary"), CHOICES)
def test_adjoint_identity_gradients(kernel, antialias, boundary):
    size, choice = (7, 5), (kernel, antialias, boundary)
    x = noise(2, 1, *size)
    sampler = ScaleSampler(FACTOR, CENTER, size, *choice)
    forward, adjoint = (dense_matrix(f, x) for f in (sampler.forward, sampler.adjoint))
    torch.testing.assert_close(adjoint, forward.mT, rtol=0, atol=1e-14)
    assert float(forward[:35, 35:].abs().max()) == 0  # images do not mix

    one = ScaleSampler(torch.ones(2), CENTER, size, *choice)
    torch.testing.assert_close(one.forward(x), x, rtol=0, atol=1e-12)
    if boundary is Continuation.REFLECT:
        flat = torch.full_like(x, 3.0)
        torch.testing.assert_close(sampler.forward(flat), flat, rtol=0, atol=1e-12)

    inputs = tuple(v.clone().requires_grad_() for v in (x, FACTOR, CENTER))
    for name in ("forward", "adjoint"):
        assert torch.autograd.gradcheck(
            lambda v, f, c, name=name: getattr(ScaleSampler(f, c, size, *choice), name)(v), inputs
        )


def test_second_derivatives():
    inputs = (noise(1, 1, 5, 4), FACTOR[:1].clone(), CENTER[:1].clone())
    for v in inputs:
        v.requires_grad_()
    for name in ("forward", "adjoint"):
        assert torch.autograd.gradgradcheck(
            lambda v, f, c, name=name: getattr(ScaleSampler(f, c, (5, 4)), name)(v), inputs
        )


def test_zeros_beyond_the_edge():
    """Half the size about a corner: the first half of each axis shows something, the rest nothing."""
    x = noise(1, 1, 9, 6) + 1
    sampler = sampler_of(0.5, (0.0, 0.0), (9, 6), "linear", "none", "zeros")
    expected = torch.zeros_like(x)
    expected[..., :5, :3] = x[..., ::2, ::2]
    torch.testing.assert_close(sampler.forward(x), expected)


def test_aliases_are_removed():
    """A pattern too fine for half the size: sampled it becomes a coarse one, smoothed it goes."""
    columns = torch.arange(64, dtype=torch.float64)
    x = torch.cos(2 * torch.pi * 0.4 * columns).expand(1, 1, 48, 64)
    left = {
        name: float(sampler_of(0.5, (24, 32), (48, 64), "spline", name).forward(x).std())
        for name in Antialias
    }
    assert left["none"] > 0.65
    assert left["bandlimited"] < 0.02


def test_single_precision_and_tiny_images():
    for size in ((1, 4), (2, 1), (1, 1)):
        x = noise(1, 1, *size).float()
        sampler = ScaleSampler(torch.tensor([0.7]), torch.tensor([[0.0, 0.3]]), size)
        y = sampler.forward(x)
        assert y.dtype == torch.float32
        assert y.shape == x.shape
        assert float(x.min()) - 0.3 < float(y.mean()) < float(x.max()) + 0.3
