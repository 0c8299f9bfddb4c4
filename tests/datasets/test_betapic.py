"""The real sequence, and what happens without it."""

from __future__ import annotations

import hashlib
import math
import shutil
from urllib.error import URLError

import astropy.units as u
import pytest
import torch

from deepinv_astro.datasets import BETA_PICTORIS_FILES, BetaPictoris
from deepinv_astro.datasets import betapic as module
from deepinv_astro.physics.functional.rotation import rotate


def test_facts_of_the_sequence(data_root):
    sequence = BetaPictoris(data_root)
    assert sequence.y.shape == (1, 1, 61, 101, 101)
    assert sequence.center == (51.0, 51.0)
    assert float(sequence.angles[0]) == pytest.approx(-14.2679 - 104.39, abs=1e-3)
    assert float(sequence.angles[-1] - sequence.angles[0]) == pytest.approx(81.37, abs=0.01)
    assert sequence.pixel_scale.to_value(u.mas) == pytest.approx(27.19)
    # 764939.6 in a diameter of 4.80 pixels, which holds 30.04 % of the PSF
    assert float(sequence.star_flux) == pytest.approx(764939.6 / 0.3004, rel=1e-3)


def test_the_planet_is_where_it_is_known_to_be(data_root):
    """Subtract the median, turn by the angles, average: the planet stands at 452 mas, 210.6 deg."""
    sequence = BetaPictoris(data_root)
    y = sequence.y[0, 0]
    residual = y - y.median(dim=0).values
    image = rotate(residual, sequence.angles.to(y.dtype), center=sequence.center).mean(dim=0)
    theta = math.radians(210.6)
    row, column = 51 + 16.62 * math.cos(theta), 51 - 16.62 * math.sin(theta)
    window = image[round(row) - 3 : round(row) + 4, round(column) - 3 : round(column) + 4]
    peak = divmod(int(window.argmax()), 7)
    assert abs(peak[0] + round(row) - 3 - row) < 1.5
    assert abs(peak[1] + round(column) - 3 - column) < 1.5
    rows, columns = torch.arange(101.0)[:, None] - 51, torch.arange(101.0) - 51
    ring = (torch.hypot(rows, columns) - 16.6).abs() < 1.5
    assert float(window.max()) > 0.8 * float(image[ring].max())
    assert float(window.max()) > 3 * float(image[ring].std())


def test_environment_variable_names_the_folder(data_root, monkeypatch, tmp_path):
    for name in BETA_PICTORIS_FILES:
        shutil.copy(data_root / "naco_betapic" / name, tmp_path / name)
    monkeypatch.setenv("DEEPINV_ASTRO_DATA", str(tmp_path))
    assert BetaPictoris(download=False).n_frames == 61
    (tmp_path / "naco_betapic_pa.fits").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"naco_betapic_pa.fits: its sha256 is .* fetch it again"):
        BetaPictoris()


def test_without_files_the_message_says_which_and_where(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not hold naco_betapic_cube.fits, .* root"):
        BetaPictoris(tmp_path)
    monkeypatch.delenv("DEEPINV_ASTRO_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"download is False.* DEEPINV_ASTRO_DATA"):
        BetaPictoris(download=False)

    def offline(*args: object, **kwargs: object) -> str:
        raise URLError("no network")

    monkeypatch.setattr(module, "download_file", offline)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*no network.* as root"):
        BetaPictoris()


def test_download_goes_through_the_cache_and_is_checked(monkeypatch, tmp_path):
    asked = []

    def fake(url: str, **options: object) -> str:
        asked.append((url, options["cache"]))
        path = tmp_path / url.rsplit("/", 1)[1]
        path.write_bytes(b"not the file")
        return str(path)

    monkeypatch.delenv("DEEPINV_ASTRO_DATA", raising=False)
    monkeypatch.setattr(module, "download_file", fake)
    with pytest.raises(ValueError, match=hashlib.sha256(b"not the file").hexdigest()):
        BetaPictoris()
    assert [url.rsplit("/", 1)[1] for url, _ in asked] == list(BETA_PICTORIS_FILES)
    assert all(url.startswith("https://github.com/carlos-gg/VIP_extras/") for url, _ in asked)
    assert all(cached is True for _, cached in asked)
