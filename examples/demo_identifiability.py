r"""
What a blur and a turning sky let a network learn
=================================================

A network that is trained without ground truth learns from two sources: from the measurements, and from the assumption that the images look
alike after a transformation, such as a shift, a rotation or a change of scale. The second source is worth nothing where the transformation
shows no more than the measurements did. This can be known before any training: :func:`~deepinv_astro.identifiability.identify` measures it for any
operator and any transformation (the theory is in :doc:`/user_guide/invariance`).
"""

import matplotlib.pyplot as plt
import torch
from deepinv.transform import Shift

from deepinv_astro.identifiability import (
    angular_harmonics,
    identify,
    measured_mode_visibility,
    mode_visibility,
    pca_throughput,
    remove_mean,
)
from deepinv_astro.physics import ADI, Blur
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.plot import add_colorbar, draw_adi_visibility, draw_identifiability
from deepinv_astro.transform import InclinationStretch, Scale, StarRotation

# %%
# A blur
# ------
#
# A Gaussian PSF with a standard deviation of 2 pixels, on small images, with noise of 5/255. A *direction* is a pattern in which an image may
# differ from another; the operator sees it if its eigenvalue is above that of the noise, :math:`\lambda > \sigma^2 / \sigma_x^2`, where images
# have the standard deviation :math:`\sigma_x = 0.25`. Images are zero outside a disc, so that no rotation cuts their corners.

pixels, noise = 20, 5 / 255
size, like = (1, pixels, pixels), torch.zeros(1, 1, pixels, pixels, dtype=torch.float64)
r = torch.arange(pixels, dtype=torch.float64) - pixels // 2
disc = torch.hypot(r[:, None], r) < pixels / 2
blur = Blur(size, gaussian_psf((13, 13), 2.355 * 2.0), dtype=torch.float64)

results = {}
for name, transform in (
    ("Shift", Shift()),
    ("Rotation about the centre", StarRotation()),
    ("Scale", Scale(factors=(0.5, 0.75))),
):
    results[name] = identify(
        blur, like, transform, support=disc, noise=noise, floor=(noise / 0.25) ** 2, name=name
    )
    print(results[name], end="\n\n")

# %%
# Shifts commute with the blur, and so does a rotation if the PSF is round: what they teach is what the measurements said already. A smaller image of
# the same kind of scene, though, has the details that the blur hides at a place where it does not: scale shows new directions.

assert results["Shift"].rank_gain == 1
assert abs(results["Shift"].gain_db) < 0.01
assert results["Rotation about the centre"].gain_db < 0.3
assert results["Scale"].rank_gain > 2
assert results["Scale"].gain_db > 1
for name, useless in (("Shift", True), ("Rotation about the centre", True), ("Scale", False)):
    assert ("adds no information" in results[name].verdict) is useless

figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
for ax, (name, result) in zip(axes, results.items(), strict=True):
    draw_identifiability(ax, result)
    ax.set_title(f"{name}: {max(result.gain_db, 0):.1f} dB")
    ax.label_outer()

# %%
# The decibels are those of a Wiener estimate if each image were seen through all the transformed operators: an upper bound in information, good for
# ranking transformations of one operator. They are not the gain of a training.
#
# A sky that turns
# ----------------
#
# In angular differential imaging the static halo is unknown, and only what changes in time counts. An angular mode :math:`m` of the sky keeps
# the fraction :math:`\lambda_m = 1 - |\varphi(m)|^2` of its energy: by the angles alone, or by applying the operator to images of that mode.

angles = torch.linspace(0, 80, 12, dtype=torch.float64)
wide = ADI((1, 61, 61), angles, dtype=torch.float64)
closed, measured = mode_visibility(angles, 9), measured_mode_visibility(wide, 9)
assert float((closed - measured).abs().max()) < 1e-3
modes = [
    {"mode": m, "visibility": float(c), "measured": float(o)}
    for m, (c, o) in enumerate(zip(closed, measured, strict=True))
]

field = 25
sky, like = (1, field, field), torch.zeros(1, 1, field, field, dtype=torch.float64)
adi = ADI(sky, angles, dtype=torch.float64)
r = torch.arange(field, dtype=torch.float64) - field // 2
ring = angular_harmonics([0], (field, field), (field // 2, field // 2), 5.0, 1.0)[:1]
for name, transform in (
    ("Rotation about the star", StarRotation()),
    ("Scale about the star", Scale((0.6, 0.8), center="star", boundary="zeros")),
    ("The inclination stretch", InclinationStretch((0.0, 60.0), keep="brightness")),
):
    results[name] = identify(
        adi,
        like,
        transform,
        projection=remove_mean,
        support=torch.hypot(r[:, None], r) < 7,
        images=ring,
        floor=3e-3,
        name=name,
    )
    print(results[name], end="\n\n")

figure, axes = plt.subplots(
    1, 5, figsize=(16, 3), layout="constrained", width_ratios=[1.5, 1.5, 1, 1, 1]
)
draw_adi_visibility(axes[0], modes)
draw_identifiability(axes[1:], results["Rotation about the star"], labels=("alone", "rotated"))

# %%
# What is not seen are rings, one for each radius. Rotations and dilations about the star turn rings into rings: training with them cannot
# teach what a ring is. The stretch, by which a disk is seen at another inclination, makes ellipses of them, and those are seen in part.

for name in ("Rotation about the star", "Scale about the star"):
    assert "adds no information" in results[name].verdict
    assert float(results[name].visibility_transformed) < 0.01
stretched = results["The inclination stretch"]
assert 0.05 < float(stretched.visibility_transformed) < 0.5
assert "weakly identifiable" in stretched.verdict

# %%
# "Weakly" is meant: most of the energy of a stretched ring is still invisible, so that what is learned of the rings comes with errors that are
# several times larger, and no disk population is exactly the same after a stretch. Do not expect the flux of face-on rings from it.
#
# Principal components take more
# ------------------------------
#
# The same question for planets: which fraction of one is left when the mean and :math:`k` principal components of the frames are removed? To first
# order in the planet's brightness this is a closed form for each position, self-subtraction included, and needs no injection.

generator = torch.Generator().manual_seed(0)
slow = torch.randn(12, 12, generator=generator, dtype=torch.float64).cumsum(0)
speckles = torch.randn(12, 61, 61, generator=generator, dtype=torch.float64)
speckles = torch.fft.ifft2(torch.fft.fft2(speckles) * torch.fft.fft2(torch.nn.functional.pad(
    gaussian_psf((9, 9), 4.0).double(), (0, 52, 0, 52)))).real  # fmt: skip
frames = torch.einsum("tk,khw->thw", slow * 2.0 ** -torch.arange(12), speckles)
planets = ADI((1, 61, 61), angles, gaussian_psf((9, 9), 4.0), dtype=torch.float64)
where = torch.zeros(61, 61, dtype=torch.bool)
where[4:57:2, 4:57:2] = True
left = pca_throughput(frames, planets, [0, 1, 3, 6], where=where)

figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for ax, k, flux in zip(axes, (0, 1, 3, 6), left.flux, strict=True):
    shown = ax.imshow(flux[4:57:2, 4:57:2], origin="lower", vmin=0, vmax=1, extent=(3, 57, 3, 57))
    ax.set(title=f"k = {k}", xlabel="column (pixels)")
axes[0].set_ylabel("row (pixels)")
add_colorbar(axes[-1], shown, "flux of a planet that is left")

kept = [float(flux[where].mean()) for flux in left.flux]
print("flux left, mean of the field:", " ".join(f"{v:.2f}" for v in kept))
assert kept == sorted(kept, reverse=True)
assert kept[-1] < 0.7 * kept[0]
