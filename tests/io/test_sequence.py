"""The dataclass: what it accepts, what it refuses and how it is cut and moved."""

from __future__ import annotations

import pickle

import astropy.units as u
import pytest
import torch

from deepinv_astro.io import Sequence, SequenceError


def parts(**changes):
    psf = torch.zeros(2, 3, 3, dtype=torch.float64)
    psf[:, 1, 1] = 1
    values = {
        "y": torch.arange(2 * 4 * 6 * 9, dtype=torch.float64).reshape(1, 2, 4, 6, 9),
        "angles": torch.tensor([0.0, 3.0, 8.0, 20.0]),
        "psf": psf,
        "star_flux": torch.tensor([10.0, 20.0], dtype=torch.float64),
        "center": (2.5, 4),
        "pixel_scale": 12.0 * u.mas,
        "wavelengths": [1.6, 1.7] * u.um,
        "transmission": torch.full((6, 9), 0.5, dtype=torch.float64),
    }
    return values | changes


def test_valid_is_where_data_are_finite():
    y = parts()["y"]
    y[0, 1, 2, 3, 4] = torch.nan
    seq = Sequence(**parts(y=y))
    assert (~seq.valid).nonzero().tolist() == [[0, 1, 2, 3, 4]]
    assert seq.img_size == (2, 6, 9)
    assert seq.n_frames == 4


def test_angles_become_float64_and_center_floats():
    seq = Sequence(**parts())
    assert seq.angles.dtype == torch.float64
    assert seq.center == (2.5, 4.0)
    assert isinstance(seq.center[1], float)


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        ([3, 0], [3, 0]),
        (slice(1, None, 2), [1, 3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (2, [2]),
    ],
)
def test_select_cuts_frames_and_angles_together(frames, kept):
    full = Sequence(**parts(provenance=("first",)))
    seq = full.select(frames)
    torch.testing.assert_close(seq.y, full.y[:, :, kept])
    torch.testing.assert_close(seq.angles, full.angles[kept])
    assert seq.provenance == ("first", f"Selected {len(kept)} of 4 frames.")
    assert full.n_frames == 4
    assert seq.star_flux is full.star_flux


def test_select_of_nothing_is_refused():
    with pytest.raises(SequenceError, match="no frame"):
        Sequence(**parts()).select([])


def test_to_converts_all_but_angles():
    seq = Sequence(**parts()).to(dtype=torch.float32, device="cpu")
    for tensor in (seq.y, seq.psf, seq.star_flux, seq.transmission):
        assert tensor.dtype == torch.float32
    assert seq.angles.dtype == torch.float64
    bare = Sequence(**parts(psf=None, star_flux=None, transmission=None)).to(torch.float32)
    assert bare.psf is None


NAN = float("nan")
BAD = {
    "four dimensions": ({"y": torch.ones(2, 4, 6, 9)}, "shape"),
    "batch of two": ({"y": torch.ones(2, 2, 4, 6, 9)}, "shape"),
    "integers": ({"y": torch.ones(1, 2, 4, 6, 9, dtype=torch.int64)}, "int64"),
    "wrong number of angles": ({"angles": torch.zeros(3)}, r"\(4,\), one angle per frame"),
    "angles nan": ({"angles": torch.tensor([0, 1, NAN, 3])}, r"non-finite values at \[2\]"),
    "psf channels": ({"psf": torch.ones(1, 3, 3) / 9}, "each of the 2 channels"),
    "psf even": ({"psf": torch.ones(2, 4, 4) / 16}, "odd"),
    "psf too large": ({"psf": torch.ones(2, 7, 7) / 49}, "at most the image, 6 x 9"),
    "psf sum": ({"psf": torch.ones(2, 3, 3)}, "unit sums"),
    "star flux shape": ({"star_flux": torch.ones(3)}, r"\(2,\)"),
    "star flux negative": ({"star_flux": torch.tensor([1.0, -1.0])}, "positive"),
    "center outside": ({"center": (6.0, 2.0)}, "inside the image of 6 rows and 9 columns"),
    "center swapped": ({"center": (8.0, 3.0)}, "row first"),
    "center nan": ({"center": (NAN, 3.0)}, "finite"),
    "center of three": ({"center": (1.0, 2.0, 3.0)}, "row, column"),
    "pixel scale": ({"pixel_scale": 3 * u.m}, "angle"),
    "pixel scale zero": ({"pixel_scale": 0 * u.mas}, "positive"),
    "wavelengths number": ({"wavelengths": [1.6] * u.um}, r"\(2,\)"),
    "wavelengths unit": ({"wavelengths": [1.6, 1.7] * u.s}, "length"),
    "wavelengths sign": ({"wavelengths": [1.6, -1.7] * u.um}, "positive"),
    "transmission shape": ({"transmission": torch.ones(9, 6)}, "about the star"),
    "transmission percent": ({"transmission": torch.full((6, 9), 98.0)}, "between 0 and 1"),
    "transmission nan": ({"transmission": torch.full((6, 9), NAN)}, "between 0 and 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parts_are_refused_with_the_reason(case):
    changes, reason = BAD[case]
    with pytest.raises(SequenceError, match=reason):
        Sequence(**parts(**changes))


def test_empty_frames_are_named():
    y = parts()["y"]
    y[0, 1, 2] = torch.nan
    with pytest.raises(SequenceError, match=r"no finite pixel in \(channel 1, frame 2\)"):
        Sequence(**parts(y=y))


def test_error_is_a_value_error_and_survives_pickling():
    error = pickle.loads(pickle.dumps(SequenceError("a.fits", "x", "y", "do z")))
    assert isinstance(error, ValueError)
    assert (error.source, error.remedy) == ("a.fits", "do z")
    assert str(error) == "a.fits: found x; expected y. To fix it: do z."
