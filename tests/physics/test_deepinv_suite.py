"""deepinv's own tests of linear operators, as its wheel ships them, run against ours.

Their module is loaded from the installed package; every test that deepinv runs over its list of
linear operators is run here over ours. Nothing is copied.
"""

from __future__ import annotations

import cases
import pytest
import torch
from deepinv_tests import aimed, load, their_device, their_rng  # noqa: F401

from deepinv_astro.physics import ADI, Blur

pytestmark = pytest.mark.filterwarnings("default")  # their code, their warnings

_BUFFERS = {
    "adi": ["angles", "filter", "center"],
    "adi_shear": ["angles", "filter", "center"],
    "adi_asym": ["angles", "filter", "center", "transmission", "gain", "smear"],
    "blur": ["filter"],
    "blur_zero": ["filter"],
    "blur_valid": ["filter"],
}
_BLURS = {
    "blur": {},
    "blur_zero": {"boundary": "zero", "factor": 2, "sampling": "mean"},
    "blur_valid": {"boundary": "valid", "factor": 2},
}


def _operator(name: str, size: tuple[int, int, int], device: torch.device | str) -> ADI | Blur:
    _, height, width = size
    psf = torch.tensor([[0.0, 0.1, 0.0], [0.05, 0.6, 0.05], [0.0, 0.15, 0.05]])
    if name in _BLURS:
        return Blur(size, psf, **_BLURS[name], device=device)
    options = {"interpolation": "shear" if name == "adi_shear" else "spline"}
    frames = 4
    if name == "adi_asym":
        detector = (height - 1, width + 2)
        extra = cases.parameters(
            0, {"transmission": detector, "gain": (frames,), "smear": (frames,)}
        )
        options |= {"detector_size": detector, "smear_steps": 2, **extra}
    return ADI(
        size,
        angles=torch.tensor([-10.0, 25.0, 70.0, 155.0]),
        filter=psf,
        center=(height / 2 - 0.7, width / 2 + 0.3),
        sky_center=(height / 2 - 0.4, width / 2 - 0.1),
        device=device,
        **options,
    )


def find_operator(name, device, imsize=None, get_physics_param=False):
    """Ours, with the signature of theirs: operator, image size, squared norm, dtype."""
    size = (2, 9, 7) if imsize is None else tuple(imsize)
    physics = _operator(name, size, device)
    norm = torch.tensor(torch.nan)
    if imsize is None:  # power iterations of deepinv against a dense matrix of one channel
        one = _operator(name, (1, *size[1:]), device)
        columns = torch.eye(size[1] * size[2], device=device).view(-1, 1, *size[1:])
        norm = torch.linalg.matrix_norm(one.A(columns).flatten(1), 2) ** 2
    found = (physics, size, norm, torch.float32)
    return (*found, _BUFFERS[name]) if get_physics_param else found


_theirs = load("test_physics")
_theirs.find_operator = find_operator
_theirs.OPERATORS.extend(_BUFFERS)


_found = aimed(
    _theirs, "name", list(_BUFFERS), lambda names: set(names) >= {"inpainting", "CS", "fftdeblur"}
)
globals().update(_found)


@pytest.fixture(autouse=True)
def _in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of their tests writes files


def test_the_tests_were_found():
    """A new deepinv may rename its tests: then this module must not pass by being empty."""
    expected = {
        "test_operators_adjointness",
        "test_operators_norm",
        "test_pseudo_inverse",
        "test_concatenation",
        "test_operators_differentiability",
        "test_device_consistency",
        "test_physics_state_dict",
        "test_adjoint_autograd",
        "test_clone",
        "test_multiscale_coarse_adjointness",
        "test_operator_cropper",
    }
    assert expected <= set(_found)
