r"""
Recentring and gains of an ADI sequence
=======================================

The star behind a coronagraph is known to a third of a pixel, thin clouds make each frame brighter or fainter by an unknown 5 %, and the angles
are off by 0.3 degrees. Calibration frames would tell, but there are none. The sky itself does: companions of the star must turn about *one* point, by the
given angles, with *one* brightness. :func:`~deepinv_astro.optim.self_calibration.self_calibrate` uses that, without knowing the companions: the sky and
the speckles are integrated out. It also says what no sequence can tell.
"""

import matplotlib.pyplot as plt
import torch

from deepinv_astro.datasets.disks import point_sources
from deepinv_astro.datasets.speckles import SpeckleModel, detect, speckle_frames
from deepinv_astro.optim.self_calibration import self_calibrate
from deepinv_astro.physics import ADI, Calibration, free_angles, free_center, free_gain
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.plot import SIGNED, add_colorbar

# %%
# A sequence with a wrong operator
# --------------------------------
#
# Twelve frames of 41 x 41 pixels turn by 70 degrees. Their speckles come from wavefronts through a coronagraph, not from a Gaussian. Three companions are
# brighter than the speckles around them. The operator of the *truth* has its centre, angles and gains drawn from the priors; the one that the observer
# *believes* in has the middle of the frame, the angles of the header, and gains of one.

SIZE, FRAMES, FLUX = 41, 12, 1e5
CENTER_STD, ANGLE_STD, NORTH_STD, GAIN_STD = 0.3, 0.3, 0.5, 0.05

generator = torch.Generator().manual_seed(2)
model = SpeckleModel(pupil_size=32, exposures=10, sampling=3.0)
star = speckle_frames(model, FRAMES, (SIZE, SIZE), generator=generator, psf_size=21)
middle = float(SIZE // 2)
believed = ADI(
    (1, SIZE, SIZE),
    torch.linspace(0, 70.0, FRAMES),
    star.psf,
    (middle, middle),
    gain=torch.ones(FRAMES),
)


def draw(like: torch.Tensor, std: float) -> torch.Tensor:
    return std * torch.randn(like.shape, generator=generator)


truth = believed.variant(
    center=believed.center + draw(believed.center, CENTER_STD),
    angles=believed.angles + draw(believed.angles, ANGLE_STD),
    gain=believed.gain + draw(believed.gain, GAIN_STD),
)
rows, columns = torch.tensor([29.0, 13.0, 25.5]), torch.tensor([24.0, 32.5, 5.0])
sky = point_sources((SIZE, SIZE), rows, columns, FLUX * torch.tensor([1.0, 0.7, 0.7]))
sky = sky.float()[None, None]
y = detect(star.frames + truth.A(sky)[0, 0], model, generator=generator)[None, None]

# %%
# What is free, and how well it is known before
# ---------------------------------------------
#
# A :class:`~deepinv_astro.physics.Calibration` holds the free parameters with their Gaussian priors: 27 of them here, true North among them.

calibration = Calibration(
    free_center(believed.center.flatten(), CENTER_STD),
    free_angles(believed.angles[0], ANGLE_STD, NORTH_STD),
    free_gain(believed.gain[0], GAIN_STD),
)
found = self_calibrate(y, believed, calibration)
report = found.report

names = ("row", "column")
for k, name in enumerate(names):
    print(
        f"{name:8s} true {float(truth.center.flatten()[k]):.3f}, found {float(report.values[k]):.3f} "
        f"± {float(report.posterior_std[k]):.3f} px"
    )
for k, step in enumerate(found.history, 1):
    print(f"alternation {k}: largest move {step.move:.2f} standard deviations")

# %%
# Found, and not found
# --------------------
#
# The centre is found to a few hundredths of a pixel. Of the gains and angles only what *differs* between frames is known: a gain common to all frames is the flux of
# the sky, an angle common to all its orientation. These directions are listed, and held at the prior: the error bar of true North is as long as before.


def differences(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean()


where = {"angle": slice(3, 3 + FRAMES), "gain": slice(3 + FRAMES, 3 + 2 * FRAMES)}
wrong = {"angle": truth.angles[0] - believed.angles[0], "gain": truth.gain[0] - believed.gain[0]}
change = report.values - report.prior_mean
for line in report.describe_kept():
    print(f"stays at the prior: {line}")
errors = {}
for kind, own in where.items():
    before = differences(wrong[kind])
    after = differences(wrong[kind] - change[own])
    errors[kind] = [float(e.square().mean().sqrt()) for e in (before, after)]
    print(
        f"{kind}, differences between frames: rms error {errors[kind][0]:.4f}, then {errors[kind][1]:.4f}"
    )

missed = (found.physics.center - truth.center).abs().max()
moved = (report.kept_directions.T @ calibration.u.detach()).abs().max()
assert missed < 0.05
assert errors["gain"][1] < 0.02 < errors["gain"][0]
assert errors["angle"][1] < 0.1 < errors["angle"][0]
assert moved < 1e-5
assert report.ratio[2] > 0.99  # true North

# %%

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
axes[0].errorbar(
    *[middle, middle], CENTER_STD, CENTER_STD, "o", color="C0", capsize=3, label="believed"
)
row_std, column_std = report.posterior_std[:2].tolist()
axes[0].errorbar(
    float(report.values[1]), float(report.values[0]), row_std, column_std, "o", color="C3",
    capsize=3, label="found",
)  # fmt: skip
axes[0].plot(*truth.center.flatten().flip(0).tolist(), "k+", ms=14, label="true")
axes[0].set(title="Centre", xlabel="column (pixels)", ylabel="row (pixels)", aspect="equal")
axes[0].legend()
frame = torch.arange(FRAMES)
for panel, (kind, own), scale, unit in zip(
    axes[1:], where.items(), (1.0, 100.0), ("degrees", "%"), strict=True
):
    panel.axhspan(-scale * float(report.prior_std[own][0]), scale * float(report.prior_std[own][0]),
                  color="C0", alpha=0.15, lw=0, label="believed")  # fmt: skip
    panel.errorbar(
        frame, scale * differences(change[own]), scale * report.posterior_std[own], fmt="o",
        color="C3", capsize=2, label="found",
    )  # fmt: skip
    panel.plot(frame, scale * differences(wrong[kind]), "k+", ms=12, label="true")
    panel.set(
        title=f"{kind.capitalize()} of each frame, less the mean", xlabel="frame", ylabel=unit
    )
    panel.legend()

# %%
# What it is worth
# ----------------
#
# The image that the wrong operator makes is ``found.first``. What it cannot explain, it leaves behind and smears. ``found.flux_std`` is what the errors
# that remain, the common gain most of all, add to the error of a flux; ``deepinv-astro reconstruct --calibration`` adds it to the map of errors.


def score(image: torch.Tensor) -> float:
    """Error of the blurred image, relative."""
    wanted = blur(sky, star.psf)
    return float((blur(image, star.psf) - wanted).norm() / wanted.norm())


scores = {"believed": score(found.first), "calibrated": score(found.image)}
common = GAIN_STD / FRAMES**0.5
at = int(rows[0]), int(columns[0])
print(
    f"relative error of the image: {scores['believed']:.3f}, calibrated {scores['calibrated']:.3f}"
)
print(f"flux error by calibration: {float(found.flux_std[0, 0][at]) / FLUX:.3f} of the flux")
assert scores["calibrated"] < 0.7 * scores["believed"]
assert float(found.flux_std[0, 0][at]) > 0.8 * common * FLUX

# %%

figure, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained", sharey=True)
wanted = blur(sky, star.psf)[0, 0]
top = float(wanted.max())
stretch = {"origin": "lower", "cmap": "inferno", "vmin": 0.0, "vmax": top}
halo = y[0, 0, FRAMES // 2]
axes[0].imshow(halo, **{**stretch, "vmax": float(halo.quantile(0.98))})
axes[0].set(title="One frame", ylabel="row (pixels)")
shown = axes[1].imshow(wanted, **stretch)
axes[1].set_title("Truth, blurred")
add_colorbar(axes[1], shown, "counts")
signed = {"origin": "lower", "cmap": SIGNED, "vmin": -0.15 * top, "vmax": 0.15 * top}
for panel, image, name in zip(axes[2:], (found.first, found.image), scores, strict=True):
    shown = panel.imshow(blur(image, star.psf)[0, 0] - wanted, **signed)
    panel.set_title(f"Error, {name} ({scores[name]:.0%})")
add_colorbar(axes[3], shown, "counts", extend="both")
for panel in axes:
    panel.set_xlabel("column (pixels)")

plt.show()
