r"""
Transforms at a glance
======================

Learning without ground truth needs something that is true of all images: that a sky turned, shifted, made smaller or seen from
another side is still a possible sky. This example shows the transforms of :mod:`deepinv_astro.transform` on a disk with two
companions, and checks what one must be able to rely on: each does what its formula says, the neutral parameter changes nothing, the
inverse undoes the transform, and the adjoint, which is something else, is the exact transpose.
"""

import math
import warnings

import deepinv
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from deepinv_astro.datasets import gaussian_blob, spiral
from deepinv_astro.plot import add_colorbar, brightness_norm
from deepinv_astro.transform import (
    Amplitude,
    InclinationStretch,
    Scale,
    StarRotation,
    scale_ei_recipe,
)

# %%
# A sky
# -----
#
# A spiral seen from above, a companion to the North and a fainter one to the West. Rows and columns differ in number on
# purpose; the star is at ``(H // 2, W // 2)``.

size = (97, 121)
star = (size[0] // 2, size[1] // 2)
x = (
    spiral(size, 15.0, 0.0, 40.0, arm_width=0.35, flux=250.0)
    + gaussian_blob(size, 33.0, 5.0, fwhm=(4.0, 4.0), flux=22.0)
    + gaussian_blob(size, 38.0, 265.0, fwhm=(4.0, 4.0), flux=13.0)
)[None, None].double()

# %%
# Six transforms
# --------------
#
# :class:`~deepinv_astro.transform.Scale` reads the image at :math:`c + (p - c) / s`. A factor :math:`s` below one makes it smaller, and the centre
# :math:`c`, marked by a cross, stays in place. What surrounds a smaller image is its mirror image, or nothing.
# :class:`~deepinv_astro.transform.InclinationStretch` shows the disk from another side: distances across an axis through the star are
# multiplied by :math:`q = \cos i`. The dashed line is that axis. :class:`~deepinv_astro.transform.StarRotation` turns counter-clockwise.

corner = (25.0, 88.0)
incline = {"axis_ratio": math.cos(math.radians(60.0)), "position_angle": 40.0}
smaller = Scale(center=corner, boundary="zeros")(x, factor=0.5)
inclined = InclinationStretch()(x, **incline)
panels = {
    "Sky": (x, star),
    "Scale, s = 0.5": (smaller, corner),
    "Scale, s = 0.5, mirrored": (Scale(center=corner)(x, factor=0.5), corner),
    "Scale, s = 1.5": (Scale(center=corner)(x, factor=1.5), corner),
    "Stretch, i = 60°": (inclined, star),
    "Stretch, i = 60°, deprojected": (InclinationStretch().inverse(inclined, **incline), star),
    "Rotation, 70°": (StarRotation()(x, angle=70.0), star),
    "Amplitude, a = 0.4": (Amplitude()(x, amplitude=0.4), star),
}
norm = brightness_norm(x[0, 0].numpy())


def show(panel: Axes, image: torch.Tensor, at: tuple[float, float], title: str):
    """An image in pixels, with a cross."""
    shown = panel.imshow(image[0, 0].numpy(), origin="lower", cmap="inferno", norm=norm)
    panel.plot(*at[::-1], "+", color="cyan", markersize=11, markeredgewidth=1.6)
    panel.set(title=title, xlim=(-0.5, size[1] - 0.5), ylim=(-0.5, size[0] - 0.5))
    return shown


figure, axes = plt.subplots(
    2, 4, figsize=(14.5, 6.2), layout="constrained", sharex=True, sharey=True
)
for panel, (title, (image, at)) in zip(axes.flat, panels.items(), strict=True):
    shown = show(panel, image, at, title)
phi = math.radians(incline["position_angle"])
for panel in axes[1, :2]:
    along = 55.0 * math.cos(phi), -55.0 * math.sin(phi)
    ends = [[s + sign * d for sign in (-1, 1)] for s, d in zip(star, along, strict=True)]
    panel.plot(ends[1], ends[0], "--", color="cyan", linewidth=0.9)
for panel in axes[:, 0]:
    panel.set_ylabel("row (pixels)")
for panel in axes[1]:
    panel.set_xlabel("column (pixels)")
add_colorbar(axes[0, -1], shown, "brightness", extend="max")
add_colorbar(axes[1, -1], shown, "brightness", extend="max")

# %%
# Do they do what the formulas say?
# ---------------------------------
#
# A star at :math:`p` must come to :math:`c + s (p - c)` with the flux :math:`s^2` (or unchanged, with ``keep="flux"``); a spiral that is stretched by
# :math:`\cos 60°` must be the spiral that is *simulated* at an inclination of 60°.


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """Row and column of the mean light."""
    rows, columns = (torch.arange(n).double() for n in size)
    light = image[0, 0] / image.sum()
    return float(light.sum(1) @ rows), float(light.sum(0) @ columns)


companion = gaussian_blob(size, 33.0, 5.0, fwhm=(4.0, 4.0))[None, None].double()
small = Scale(center=corner, boundary="zeros")(companion, factor=0.5)
expected = [c + 0.5 * (p - c) for c, p in zip(corner, centroid(companion), strict=True)]
place = math.dist(centroid(small), expected)
print(f"star under s = 0.5: {place:.4f} pixels from the formula, flux {float(small.sum()):.4f}")
assert place < 0.01
assert abs(float(small.sum()) / 0.25 - 1) < 0.005

disk = {"arm_width": 0.35, "oversampling": 8}
above = spiral(size, 15.0, 0.0, 40.0, **disk)[None, None].double()
simulated = spiral(size, 15.0, 60.0, 40.0, **disk)[None, None].double()
stretched = InclinationStretch()(above, **incline)
inner = (..., slice(star[0] - 25, star[0] + 26), slice(star[1] - 25, star[1] + 26))
stretched, seen = stretched[inner], simulated[inner]  # all that it shows was in the field before
error = float((stretched * seen.sum() / stretched.sum() - seen).norm() / seen.norm())
print(f"spiral stretched to 60 degrees against the simulated one: {100 * error:.1f} per cent")
assert error < 0.02

# %%
# Nothing, and back
# -----------------
#
# With the factor one, nothing may change. ``deepinv.transform.Scale`` shifts images by up to a pixel there, scrambles those that are not square,
# and lets fine detail reappear as coarse detail. The published recipe of scale-equivariant imaging, which is built on it, is
# :func:`~deepinv_astro.transform.scale_ei_recipe`, on a grid that is right.

square = x[..., 12:109]
one = {"factor": torch.ones(1), "center": torch.full((1, 2), 0.5)}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = deepinv.transform.Scale()(square, **one)
ours = scale_ei_recipe().transform(square, factor=1.0, center=(48.0, 48.0))
changed = {
    name: float((y - square).abs().max()) for name, y in (("deepinv", theirs), ("ours", ours))
}
print(
    f"largest change at the factor one: deepinv {changed['deepinv']:.2f}, ours {changed['ours']:.0e}"
)
assert changed["ours"] < 1e-6 < 0.1 < changed["deepinv"]

# %%
# ``inverse`` scales by :math:`1 / s` about the same point. What a smaller image cannot hold is lost, at the edges of the arms and on the companions,
# nothing else. ``adjoint`` is the transpose, :math:`\langle T x, y \rangle = \langle x, T^\top y \rangle`: what gradients and operators :math:`A T_g` need.
# It puts light back where it came from, but does not undo the transform: here it returns a quarter of it.

scale = Scale(center=corner, boundary="zeros")
back = scale.inverse(scale(x, factor=0.5), factor=0.5)
transposed = scale.adjoint(scale(x, factor=0.5), factor=0.5)
loss = float((back - x).norm() / x.norm())
y = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
left, right = (scale(x, factor=0.5) * y).sum(), (x * scale.adjoint(y, factor=0.5)).sum()
print(f"there and back: {100 * loss:.1f} per cent; transposition to {float(abs(left - right)):.0e}")
assert loss < 0.08
assert abs(left - right) < 1e-10 * abs(left)
assert abs(float(transposed.sum() / x.sum()) - 0.25) < 0.01

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots(
    1, 4, figsize=(15.5, 3.4), layout="constrained", sharex=True, sharey=True
)
show(axes[0], scale(x, factor=0.5), corner, r"$T x$, s = 0.5")
show(axes[1], back, corner, r"$T^{-1} T x$")
shown = show(axes[2], transposed, corner, r"$T^\top T x$")
add_colorbar(axes[2], shown, "brightness", extend="max")
image = (back - x)[0, 0].numpy()
shown = axes[3].imshow(image, origin="lower", cmap="RdBu_r", vmin=-0.05, vmax=0.05)
axes[3].plot(*corner[::-1], "+", color="black", markersize=11, markeredgewidth=1.6)
axes[3].set_title(r"$T^{-1} T x - x$")
add_colorbar(axes[3], shown, "difference", extend="both")
axes[0].set_ylabel("row (pixels)")
for panel in axes:
    panel.set_xlabel("column (pixels)")

# %%
# Chains
# ------
#
# The transforms are deepinv's, so they compose with each other and with those of deepinv: ``*`` one after the other, ``+`` both, ``|`` either. Each
# image of the batch has its own random parameters, and all of them find their way back. The parameters of the second of one kind get a number, and the
# adjoint of a chain is exact as well.

generator = torch.Generator().manual_seed(3)
chain = (
    InclinationStretch((20.0, 60.0), rng=generator)
    * StarRotation(rng=generator)
    * Scale((0.6, 0.8), "star", boundary="zeros", rng=generator)
)
batch = torch.cat([above, simulated, companion])
parameters = chain.get_params(batch)
returned = chain.inverse(chain.transform(batch, **parameters), **parameters)
errors = (returned - batch).flatten(1).norm(dim=1) / batch.flatten(1).norm(dim=1)
for name, value in parameters.items():
    if name != "center":
        print(f"{name:15s}", " ".join(f"{v:8.2f}" for v in value.flatten().tolist()))
print("back, per cent ", " ".join(f"{100 * e:8.1f}" for e in errors.tolist()))
assert float(errors.max()) < 0.2

twice = Scale(center=corner) * Scale(center="star")
print("two of one kind:", ", ".join(twice.names))
both = {"factor": 0.5, "factor_2": 0.8}
left, right = (twice(x, **both) * y).sum(), (x * twice.adjoint(y, **both)).sum()
assert abs(left - right) < 1e-10 * abs(left)

# %%
# Where you choose the parameters, a vector means one transform for each value, each applied to the whole batch; one value for each of the ``B`` images
# has the shape ``(1, B)``.

three = torch.tensor([0.5, 0.7, 0.9])
every, each = (Scale(center="star")(batch, factor=factor) for factor in (three, three[None]))
print(f"{len(batch)} images, 3 factors: {len(every)} images; shape (1, 3): {len(each)} images")
assert (len(every), len(each)) == (9, 3)
assert torch.equal(each[2], every[8])

plt.show()
