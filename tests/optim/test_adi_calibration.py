"""The evidence of a sequence on its operator: dense twins, closed forms, Monte Carlo, and what cannot be known."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from deepinv_astro.optim import TemporalLikelihood
from deepinv_astro.optim.adi_calibration import (
    Evidence,
    SkyPrior,
    SpeckleExpansion,
    expand_evidence,
)
from deepinv_astro.optim.adi_tangents import CalibratedADI, calibration_modes, sky_symmetries
from deepinv_astro.optim.regions import Partition
from deepinv_astro.optim.sky_solver import SkyGrid, conjugate_gradients, solve
from deepinv_astro.physics import (
    ADI,
    Calibration,
    Free,
    LowRankNoise,
    free_angles,
    free_center,
    free_gain,
    free_psf,
)
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.testing import dense_matrix

F64 = torch.float64
SIZE, FRAMES = (9, 8), 5
SKY = (25, 24)  # so large that the slopes of what is free do not end at its edge
ANGLES = torch.tensor([0.0, 25.0, 60.0, 85.0, 120.0], dtype=F64)


def gaussian(down: float, across: float | None = None, half: int = 3) -> Tensor:
    r = torch.arange(-half, half + 1, dtype=F64)
    across = down if across is None else across
    h = torch.exp(-(r[:, None] ** 2) / (2 * down**2) - r**2 / (2 * across**2))
    return h / h.sum()


def operator(psf: Tensor | None = None, center: Tensor | None = None) -> ADI:
    return ADI(
        (1, *SKY),
        ANGLES,
        gaussian(1.6, 1.9, half=6) if psf is None else psf,
        torch.tensor([4.2, 3.7], dtype=F64) if center is None else center,
        gain=torch.tensor([1.0, 0.9, 1.1, 1.05, 0.95], dtype=F64),
        detector_size=SIZE,
        dtype=F64,
    )


def sky() -> Tensor:
    x = torch.zeros(1, 1, *SKY, dtype=F64)
    x[0, 0, 14, 13], x[0, 0, 10, 11], x[0, 0, 11, 14] = 50.0, 30.0, 20.0
    return x


def expansion(physics: ADI, rng: torch.Generator, nu: float = 0.3) -> SpeckleExpansion:
    """Two regions, uneven noise; strong prior on the covariance, as there are few pixels."""
    labels = (torch.arange(SIZE[1]) > 3).long().expand(SIZE)
    variance = 0.5 + torch.rand(SIZE, generator=rng, dtype=F64)
    residual = torch.randn(1, 1, FRAMES, *SIZE, generator=rng, dtype=F64)
    likelihood = TemporalLikelihood([Partition.from_labels(labels)], variance, nu)
    return SpeckleExpansion(likelihood, residual, physics.filter)


def prior() -> SkyPrior:
    free = torch.zeros(1, 1, *SKY, dtype=torch.bool)
    free[..., 9:16, 10:15] = True
    stiffness = torch.linspace(0.01, 0.05, SKY[0] * SKY[1], dtype=F64).view(1, 1, *SKY)
    return SkyPrior(free, stiffness, torch.ones(1, 1, *SKY, dtype=F64))


def geometry(physics: ADI) -> Calibration:
    return Calibration(
        free_center(physics.center.flatten(), 0.3),
        free_angles(physics.angles[0], 3.0, true_north_std=1.0),
        free_gain(physics.gain[0], 0.1),
    )


def near(found: Tensor, wanted: Tensor, fraction: float = 0.02) -> None:
    """Equal but for the error of the spline's slope: a hundredth for this PSF."""
    away = float((found - wanted).abs().max() / wanted.abs().max())
    assert away < fraction, f"{away:.4f} of the largest element"


def whole_trace(free: Tensor) -> Tensor:
    """Probes whose mean outer product is the identity exactly, where something is free."""
    n = int(free.sum())
    some = torch.eye(free.numel(), dtype=F64)[free.flatten()]
    return (n**0.5) * some.view(n, *free.shape[1:])


def evidence(calibration: Calibration, physics: ADI, rng: torch.Generator) -> Evidence:
    own = prior()
    return expand_evidence(
        CalibratedADI(physics, calibration),
        calibration.mean,
        sky(),
        expansion(physics, rng),
        own,
        whole_trace(own.free),
        tol=1e-10,
        max_iter=1000,
    )


class Dense:
    """Matrices of the same problem."""

    def __init__(self, physics: ADI, rng: torch.Generator):
        self.physics, self.prior, self.x = physics, prior(), sky()
        speckles = expansion(physics, rng)
        like = torch.zeros(1, 1, FRAMES, *SIZE, dtype=F64)
        self.m = dense_matrix(speckles, like)
        self.w = speckles.score.flatten()
        seen = self.x * self.prior.free
        self.e = sky_symmetries(physics, seen).flatten(1).T
        self.places = self.prior.free.flatten()
        units = torch.eye(len(self.places), dtype=F64)[self.places]
        self.units = units.view(-1, *self.x.shape[1:])
        self.p = self.prior(self.units).flatten(1)[:, self.places]
        self.start = physics.A(seen).flatten()

    def a(self, physics: ADI) -> Tensor:
        return physics.A(self.units).flatten(1).T

    def cost(self, physics: ADI, determinant: bool = True) -> Tensor:
        """Minimum over sky and symmetries about the first operator, and the determinant, by linear algebra."""
        x = self.x.flatten()[self.places]
        a, b = self.a(physics), torch.cat([self.a(self.physics), self.e], 1)
        change = a @ x - self.start
        k = b.T @ self.m @ b
        k[: len(x), : len(x)] += self.p
        slope = b.T @ (self.m @ change - self.w)
        value = change @ self.m @ change / 2 - self.w @ change
        value = value - slope @ torch.linalg.pinv(k, hermitian=True) @ slope / 2
        if determinant:
            value = value + torch.logdet(a.T @ self.m @ a + self.p) / 2
        return value


def test_score_is_the_slope_of_the_dense_evidence(rng):
    """Gradient of minimum and log det of the closed form, by central differences, for each parameter."""
    physics = operator()
    calibration = geometry(physics)
    found = evidence(calibration, physics, rng)
    dense = Dense(physics, rng.manual_seed(20261))
    model, theta, h = CalibratedADI(physics, calibration), calibration.mean, 1e-4
    for determinant in (True, False):
        slope = []
        for j in range(len(theta)):
            step = h * torch.eye(len(theta), dtype=F64)[j]
            up, down = (dense.cost(model.at(theta + s), determinant) for s in (step, -step))
            slope.append((up - down) / (2 * h))
        if determinant:
            near(-found.score, torch.stack(slope))
        else:  # the determinant matters here: the test above sees it
            away = (found.score + torch.stack(slope)).abs() / torch.stack(slope).abs().max()
            assert float(away.max()) > 0.1


def test_information_is_the_schur_complement(rng):
    physics = operator()
    calibration = geometry(physics)
    found = evidence(calibration, physics, rng)
    dense = Dense(physics, rng.manual_seed(20261))
    x = sky()
    theta = calibration.mean.clone().requires_grad_()

    def sequence(values: Tensor) -> Tensor:
        center, north = values[:2], values[2]
        angles, gain = values[3 : 3 + FRAMES] + north, values[3 + FRAMES :]
        return (
            physics.variant()
            .A(x * dense.prior.free, center=center, angles=angles, gain=gain)
            .flatten()
        )

    d = torch.autograd.functional.jacobian(sequence, theta)
    b = torch.cat([dense.a(physics), dense.e], 1)
    k = b.T @ dense.m @ b
    n = len(dense.p)
    k[:n, :n] += dense.p
    cross = b.T @ dense.m @ d
    wanted = d.T @ dense.m @ d - cross.T @ torch.linalg.pinv(k, hermitian=True) @ cross
    scale = (d.T @ dense.m @ d).diagonal().sqrt()  # before the sky is eliminated
    near(found.information / scale / scale[:, None], wanted / scale / scale[:, None])


def test_sky_follows_as_in_the_dense_problem(rng):
    """What minimises the expansion for a given move of the parameters."""
    physics = operator()
    calibration = geometry(physics)
    found = evidence(calibration, physics, rng)
    dense = Dense(physics, rng.manual_seed(20261))
    model, theta = CalibratedADI(physics, calibration), calibration.mean
    move = 0.01 * torch.randn(len(theta), generator=rng, dtype=F64)
    d = model.tangents(theta, sky() * dense.prior.free).columns().flatten(1).T
    b = torch.cat([dense.a(physics), dense.e], 1)
    k = b.T @ dense.m @ b
    n = len(dense.p)
    k[:n, :n] += dense.p
    best = torch.linalg.pinv(k, hermitian=True) @ (b.T @ (dense.w - dense.m @ d @ move))
    delta, sequence = found.follow(move)
    torch.testing.assert_close(
        dense.a(physics) @ delta.flatten()[dense.places] + sequence.flatten(),
        b @ best,
        rtol=1e-4,
        atol=1e-4,
    )


def test_filters_read_the_score_off_the_residual(rng):
    physics = operator()
    calibration, own = geometry(physics), prior()
    speckles = expansion(physics, rng)
    model = CalibratedADI(physics, calibration)
    none = whole_trace(own.free)[:0]
    found = expand_evidence(
        model, calibration.mean, sky(), speckles, own, none, tol=1e-10, max_iter=1000
    )
    read = (found.filters(physics) * speckles.score).sum((1, 2, 3, 4))
    torch.testing.assert_close(read, found.score, rtol=1e-6, atol=1e-6)


def test_sky_of_splines_is_the_best_of_its_kind(rng):
    """Against the dense minimum over the splines that reach into what is free."""
    pixels = prior()
    grid = SkyGrid.of(sky(), 2.0)
    own = SkyPrior(pixels.free, pixels.stiffness, pixels.noise, grid)
    root = torch.randn(SKY[0] * SKY[1], 40, generator=rng, dtype=F64)

    def curvature(d: Tensor) -> Tensor:
        return ((d.flatten(1) @ root @ root.T).view_as(d) + 5 * d) * own.free

    b = torch.randn(2, 1, *SKY, generator=rng, dtype=F64) * own.free
    used = (grid.overlap(own.free) > 0.1).flatten()
    unit = torch.eye(len(used), dtype=F64)[used].view(-1, 1, *grid.overlap(own.free).shape[-2:])
    phi = (grid(unit) * own.free).flatten(1)
    k = curvature(grid(unit) * own.free).flatten(1) @ phi.T
    wanted = torch.linalg.solve(k, phi @ b.flatten(1).T).T @ phi
    found = own.solve(curvature, b, 1e-10, 500).flatten(1)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert int(used.sum()) < 0.8 * int(own.free.sum())
    knot = grid.rows.sum(0)
    torch.testing.assert_close(knot, torch.ones_like(knot))  # splines add up to one everywhere


def test_evidence_of_a_sharp_operator_needs_as_many_unknowns_as_the_psf_tells(rng):
    """Splines half a width apart give the information of all pixels."""
    physics = operator()
    calibration = geometry(physics)
    speckles, pixels = expansion(physics, rng), prior()
    model = CalibratedADI(physics, calibration)
    none = whole_trace(pixels.free)[:0]
    both = []
    for grid in (None, SkyGrid.of(sky(), 2.0)):
        own = SkyPrior(pixels.free, pixels.stiffness, pixels.noise, grid)
        both.append(
            expand_evidence(
                model, calibration.mean, sky(), speckles, own, none, tol=1e-10, max_iter=1000
            )
        )
    near(both[1].information, both[0].information, 0.05)
    near(both[1].score, both[0].score, 0.1)


def test_expansion_is_that_of_the_likelihood(rng):
    """Slope and curvature of log det along a line; the one term that is left out is written down."""
    physics = operator()
    speckles = expansion(physics, rng)
    rng.manual_seed(20261)
    torch.rand(SIZE, generator=rng, dtype=F64)
    residual = torch.randn(1, 1, FRAMES, *SIZE, generator=rng, dtype=F64)
    delta = torch.randn(1, 1, FRAMES, *SIZE, generator=rng, dtype=F64)
    h = 1e-3
    up, at, down = (speckles.cost(residual - s * delta) for s in (h, 0.0, -h))
    assert (up - down) / (2 * h) == pytest.approx(-float((speckles.score * delta).sum()), rel=1e-4)
    likelihood, omitted = speckles._likelihood, 0.0
    own = speckles._statistics[0]
    blocks = zip(
        likelihood.partitions[0].gather(likelihood._white(residual)),
        likelihood.partitions[0].gather(likelihood._white(delta)),
        own.inverses,
        own.weights,
        strict=True,
    )
    for r, d, inverse, weight in blocks:
        turned = d.mT @ inverse @ r
        omitted += float(
            (weight[..., 0, 0] * torch.einsum("...ij,...ji->...", turned, turned)).sum()
        )
    bend = float((speckles(delta) * delta).sum())
    assert (up - 2 * at + down) / h**2 == pytest.approx(bend - omitted, rel=1e-4)
    assert bend > 0


@pytest.mark.parametrize(("width", "low", "high"), [(0.0, 1.0, 1.5), (1.3, 6.0, 14.0)])
def test_scatter_of_the_score_is_what_the_information_says(width, low, high, rng):
    """White noise, and speckles as wide as the PSF: z of the score of a PSF in one frame is 1 in both."""
    size, frames, psf = (44, 40), 8, gaussian(1.3, half=4)
    labels = (torch.arange(size[0])[:, None] > 21).long().expand(size)
    spread = torch.linspace(0.5, 3.0, frames, dtype=F64)[:, None, None]
    places = list(itertools.product((8, 14, 30, 36), (8, 20, 32)))
    template = torch.zeros(len(places) * 2, 1, frames, *size, dtype=F64)
    for k, (row, column) in enumerate(places):
        for m, frame in enumerate((1, 6)):
            template[2 * k + m, 0, frame, row, column] = 1.0
    template = blur(template[:, 0], psf)[:, None]
    z, ratios = [], []
    for _ in range(12):
        noise = torch.randn(1, 1, frames, *size, generator=rng, dtype=F64)
        if width:
            noise = blur(noise[0], gaussian(width, half=4))[None]
        likelihood = TemporalLikelihood(
            [Partition.from_labels(labels)], torch.ones(size, dtype=F64), nu=1e-3
        )
        speckles = SpeckleExpansion(likelihood, spread * noise, psf)
        score = (template * speckles.score).sum((1, 2, 3, 4))
        z.append(score.square() / (template * speckles(template)).sum((1, 2, 3, 4)))
        ratios.append(speckles.pixels_per_datum)
    assert low <= float(torch.cat(ratios).mean()) <= high
    assert float(torch.stack(z).mean()) == pytest.approx(1.0, abs=0.25)  # 4 sigma


# ---------------------------------------------------------------- derivatives


def test_columns_are_the_jacobian_and_share_differences(rng):
    physics = operator()
    calibration = geometry(physics)
    x = prior().free * torch.rand(1, 1, *SKY, generator=rng, dtype=F64)
    tangents = CalibratedADI(physics, calibration).tangents(calibration.mean, x)
    theta = calibration.mean.clone().requires_grad_()

    def sequence(values: Tensor) -> Tensor:
        angles = values[3 : 3 + FRAMES] + values[2]
        return physics.variant().A(x, center=values[:2], angles=angles, gain=values[3 + FRAMES :])[
            0
        ]

    wanted = torch.autograd.functional.jacobian(sequence, theta).movedim(-1, 0)
    for own, true in zip(tangents.columns(), wanted, strict=True):
        near(own, true)
    assert len(tangents.fields) == 5  # row, column, north, all angles, all gains
    w = torch.randn(1, 1, FRAMES, *SIZE, generator=rng, dtype=F64)
    torch.testing.assert_close(
        tangents.pull(w), torch.einsum("jctyx,ctyx->j", tangents.columns(), w[0])
    )


def test_operator_is_not_changed_and_takes_per_frame_values():
    physics = operator()
    center = torch.tensor([[4.2, 3.7]], dtype=F64).expand(FRAMES, 2)
    calibration = Calibration(free_center(center, 0.2), free_gain(physics.gain[0], 0.1))
    model = CalibratedADI(physics, calibration)
    moved = model.at(calibration.mean + 0.1)
    torch.testing.assert_close(moved.center, physics.center.expand(1, FRAMES, 2) + 0.1)
    torch.testing.assert_close(moved.angles, physics.angles)
    assert model.at(calibration.mean + 0.1) is moved  # made once
    torch.testing.assert_close(physics.gain, operator().gain)
    frames = model.frames(calibration.mean)
    assert frames.sum(1).tolist() == [1] * (3 * FRAMES)
    assert frames[2 * 3].nonzero().flatten().tolist() == [3]  # row of frame 3


def test_calibration_modes_are_a_factor_of_the_covariance(rng):
    physics = operator()
    calibration = geometry(physics)
    half = torch.randn(len(calibration.mean), 4, generator=rng, dtype=F64)
    report = calibration.report(half @ half.T)
    modes = calibration_modes(physics, sky(), calibration, report)
    columns = CalibratedADI(physics, calibration).tangents(report.values, sky()).columns()
    j = columns.flatten(1).T
    found = modes[0].flatten(1).T
    torch.testing.assert_close(found @ found.T, j @ report.covariance @ j.T)
    noise = LowRankNoise(modes, sigma=1.0)
    v = torch.randn(1, 1, FRAMES, *SIZE, generator=rng, dtype=F64)
    wanted = v.flatten() + j @ report.covariance @ j.T @ v.flatten()
    torch.testing.assert_close(noise.covariance(v).flatten(), wanted)


def test_both_solvers_agree(rng):
    root = torch.randn(20, 20, generator=rng, dtype=F64)
    k = root @ root.T + torch.eye(20, dtype=F64)
    free = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    free[..., 0, :2] = False

    def curvature(d: Tensor) -> Tensor:
        return ((d * free).flatten(1) @ k).view_as(d) * free

    b = torch.randn(3, 1, 4, 5, generator=rng, dtype=F64) * free
    direct = solve(curvature, b, free, torch.ones(1, dtype=F64))
    slow = conjugate_gradients(curvature, b, torch.ones(1, dtype=F64), 1e-9, 200)
    torch.testing.assert_close(direct, slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curvature(direct), b, rtol=1e-4, atol=1e-4)
    assert not direct[..., 0, :2].any()


# ---------------------------------------------------------------- what can be known


def known(calibration: Calibration, physics: ADI, rng: torch.Generator) -> Tensor:
    """Fisher information on whitened coordinates."""
    root = calibration.root
    return root.T @ evidence(calibration, physics, rng).information @ root


def test_center_angles_and_gains_of_frames_are_known(rng):
    physics = operator(gaussian(0.9, 1.2))
    calibration = geometry(physics)
    report = calibration.report(known(calibration, physics, rng))
    ratio = dict(zip(report.names, report.ratio.tolist(), strict=True))
    assert max(ratio["row"], ratio["column"]) < 0.5
    assert max(ratio[f"gain[{t}]"] for t in range(FRAMES)) < 0.8
    assert max(ratio[f"angle[{t}]"] for t in range(FRAMES)) < 0.9


def test_true_north_is_never_known(rng):
    """Nor any angle that all frames share; the direction is held, and its ratio is one."""
    physics = operator()
    calibration = geometry(physics)
    information = known(calibration, physics, rng)
    common = torch.zeros(len(information), dtype=F64)
    common[3 : 3 + FRAMES] = 1.0
    assert float(common @ information @ common) < 1e-6 * float(information.trace())
    assert float(information[2, 2]) < 1e-6 * float(information.trace())
    report = calibration.report(information)
    assert float(report.ratio[2]) == pytest.approx(1.0, abs=1e-4)
    held = report.kept_directions
    for direction in (common / common.norm(), torch.eye(len(common), dtype=F64)[2]):
        assert float((held.T @ direction).norm()) == pytest.approx(1.0, abs=1e-4)


def test_common_gain_is_never_known(rng):
    physics = operator()
    calibration = geometry(physics)
    information = known(calibration, physics, rng)
    common = torch.zeros(len(information), dtype=F64)
    common[3 + FRAMES :] = physics.gain[0]
    assert float(common @ information @ common) < 1e-6 * float(information.trace())
    one = common.clone()
    one[3 + FRAMES] *= -1
    assert float(one @ information @ one) > 0.01 * float(information.trace()) / len(one)


def test_displacement_that_turns_with_the_sky_is_never_known(rng):
    """Of the star in each frame: the sky would be elsewhere. A fixed displacement is known."""
    center = torch.tensor([[4.2, 3.7]], dtype=F64).expand(FRAMES, 2)
    physics = operator(center=center[None])
    calibration = Calibration(free_center(center, 0.3))
    information = known(calibration, physics, rng)
    turn = torch.deg2rad(ANGLES)
    turning = torch.stack([turn.cos(), turn.sin()], 1).flatten()
    against = torch.stack([turn.cos(), -turn.sin()], 1).flatten()
    lost = [float(v @ information @ v) for v in (turning, against)]
    assert min(lost) < 1e-5 * float(information.trace())
    fixed = torch.tensor([1.0, 0.0], dtype=F64).repeat(FRAMES)
    assert float(fixed @ information @ fixed) > 0.01 * float(information.trace())


def test_flux_of_the_psf_is_fixed():
    basis = torch.stack([gaussian(1.5) - gaussian(0.9), gaussian(1.2)])
    calibration = Calibration(free_psf(gaussian(0.9), basis, 0.3))
    values = calibration.at(torch.tensor([0.7, 2.0], dtype=F64))["filter"]
    assert float(values.sum()) == pytest.approx(1.0)


def test_isotropic_width_is_not_known_and_anisotropic_is(rng):
    """Field rotation tells the shape of a PSF, but not its width: the sky could be as sharp."""
    small = 1e-3
    wider = (gaussian(1.1 + small, half=4) - gaussian(1.1, half=4)) / small
    longer = (gaussian(1.1 + small, 1.1 - small, half=4) - gaussian(1.1, half=4)) / small
    physics = operator(gaussian(1.1, half=4))
    calibration = Calibration(free_psf(gaussian(1.1, half=4), torch.stack([wider, longer]), 1.0))
    information = known(calibration, physics, rng)
    assert float(information[1, 1]) > 10.0
    assert float(information[0, 0]) < 1e-4 * float(information[1, 1])


def test_radial_transmission_commutes_with_rotation(rng):
    """A transmission that depends on the separation only could be the sky's: off-axis frames tell it."""
    size, star = (41, 41), (20, 20)
    row, column = torch.arange(41, dtype=F64)[:, None] - 20, torch.arange(41, dtype=F64) - 20
    radius = torch.hypot(row, column)
    gamma = 1 - torch.exp(-((radius / 12) ** 2))
    x = torch.exp(-((row - 8) ** 2 + (column + 5) ** 2) / 18)[None, None]
    seen = ADI((1, *size), ANGLES, center=star, transmission=gamma, dtype=F64).A(x)
    other = ADI((1, *size), ANGLES, center=star, dtype=F64).A(gamma * x)
    assert float((seen - other).norm() / seen.norm()) < 1e-3


def test_nothing_is_known_of_what_the_sky_does_not_show(rng):
    physics = operator()
    calibration = geometry(physics)
    dark = prior()
    dark = SkyPrior(torch.zeros_like(dark.free), dark.stiffness, dark.noise)
    found = expand_evidence(
        CalibratedADI(physics, calibration),
        calibration.mean,
        sky(),
        expansion(physics, rng),
        dark,
        whole_trace(dark.free)[:0],
    )
    assert not found.information.any()
    assert not found.score.any()


def test_width_on_a_link_is_known_by_calibration_frames_only():
    """The same free parameter serves the likelihood of calibration frames."""
    from deepinv_astro.optim import CalibrationFrames, Term, fisher_information

    calibration = Calibration(Free("filter", torch.tensor(0.1, dtype=F64), std=0.2, link=_psf))
    stamps = 100 * _psf(torch.tensor(0.1, dtype=F64))[None, None]
    information = fisher_information(calibration, [Term(CalibrationFrames(1, noise=0.1), stamps)])
    assert float(information) > 100.0


def _psf(log_width: Tensor) -> Tensor:
    r = torch.arange(-4, 5).to(log_width)
    h = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * torch.exp(2 * log_width)))
    return h / h.sum()
