"""The operator of a measured image, its linear start, and a trained restoration on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepinv_astro.models.tikhonov import Tikhonov
from deepinv_astro.training import Recipe, Restoration, Training, noise_level
from deepinv_astro.training.log import draw_restoration, write_history
from deepinv_astro.training.loop import Validation
from deepinv_astro.training.restoration import contrast


def sky(height: int, width: int, seed: int = 0) -> Tensor:
    """Discs on a slope."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = 0.002 * rows + 0.001 * columns
    for u in torch.rand(30, 4, generator=g):
        inside = (rows - u[0] * height) ** 2 + (columns - u[1] * width) ** 2 < (12 * u[2]) ** 2
        image = torch.where(inside, u[3], image)
    return image[None]


PSF = torch.tensor([[0.0, 1.0, 2.0, 0.0], [1.0, 3.0, 4.0, 1.0], [0.0, 2.0, 1.0, 0.0]])


@pytest.mark.parametrize("factor", [1, 2])
def test_what_is_seen_lies_on_the_detector(factor: int) -> None:
    """What covers one detector pixel is brightest there: the PSF has its peak at its centre."""
    restoration = Restoration(PSF, 0.1, factor)
    physics = restoration.physics(6, 7)
    assert physics.detector_size == (6, 7)
    whole = torch.arange(float(physics.img_size[1] * physics.img_size[2])).view(physics.img_size)
    label = restoration.seen(whole)
    assert label.shape == (1, 6 * factor, 7 * factor)
    row, column = 3 * factor, 2 * factor
    block = label[0, row : row + factor, column : column + factor]
    y = physics.A(torch.isin(whole, block.reshape(-1)).float()[None])[0, 0]
    assert divmod(int(y.argmax()), 7) == (3, 2)
    if factor == 1:
        assert float(y[3, 2]) == pytest.approx(4 / 15)


def test_weight_of_the_start_is_near_the_best_for_the_truth() -> None:
    x = sky(130, 150)
    line = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.3**2))
    restoration = Restoration(torch.outer(line, line), 0.03)
    physics = restoration.physics(122, 142)
    y = physics(x[None])[0]

    def error(weight: float) -> float:
        found = Tikhonov(weight, 40)(y[None], physics)
        return float(restoration.seen(found - x).square().mean())

    chosen = float(Restoration(torch.outer(line, line), 0.03, 1, [y]).model.start.weight)
    best = min(error(10 ** (k / 4 - 4)) for k in range(13))
    assert error(chosen) < 1.05 * best
    assert error(30 * chosen) > 1.1 * best  # weights matter
    assert error(chosen / 30) > 1.1 * best


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_noise_of_blurred_images(sigma: float) -> None:
    line = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / 8)
    physics = Restoration(torch.outer(line, line), sigma).physics(200, 180)
    images = [physics(sky(212, 192, seed)[None])[0] for seed in range(3)]
    assert noise_level(images) == pytest.approx(sigma, rel=0.03)


def test_images_without_noise_or_contrast_are_refused() -> None:
    with pytest.raises(ValueError, match="`noise`"):
        noise_level([torch.ones(1, 9, 9)])
    with pytest.raises(ValueError, match="constant"):
        Restoration(PSF, 0.1, 1, [torch.ones(1, 40, 40)])
    with pytest.raises(ValueError, match="`psf`"):
        Restoration(-PSF, 0.1)
    with pytest.raises(ValueError, match="`noise` must be positive, got 0"):
        Restoration(PSF, 0.0)


def test_contrast_ignores_a_few_bright_pixels() -> None:
    y = torch.rand(1, 100, 100, generator=torch.Generator().manual_seed(0))
    bright = y.clone()
    bright[0, 3, :20] = 1e5
    assert contrast([bright])[0] == pytest.approx(contrast([y])[0], abs=0.01)
    assert contrast([bright])[1] == pytest.approx(0.99, abs=0.01)


def test_a_saved_restoration_is_the_same(tmp_path: Path) -> None:
    y = sky(60, 50) + 0.01 * torch.randn(1, 60, 50, generator=torch.Generator().manual_seed(1))
    made = Restoration(PSF, 0.02, 2, [y], features=4, seed=5)
    torch.nn.init.normal_(made.model.last.weight, std=0.1)
    made.save(tmp_path / "w.pt")
    read = Restoration.load(tmp_path / "w.pt")
    assert torch.equal(read(y), made(y))
    assert torch.equal(read(y[None])[0], made(y))
    assert (read.noise, read.factor, read.training) == (0.02, 2, False)
    with pytest.raises(FileExistsError):
        made.save(tmp_path / "w.pt")
    (tmp_path / "x.pt").write_bytes(b"text")
    torch.save({"weights": torch.ones(2)}, tmp_path / "y.pt")
    for name in ("x.pt", "y.pt"):
        with pytest.raises(ValueError, match="no trained restoration"):
            Restoration.load(tmp_path / name)


def test_seeds_make_the_weights_and_leave_torch_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    one, two, other = (Restoration(PSF, 0.1, features=4, seed=s).model for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.first.weight, two.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


def test_picture_and_table(tmp_path: Path) -> None:
    y = sky(40, 50)
    restoration = Restoration(PSF, 0.02, 2, [y], features=4)
    history = [Validation(0, float("nan"), 0.5, 0.0), Validation(10, 0.4, 0.25, 1.5)]
    figure = draw_restoration(restoration, y, history)
    shapes = [axis.images[0].get_array().shape for axis in figure.axes[:3]]
    assert shapes == [(40, 50), (80, 100), (40, 50)]
    physics = restoration.physics(40, 50)
    expected = (y - physics.A(restoration.model(y[None], physics))[0]) / 0.02
    assert torch.allclose(
        torch.tensor(figure.axes[2].images[0].get_array()), expected[0], atol=1e-4
    )
    write_history(tmp_path / "log.csv", history)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["step,train,validation,seconds", "0,nan,0.5,0", "10,0.4,0.25,1.5"]


@pytest.mark.parametrize("shape", [(30, 110), (110, 30), (60, 50)])
def test_the_panels_fill_the_picture(shape: tuple[int, int]) -> None:
    y = sky(*shape)
    history = [Validation(k, 0.4 / (k + 1), 0.3 / (k + 1), 1.0) for k in range(4)]
    figure = draw_restoration(Restoration(PSF, 0.02, 1, [y], features=4), y, history)
    figure.draw_without_rendering()
    boxes = [
        axis.get_window_extent().transformed(figure.transFigure.inverted()) for axis in figure.axes
    ]
    assert len(boxes) == 4
    assert sum(box.width * box.height for box in boxes) > 0.5  # the rest are labels
    ratio = figure.axes[0].get_window_extent()
    assert ratio.width / ratio.height == pytest.approx(shape[1] / shape[0], rel=0.01)
    legend = figure.axes[3].get_legend()
    inside = legend.get_window_extent()
    for line in figure.axes[3].get_lines():  # not over what it explains
        points = figure.axes[3].transData.transform(line.get_xydata())
        assert not any(inside.contains(x, y) for x, y in points)


@pytest.mark.slow
def test_training_lowers_the_error_of_the_truth() -> None:
    """Blurred discs, without their truth."""
    line = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.5**2))
    maker = Restoration(torch.outer(line, line), 0.02)
    physics = maker.physics(100, 110)
    x = [sky(108, 118, seed) for seed in range(4)]
    y = [physics(image[None])[0] for image in x]
    made = Restoration(torch.outer(line, line), 0.02, 1, y[:3], features=8)
    recipe = Recipe(crop=32, batch=4, steps=300, validate_every=100)
    with torch.no_grad():
        before = float((made(y[3]) - maker.seen(x[3])).square().mean())
    training = Training(made.model, made.physics(32, 32), y[:2], y[2:3], recipe)
    training.run()
    made.model = training.result()
    with torch.no_grad():
        after = float((made(y[3]) - maker.seen(x[3])).square().mean())
    assert after < 0.85 * before
