r"""
β Pictoris b, step by step
==========================

β Pictoris has a planet at about 450 mas, found in sequences like the one used here: VLT/NACO in L', 31 January 2013, 61 frames behind a
vortex coronagraph, 81 degrees of rotation :cite:p:`Absil2013`. This example goes from the files to the planet's position and
contrast, and compares them with the literature: a separation of 452 ± 10 mas, a position angle of 211.2 ± 1.3°, and a contrast of 7.7
to 8.0 magnitudes in L'.

The files are looked for in the folder named by the environment variable ``DEEPINV_ASTRO_DATA``. Where they are not found, a simulated
twin with the same angles, size, centre and planet takes their place, so that the page can be built anywhere.
``BetaPictoris()`` without arguments downloads the real ones.
"""

import math

import astropy.units as u
import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets import BetaPictoris, Planet, simulate_sequence
from deepinv_astro.models import PCA
from deepinv_astro.optim import Marginal, PointSourceSearch, TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.centering import estimate_center
from deepinv_astro.physics.functional.psf import blur, half_maximum_width
from deepinv_astro.plot import (
    SIGNED,
    add_colorbar,
    add_compass,
    mark_sources,
    show_frame,
    show_sky,
    signed_norm,
)


def simulated_twin():
    """The same geometry and planet, with simulated speckles."""
    t = torch.linspace(-1.0, 1.0, 61, dtype=torch.float64)
    # slow, fast, slow: a passage of the meridian
    track = 26.4 + 40.7 * torch.atan(1.2 * t) / math.atan(1.2)
    planet = Planet(separation_px=452 / 27.19, position_angle_deg=211.2, contrast=9.4e-4)
    simulated = simulate_sequence(
        track - 104.39, planets=[planet], center=(51.0, 51.0), target="simulated twin", seed=3
    )
    return simulated.sequence


# %%
# Read
# ----
#
# The sequence is three files: cube, derotation angles, PSF. ``BetaPictoris`` calls ``read_sequence`` with what the files do not say: the star
# is at row 51, column 51, a pixel is 27.19 mas, and true North is reached after −104.39° more. The flux of the star was published in an
# aperture of one FWHM; ``read_sequence`` converts it to the total by means of the PSF. Every correction is recorded.

try:
    sequence = BetaPictoris(download=False)
except FileNotFoundError:
    sequence = simulated_twin()
print(sequence.target, tuple(sequence.y.shape))
print("\n".join(sequence.provenance[-3:]))  # the last three corrections

# %%
# Look
# ----
#
# Before anything else: how far does the sky turn, how wide is the PSF, and is the star where it is said to be? The halo is symmetric
# about the star, coronagraph or not, and so tells where it is.

fwhm = half_maximum_width(sequence.psf)
mean = sequence.y[0, 0].nanmean(0)
halo = estimate_center(mean)
turn = float(sequence.angles.max() - sequence.angles.min())
print(f"rotation {turn:.1f} degrees, FWHM {fwhm:.2f} px")
print(f"star given at {sequence.center}")
print(f"halo symmetric about ({halo.row:.2f}, {halo.column:.2f})")
print(f"with errors of ({halo.row_std:.2f}, {halo.column_std:.2f})")
assert math.dist(sequence.center, halo[:2]) < 0.6

# %%
# A frame (left) is the halo. In its change in time (right) the planet is still hidden, but the speckles have a statistic
# that a likelihood can use: the standard deviation falls by a factor of about forty from the mask to the edge.

frames = sequence.y[0, 0]
where = {"center": sequence.center, "pixel_scale": sequence.pixel_scale}
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
shown = show_frame(axes[0], frames[30].numpy(), **where)
add_colorbar(axes[0], shown, "counts / pixel", extend="max")
axes[0].set_title("Frame 30")
shown = show_frame(axes[1], frames.std(0).numpy(), **where)
add_colorbar(axes[1], shown, "counts / pixel", extend="max")
axes[1].set_title("Standard deviation in time")

# %%
# The classical way
# -----------------
#
# Principal components, subtracted; frames turned North up and combined. The planet appears, dimmed by self-subtraction and
# between two dark wings, which are not on the sky.

physics = ADI((1, *frames.shape[1:]), sequence.angles, sequence.psf, center=sequence.center)
classical = PCA(n_components=10)(sequence.y, physics)

# %%
# The marginal likelihood
# -----------------------
#
# No number of components and no strength is set. The image is the sky itself, not blurred; it is shown as the instrument would show it.

estimate = Marginal()(sequence.y, physics)
ours = blur(estimate, sequence.psf)

# %%
# Position, flux, contrast
# ------------------------
#
# The search works on the data, not on the image. Detection uses the statistics of the data as they are; flux and position are then fitted
# with the statistics of what remains without the source, which removes the self-subtraction.

search = PointSourceSearch(TemporalModel.for_sequence(sequence.y, physics), threshold=5.0)
detection = search(sequence.y, physics)
b = detection.sources[0]

# %%
# On the sky image North is towards increasing rows, East towards decreasing columns, and the star is at ``sky_center``.

scale = sequence.pixel_scale.to_value(u.mas)
north, east = b.row - float(physics.sky_center[0]), float(physics.sky_center[1]) - b.column
separation = math.hypot(north, east)
position_angle = math.degrees(math.atan2(east, north)) % 360
separation_std = math.hypot(north * b.row_std, east * b.column_std) / separation
angle_std = math.degrees(math.hypot(east * b.row_std, north * b.column_std) / separation**2)
contrast = b.flux / float(sequence.star_flux[0])
contrast_std = b.flux_std / float(sequence.star_flux[0])
magnitude = -2.5 * math.log10(contrast)
print(f"S/N            {b.snr:.1f}")
mas, mas_std = scale * separation, scale * separation_std
print(f"separation     {mas:.1f} +- {mas_std:.1f} mas   (literature 452 +- 10)")
print(f"position angle {position_angle:.2f} +- {angle_std:.2f} deg   (211.2 +- 1.3)")
print(f"contrast       {contrast:.2e} +- {contrast_std:.1e}")
print(f"               {magnitude:.2f} mag   (7.7 to 8.0)")

assert b.snr > 8
assert abs(mas - 452) < 14
assert abs(position_angle - 211.2) < 2.1
assert abs(contrast / 9.4e-4 - 1) < 0.15

# %%
# The errors are those of the fit. Speckles that imitate a planet for the whole night are not in them (injections at the same separation
# tell by how much they scatter), nor are the star's centre, of which 0.1 px is 2.7 mas in separation or 0.35° in position angle, true North and the
# pixel scale. An observer quotes them all.
#
# Diffuse light of little significance in the S/N map, such as that around the star in the middle panel, is not to be believed: most of
# its energy is in angular modes that the rotation hardly sees.

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
sky = {"center": tuple(physics.sky_center.tolist()), "pixel_scale": sequence.pixel_scale}
top = 0.5 * float(ours.max())
for panel, image, name in zip(
    axes, (classical, ours), ("PCA, 10 components", "Marginal"), strict=False
):
    stretch = plt.Normalize(-top, top)  # zero is white, what subtraction overdid is blue
    shown = show_sky(panel, image[0, 0].numpy(), norm=stretch, cmap=SIGNED, **sky)
    add_colorbar(panel, shown, "counts / pixel", extend="both")
    add_compass(panel, "black")
    panel.set_title(name)
snr = detection.snr[0, 0].numpy()
shown = show_sky(axes[2], snr, norm=signed_norm(snr), cmap=SIGNED, **sky)
add_colorbar(axes[2], shown, "S/N of a point source", extend="both")
add_compass(axes[2], "black")
mark_sources(axes[2], [b], color="black", **sky)
axes[2].set_title("S/N of a point source")

# %%
# The wrong sign
# --------------
#
# The most frequent error with files of an unknown origin is the sign of the angles. It does not fail: the planet smears out and
# the speckles stay. ``deepinv-astro inspect`` tries both signs and warns.

reversed_angles = physics.variant(angles=-physics.angles)
wrong = search(sequence.y, reversed_angles)
print(f"highest S/N as given: {float(detection.snr.max()):.1f}")
print(f"highest S/N with the angles reversed: {float(wrong.snr.max()):.1f}")
assert wrong.snr.max() < 0.6 * detection.snr.max()

plt.show()
