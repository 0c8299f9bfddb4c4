r"""
Deblurring with a PSF known to 20 %
===================================

An image of an interstellar cloud is blurred by a PSF whose width was measured on another night: it is believed to be 1.80 pixels, give or
take 20 %. In truth it is 1.50. No star is in the field. Can the width be found from the blurred image itself, while it is being deblurred?

Two criteria come to mind, and both fail: the cost of a joint fit of image and PSF is least where there is no blur at all, and the
unbiased risk (SURE) does not depend on the width. The *marginal likelihood*, in which the image is not fitted but integrated out, finds the
width, with an error bar (:class:`~deepinv_astro.optim.FourierMarginal`, :func:`~deepinv_astro.optim.calibrate`).
"""

import math

import matplotlib.pyplot as plt
import torch
from deepinv.optim.linear import conjugate_gradient

from deepinv_astro.optim import FourierMarginal, Term, calibrate, taper
from deepinv_astro.physics import Blur, Calibration, Free
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.plot import SIGNED, add_colorbar

# %%
# A cloud, blurred
# ----------------
#
# The cloud is the exponential of a Gaussian field whose power spectrum falls as a power law, :math:`x = e^{0.7 g}`, :math:`S_g(f)
# \propto (1 + f^2 / f_0^2)^{-1.6}`: bright filaments on a dark ground, as in gas stirred by turbulence. It is cut out of a larger field, so that
# nothing is periodic. The PSF is a Gaussian of standard deviation 1.50 pixels, integrated over the pixels, and the noise 2 % of the contrast of the cloud.
# The image has the pixels whose whole PSF lies on the cloud (``boundary="valid"``).

TRUE, BELIEVED, PRIOR = 1.50, 1.80, 0.20
PIXELS, STAMP = 224, 17
side = PIXELS + STAMP - 1


def psf(log_width: torch.Tensor) -> torch.Tensor:
    """PSF of unit sum; the full width at half maximum is 2.355 standard deviations."""
    return gaussian_psf((STAMP, STAMP), 2 * math.sqrt(2 * math.log(2)) * log_width.exp())


def log(width: float) -> torch.Tensor:
    return torch.tensor(width, dtype=torch.float64).log()


generator = torch.Generator().manual_seed(3)
f = torch.hypot(torch.fft.fftfreq(2 * side)[:, None], torch.fft.fftfreq(2 * side))
white = torch.randn(2 * side, 2 * side, generator=generator, dtype=torch.float64)
g = torch.fft.ifft2(torch.fft.fft2(white) * (1 + (f / 0.01) ** 2) ** -0.8).real
x = torch.exp(0.7 * g / g.std())[None, None, :side, :side]

physics = Blur((1, side, side), psf(log(TRUE)), boundary="valid", dtype=x.dtype)
sigma = 0.02 * float(x.std())
y = physics.A(x)
y = y + sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)

# %%

half = STAMP // 2
sky, data = x[0, 0, half:-half, half:-half], y[0, 0]
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
stretch = {"origin": "lower", "cmap": "inferno", "vmin": 0.0, "vmax": float(sky.quantile(0.999))}
for panel, image, title in zip(
    axes, (sky, data), ("Cloud $x$", "Measured image $y$"), strict=False
):
    shown = panel.imshow(image.numpy(), **stretch)
    panel.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
add_colorbar(axes[1], shown, "brightness", extend="max")
radius = torch.arange(half + 1)
for width, style, name in ((TRUE, "k-", "true, 1.50 px"), (BELIEVED, "C0--", "believed, 1.80 px")):
    axes[2].plot(radius, psf(log(width))[half, half:], style, label=name)
low, high = (psf(log(BELIEVED * (1 + PRIOR) ** s))[half, half:] for s in (-1, 1))
axes[2].fill_between(radius, low, high, color="C0", alpha=0.2, lw=0, label="20 % of the width")
axes[2].set(title="PSF", xlabel="distance from its centre (pixels)", ylabel="weight of the pixel")
axes[2].legend()

# %%
# Integrate the image out
# -----------------------
#
# If the cloud is a stationary field of spectrum :math:`S_x`, the image has the spectrum :math:`V_\theta = |\hat h_\theta|^2 S_x + \sigma^2`, and its
# periodogram :math:`P_y` the likelihood
#
# .. math::
#
#     -\ln p(y \mid \theta) = \tfrac12 \sum_f \left[ \ln V_\theta(f) + P_y(f) / V_\theta(f) \right] .
#
# Amplitude, knee and slope of :math:`S_x` are unknown as well and fitted with the width. A :class:`~deepinv_astro.physics.Calibration` holds what
# is free, here the logarithm of the width with its prior, and how the operator's ``filter`` is made of it. (The cloud is *not* a Gaussian field. Its
# spectrum is all that the likelihood looks at.)

calibration = Calibration(
    Free("filter", log(BELIEVED), std=math.log(1 + PRIOR), link=psf, labels=("ln width",))
)
likelihood = FourierMarginal(sigma**2, window=taper((PIXELS, PIXELS)))
fit = calibrate(calibration, [Term(likelihood, y)])
found = float(fit.report.values.exp())
error = found * float(fit.report.posterior_std)
print(f"true width     {TRUE:.3f} px")
print(f"believed       {BELIEVED:.3f} px, known to {PRIOR:.0%}")
print(f"found          {found:.3f} px +- {error:.3f}, in {fit.iterations} steps")
print(f"error bar      {float(fit.report.ratio):.3f} of the prior's")
assert abs(found - TRUE) < 0.05 * TRUE
assert abs(found - TRUE) < 3 * error

# %%
# Two criteria that fail
# ----------------------
#
# The *joint* estimate minimises over image and PSF together. For each width the best image is known in closed form, and what remains is the
# likelihood above *without the logarithm*:
#
# .. math::
#
#     \min_x \frac{\|y - h_\theta * x\|^2}{2 \sigma^2} + \sum_f \frac{|\hat x|^2}{2 S_x}
#     = \tfrac12 \sum_f \frac{P_y}{|\hat h_\theta|^2 S_x + \sigma^2} .
#
# It falls as :math:`|\hat h_\theta|` rises, whatever the data: the narrowest PSF wins. The logarithm is the price of each frequency that a PSF claims to
# show. Here the joint cost is even given the true prior of the width, and the spectrum found above.
#
# *SURE* estimates the error of :math:`h_\theta * \hat x`, the image blurred again. Its reconstruction is a Wiener filter whose spectrum, twelve values
# over the frequencies, is trained for each width. What a wrong PSF spoils, training repairs: only the product of PSF and filter is judged.

frequency = torch.hypot(
    torch.fft.fftfreq(PIXELS, dtype=y.dtype)[:, None], torch.fft.rfftfreq(PIXELS, dtype=y.dtype)
)
used = frequency > 3 / PIXELS  # the mean, and what leaks from it, says nothing
log_frequency = frequency[used].log()
periodogram = likelihood.periodogram(y)[0, 0][used]
nuisance = likelihood.nuisance.detach()


def blurred_spectrum(width: float) -> torch.Tensor:
    """Of the blurred cloud, up to its amplitude."""
    return likelihood.expected(psf(log(width)), y, nuisance)[0][0, 0][used].detach()


bright = frequency[used] < 0.1  # where the noise is negligible
amplitude = (periodogram / blurred_spectrum(found))[bright].mean()


def joint_cost(width: float) -> float:
    misfit = (periodogram / (amplitude * blurred_spectrum(width) + sigma**2)).sum()
    return float(misfit + ((log(width) - log(BELIEVED)) / math.log(1 + PRIOR)) ** 2 / 2)


def marginal_cost(width: float) -> float:
    with torch.no_grad():
        return float(likelihood.cost({"filter": psf(log(width))}, y, nuisance))


knots = torch.linspace(float(log_frequency.min()), float(log_frequency.max()), 12, dtype=y.dtype)
hats = (1 - (log_frequency[:, None] - knots).abs() / (knots[1] - knots[0])).clamp(min=0)


def risk(width: float) -> float:
    """Least unbiased risk of a Wiener filter, in units of the noise variance."""
    otf = torch.fft.rfft2(psf(log(width)), s=(PIXELS, PIXELS)).abs().square()[used]
    log_spectrum = (math.log(float(amplitude)) - 3 * (knots - knots[0])).requires_grad_()
    optimizer = torch.optim.LBFGS([log_spectrum], max_iter=60, line_search_fn="strong_wolfe")

    def sure() -> torch.Tensor:
        optimizer.zero_grad()
        signal = otf * (hats @ log_spectrum).exp()
        passed = signal / (signal + sigma**2)
        value = ((1 - passed) ** 2 * periodogram / sigma**2 + 2 * passed).mean() - 1
        value.backward()
        return value

    optimizer.step(sure)
    return float(sure().detach())


widths = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.2, 1.35, 1.5, 1.65, 1.8, 2.0, 2.2]
joint = torch.tensor([joint_cost(w) for w in widths])
sure = torch.tensor([risk(w) for w in widths])
marginal = torch.tensor([marginal_cost(w) for w in widths])
joint, marginal = joint - joint.min(), marginal - marginal.min()
collapsed = widths[int(joint.argmin())]
spread = float(sure.max() - sure.min())
print(f"joint cost      least at {collapsed} px, the prior of the width included")
print(f"SURE            between {sure.min():.4f} and {sure.max():.4f} of the noise variance")
print(f"marginal        least at {widths[int(marginal.argmin())]} px")
assert collapsed <= 0.2
assert spread < 0.001
assert widths[int(marginal.argmin())] == TRUE

# %%

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(1, 3, figsize=(14, 4.0), layout="constrained", sharex=True)
panels = (
    ("Joint cost of image and PSF", joint / 1000, "above its minimum (thousands)"),
    ("Unbiased risk (SURE)", sure, "units of the noise variance"),
    ("Marginal likelihood", marginal / 1000, "$-\\ln p$ above its minimum (thousands)"),
)
for panel, (title, values, label) in zip(axes, panels, strict=True):
    believed = (BELIEVED / (1 + PRIOR), BELIEVED * (1 + PRIOR))
    panel.axvspan(*believed, color="C0", alpha=0.15, lw=0, label="believed, 1.8 px ± 20 %")
    panel.axvline(TRUE, color="black", lw=1, ls="--", label="true, 1.50 px")
    panel.plot(widths, values, "o-", color="C3", ms=4)
    panel.set(title=title, xlabel="width of the PSF (pixels)", ylabel=label)
axes[0].plot(collapsed, 0, "*", color="C3", ms=15, label=f"minimum, {collapsed} px")
axes[1].set_ylim(0, 0.4)
axes[2].plot(found, 0, "*", color="C3", ms=15, label=f"found, {found:.2f} ± {error:.2f} px")
for panel, place in zip(axes, ("upper left", "upper left", "upper right"), strict=True):
    panel.legend(loc=place, fontsize="small", framealpha=0.95)

# %%
# What it is worth
# ----------------
#
# The image is now reconstructed with each PSF: the most probable one for the spectrum found above,
#
# .. math::
#
#     \hat x = \bar y + \operatorname*{argmin}_z \frac{\|y - \bar y - A_\theta z\|^2}{2 \sigma^2} + \frac12 \sum_f \frac{|\hat z|^2}{S_x} ,
#
# by conjugate gradients. They are run on :math:`v = R^{-1} z`, with :math:`R^2 = (1 / S_x + |\hat h_\theta|^2 / \sigma^2)^{-1}` what the variance of the
# answer would be without borders: then the matrix is nearly the identity and a few steps do. ``calibration.detached()`` is the dictionary that the
# operator takes.

sky_frequency = torch.hypot(
    torch.fft.fftfreq(side, dtype=y.dtype)[:, None], torch.fft.rfftfreq(side, dtype=y.dtype)
)
spectrum = amplitude * likelihood.sky_spectrum(sky_frequency, nuisance)


def filtered(z: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return torch.fft.irfft2(gain * torch.fft.rfft2(z), s=(side, side))


def reconstruct(kernel: torch.Tensor) -> torch.Tensor:
    physics.update(filter=kernel)
    otf = torch.fft.rfft2(kernel, s=(side, side)).abs().square()
    r = (1 / (1 / spectrum + otf / sigma**2)).sqrt()

    def normal(v: torch.Tensor) -> torch.Tensor:
        seen = physics.A_adjoint(physics.A(filtered(v, r))) / sigma**2
        return filtered(v, r.square() / spectrum) + filtered(seen, r)

    right = filtered(physics.A_adjoint(y - y.mean()), r) / sigma**2
    v = conjugate_gradient(normal, right, max_iter=30, tol=1e-3)
    return (y.mean() + filtered(v, r))[0, 0, half:-half, half:-half]


def decibels(image: torch.Tensor) -> float:
    """Contrast of the cloud over the error."""
    return float(20 * torch.log10(sky.std() / (image - sky).square().mean().sqrt()))


kernels = {
    f"joint minimum, {collapsed} px": psf(log(collapsed)),
    "believed, 1.80 px": psf(log(BELIEVED)),
    f"calibrated, {found:.2f} px": calibration.detached()["filter"],
    "known, 1.50 px": psf(log(TRUE)),
}
images = {name: reconstruct(kernel) for name, kernel in kernels.items()}
scores = [decibels(image) for image in images.values()]
for name, score in zip(images, scores, strict=True):
    print(f"{name:22s} {score:5.2f} dB")
with_joint, with_believed, with_calibrated, with_known = scores
assert abs(with_calibrated - with_known) < 0.5
assert with_calibrated > with_believed + 1.0
assert with_calibrated > with_joint + 1.0

# %%
# A part of the field, and below it what is wrong with it. With a PSF that is too wide more blur is undone than there is: every filament is too
# sharp and wears a dark rim. With the PSF of the joint minimum nothing is undone. The calibrated PSF is as good as the known one.

window = (slice(120, 184), slice(20, 84))
extent = (window[1].start - 0.5, window[1].stop - 0.5, window[0].start - 0.5, window[0].stop - 0.5)
figure, axes = plt.subplots(2, 5, figsize=(15, 6.4), layout="constrained", sharex=True, sharey=True)
stretch |= {"extent": extent}
signed = {"origin": "lower", "cmap": SIGNED, "vmin": -1.2, "vmax": 1.2, "extent": extent}
for panel, image, title in zip(axes[:, 0], (sky, data), ("Cloud", "Measured"), strict=True):
    panel.imshow(image[window].numpy(), **stretch)
    panel.set(title=title, ylabel="row (pixels)")
for column, (name, image), score in zip(axes[:, 1:].T, images.items(), scores, strict=True):
    bright_map = column[0].imshow(image[window].numpy(), **stretch)
    error_map = column[1].imshow((image - sky)[window].numpy(), **signed)
    column[0].set_title(name.capitalize())
    column[1].set_title(f"Error ({score:.1f} dB)")
for panel in axes[1]:
    panel.set_xlabel("column (pixels)")
add_colorbar(axes[0, -1], bright_map, "brightness", extend="max")
add_colorbar(axes[1, -1], error_map, "error of the brightness", extend="both")

plt.show()
