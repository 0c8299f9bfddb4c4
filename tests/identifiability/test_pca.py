"""Throughput of principal components: projection, and injections into the data."""

from __future__ import annotations

import pytest
import torch

from deepinv_astro.identifiability import pca_throughput, remove_components, visibility
from deepinv_astro.models.combine import temporal_mean
from deepinv_astro.models.pca import subtract_components
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf

F64 = torch.float64
POSITIONS = [(12, 9), (4, 10), (9, 15)]


@pytest.fixture
def scene(rng):
    """Speckles of a steep spectrum of components, and the operator."""
    weights = torch.randn(9, 5, generator=rng, dtype=F64) * 3.0 ** -torch.arange(5, dtype=F64)
    frames = torch.einsum("tk,khw->thw", weights, torch.randn(5, 18, 20, generator=rng, dtype=F64))
    frames = frames + 0.05 * torch.randn(9, 18, 20, generator=rng, dtype=F64) + 7.0
    psf = gaussian_psf((7, 7), 2.5).to(F64)
    return frames, ADI((1, 18, 20), torch.linspace(0, 70, 9), psf, dtype=F64)


def planets(physics):
    x = torch.zeros(len(POSITIONS), 1, *physics.img_size[1:], dtype=F64)
    for n, (row, column) in enumerate(POSITIONS):
        x[n, 0, row, column] = 1.0
    return x


def mask_of(where):
    allowed = torch.zeros(*where, dtype=torch.bool)
    for position in POSITIONS:
        allowed[position] = True
    return allowed


@pytest.mark.parametrize("with_mask", [False, True])
def test_components_refitted_against_injections(scene, with_mask):
    frames, physics = scene
    mask = None
    if with_mask:
        mask = torch.ones(18, 20, dtype=torch.bool)
        mask[:6, :11] = False
    keep = torch.ones(18, 20, dtype=torch.bool) if mask is None else mask
    found = pca_throughput(frames, physics, [0, 1, 3, 6], where=mask_of((18, 20)), mask=mask)
    tracks = physics.A(planets(physics))[:, 0, :, keep]
    data, step = frames[:, keep], 1e-5
    for number, k in enumerate([0, 1, 3, 6]):
        for position, track in zip(POSITIONS, tracks, strict=True):
            ends = [
                subtract_components((data + s * step * track)[:, None], k, temporal_mean)[:, 0]
                for s in (1, -1)
            ]
            left = (ends[0] - ends[1]) / (2 * step)
            whole = float(track.square().sum())
            at = (number, *position)
            assert float(found.energy[at]) == pytest.approx(
                float(left.square().sum()) / whole, rel=1e-5
            )
            assert float(found.flux[at]) == pytest.approx(
                float((left * track).sum()) / whole, rel=1e-5
            )


def test_components_held_are_a_projection(scene):
    frames, physics = scene
    mask = torch.ones(18, 20, dtype=torch.bool)
    mask[10:, 16:] = False
    inside = lambda y: y * mask  # noqa: E731
    found = pca_throughput(frames, physics, [0, 2, 5], where=mask_of((18, 20)), mask=mask)
    for number, k in enumerate([0, 2, 5]):
        project = remove_components(frames, k, mask)
        x = planets(physics)
        y = physics.A(x)
        expected = project(y).square().flatten(1).sum(1) / inside(y).square().flatten(1).sum(1)
        got = torch.stack([found.projected[number][p] for p in POSITIONS])
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(project(project(y)), project(y))
    torch.testing.assert_close(
        found.projected[0][POSITIONS[0]],
        visibility(planets(physics), physics, projection=lambda y: inside(y - y.mean(2, True)))[0]
        * (y[0].square().sum() / inside(y)[0].square().sum()),
    )


def test_orders_and_places(scene):
    frames, physics = scene
    told = []
    found = pca_throughput(
        frames, physics, [0, 1, 4], where=mask_of((18, 20)), progress=lambda *s: told.append(s)
    )
    assert found.flux.shape == (3, 18, 20)
    assert int(found.energy[0].isfinite().sum()) == len(POSITIONS)
    at = POSITIONS
    held, flux = (
        torch.stack([m[:, r, c] for r, c in at], 1) for m in (found.projected, found.flux)
    )
    assert (held.diff(dim=0) < 0).all()
    assert (flux[1:] < held[1:]).all()
    torch.testing.assert_close(flux[0], held[0])  # nothing is refitted
    assert told == [(3, 3)]


def test_removed_components_leave_none_of_the_frames(scene):
    frames, _ = scene
    left = [float(remove_components(frames, k)(frames[None, None]).norm()) for k in range(8)]
    assert left == sorted(left, reverse=True)
    centred = frames - frames.mean(0)
    torch.testing.assert_close(
        remove_components(frames, 3)(frames[None, None])[0, 0],
        subtract_components(frames, 3, temporal_mean),
    )
    assert left[0] == pytest.approx(float(centred.norm()))


def test_what_is_refused(scene):
    frames, physics = scene
    with pytest.raises(ValueError, match="from 0 to 7"):
        pca_throughput(frames, physics, [8])
    with pytest.raises(ValueError, match=r"\(8, 18, 20\)"):
        pca_throughput(frames[1:], physics, [1])
    with pytest.raises(ValueError, match="`where`"):
        pca_throughput(frames, physics, [1], where=torch.ones(18, 19))
    with pytest.raises(ValueError, match="several channels"):
        pca_throughput(frames, ADI((2, 18, 20), torch.zeros(9), dtype=F64), [1])
    with pytest.raises(ValueError, match="and 9"):
        remove_components(frames, 9)
    with pytest.raises(ValueError, match="`mask`"):
        remove_components(frames, 1, torch.ones(3, 3))
