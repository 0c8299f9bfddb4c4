r"""
A trained network on a star of its own kind, and on β Pictoris
==============================================================

The package comes with a network that has learned from a simulated survey, without the truth of any star (:doc:`../user_guide/model_card`). This example reads what the network says of
itself, judges it on simulated stars that it has not seen, and takes it to a real sequence: β Pictoris in L', from another instrument than any it was trained on. There it is adapted:
rings about the star get the brightness that frames ask for of which the image was not made,

.. math::

   R = \frac{1}{G n} \sum_g \left( \| P_g (A_g\, \hat x_{-g} - y_g) \|_{W_g}^2 - \| P_g\, y_g \|_{W_g}^2 \right) ,

with :math:`\hat x_{-g}` the image without the frames of group :math:`g`. An empty image has :math:`R = 0`; less is better. :doc:`../user_guide/learned` says more.

The files are looked for in the folder named by the environment variable ``DEEPINV_ASTRO_DATA``. Where they are not found, a simulated
twin with the same angles, size, centre and planet takes their place.
"""

import math

import astropy.units as u
import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets import (
    BetaPictoris,
    Planet,
    SyntheticSurvey,
    cut_about,
    simulate_sequence,
)
from deepinv_astro.identifiability import visibility
from deepinv_astro.metric import flux_ratio, nrmse_db, remove_invisible, support
from deepinv_astro.models import load_weights, read_weights_card
from deepinv_astro.optim import Marginal
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur, half_maximum_width
from deepinv_astro.plot import SIGNED, add_colorbar, add_compass, brightness_norm, show_sky
from deepinv_astro.training import adapt

# %%
# The network and its card
# ------------------------

network, file = load_weights(), read_weights_card()
print(f"{file.name}, SHA-256 {file.digest}...")
for name, text in file.card.items():
    print(f"{name}: {text}")

# %%
# Stars that it has not seen
# --------------------------
#
# Six simulated stars of another survey. Images are compared as the telescope sees them without speckles and noise, :math:`Hx`, where the truth has a disk:
# on the whole field, and without the part that is invariant by rotation about the star, which no frame tests. The network starts from
# an image of the marginal likelihood, and makes nothing of its own of that part. *Brightness* is that of the disk's brightest pixel over the scatter of the speckles there, in time.

survey = SyntheticSurvey(8, seed=5, img_size=(65, 65), frames=24, part="test", keep=8)
gains, shown, brightness = [], [], []
print("                   whole field (dB)    seen by ADI (dB)    flux of the disk")
print("star  brightness   marginal  network   marginal  network   marginal  network")
for star in range(2, 8):
    item, truth = survey[star], survey.truth(star)
    physics = ADI((1, 65, 65), **{name: value[None] for name, value in item["params"].items()})
    with torch.no_grad():
        images = Marginal()(item["y"][None], physics), network(item["y"][None], physics)
    z, *found = (blur(x, truth.psf) for x in (truth.x[None], *images))
    shown.append((z, *found))
    whole = [float(nrmse_db(x, z)) for x in found]
    seen = [float(nrmse_db(remove_invisible(x), remove_invisible(z))) for x in found]
    flux = [float(flux_ratio(x, z, support(z))) for x in found]
    gains.append(seen[1] - seen[0])
    brightness.append(truth.sky.disk.signal)
    rows = "   ".join(f"{a:8.{d}f} {b:8.{d}f}" for (a, b), d in ((whole, 1), (seen, 1), (flux, 2)))
    print(f"{star:4d}  {brightness[-1]:10.1f}   {rows}")
gain = torch.tensor(gains)
middle = int(gain.argsort()[len(gain) // 2])
print(f"gain on what ADI sees: median {float(gain[middle]):+.1f} dB, worst {min(gains):+.1f} dB")
assert gain[middle] > 0
order = torch.tensor(brightness).argsort()
assert gain[order[:3]].mean() > gain[order[3:]].mean()

# %%
# What the network has learned are speckles: the fainter the disk, the more of them there are to remove, and on bright disks it is no better than ``marginal``, or worse. The star
# of median gain, all panels in the stretch of the truth:

figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
norm = brightness_norm(shown[middle][0][0, 0].numpy(), top=100.0)
for axis, image, name in zip(axes, shown[middle], ("truth", "marginal", "network"), strict=True):
    drawn = show_sky(axis, image[0, 0].numpy(), center=(32, 32), norm=norm)
    add_colorbar(axis, drawn, "counts / pixel", extend="both")
    add_compass(axis)
    axis.set_title(f"star {2 + middle}: {name}")

# %%
# β Pictoris
# ----------
#
# The planet is 17 pixels from the star: the inner 65 x 65 pixels hold it, and take a third of the time of all 101 x 101.


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


try:
    sequence = BetaPictoris(download=False)
except FileNotFoundError:
    sequence = simulated_twin()
y = cut_about(sequence.y, sequence.center, (65, 65))
physics = ADI((1, 65, 65), sequence.angles, sequence.psf, center=(32.0, 32.0))
fwhm = half_maximum_width(sequence.psf)
print(f"{sequence.target}: {tuple(y.shape)}, FWHM {fwhm:.2f} px")

# %%
# As it is, then adapted
# ----------------------
#
# The frames are dealt out to four groups. Each is held out in turn and judges the image of the others. Six rings get the gains that lower the risk most, with a prior that keeps each near 1 unless
# the frames are sure: by this risk the result is never worse. With ``steps=24`` the weights of the network are fitted as well.
# ``deepinv-astro reconstruct --method learned --adapt 0`` does the same on the command line.

with torch.no_grad():
    zero_shot = network(y, physics)
adapted = adapt(network, y, physics)
print("ring    gain")
for ring, (value, error) in enumerate(zip(adapted.gains.values, adapted.gains.std, strict=True)):
    print(f"{ring:4d}    {value:.2f} +- {error:.2f}")
print(f"risk: {adapted.before:.4f} as it is, {adapted.after:.4f} adapted")
judged = adapted.history[0]
print(
    f"with gains of other frames than those that judge: lower by {judged.gain:.4f} +- {judged.error:.4f}"
)
assert adapted.before < 0  # better than an empty image, in frames that it has not seen
assert adapted.after <= adapted.before

# %%
# The last line is the honest one, and its error, the scatter between the groups, is not small. A fall of the risk says that the image predicts frames better that it has not seen; it says nothing of light that no frame
# tests, and of this the adapted image keeps what the network showed before. *Constrained* is the share of an image's energy that is left when the mean in time is removed.

images = {"as it is": zero_shot, "adapted": adapted.image}
change = adapted.image - zero_shot
for name, image in images.items():
    print(f"{name}: {float(visibility(image, physics)):.0%} of its energy is constrained")

# %%
# The planet is where the literature has it, at 452 ± 10 mas and 211.2 ± 1.3° :cite:p:`Absil2013`: outside of the innermost 8 pixels nothing is brighter. Its flux in the image is what
# a network made of it, without an error; a planet's flux and position are the business of :class:`~deepinv_astro.optim.PointSourceSearch`, which takes them from the data
# (:doc:`demo_beta_pictoris`).

scale = sequence.pixel_scale.to_value(u.mas)
away = separation((65, 65), (32, 32))
expected = math.radians(211.2)
planet = 32 + 452 / scale * math.cos(expected), 32 - 452 / scale * math.sin(expected)
blurred = {name: blur(image, sequence.psf) for name, image in images.items()}
for name, image in blurred.items():
    peak = int((image[0, 0] * (away > 8)).argmax())
    row, column = divmod(peak, 65)
    near = separation((65, 65), planet) < fwhm
    contrast = float(images[name][0, 0][near].sum() / sequence.star_flux[0])
    print(f"{name}: brightest at row {row}, column {column}, contrast {contrast:.1e} (9.4e-4)")
    assert math.dist((row, column), planet) < 2

# %%
# What the images are good for: to see that something is there, and its shape, with less speckle noise than in other images. What they are not: a measurement of flux, an error map, or
# evidence for light that is smooth about the star. The glow in the North-West of the real star is not its disk, which is seen edge-on from North-East to South-West: it is what is
# left of the halo, and most of it is not constrained. Every image of one star that is made by rotation alone has this doubt (:doc:`../user_guide/visibility`).

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
sky = {"center": (32, 32), "pixel_scale": sequence.pixel_scale}
norm = brightness_norm(blurred["as it is"][0, 0].numpy())
for axis, (name, image) in zip(axes, blurred.items(), strict=False):
    drawn = show_sky(axis, image[0, 0].numpy(), norm=norm, **sky)
    add_colorbar(axis, drawn, "counts / pixel", extend="both")
    axis.set_title(f"{sequence.target}: network {name}")
    add_compass(axis)
change = blur(change, sequence.psf)[0, 0].numpy()
top = float(abs(change).max()) or 1.0  # nothing changes where no step lowers the risk
drawn = show_sky(axes[2], change, norm=plt.Normalize(-top, top), cmap=SIGNED, **sky)
add_colorbar(axes[2], drawn, "counts / pixel")
add_compass(axes[2], "black")
axes[2].set_title("adapted less as it is")

plt.show()
