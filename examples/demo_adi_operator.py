r"""
The operator of angular differential imaging
============================================

:class:`~deepinv_astro.physics.ADI` maps an image of the sky to the sequence that the instrument would record without the
halo of the star,

.. math::

   y_t = g_t \, V \Gamma H_t Q_t \, x ,

with :math:`Q_t` the rotation of the sky by minus the derotation angle, :math:`H_t` the PSF, :math:`\Gamma` the transmission of the
coronagraph, :math:`V` the crop to the detector and :math:`g_t` the gain of the frame. It is a ``LinearPhysics`` of deepinv: every
solver, network and loss that takes one takes this.

This example checks, one after the other, what one must be able to rely on: directions, the adjoint, gradients with respect to the
parameters, and the accuracy of the interpolation.
"""

import math

import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets import ring
from deepinv_astro.physics import ADI
from deepinv_astro.plot import add_compass, show_frame, show_sky

torch.manual_seed(0)

# %%
# A sky and its frames
# --------------------
#
# Images are indexed ``[row, column]`` and shown with row 0 at the bottom; North is up and East is left. The sky below has an inclined
# ring and a planet at a position angle of 60 degrees, that is up and left. Four frames follow, with derotation angles of 0, 30, 60 and 90
# degrees. Turning a frame *counter-clockwise* by its angle brings North up; so the frames show the sky turned *clockwise*.

size = (71, 61)  # rows and columns differ on purpose: swapped axes would show
star = (size[0] // 2, size[1] // 2)
angles = torch.tensor([0.0, 30.0, 60.0, 90.0], dtype=torch.float64)
away, position_angle = 24.0, math.radians(60.0)
row = round(star[0] + away * math.cos(position_angle))
column = round(star[1] - away * math.sin(position_angle))

x = ring(size, 17.0, 65.0, 20.0)[None, None]
x = x / x.max()
x[0, 0, row, column] = 12.0

u = torch.arange(-7.0, 8.0, dtype=torch.float64)
width = 3.9 / (2 * math.sqrt(2 * math.log(2)))  # a Gaussian PSF, 3.9 pixels wide
psf = torch.exp(-(u[:, None] ** 2 + u**2) / (2 * width**2))
psf = psf / psf.sum()

physics = ADI((1, *size), angles, psf, dtype=torch.float64)
y = physics(x)
print("sky", tuple(x.shape), "-> sequence", tuple(y.shape))

figure, axes = plt.subplots(1, 5, figsize=(17, 3.9), layout="constrained")
show_sky(axes[0], x[0, 0].numpy(), center=star)
add_compass(axes[0])
axes[0].set_title("sky $x$")
for panel, frame, angle in zip(axes[1:], y[0, 0], angles, strict=True):
    show_frame(panel, frame.numpy(), center=star)
    panel.set_title(rf"frame, $\theta$ = +{angle:.0f}°")

# %%
# The planet of the last frame, whose derotation angle is +90 degrees, stands at the position angle :math:`60° - 90° = -30°`: above
# the star and to the right. That is the whole convention, and the assertion that would fail if it were reversed.

planet = torch.zeros_like(x)
planet[0, 0, row, column] = 1.0
last = physics(planet)[0, 0, -1]
peak = divmod(int(last.argmax()), size[1])
expected = (star[0] - (column - star[1]), star[1] + (row - star[0]))
print("planet in the last frame: row and column", peak, "expected", expected)
assert peak == expected

# %%
# The adjoint is exact
# --------------------
#
# :math:`\langle A x, y\rangle = \langle x, A^\top y\rangle` to rounding. Turning frames back by :math:`+\theta_t` is *not* the transpose of an
# interpolated rotation; the exact one is what keeps gradients, and so solvers, right.

a, b = torch.randn_like(x), torch.randn_like(y)
left, right = (physics(a) * b).sum(), (a * physics.A_adjoint(b)).sum()
error = float((left - right).abs() / (physics(a).norm() * b.norm()))
print(f"relative mismatch of the adjoint: {error:.1e}")
assert error < 1e-12

# %%
# Gradients to the parameters
# ---------------------------
#
# Angles, star centre, PSF, transmission and gains are buffers, and can be passed to ``A`` for one call. Gradients flow to them. Here the star
# centre, half a pixel wrong at the start, is recovered by a few steps of descent, given the sky.

true_center = torch.tensor([35.4, 29.8], dtype=torch.float64)
measured = physics.variant(center=true_center).A(x)
center = torch.tensor([35.0, 30.0], dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.LBFGS([center], tolerance_change=0.0, line_search_fn="strong_wolfe")


def misfit() -> torch.Tensor:
    optimizer.zero_grad()
    cost = (physics.A(x, center=center) - measured).square().mean()
    cost.backward()
    return cost


optimizer.step(misfit)
physics.update(center=torch.tensor([float(star[0]), float(star[1])], dtype=torch.float64))
print("star centre found:", [round(c, 6) for c in center.tolist()])
assert (center - true_center).abs().max() < 1e-4

# %%
# The same derivative, checked against finite differences, for the angle of each frame:

weights = torch.randn_like(y)


def inner(theta: torch.Tensor) -> torch.Tensor:
    return (weights * physics.A(x, angles=theta)).sum()


theta = angles.clone().requires_grad_()
(gradient,) = torch.autograd.grad(inner(theta), theta)
h = 1e-4
with torch.no_grad():
    steps = h * torch.eye(4, dtype=torch.float64)
    numerical = torch.stack([(inner(angles + s) - inner(angles - s)) / (2 * h) for s in steps])
physics.update(angles=angles)
print("gradient ", [round(g, 4) for g in gradient.tolist()])
print("numerical", [round(g, 4) for g in numerical.tolist()])
assert torch.allclose(gradient, numerical, rtol=1e-4, atol=1e-6)

# %%
# How accurate is the interpolation?
# ----------------------------------
#
# A frame is the sky at places between the pixels. What interpolation takes from a point source is lost before any noise, so it is
# worth measuring: the flux of a planet, by a fit of the PSF, in frames turned by many angles. Bilinear interpolation, as in many codes, is
# computed here with ``torch``'s own; the cubic B-spline is the package's default and three shears in Fourier space its reference.


def gaussian(fwhm: float, half: int = 12) -> torch.Tensor:
    """A Gaussian PSF of unit sum."""
    v = torch.arange(-half, half + 1.0, dtype=torch.float64)
    kernel = torch.exp(-(v[:, None] ** 2 + v**2) * 4 * math.log(2) / fwhm**2)
    return kernel / kernel.sum()


def at(fwhm: float, rows: torch.Tensor, columns: torch.Tensor, side: int) -> torch.Tensor:
    """The Gaussian itself at positions between the pixels, (T, side, side)."""
    v = torch.arange(side, dtype=torch.float64)
    square = (v[:, None] - rows[:, None, None]) ** 2 + (v - columns[:, None, None]) ** 2
    blob = torch.exp(-square * 4 * math.log(2) / fwhm**2)
    return blob / (math.pi * fwhm**2 / (4 * math.log(2)))


def bilinear(frame: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Frames of the blurred sky by bilinear interpolation."""
    cos, sin = torch.cos(torch.deg2rad(turns)), torch.sin(torch.deg2rad(turns))
    zero = torch.zeros_like(cos)
    matrix = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    grid = torch.nn.functional.affine_grid(
        matrix, (len(turns), 1, *frame.shape), align_corners=True
    )
    stack = frame.expand(len(turns), 1, *frame.shape)
    return torch.nn.functional.grid_sample(stack, grid, align_corners=True)[:, 0]


side, middle, reach = 81, 40, 17
turns = torch.linspace(1.0, 89.0, 23, dtype=torch.float64)
widths = (2.0, 2.5, 3.0, 3.9, 4.8)
losses: dict[str, list[float]] = {"bilinear": [], "spline": [], "shear": []}
point = torch.zeros(1, 1, side, side, dtype=torch.float64)
point[0, 0, middle + reach, middle] = 1.0
rotation = torch.deg2rad(turns)
rows, columns = middle + reach * rotation.cos(), middle + reach * rotation.sin()
for fwhm in widths:
    templates = at(fwhm, rows, columns, side)
    results = {
        name: ADI(
            (1, side, side), turns, gaussian(fwhm), interpolation=name, dtype=torch.float64
        ).A(point)[0, 0]
        for name in ("spline", "shear")
    }
    blurred = torch.zeros(side, side, dtype=torch.float64)
    blurred[middle + reach - 12 : middle + reach + 13, middle - 12 : middle + 13] = gaussian(fwhm)
    results["bilinear"] = bilinear(blurred, turns)
    for name, result in results.items():
        fitted = (result * templates).sum((1, 2)) / templates.square().sum((1, 2))
        losses[name].append(100 * float((fitted - 1).abs().mean()))

print("FWHM (px)  " + "  ".join(f"{w:7.1f}" for w in widths))
for name, values in losses.items():
    print(f"{name:10s} " + "  ".join(f"{v:6.3f}%" for v in values))
assert losses["spline"][0] < 1.0
assert losses["spline"][3] < 0.2
assert max(losses["shear"]) < 0.2
assert losses["bilinear"][3] > 10 * losses["spline"][3]

# %%

figure, axis = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
for (name, values), marker in zip(losses.items(), "sov", strict=True):
    axis.semilogy(widths, values, marker=marker, label=name)
axis.set(xlabel="FWHM of the PSF (pixels)", ylabel="error of the flux (%)")
axis.set_title("Flux of a point source in a turned frame")
axis.grid(alpha=0.3)
axis.legend()

plt.show()
