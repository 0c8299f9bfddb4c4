r"""
A denoiser trained on noise that is correlated and unknown
==========================================================

Pipelines resample images: they shift them, turn them, correct distortions and put them together. After that the noise of neighbouring pixels
is correlated, over a few pixels and with weights that nobody wrote down. Methods that learn to denoise from noisy images alone mostly ask for
the covariance of the noise (SURE) or suppose that pixels are independent; correlated noise then looks like structure, and stays.

:class:`~deepinv_astro.loss.UNSURELoss` needs neither. It is told the *support* of the correlation, here :math:`3 \times 3` pixels, and learns its values
while the denoiser is being trained :cite:p:`Tachella2025`.
"""

import math

import matplotlib.pyplot as plt
import torch
from deepinv.loss import Loss
from deepinv.physics import Denoising
from matplotlib.colors import AsinhNorm
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from deepinv_astro.loss import StationaryKernel, SUREGaussianLoss, UNSURELoss
from deepinv_astro.physics import StationaryNoise
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.physics.functional.psf_shapes import moffat_psf
from deepinv_astro.plot import SIGNED, add_colorbar

# %%
# A deep field
# ------------
#
# One image, of galaxies and stars. A galaxy of scale length :math:`h` is an exponential disk with two arms,
#
# .. math::
#
#     I(r, \varphi) = F e^{-r / h} \left\{ 1 + \tfrac45\, \tfrac{r}{r + h} \cos\left[ 2 \varphi - 5 \ln (r / h) \right] \right\} ,
#
# with :math:`r, \varphi` in its plane, at a random inclination; a star is a pixel. Everything is seen through a Moffat PSF of 3 pixels FWHM.

SIDE = 288


def deep_field(galaxies: int, stars: int, generator: torch.Generator) -> torch.Tensor:
    """An image (1, 1, SIDE, SIDE)."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    sky = torch.zeros(SIDE, SIDE)
    for _ in range(galaxies):
        u = torch.rand(6, generator=generator)
        row, column, turn = rows - SIDE * u[0], columns - SIDE * u[1], math.pi * u[2]
        along = row * torch.cos(turn) + column * torch.sin(turn)
        across = (column * torch.cos(turn) - row * torch.sin(turn)) / (0.25 + 0.75 * u[3])
        h, r = 1.2 * 8 ** (u[4] ** 2), torch.hypot(along, across) + 0.3
        arms = torch.cos(2 * torch.atan2(across, along) - 5 * torch.log(r / h))
        sky += (0.4 + u[5]) * torch.exp(-r / h) * (1 + 0.8 * r / (r + h) * arms)
    for u in torch.rand(stars, 3, generator=generator):
        sky[int(SIDE * u[0]), int(SIDE * u[1])] += 3 * 15 ** u[2]
    return blur(sky[None, None], moffat_psf((25, 25), 3.0, 3.0).float())


generator = torch.Generator().manual_seed(11)
x = deep_field(galaxies=100, stars=30, generator=generator)

# %%
# The noise is white noise seen through a lopsided kernel :math:`k` of :math:`3 \times 3` pixels, of standard deviation 0.1. Training uses the noisy image
# alone: neither ``x`` nor the kernel nor the level.

SIGMA = 0.1
kernel = torch.tensor([[0.2, 0.5, 0.1], [0.6, 1.0, 0.4], [0.1, 0.5, 0.3]])
noise = StationaryNoise(SIGMA * kernel / kernel.norm())
y = x + noise.sample(x, generator)

stretch = AsinhNorm(linear_width=0.1, vmin=-0.1, vmax=2.0)
figure, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained", sharey=True)
for panel, image, title in zip(axes, (x, y), ("Sky", "Image: noise correlated"), strict=True):
    shown = panel.imshow(image[0, 0].numpy(), norm=stretch, cmap="inferno", origin="lower")
    panel.set(title=title, xlabel="column (pixels)")
axes[0].set_ylabel("row (pixels)")
add_colorbar(axes[1], shown, "brightness", extend="both")

# %%
# Three ways to train
# -------------------
#
# The same small U-Net, from the same start, on the same crops of the image:
#
# - SURE, which is given the covariance: as good as one can be without the sky;
# - UNSURE for white noise of unknown level, one multiplier;
# - UNSURE for a stationary kernel of :math:`3 \times 3` pixels, thirteen multipliers: one for each lag :math:`l` of the covariance.
#
# UNSURE minimises over the denoiser :math:`f`, and maximises over the multipliers,
#
# .. math::
#
#     \min_f \max_\eta\ \tfrac1m \| y - f(y) \|^2 + \tfrac2m \sum_l \eta_l \operatorname{tr} \left( \Psi_l \, \partial f / \partial y \right) ,
#
# with :math:`\Psi_l` the shift by :math:`\pm l`. The multipliers are what it takes to keep :math:`f` from passing on anything that a pixel, or a
# neighbour at :math:`l`, has of noise. They ascend by themselves in ``backward``.


class UNet(nn.Module):
    """Three scales, 8 to 32 channels; the identity at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle = self.block(1, 8, 8), self.block(8, 16, 16)
        self.coarse, self.up = self.block(16, 32, 16), self.block(32, 16, 8)
        self.out = nn.Sequential(
            nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)

    @staticmethod
    def block(a: int, b: int, c: int) -> nn.Module:
        first, second = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, c, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, y: torch.Tensor, physics: Denoising | None = None) -> torch.Tensor:
        fine = self.fine(y)
        middle = self.middle(avg_pool2d(fine, 2))
        coarse = interpolate(self.coarse(avg_pool2d(middle, 2)), scale_factor=2)
        up = interpolate(self.up(torch.cat([middle, coarse], 1)), scale_factor=2)
        return y + self.out(torch.cat([fine, up], 1))


STEPS, BATCH, CROP, RATE = 600, 8, 32, 4e-3
physics = Denoising()


def train(loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The denoised image, and the multipliers after each step."""
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
        corners = torch.randint(SIDE - CROP + 1, (BATCH, 2)).tolist()
        crops = torch.cat([y[..., r : r + CROP, c : c + CROP] for r, c in corners])
        value = loss(x_net=model(crops, physics), y=crops, physics=physics, model=model)
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        history.append(getattr(loss, "multipliers", torch.zeros(1)).clone())
    with torch.no_grad():
        return average(y), torch.stack(history)


def gain(image: torch.Tensor) -> float:
    """Decibels by which the error is less than the noise."""
    return float(10 * torch.log10((y - x).square().mean() / (image - x).square().mean()))


family = StationaryKernel(3)
white, _ = train(UNSURELoss(rate=0.025, momentum=0.95))
unknown, history = train(UNSURELoss(family, rate=0.025, momentum=0.95))
known, _ = train(SUREGaussianLoss(noise))
images = {
    "noisy image": y,
    "UNSURE, white": white,
    "UNSURE, 3 × 3": unknown,
    "SURE, covariance known": known,
}
gains = {name: gain(image) for name, image in images.items()}
for name, value in gains.items():
    print(f"{name:23s} {value:5.2f} dB")
assert gains["UNSURE, white"] < 1.0
assert gains["UNSURE, 3 × 3"] > gains["UNSURE, white"] + 4.0
assert gains["UNSURE, 3 × 3"] > gains["SURE, covariance known"] - 2.0

# %%
# A part of the field, and below it what is wrong with it. UNSURE for white noise has not failed to train: of what is independent from pixel to pixel it
# found a little, and took it away. The clumps it takes for galaxies. Once it may learn how neighbours are correlated, they go.

window = (slice(130, 226), slice(160, 256))
extent = (159.5, 255.5, 129.5, 225.5)
# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(2, 5, figsize=(15, 6.4), layout="constrained", sharex=True, sharey=True)
sky_style = {"norm": stretch, "cmap": "inferno", "origin": "lower", "extent": extent}
error_style = {"vmin": -0.3, "vmax": 0.3, "cmap": SIGNED, "origin": "lower", "extent": extent}
axes[0, 0].imshow(x[0, 0][window].numpy(), **sky_style)
axes[0, 0].set_title("Sky")
axes[1, 0].axis("off")
for panels, (name, image) in zip(axes[:, 1:].T, images.items(), strict=True):
    shown = panels[0].imshow(image[0, 0][window].numpy(), **sky_style)
    wrong = panels[1].imshow((image - x)[0, 0][window].numpy(), **error_style)
    panels[0].set_title(name[0].upper() + name[1:])
    panels[1].set(title=f"Error ({gains[name]:.1f} dB less)", xlabel="column (pixels)")
for panel in (axes[0, 0], axes[1, 1]):
    panel.set_ylabel("row (pixels)")
    panel.tick_params(labelbottom=True, labelleft=True)
add_colorbar(axes[0, -1], shown, "brightness", extend="both")
add_colorbar(axes[1, -1], wrong, "error of the brightness", extend="both")

# %%
# The kernel that was found
# -------------------------
#
# The covariance of the noise is the autocorrelation of :math:`k`, which has :math:`5 \times 5` lags. The correlations that UNSURE found are the true ones to a few
# hundredths, whichever way the kernel leans. The variance is larger than that of the noise, as it must be: for white noise the multiplier is
#
# .. math::
#
#     \hat\eta = \frac{\sigma^2}{1 - \delta}, \qquad \delta = \frac{\text{mean squared error of the best denoiser}}{\sigma^2} ,
#
# and about that here. A multiplier bounds the noise from above, and the bound is close where denoising is easy. It is also the price of not knowing the
# covariance: the error grows by :math:`1 / (1 - \delta)`, which is about half a decibel here. The remainder of the gap to SURE is the short training.

true = conv2d(kernel[None, None], kernel[None, None], padding=2)[0, 0]
true = true / true[2, 2]
found = family.autocorrelation(history[-1])
found = found / found[2, 2]
delta = 10 ** (-0.1 * gains["SURE, covariance known"])
variance = float(history[-1, 0]) / SIGMA**2
print(f"largest error of a correlation  {(found - true).abs().max():.3f}")
print(f"variance found over the true    {variance:.2f}, expected {1 / (1 - delta):.2f}")
assert (found - true).abs().max() < 0.1
assert 1.0 < variance < 1.3

# %%

figure, axes = plt.subplots(
    1, 3, figsize=(13.5, 4.0), layout="constrained", width_ratios=(1, 1, 1.5)
)
for panel, image, title in zip(axes, (true, found), ("True", "Found"), strict=False):
    shown = panel.imshow(
        image.numpy(), origin="lower", cmap=SIGNED, vmin=-1, vmax=1, extent=(-2.5, 2.5, -2.5, 2.5)
    )
    for (i, j), value in zip(
        torch.cartesian_prod(*2 * [torch.arange(5)]), image.flatten(), strict=True
    ):
        color = "white" if value > 0.6 else "black"
        panel.text(
            int(j) - 2,
            int(i) - 2,
            f"{value:.2f}",
            ha="center",
            va="center",
            color=color,
            fontsize=9,
        )
    panel.set(
        title=f"{title} correlation",
        xlabel="lag in columns (pixels)",
        ylabel="lag in rows (pixels)",
    )
add_colorbar(axes[1], shown, "correlation")

names = {(0, 0): "variance", (1, 0): "next row", (0, 1): "next column", (1, -1): "diagonal"}
for number, (lag, name) in enumerate(names.items()):
    place = family.lags.index(lag)
    axes[2].plot(history[:, place] / SIGMA**2, color=f"C{number}", label=f"{name} {lag}")
    value = float(true[2 + lag[0], 2 + lag[1]])
    axes[2].axhline(value, color=f"C{number}", ls="--", lw=1)
axes[2].set(
    title="Multipliers; true covariance dashed",
    xlabel="step of the training",
    ylabel=r"covariance ($\sigma^2$)",
    ylim=(0, 1.6),
)
axes[2].legend(ncols=2, fontsize="small", loc="upper right")

plt.show()
