r"""
Deblurring with nothing but blurred images
==========================================

A network that deblurs is usually trained on pairs: blurred, sharp. An observer has no sharp images. This example trains on three blurred,
noisy fields of stars and galaxies, and on nothing else.

What the blur hides is learned from scale: a galaxy far away looks as a near one made smaller. So an estimate that is scaled down
by :math:`T_s` has details finer than any that the instrument resolved, and its truth is known,

.. math::

    \min_f \; \mathrm{SURE}(f) + \mathbb E_s \big\| T_s \hat x - f(A\, T_s \hat x + \varepsilon) \big\|^2, \qquad \hat x = f(y)
    \text{ held fixed}.

SURE keeps the estimate true to the data without knowing the noise-free ones; the second term (scale-equivariant imaging) fills in what
they do not hold. Shifts and turns commute with a blur: they would show the network nothing that it has not seen.

With files, ``deepinv-astro train --images FOLDER --psf PSF.fits`` does the same.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets.images import deep_field, held_out
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.plot import add_colorbar
from deepinv_astro.training import Recipe, Restoration, Training, noise_level
from deepinv_astro.training.log import draw_restoration

# %%
# The measurements
# ----------------
#
# Four fields seen through a PSF of 3.5 pixels, with white noise. The sky reaches beyond the detector, as it does. The last field is for the
# end: its truth is compared with what the network makes of it.

psf = gaussian_psf((13, 13), 3.5)
telescope = Restoration(psf, noise=0.01).physics(200, 200)
truths = [deep_field(212, seed) for seed in range(4)]
measured = [telescope(x[None])[0] for x in truths]
mine, unseen = measured[:3], measured[3]

# %%
# From here on there are only ``mine`` and the PSF. The noise is read off the images.

noise = noise_level(mine)
print(f"noise {noise:.4f}, truly 0.0100")
assert abs(noise / 0.01 - 1) < 0.05

# %%
# The parts
# ---------
#
# A :class:`~deepinv_astro.training.Restoration` knows the operator, and corrects a linear reconstruction by a network of 95 000 weights. The
# :class:`~deepinv_astro.training.Recipe` names the losses and the schedule. The last rows of each image validate: by the losses, as
# there is no truth.

recipe = Recipe(steps=150, validate_every=50)
restoration = Restoration(psf, noise, images=mine)
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

# %%
# :meth:`Training.run <deepinv_astro.training.Training.run>` takes the name of a checkpoint, from which an interrupted training goes on. First
# the linear reconstruction, then the trained one, of the field that was left out.


def error(x: torch.Tensor) -> float:
    """Root mean square error, in units of the noise."""
    return float((x - restoration.seen(truths[3])).square().mean().sqrt() / noise)


with torch.no_grad():
    linear = restoration(unseen)
training.run()
restoration.model = training.result()
with torch.no_grad():
    found = restoration(unseen)

for line in training.history:
    print(f"step {line.step:3d}: loss on held-out rows {line.validation:.5f}")
print(
    f"error / noise: blurred {error(unseen):.2f}, linear {error(linear):.2f}, network {error(found):.2f}"
)
assert error(found) < 0.85 * error(linear) < 0.85 * error(unseen)

# %%
# What it looks like
# ------------------
#
# The residual is :math:`(y - A \hat x) / \sigma`. It looks like noise: what was measured is explained.

figure = draw_restoration(restoration, unseen, training.history)
residual = figure.axes[2].images[0].get_array()
assert 0.9 < residual.std() < 1.1

# %%
# Closer, a corner of the field with the truth, which the network never saw.

panels = {
    "measured": unseen,
    "linear": linear,
    "network": found,
    "truth": restoration.seen(truths[3]),
}
closer, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
for axis, (title, image) in zip(axes, panels.items(), strict=True):
    shown = axis.imshow(image[0, :80, :80], origin="lower", cmap="gray", vmin=0.0, vmax=0.35)
    axis.set(title=title, xlabel="column (px)")
axes[0].set_ylabel("row (px)")
add_colorbar(axes[-1], shown, "brightness", extend="max")

# %%
# The gain needs no truth, but it is no miracle: it comes from what large and small galaxies have in common. Images of one scale only, a grating or a
# single star, would teach nothing; and where the sky has no structure the network has none to add.
