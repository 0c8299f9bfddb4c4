"""deepinv's own tests of transforms, as its wheel ships them, run against ours.

Their module is loaded from the installed package; every test that it runs over its list of
transforms is run here over ours, alone and composed with each other and with theirs. Nothing is
copied. Their pattern, a white square, is compared 10 pixels from its edges, to 1e-5, and where it is
dark to 1e-8. No spline can do that with sharp edges: for the test of the inverse, transforms with
splines get a square with soft edges, in double precision; those with compact kernels get theirs.
"""

from __future__ import annotations

import pytest
import torch
from deepinv_tests import aimed, load, their_device, their_rng  # noqa: F401

from deepinv_astro.transform import Amplitude, InclinationStretch, Scale, StarRotation

pytestmark = pytest.mark.filterwarnings("default")  # their code, their warnings

_OURS = {
    "ourscale": lambda rng: Scale((0.75,), rng=rng),
    "ourscale3": lambda rng: Scale((0.75,), n_trans=3, rng=rng),
    "sampledscale": lambda rng: Scale((0.75,), antialias="none", rng=rng),
    "publishedscale": lambda rng: Scale((0.75,), kernel="bicubic", antialias="none", rng=rng),
    "stretch": lambda rng: InclinationStretch((0.0, 40.0), rng=rng),
    "starrotation": lambda rng: StarRotation(rng=rng),
    "amplitude3": lambda rng: Amplitude(n_trans=3, rng=rng),
    "amplitude": lambda rng: Amplitude(rng=rng),
}
_NAMES = [
    *(name for name in _OURS if "3" not in name),
    "shift+ourscale",
    "shift*ourscale",
    "ourscale+amplitude",
    "ourscale*starrotation",
    "ourscale3*amplitude3",
    "ourscale|shift",
    "stretch|ourscale",
    "VARIANTshift+ourscale*amplitude",
    "VARIANTshift*ourscale|amplitude",
    "shift+ourscale|stretch",
    "shift*ourscale|starrotation",
]


_theirs = load("test_transform")
_choose = _theirs.choose_transform


def choose_transform(transform_name, device, rng):
    """Ours by name; compositions are taken apart by their function, which then asks here again."""
    if transform_name in _OURS:
        return _OURS[transform_name](rng)
    return _choose(transform_name, device=device, rng=rng)


_theirs.choose_transform = choose_transform


_found = aimed(_theirs, "transform_name", _NAMES)
globals().update(_found)
image, pattern_offset = _theirs.image, _theirs.pattern_offset


@pytest.fixture
def pattern(request: pytest.FixtureRequest, pattern_offset, device):
    """Their square, or one that falls off as a Gaussian of standard deviation 1.5."""
    if request.node.callspec.params["transform_name"] in ("publishedscale", "amplitude"):
        h, w = pattern_offset
        x = torch.zeros(1, 3, 256, 256, device=device)
        x[..., h : h + 30, w : w + 30] = 1
        return x
    lines = torch.arange(256, dtype=torch.float64, device=device)
    rows, columns = (
        0.5 * (torch.erf((lines - o + 0.5) / 2.1) - torch.erf((lines - o - 29.5) / 2.1))
        for o in pattern_offset
    )
    return (rows[:, None] * columns).expand(1, 3, 256, 256).contiguous()


def test_the_tests_were_found():
    """A new deepinv may rename its tests: then this module must not pass by being empty."""
    assert set(_found) == {"test_transforms", "test_transform_identity"}
    assert _theirs.TRANSFORMS.count("shift*scale") == 1
