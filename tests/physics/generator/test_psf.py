"""Random PSFs: deepinv's contract, the laws of the parameters, use in operators."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from deepinv.physics import BlurFFT

from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.adaptive_optics import ResidualPhase, adaptive_optics_psf
from deepinv_astro.physics.functional.psf_basis import psf_basis
from deepinv_astro.physics.functional.psf_shapes import airy_psf, gaussian_psf, moffat_psf
from deepinv_astro.physics.functional.pupil import telescope_pupil
from deepinv_astro.physics.functional.pupil_psf import pupil_psf, wavefront, zernike_basis
from deepinv_astro.physics.generator import Normal, PSFGenerator, Uniform


def zernike_generator(dtype=torch.float32):
    pupil, modes = telescope_pupil(16, dtype=dtype), zernike_basis(3, 16, 4, dtype=dtype)

    def psf(coefficients, offset):
        phase = wavefront(coefficients, modes)
        return pupil_psf((11, 12), pupil, 2.0, phase=phase, offset=offset)

    laws = {
        "coefficients": Normal(torch.zeros(3), 0.04 * torch.eye(3)),
        "offset": Uniform(torch.tensor([-0.5, 0.0]), torch.tensor([0.5, 0.2])),
    }
    return PSFGenerator(psf, laws, dtype=dtype)


def residual_generator(dtype=torch.float32):
    pupil = telescope_pupil(16, dtype=dtype)
    wavelength = torch.tensor([1.0, 1.3], dtype=dtype)

    def psf(fried):
        residual = ResidualPhase(fried, 0.3, 1.0, 1.5).at(wavelength)
        return adaptive_optics_psf((11, 12), pupil, 2.0 * wavelength, residual, 4.0)

    return PSFGenerator(psf, {"fried": Uniform(0.05, 0.3)}, dtype=dtype)


def basis_generator(dtype=torch.float32):
    basis = psf_basis(gaussian_psf((11, 12), torch.linspace(2, 3, 4)).to(dtype), 2)
    return PSFGenerator(
        basis, {"coefficients": Normal(torch.zeros(2), basis.covariance)}, dtype=dtype
    )


GENERATORS = {
    "moffat": lambda dtype: PSFGenerator(
        partial(moffat_psf, (11, 12)),
        {"fwhm": Uniform(1.5, 3.0), "beta": Normal(3.0, 0.01), "ratio": 0.9},
        dtype=dtype,
    ),
    "airy": lambda dtype: PSFGenerator(
        partial(airy_psf, (11, 12)), {"sampling": Uniform(2.0, 3.0)}, dtype=dtype
    ),
    "zernike": zernike_generator,
    "adaptive optics": residual_generator,
    "basis": basis_generator,
}
CHANNELS = {"adaptive optics": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_contract(name, dtype):
    generator = GENERATORS[name](dtype)
    first = generator.step(3, seed=3)["filter"]
    assert first.shape == (3, CHANNELS.get(name, 1), 11, 12)
    assert first.dtype == dtype
    torch.testing.assert_close(first.sum((-2, -1)), torch.ones_like(first[..., 0, 0]))
    torch.testing.assert_close(generator.step(3, seed=3)["filter"], first, rtol=0, atol=0)
    assert not torch.equal(generator.step(3)["filter"], first)
    assert not torch.equal(first[0], first[1])


def test_laws_of_the_parameters():
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    laws = {
        "a": Uniform(1.0, 3.0),
        "b": Normal(2.0, 0.25),
        "c": Normal(torch.tensor([1.0, -1.0]), covariance),
        "d": Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 7.0])),
        "e": 4.0,
    }
    drawn = PSFGenerator(lambda **p: p["a"], laws).draw(20000, seed=0)
    assert {k: tuple(v.shape[1:]) for k, v in drawn.items()} == {
        "a": (1,), "b": (1,), "c": (1, 2), "d": (1, 2), "e": (1,)
    }  # fmt: skip
    assert 1.0 <= float(drawn["a"].min()) < 1.01 < 2.99 < float(drawn["a"].max()) <= 3.0
    assert float(drawn["b"].mean()) == pytest.approx(2.0, abs=0.02)
    assert float(drawn["b"].var()) == pytest.approx(0.25, rel=0.03)
    torch.testing.assert_close(
        drawn["c"][:, 0].mean(0), torch.tensor([1.0, -1.0]), atol=0.02, rtol=0
    )
    torch.testing.assert_close(drawn["c"][:, 0].T.cov(), covariance, atol=0.02, rtol=0)
    torch.testing.assert_close(
        drawn["d"][:, 0].mean(0), torch.tensor([0.5, 6.0]), atol=0.03, rtol=0
    )
    assert bool((drawn["e"] == 4.0).all())


def test_parameters_drawn_are_those_of_the_step():
    generator = GENERATORS["moffat"](torch.float64)
    drawn = generator.draw(2, seed=5)
    expected = moffat_psf((11, 12), drawn["fwhm"][1, 0], drawn["beta"][1, 0], ratio=0.9)
    torch.testing.assert_close(generator.step(2, seed=5)["filter"][1, 0], expected)


def test_operators_take_them():
    psf = GENERATORS["moffat"](torch.float32).step(2, seed=0)
    x = torch.rand(2, 1, 20, 20)
    blurred = BlurFFT(img_size=(1, 20, 20)).A(x, **psf)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), x.sum((1, 2, 3)))
    physics = ADI(img_size=(1, 20, 20), angles=torch.tensor([0.0, 30.0, 60.0]))
    assert physics.A(x, **psf).shape == (2, 1, 3, 20, 20)


def test_wrong_laws_are_refused():
    psf = partial(gaussian_psf, (5, 5))
    with pytest.raises(ValueError, match="bounds of fwhm must be increasing"):
        PSFGenerator(psf, {"fwhm": Uniform(3.0, 2.0)})
    with pytest.raises(ValueError, match="one shape"):
        PSFGenerator(psf, {"offset": Uniform(torch.zeros(2), torch.ones(3))})
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got \(2,\)"):
        PSFGenerator(psf, {"offset": Normal(torch.zeros(2), torch.ones(2))})
    with pytest.raises(ValueError, match="negative eigenvalue"):
        PSFGenerator(psf, {"offset": Normal(torch.zeros(2), -torch.eye(2))})
