"""Blur against scipy, a closed form, deepinv's own operator, and the laws of operators."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from deepinv.physics import Downsampling
from torch import Tensor

from deepinv_astro import testing
from deepinv_astro.physics import Blur
from deepinv_astro.physics.functional.otf import centred_otf, turned_otf

F64 = torch.float64


@pytest.fixture(params=cases.BLUR_CASES, ids=str)
def case(request: pytest.FixtureRequest) -> cases.Case:
    return request.param


def test_laws(case):
    physics, other, x = case.make(0), case.make(1), case.image()
    matrix = testing.assert_adjoint(physics, x, rtol=1e-12)
    y = physics.A(x)
    torch.testing.assert_close(y.flatten(), matrix @ x.flatten(), rtol=1e-12, atol=1e-12)
    testing.assert_linear(physics.A, x)
    testing.assert_state_restored(physics, other, x)
    testing.assert_dtype_kept(physics, x)
    if len(x) > 1:
        testing.assert_batches_independent(physics.A, x)
        testing.assert_batches_independent(physics.A_adjoint, y)


def test_gradients(case):
    physics = case.make(0)
    testing.assert_gradients(physics, case.image(), {"filter": case.make(1).filter})


def direct(x: Tensor, psf: Tensor, boundary: str) -> np.ndarray:
    """h * x with the centre of the PSF at (k // 2, l // 2), by scipy."""
    image, stamp = x.numpy(), psf.numpy()
    if boundary == "periodic":
        k, l = stamp.shape
        place = (k // 2 - (k - 1) // 2 - 1 + k % 2, l // 2 - (l - 1) // 2 - 1 + l % 2)
        return scipy.ndimage.convolve(image, stamp, mode="wrap", origin=place)
    full = scipy.signal.convolve2d(image, stamp)
    k, l = stamp.shape
    if boundary == "valid":
        return scipy.signal.convolve2d(image, stamp, mode="valid")
    return full[k // 2 : k // 2 + image.shape[0], l // 2 : l // 2 + image.shape[1]]


@pytest.mark.parametrize("boundary", ["periodic", "zero", "valid"])
@pytest.mark.parametrize("psf_shape", [(3, 5), (5, 1), (4, 3)])
def test_against_scipy(boundary, psf_shape, rng):
    x = torch.randn(9, 8, generator=rng, dtype=F64)
    psf = torch.rand(psf_shape, generator=rng, dtype=F64)
    if boundary == "periodic" and psf_shape[0] % 2 == 0:
        padded = torch.zeros(psf_shape[0] + 1, psf_shape[1], dtype=F64)
        padded[:-1] = psf  # the centre stays at the same pixel, of an odd stamp
        expected = direct(x, padded, boundary)
    else:
        expected = direct(x, psf, boundary)
    for factor, sampling in ((1, "point"), (2, "point"), (3, "mean")):
        physics = Blur((1, 9, 8), psf, factor, boundary=boundary, sampling=sampling, dtype=F64)
        h, w = (n // factor for n in expected.shape)
        blocks = expected[: h * factor, : w * factor].reshape(h, factor, w, factor)
        wanted = blocks.mean((1, 3)) if sampling == "mean" else blocks[:, 0, :, 0]
        found = physics.A(x[None, None])[0, 0]
        assert physics.detector_size == found.shape == wanted.shape
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def test_against_deepinv(rng):
    """The same operator as deepinv's for an odd PSF."""
    x = torch.randn(2, 3, 8, 6, generator=rng)
    psf = torch.rand(1, 1, 3, 5, generator=rng)
    theirs = Downsampling(img_size=(3, 8, 6), filter=psf, factor=2, padding="circular")
    torch.testing.assert_close(Blur((3, 8, 6), psf, 2).A(x), theirs.A(x))


def test_transfer_function_is_the_one_of_turned_psfs(rng):
    psf = torch.rand(2, 4, 7, generator=rng, dtype=F64)
    turned = turned_otf(psf, torch.zeros(1, dtype=F64), (6, 5))[:, 0]
    torch.testing.assert_close(centred_otf(psf, (6, 5)), turned, rtol=1e-12, atol=1e-12)


def test_each_image_has_the_psf_of_its_index(rng):
    case = cases.BLUR_CASES[-1]
    physics, x = case.make(0), case.image()
    y = physics.A(x)
    for n in range(4):
        for c in range(2):
            alone = Blur(
                (1, 7, 9),
                physics.filter[n % 2, c],
                2,
                boundary="valid",
                sampling="mean",
                dtype=F64,
            )
            torch.testing.assert_close(alone.A(x[n : n + 1, c : c + 1])[0, 0], y[n, c])


def test_flux_and_neutral_psf(rng):
    x = torch.rand(1, 1, 6, 9, generator=rng, dtype=F64)
    neutral = Blur((1, 6, 9), torch.ones(1, 1), boundary="zero", dtype=F64)
    torch.testing.assert_close(neutral.A(x), x)
    psf = torch.rand(3, 3, generator=rng, dtype=F64)
    binned = Blur((1, 6, 9), psf / psf.sum(), 3, sampling="mean", dtype=F64)
    torch.testing.assert_close(binned.A(x).sum() * 9, x.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": (1, 4)}, "img_size must be three positive integers"),
        ({"factor": 0}, "factor a positive integer"),
        ({"filter": torch.ones(2, 3, 3)}, r"with c 1 or 1, got \(2, 3, 3\)"),
        ({"filter": torch.ones(3)}, r"filter must be of shape"),
        ({"filter": torch.full((3, 3), torch.nan)}, "filter must be finite"),
        ({"filter": torch.ones(9, 3), "boundary": "valid"}, "no pixel sees a whole PSF"),
        ({"factor": 7}, "less than one detector pixel"),
        ({"boundary": "mirror"}, "is not a valid Boundary"),
    ],
)
def test_wrong_input(change, message):
    given = {"img_size": (1, 5, 6), "filter": torch.ones(3, 3), **change}
    with pytest.raises(ValueError, match=message):
        Blur(**given)


def test_wrong_calls():
    physics = Blur((1, 5, 6), torch.ones(2, 1, 3, 3), boundary="valid")
    with pytest.raises(ValueError, match="a batch of 3 cannot use 2 PSFs"):
        physics.A(torch.zeros(3, 1, 5, 6))
    with pytest.raises(ValueError, match="x must be of shape"):
        physics.A(torch.zeros(2, 1, 6, 5))
    with pytest.raises(ValueError, match="y must be of shape"):
        physics.A_adjoint(torch.zeros(2, 1, 5, 6))
    with pytest.raises(ValueError, match=r"the operator torch\.float32"):
        physics.A(torch.zeros(2, 1, 5, 6, dtype=F64))
    with pytest.raises(ValueError, match="it must stay"):
        physics.A(torch.zeros(2, 1, 5, 6), filter=torch.ones(5, 5))
