r"""
First image: a ring and a planet out of speckles
================================================

A telescope looks at a star in pupil-stabilised mode. The halo of the star, broken into speckles, stays where it is on the
detector; the sky turns. This example takes a sequence of that kind from beginning to end: it looks at the data, subtracts the
halo the classical way, reconstructs the sky with :class:`~deepinv_astro.optim.Marginal`, searches for point sources, and
compares everything with the truth, which for once is known because the sequence is simulated.

It is the sequence of ``deepinv-astro demo``. Nothing is downloaded.
"""

import math

import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets import demo_sequence
from deepinv_astro.identifiability import mode_visibility, visibility
from deepinv_astro.metric import flux_ratio, nrmse_db, support
from deepinv_astro.models import PCA
from deepinv_astro.optim import Marginal, PointSource, PointSourceSearch, TemporalModel
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur, half_maximum_width
from deepinv_astro.plot import (
    SIGNED,
    add_colorbar,
    add_compass,
    brightness_norm,
    mark_sources,
    show_frame,
    show_sky,
    signed_norm,
)

# %%
# The data
# --------
#
# A :class:`~deepinv_astro.io.Sequence` holds the frames ``y`` of shape ``(1, C, T, H, W)``, their derotation angles, the PSF with
# unit sum, the flux of the star, its position on the detector and the pixel scale. ``read_sequence`` makes one from FITS files;
# here it comes from the simulator, together with the sky that it hides.

simulation = demo_sequence(seed=0)
sequence = simulation.sequence
frames = sequence.y[0, 0]
fwhm = half_maximum_width(sequence.psf)
turn = float(sequence.angles.max() - sequence.angles.min())
print(f"{sequence.n_frames} frames, {turn:.1f} degrees of rotation, PSF {fwhm:.2f} px wide")

# %%
# A frame shows the halo and nothing else. Less the mean over time, which removes what stays the same, and in units of the local noise
# (right), it shows speckles that change slowly, and together. The ends of the ring begin to be seen, dimmed and displaced by the mean; its
# middle and the planet are lost among the speckles.

residual = frames - frames.mean(0)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
geometry = {"center": sequence.center, "pixel_scale": sequence.pixel_scale}
shown = show_frame(axes[0], frames[24].numpy(), **geometry)
add_colorbar(axes[0], shown, "counts / pixel", extend="max")
axes[0].set_title("Frame 24")
change = (residual[24] / residual.std(0)).numpy()
shown = show_frame(axes[1], change, norm=signed_norm(change, most=4.0), **geometry)
shown.set_cmap(SIGNED)
add_colorbar(axes[1], shown, "temporal standard deviations", extend="both")
axes[1].set_title("Frame 24 less the mean, over the noise")

# %%
# Classical: subtract principal components
# ----------------------------------------
#
# Principal components of the frames describe the slow changes of the halo; what they leave is turned North up and combined
# :cite:p:`Soummer2012,Amara2012`. The number of components is a choice that an observer makes without knowing the truth. To be
# generous, here is the one that comes nearest to it.

physics = ADI((1, *frames.shape[1:]), sequence.angles, sequence.psf, center=sequence.center)
truth = blur(simulation.x, sequence.psf)  # what the instrument could show at best
candidates = {k: PCA(n_components=k)(sequence.y, physics).nan_to_num() for k in range(1, 13)}
components = max(candidates, key=lambda k: float(nrmse_db(candidates[k], truth)))
classical = candidates[components]
print(f"best number of components, by the truth: {components}")

# %%
# The marginal likelihood
# -----------------------
#
# :class:`~deepinv_astro.optim.Marginal` subtracts nothing. It asks which sky, turned and blurred as the instrument does, leaves
# residuals that look most like speckles: correlated in time, with a covariance that is unknown in each annulus and integrated out
# (:doc:`/user_guide/likelihood`). It needs neither a number of components nor a strength, for they are numbers without unit whose
# defaults serve for every sequence.

estimate = Marginal()(sequence.y, physics)
ours = blur(estimate, sequence.psf)

# %%
# Truth, PCA and our image, all as seen through the PSF and in one stretch:

norm = brightness_norm(truth[0, 0].numpy(), top=100.0)
# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
sky = {"center": (50.0, 50.0), "pixel_scale": sequence.pixel_scale, "norm": norm}
names = ("Truth", f"PCA, components: {components}", "Marginal")
for panel, image, name in zip(axes, (truth, classical, ours), names, strict=True):
    shown = show_sky(panel, image[0, 0].numpy(), **sky)
    panel.set_title(name)
    add_compass(panel)
add_colorbar(axes[2], shown, "counts / pixel", extend="both")

# %%
# The scores are errors in decibels (0 is the score of an empty image, more is better) and the flux of the ring over its true
# flux, the planet left out.

planet = simulation.planets[0]
disk = blur(simulation.disk, sequence.psf)
away = separation((101, 101), (planet.row, planet.column)) > 2 * fwhm
scores = {}
for name, image in (("PCA", classical), ("Marginal", ours)):
    whole = float(nrmse_db(image, truth))
    inside = float(nrmse_db(image, truth, support(truth)))
    flux = float(flux_ratio(image, disk, support(disk, 0.2) & away))
    scores[name] = whole
    print(
        f"{name:9s} whole {whole:5.1f} dB   object {inside:5.1f} dB   flux of the ring {flux:.2f}"
    )
assert scores["Marginal"] > scores["PCA"] + 3.0
assert 0.7 < flux < 1.2

# %%
# The planet
# ----------
#
# Point sources are not read off the image, where regularisation takes a part of their flux. They are searched in the data, with a
# matched filter, and then measured with the statistics of what remains when the source is taken out. The errors hold
# the speckles that imitate a planet: their scatter is measured at other position angles.

search = PointSourceSearch(TemporalModel.for_sequence(sequence.y, physics), threshold=5.0)
detection = search(sequence.y, physics)


def distance(source: PointSource) -> float:
    """Pixels between a source and the planet."""
    return math.hypot(source.row - planet.row, source.column - planet.column)


found = min(detection.sources, key=distance)
print(f"truth  row {planet.row:.2f}  column {planet.column:.2f}  flux {planet.flux:.0f}")
print(f"found  row {found.row:.2f}  column {found.column:.2f}  flux {found.flux:.0f}")
print(f"errors row {found.row_std:.2f}  column {found.column_std:.2f}  flux {found.flux_std:.0f}")
print(f"S/N    {found.snr:.1f}")
assert distance(found) < 1.0
assert abs(found.flux - planet.flux) < 5 * found.flux_std

# %%
# The S/N map answers the question "is there a point here?". Along the ring the answer is yes, over and over: a search for points cuts a
# disk into pieces. The map alone cannot tell a planet from a clump of a disk; the image beside it can.

figure, axis = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
snr = detection.snr[0, 0].numpy()
sky["norm"] = signed_norm(snr)
shown = show_sky(axis, snr, cmap=SIGNED, **sky)
mark_sources(axis, [found], center=(50.0, 50.0), pixel_scale=sequence.pixel_scale, color="black")
add_colorbar(axis, shown, "S/N of a point source", extend="both")
add_compass(axis, "black")
axis.set_title("S/N; the planet is circled")

# %%
# What ADI cannot see
# -------------------
#
# Whatever looks the same in all frames is lost with the halo. Of a structure that goes around the star :math:`m` times, this
# rotation keeps the fraction :math:`\lambda_m`. It is zero for :math:`m = 0`, however far the sky turns.

for m, fraction in enumerate(mode_visibility(sequence.angles, modes=5).tolist()):
    print(f"mode {m}: {fraction:.3f}")

# %%
# A ring seen face-on is all :math:`m = 0`. The inclined ring of this sequence is seen to some part only, the planet almost whole. No
# ADI method can do better on the rest: what fills it in an image is the prior, not the data.

rows, columns = torch.meshgrid(torch.arange(101.0) - 50, torch.arange(101.0) - 50, indexing="ij")
face_on = torch.exp(-((torch.hypot(rows, columns) - 27.0) ** 2) / 8)[None, None]
seen = {
    "a ring seen face-on": face_on,
    "the inclined ring": simulation.disk,
    "the planet": simulation.x - simulation.disk,
}
fractions = {name: float(visibility(image, physics)) for name, image in seen.items()}
for name, fraction in fractions.items():
    print(f"seen of {name}: {fraction:.3f}")
assert fractions["a ring seen face-on"] < 0.01 < fractions["the inclined ring"]

plt.show()
