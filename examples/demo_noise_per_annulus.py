r"""
Unknown noise, different in each annulus
========================================

Behind a coronagraph the noise of an image falls with the distance to the star: from 1.2 to 0.15 here, in four annuli. A denoiser
that is trained on noisy images alone has to know these levels. :class:`~deepinv_astro.loss.UNSURELoss` finds them while it trains, with
one multiplier for each annulus. One multiplier for the whole field is not enough: it learns a level that is true nowhere, and the
denoiser hardly denoises.
"""

import matplotlib.pyplot as plt
import torch
from deepinv.loss import Loss
from deepinv.physics import Denoising
from matplotlib.colors import AsinhNorm, LogNorm
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from deepinv_astro.datasets import ring, spiral
from deepinv_astro.loss import RegionVariances, SUREGaussianLoss, UNSURELoss, estimate_noise
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import HeteroscedasticNoise
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.plot import SIGNED, add_colorbar

# %%
# A survey of disks
# -----------------
#
# Four hundred stars, each with a ring or a spiral of random radius, inclination, position angle and brightness, seen through a PSF of
# 3 pixels FWHM. Fifty more are kept for the scores. The noise is independent from pixel to pixel.

SIDE, TRAIN, TEST = 40, 400, 50
LEVELS = torch.tensor([1.2, 0.6, 0.3, 0.15])
EDGES = torch.tensor([6.0, 11.0, 16.0])
star = (SIDE // 2, SIDE // 2)
annuli = torch.bucketize(separation((SIDE, SIDE), star), EDGES)


def survey(count: int, generator: torch.Generator) -> torch.Tensor:
    """Images (count, 1, SIDE, SIDE)."""
    u = torch.rand(4, count, generator=generator)
    size, radius, half = (SIDE, SIDE), 5 + 11 * u[0], count // 2
    inclination, angle = torch.rad2deg(torch.acos(0.25 + 0.75 * u[1])), 360 * u[2]
    rings = ring(size, radius[:half], inclination[:half], angle[:half], slopes=(10.0, -5.0))
    spirals = spiral(size, radius[half:], inclination[half:], angle[half:], pitch=25.0)
    x = blur(torch.cat([rings, spirals])[:, None].float(), gaussian_psf((13, 13), 3.0).float())
    peak = 8 / radius * 4 ** u[3]  # closer disks receive more light
    x = x / x.amax((1, 2, 3), keepdim=True) * peak[:, None, None, None]
    return x[torch.randperm(count, generator=generator)]


generator = torch.Generator().manual_seed(5)
x = survey(TRAIN + TEST, generator)
noise = HeteroscedasticNoise(LEVELS, per="region", labels=annuli)
y = x + noise.sample(x, generator)

# %%

extent = (-star[1] - 0.5, SIDE - star[1] - 0.5, -star[0] - 0.5, SIDE - star[0] - 0.5)
stretch = AsinhNorm(linear_width=0.3, vmin=-0.3, vmax=3.0)
style = {"origin": "lower", "extent": extent}
figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained", sharey=True)
for panel, image, title in zip(axes, (x, y), ("Sky", "Measured image"), strict=False):
    shown = panel.imshow(image[TRAIN, 0].numpy(), norm=stretch, cmap="inferno", **style)
    panel.set(title=title, xlabel="column from the star (pixels)")
add_colorbar(axes[1], shown, "brightness", extend="both")
shown = axes[2].imshow(LEVELS[annuli].numpy(), norm=LogNorm(0.1, 2.0), cmap="viridis", **style)
axes[2].set(title="Noise: never shown to UNSURE", xlabel="column from the star (pixels)")
axes[0].set_ylabel("row from the star (pixels)")
figure.colorbar(
    shown,
    ax=axes[2],
    label="standard deviation of the noise",
    fraction=0.046,
    pad=0.02,
    ticks=LEVELS.tolist(),
    format="%g",
).minorticks_off()

# %%
# Three ways to train
# -------------------
#
# The same small U-Net, which sees the image and the number of the annulus of each pixel, is trained three times on the 400 noisy images:
#
# - with SURE, which knows the four levels;
# - with UNSURE and one multiplier :math:`\eta`;
# - with UNSURE and one multiplier for each annulus, :class:`~deepinv_astro.loss.RegionVariances`.
#
# .. math::
#
#     \min_f \max_\eta\ \tfrac1m \sum_i w_i \left[ y_i - f_i(y) \right]^2
#     + \tfrac2m \sum_j \eta_j \sum_{i \in R_j} w_i \frac{\partial f_i}{\partial y_i} ,
#
# with :math:`R_j` annulus :math:`j`. A multiplier rises as long as the output of its annulus follows the noise of the input, and falls
# where it opposes it. The weights :math:`w_i`, from a first robust guess of the levels (``normalized=True``), let each pixel count
# alike; SURE is given the true ones.
#
# For this the network must be able to follow or oppose the noise of one annulus at a time. Four gains :math:`c_j` give it a direct way
# to do so, :math:`f = y + (1 - c_j) u(y)`, with :math:`u` the output of the U-Net: without them the multipliers of small annuli are
# slow, and not settled when training ends.


class UNet(nn.Module):
    """Three scales, 8 to 32 channels; the identity at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle = self.block(2, 8, 8), self.block(8, 16, 16)
        self.coarse, self.up = self.block(16, 32, 16), self.block(32, 16, 8)
        self.out = nn.Sequential(
            nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)
        self.passed = nn.Parameter(torch.zeros(4))

    @staticmethod
    def block(a: int, b: int, c: int) -> nn.Module:
        first, second = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, c, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, y: torch.Tensor, physics: Denoising | None = None) -> torch.Tensor:
        fine = self.fine(torch.cat([y, (annuli / 3 - 0.5).expand_as(y)], 1))
        middle = self.middle(avg_pool2d(fine, 2))
        coarse = interpolate(self.coarse(avg_pool2d(middle, 2)), scale_factor=2)
        up = interpolate(self.up(torch.cat([middle, coarse], 1)), scale_factor=2)
        change = self.out(torch.cat([fine, up], 1))
        return y + (1 - self.passed[annuli]) * change


STEPS, BATCH, RATE = 500, 6, 4e-3
physics = Denoising()


def train(loss: Loss) -> tuple[nn.Module, torch.Tensor]:
    """The trained network, and the multipliers after each step."""
    torch.manual_seed(1)
    model = UNet().to(memory_format=torch.channels_last)  # faster on a CPU
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)
    )
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=STEPS, pct_start=0.1
    )
    history = []
    for _ in range(STEPS):
        batch = y[torch.randint(TRAIN, (BATCH,))]
        value = loss(x_net=model(batch, physics), y=batch, physics=physics, model=model)
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        history.append(getattr(loss, "multipliers", torch.zeros(1)).clone())
    return average.module.eval(), torch.stack(history)


loss_one = UNSURELoss(rate=0.02)
loss_each = UNSURELoss(RegionVariances(annuli), normalized=True, rate=0.02)
one, history_one = train(loss_one)
each, history_each = train(loss_each)
known, _ = train(SUREGaussianLoss(noise, metric=noise.precision))

truth, measured = x[TRAIN:], y[TRAIN:]
models = {"one multiplier": one, "one per annulus": each, "levels known (SURE)": known}
with torch.no_grad():
    images = {"noisy image": measured} | {name: f(measured) for name, f in models.items()}

# %%
# What it gains
# -------------
#
# Decibels by which the error is less than the noise, where both are divided by the level of their annulus.


def gains(image: torch.Tensor) -> torch.Tensor:
    """Of each annulus, from the star outwards, and of the whole field."""
    ratio = ((image - truth) / LEVELS[annuli]).square().mean((0, 1))
    means = [ratio[annuli == j].mean() for j in range(4)] + [ratio.mean()]
    return -10 * torch.stack(means).log10()


table = {name: gains(image) for name, image in images.items()}
print("noise" + " " * 17 + "".join(f"{level:8.2f}" for level in LEVELS.tolist()) + "     all")
for name, values in table.items():
    print(f"{name:22s}" + "".join(f"{value:8.2f}" for value in values.tolist()))
best, alone = table["one per annulus"], table["one multiplier"]
assert best[-1] > alone[-1] + 5.0
assert best[-1] > table["levels known (SURE)"][-1] - 1.0

# %%
# Why is one multiplier so poor? Its best denoiser is :math:`f = y + \hat\eta\, s(y)`, with the score :math:`s`, which is about
# :math:`-n / \sigma_j^2` in noise that drowns the sky. Hence the noise :math:`(1 - \hat\eta / \sigma_j^2)\, n` remains: all of it in the
# loud annuli, and its negative in the quiet one. For :math:`\hat\eta` is near the harmonic mean of the variances, which the quiet
# pixels rule.

harmonic = float((1 / LEVELS[annuli].square()).mean().rsqrt())
print(
    f"one level for all      {float(loss_one.multipliers.sqrt()):8.2f}, harmonic mean {harmonic:.2f}"
)
assert abs(float(loss_one.multipliers.sqrt()) / harmonic - 1) < 0.15

# %%
# One star that was not used for training, and below it the errors in units of the noise.

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(2, 5, figsize=(15, 6.4), layout="constrained", sharex=True, sharey=True)
axes[0, 0].imshow(truth[0, 0].numpy(), norm=stretch, cmap="inferno", **style)
axes[0, 0].set_title("Sky")
axes[1, 0].axis("off")
for panels, (name, image) in zip(axes[:, 1:].T, images.items(), strict=True):
    error = (image - truth)[0, 0] / LEVELS[annuli]
    shown = panels[0].imshow(image[0, 0].numpy(), norm=stretch, cmap="inferno", **style)
    wrong = panels[1].imshow(error.numpy(), vmin=-2, vmax=2, cmap=SIGNED, **style)
    panels[0].set_title(name[0].upper() + name[1:])
    panels[1].set(
        title=f"Error ({float(table[name][-1]):.1f} dB less)",
        xlabel="column from the star (px)",
    )
for panel in (axes[0, 0], axes[1, 1]):
    panel.set_ylabel("row from the star (px)")
    panel.tick_params(labelbottom=True, labelleft=True)
add_colorbar(axes[0, -1], shown, "brightness", extend="both")
add_colorbar(axes[1, -1], wrong, r"error ($\sigma$ of the annulus)", extend="both")

# %%
# The levels that were found
# --------------------------
#
# A multiplier is larger than the variance of the noise, :math:`\hat\eta_j = \sigma_j^2 / (1 - \delta_j)`, with :math:`\delta_j` the
# error of the best denoiser over :math:`\sigma_j^2`. :func:`~deepinv_astro.loss.estimate_noise` reads :math:`\delta_j` from pixels whose
# sky is easily known, and takes it off.

estimate = estimate_noise(loss_each, y[:100], physics, each)
bound = estimate.multipliers.sqrt() / LEVELS
corrected = estimate.variance.sqrt() / LEVELS
print("true level             " + "".join(f"{v:8.2f}" for v in LEVELS.tolist()))
print("found, over the true   " + "".join(f"{v:8.3f}" for v in bound.tolist()))
print("corrected, over it     " + "".join(f"{v:8.3f}" for v in corrected.tolist()))
assert ((bound - 1).abs() < 0.1).all()
assert ((corrected - 1).abs() < 0.06).all()

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for j, level in enumerate(LEVELS.tolist()):
    left.plot(history_each[:, j].sqrt(), color=f"C{j}", label=f"annulus {j + 1}")
    left.axhline(level, color=f"C{j}", ls="--", lw=1)
left.plot(history_one[:, 0].sqrt(), color="0.4", ls=":", lw=2, label="one multiplier")
left.set(
    title="Multipliers; true levels dashed",
    xlabel="step of the training",
    ylabel=r"noise level $\sqrt{\eta}$",
    yscale="log",
    ylim=(0.08, 2.0),
    yticks=LEVELS.tolist(),
    yticklabels=[f"{level:g}" for level in LEVELS.tolist()],
)
left.minorticks_off()
left.legend(ncols=3, fontsize="small", loc="lower right")
place = torch.arange(5)
for number, (name, values) in enumerate(table.items()):
    if name != "noisy image":
        right.bar(place + 0.27 * (number - 2), values, width=0.25, label=name)
right.set(
    title="Gain of the denoiser",
    xlabel="noise level of the annulus",
    ylabel="error below the noise (dB)",
    ylim=(0, 14),
    xticks=place.tolist(),
    xticklabels=[f"{level:g}" for level in LEVELS.tolist()] + ["all"],
)
right.legend(ncols=3, fontsize="small", loc="upper center")

plt.show()
