r"""
Learning to see disks from a survey that has no ground truth
============================================================

Every star of a survey is seen once, and what surrounds it is known from nothing else. This example trains a network on 40 simulated stars of
which it sees the frames only. Half of the frames of a star are given to it, and what it makes of them is judged by the other half,

.. math::

    \min_f \; \mathbb E \, \big\| A_b f(y_a, A_a) - y_b \big\|_{W_b}^2 ,

in the metric :math:`W_b` of the speckles of that star: speckles that the halves do not share cannot be guessed, the sky can.

With files, ``deepinv-astro train --survey FOLDER`` does the same.
"""

import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets import SyntheticSurvey
from deepinv_astro.metric import nrmse_db, remove_invisible
from deepinv_astro.models import SmallUNet, UnrolledADI
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.plot import add_colorbar
from deepinv_astro.training import SurveyRecipe, SurveyTraining
from deepinv_astro.training.survey_log import draw_survey_training

# %%
# The survey
# ----------
#
# Stars of 33 x 33 pixels and 24 frames. Each has its own speckles, angles and PSF, and the PSF that one is told is another one. Some have a disk, some planets,
# some nothing. The three parts share no star.

survey = SyntheticSurvey.small(1, seed=3, frames=24, keep=60).split(train=40, validation=8, test=24)
item = survey.train[0]
print({"y": tuple(item["y"].shape)} | {k: tuple(v.shape) for k, v in item["params"].items()})
assert "x" not in item

# %%
# The network
# -----------
#
# It starts from an image of the marginal likelihood, and corrects it in three steps, each of which looks at the data through the operator and the
# metric of the star. It works in units of the noise of each pixel: stars may be of any brightness.

torch.manual_seed(0)
model = UnrolledADI(prox=[SmallUNet(12) for _ in range(3)])
print(f"{sum(p.numel() for p in model.parameters())} weights")

# %%
# The training
# ------------
#
# The recipe names the parts and their weights; here there is one, frames held out. Pilots, splits and metrics do not depend on the weights: they are made once, by
# :meth:`~deepinv_astro.training.SurveyTraining.prepare`. The validation is the same loss on stars held out.

recipe = SurveyRecipe(splitting=1.0, steps=120, validate_every=40, learning_rate=3e-3, draws=2)
training = SurveyTraining(model, survey.train, survey.validation, recipe, seed=0)
training.prepare()
training.run()
for line in training.history:
    print(f"step {line.step:3d}: risk of stars held out {line.validation:.3f}")
assert training.chosen.validation < 1.3 * training.history[0].validation < 0

figure = draw_survey_training(training, star=1)

# %%
# The judgement
# -------------
#
# Now, and only now, the truth of other stars, as they are seen by the telescope without speckles and noise: :math:`H x`, on the whole field and without
# the part that is invariant by rotation about the star. Nothing in the data tells of that part; of it the network shows the least that leaves the sky positive, which is too little in a field
# that the disks fill. Forty stars and half a minute are few: the risk falls by half, and the decibels, which count the brightest pixels most, hardly rise. With 256 stars
# they do (:doc:`../benchmarks`).

network, shown, gains = training.result(), [], []
for star in range(24):
    truth, item = survey.test.truth(star), survey.test[star]
    if truth.sky.disk is None:
        continue
    physics = ADI((1, 33, 33), **{name: value[None] for name, value in item["params"].items()})
    equations = network.prepare(item["y"][None], physics)
    with torch.no_grad():
        found = network.refine(equations)
    seen = [blur(x, truth.psf) for x in (equations.start, found, truth.x[None])]
    visible = [remove_invisible(image) for image in seen]
    whole, part = (
        [float(nrmse_db(x, images[2])) for x in images[:2]] for images in (seen, visible)
    )
    gains.append((whole[1] - whole[0], part[1] - part[0]))
    shown.append(seen)

field, gain = torch.tensor(gains).T
print(f"{len(gain)} disks, network against its first image")
print(f"whole field: better on {int((field > 0).sum())}, mean gain {float(field.mean()):+.2f} dB")
print(f"seen by ADI: better on {int((gain > 0).sum())}, mean gain {float(gain.mean()):+.2f} dB")

# %%
# The disk of median gain. What a network cannot see stays unseen: the part of a disk that is the same after a rotation about the star leaves no trace in the
# data, and training on other stars does not bring it back.

middle = int(gain.argsort()[len(gain) // 2])
panels = dict(zip(("first image", "network", "truth"), shown[middle], strict=True))
top = float(shown[middle][2].max())
closer, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for axis, (title, image) in zip(axes, panels.items(), strict=True):
    drawn = axis.imshow(image[0, 0], origin="lower", cmap="inferno", vmin=0.0, vmax=top)
    axis.set(title=title, xlabel="column (px)", ylabel="row (px)")
    add_colorbar(axis, drawn, "counts per pixel")
closer.suptitle(f"seen by the telescope; network {float(gain[middle]):+.1f} dB on what ADI sees")
