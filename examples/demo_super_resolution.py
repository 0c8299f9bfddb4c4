r"""
A finer grid than the detector's
================================

The pixels of a detector are often wider than the PSF deserves: each is the mean of :math:`2 \times 2` pixels that one would like to see,

.. math::

    y = S_2 (h * x) + n .

Interpolation makes the image larger and no sharper. This example trains a network to split the pixels, on three measured fields and without
one sharp image, as in :ref:`sphx_glr_auto_examples_demo_deblur_without_truth.py`: an estimate that is scaled down is an image with details of
the size of a pixel, whose truth is known.

With files: ``deepinv-astro train --task sr --factor 2 --images FOLDER --psf FWHM``, then ``deepinv-astro restore IMAGE --weights weights.pt``.
"""

import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import interpolate

from deepinv_astro.datasets.images import deep_field, held_out
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.plot import add_colorbar
from deepinv_astro.training import Recipe, Restoration, Training

# %%
# The measurements
# ----------------
#
# The PSF is given on the *fine* grid: 2.4 of its pixels, 1.2 of the detector's. The noise is known here. (At the scale of a pixel the sky itself
# varies: the level that :func:`~deepinv_astro.training.noise_level` reads off such images is too high.)

factor, noise = 2, 0.01
psf = gaussian_psf((9, 9), 2.4)
telescope = Restoration(psf, noise, factor).physics(110, 110)
truths = [deep_field(228, seed) for seed in range(4)]
measured = [telescope(x[None])[0] for x in truths]
mine, unseen = measured[:3], measured[3]
print(f"{tuple(unseen.shape[1:])} pixels were measured")

# %%
# Training
# --------
#
# Crops of 24 detector pixels; all else as for deblurring.

recipe = Recipe(crop=24, steps=150, validate_every=50)
restoration = Restoration(psf, noise, factor, mine)
train, validate = held_out(mine, recipe.crop)
training = Training(
    restoration.model,
    restoration.physics(recipe.crop, recipe.crop),
    train,
    validate,
    recipe,
    losses=partial(recipe.losses, margin=len(psf) // 2),
    scale=float(restoration.model.scale),
)
with torch.no_grad():
    linear = restoration(unseen)
training.run()
restoration.model = training.result()

# %%
# The weights go into one file, with the PSF, the noise and the factor: all that is needed to restore an image. It is what ``deepinv-astro restore``
# reads.

with tempfile.TemporaryDirectory() as folder:
    restoration.save(Path(folder) / "weights.pt")
    restored = Restoration.load(Path(folder) / "weights.pt")
with torch.no_grad():
    found = restored(unseen)
print(f"{tuple(found.shape[1:])} pixels were made")
assert found.shape[-1] == factor * unseen.shape[-1]

# %%
# Against the truth of a field that was not trained on:

truth = restored.seen(truths[3])
larger = interpolate(unseen[None], scale_factor=factor, mode="bicubic")[0]


def error(x: torch.Tensor) -> float:
    """Root mean square error, in units of the noise."""
    return float((x - truth).square().mean().sqrt() / noise)


panels = {"bicubic": larger, "linear": linear, "network": found, "truth": truth}
for name, image in panels.items():
    print(f"{name:8s} error / noise {error(image):.2f}")
assert error(found) < 0.9 * error(linear)
assert error(found) < 0.9 * error(larger)

figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
for axis, (title, image) in zip(axes, panels.items(), strict=True):
    shown = axis.imshow(image[0, 60:130, 60:130], origin="lower", cmap="gray", vmin=0.0, vmax=0.35)
    axis.set(title=title, xlabel="column (px)")
axes[0].set_ylabel("row (px)")
add_colorbar(axes[-1], shown, "brightness", extend="max")

# %%
# What was measured is kept: seen by the telescope again, the result agrees with the data to the noise.

physics = restored.physics(*unseen.shape[-2:])
with torch.no_grad():
    residual = (unseen - physics.A(restored.model(unseen[None], physics))[0]) / noise
print(f"residual / noise {float(residual.std()):.2f}")
assert 0.85 < float(residual.std()) < 1.15
