"""Surveys: each target its own, of the population that was asked for, as bright as it says."""

from __future__ import annotations

import pickle
from dataclasses import replace

import deepinv as dinv
import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.utils.data import DataLoader

from deepinv_astro.datasets import (
    PSFError,
    PupilHalo,
    RicianHalo,
    SkyPopulation,
    SpeckleModel,
    SyntheticSurvey,
    target_seed,
)
from deepinv_astro.identifiability import mode_visibility
from deepinv_astro.models import MedianADI
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur

SIZE = (21, 27)
SMALL = SyntheticSurvey.small(40, seed=5, img_size=SIZE, frames=(4, 6))


def _same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return torch.equal(a, b)


def test_an_item_is_what_the_trainer_takes():
    item = SMALL[1]
    frames, rows, columns = SMALL.shape(1)
    assert item["y"].shape == (1, frames, rows, columns) == (1, frames, *SIZE)
    params = item["params"]
    assert params["angles"].shape == params["gain"].shape == (frames,)
    assert params["filter"].shape == (1, SMALL.psf_size, SMALL.psf_size)
    assert params["center"].tolist() == [10.0, 13.0]
    assert all(v.dtype == torch.float32 for v in [item["y"], *params.values()])
    SMALL.check_dataset()
    lengths = {SMALL.shape(i)[0] for i in range(40)}
    assert lengths == {4, 5, 6}


def test_no_truth_leaks():
    """Neither by name nor by value: no tensor of an item is a tensor of the truth."""
    survey = SyntheticSurvey.small(
        8, seed=5, population=SkyPopulation(empty=0.0, planets=(0.0, 1.0)), keep=8
    )
    item, truth = survey[0], survey.truth(0)
    assert set(item) == {"y", "params"}
    assert set(item["params"]) == {"angles", "filter", "center", "gain"}
    assert not torch.allclose(item["params"]["filter"], truth.psf, rtol=1e-3)
    item["y"].zero_()
    item["params"]["angles"].zero_()
    assert bool(survey[0]["y"].any())
    assert bool(survey[0]["params"]["angles"].any())
    told = SyntheticSurvey.small(
        8, seed=5, population=SkyPopulation(empty=0.0, planets=(0.0, 1.0)), with_truth=True
    )
    assert torch.equal(told[0]["x"], truth.x)
    assert _same({k: v for k, v in told[0].items() if k != "x"}, survey[0])


def test_a_target_does_not_depend_on_what_was_drawn_before():
    first = SMALL[7]
    other = SyntheticSurvey.small(9, seed=5, img_size=SIZE, frames=(4, 6), keep=0)
    state = torch.get_rng_state()
    _ = [other[i] for i in (8, 2, 3)]
    assert torch.equal(state, torch.get_rng_state())  # nor touches anyone's randomness
    torch.manual_seed(123)
    assert _same(other[7], first)
    assert _same(other[-2], first)
    copy = pickle.loads(pickle.dumps(SMALL))
    assert _same(copy[7], first)
    assert not _same(SMALL[6], first)
    reseeded = SyntheticSurvey.small(40, seed=6, img_size=SIZE, frames=(4, 6))
    assert not torch.equal(reseeded[7]["params"]["filter"], first["params"]["filter"])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_draw_the_same(workers):
    survey = SyntheticSurvey.small(6, seed=2, img_size=SIZE, frames=4)
    batches = list(DataLoader(survey, batch_size=3, num_workers=workers))
    y = torch.cat([batch["y"] for batch in batches])
    assert torch.equal(y, torch.stack([survey[i]["y"] for i in range(6)]))


def test_no_two_targets_share_a_seed():
    """For torch's generator, too, which uses 32 bits of it."""
    seeds = [
        target_seed(3, part, i) for part in ("train", "validation", "test") for i in range(5000)
    ]
    assert len({s & 0xFFFFFFFF for s in seeds}) == len(seeds) == 15000
    assert max(seeds) < 1 << 32
    assert abs(np.mean(seeds) / 2**32 - 0.5) < 0.01
    assert not set(seeds) & {target_seed(4, "train", i) for i in range(100)}


def test_parts_share_no_target_and_do_not_move():
    survey = SyntheticSurvey.small(5, seed=1, img_size=SIZE, frames=3)
    parts = survey.split(train=4, validation=3, test=2)
    larger = survey.split(train=9, validation=5, test=2)
    assert [len(p) for p in parts] == [4, 3, 2]
    assert _same(parts.test[1], larger.test[1])
    assert _same(parts.train[0], survey[0])
    skies = [p.truth(i).sky for p in larger for i in range(len(p))]
    assert len(set(skies)) == 16


def test_wrong_arguments_are_refused():
    with pytest.raises(IndexError, match="target 40 of a survey of 40"):
        SMALL[40]
    with pytest.raises(ValueError, match=r"frames must be 2 or more, .* got 1"):
        SyntheticSurvey.small(3, frames=1)
    with pytest.raises(ValueError, match="between 1 and 1073741824 targets, got 0"):
        SyntheticSurvey.small(0)
    with pytest.raises(ValueError, match=r"declination must be .* got \(-100, 0\)"):
        SyntheticSurvey.small(3, declination=(-100, 0))
    with pytest.raises(ValueError, match=r"psf_size must be odd and at most 33.*got 40"):
        SyntheticSurvey.small(3, psf_size=40)
    with pytest.raises(ValueError, match="seed must not be negative"):
        SyntheticSurvey.small(3, seed=-1)[0]
    with pytest.raises(ValueError, match="probabilities of 0, 1"):
        SkyPopulation(planets=(0.5, 0.6))
    with pytest.raises(ValueError, match="cosine must be an increasing pair"):
        SkyPopulation(cosine=(0.5, 0.1))


def test_disks_are_as_bright_as_they_say():
    """Peak of H x over the local scatter of the frames of the star alone, measured anew."""
    with_disk = SkyPopulation(empty=0.0, planets=(1.0,), signal=(3.0, 3.0), scale_height=0.0)
    options = {"seed": 4, "frames": 300, "halo": RicianHalo(memory=0.01)}
    survey = SyntheticSurvey.small(4, population=with_disk, **options)
    for i in range(4):
        truth, item = survey.truth(i), survey[i]
        physics = ADI((1, 33, 33), item["params"]["angles"], filter=truth.psf)
        noise = (item["y"] - physics.A(truth.x[None])[0])[0]
        rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
        ring = torch.hypot(rows - 16, columns - 16).round()
        variance = noise.var(0)
        sigma = torch.stack([variance[ring == r].mean() for r in range(24)]).sqrt()[ring.long()]
        peak = (blur(truth.x[None], truth.psf)[0, 0] / sigma).max()
        assert float(peak) == pytest.approx(3.0, rel=0.06)
        torch.testing.assert_close(truth.deviation[0], sigma, rtol=0.12, atol=0)
        assert torch.equal(truth.x, truth.disk)


def test_planets_are_where_and_as_bright_as_they_say():
    law = SkyPopulation(empty=1.0, planets=(0.0, 1.0), planet_signal=(4.0, 4.0))
    survey = SyntheticSurvey.small(6, seed=4, population=law, img_size=(41, 45))
    for i in range(6):
        truth = survey.truth(i)
        (planet,) = truth.planets
        assert truth.sky.disk is None
        assert not bool(truth.disk.any())
        assert float(truth.x.sum()) == pytest.approx(planet.flux, rel=1e-4)
        image = blur(truth.x[None], truth.psf)[0, 0]
        at = divmod(int(image.argmax()), 45)
        assert np.hypot(at[0] - planet.row, at[1] - planet.column) < 1
        theta = np.radians(planet.position_angle_deg)
        assert planet.row == pytest.approx(20 + planet.separation_px * np.cos(theta))
        assert planet.column == pytest.approx(22 - planet.separation_px * np.sin(theta))
        assert float(image.max() / truth.deviation[0][at]) == pytest.approx(4, rel=0.15)
        assert planet.contrast == pytest.approx(planet.flux / 2.2e6)


def test_population_follows_its_laws():
    """Kolmogorov-Smirnov against the closed forms, shares against their binomial spread."""
    law = SkyPopulation(empty=0.2, spirals=0.3, planets=(0.5, 0.3, 0.2))
    generator = torch.Generator().manual_seed(0)
    skies = [law.draw(generator) for _ in range(3000)]
    disks = [s.disk for s in skies if s.disk is not None]
    rings = [d for d in disks if d.pitch == 0]
    assert 1 - len(disks) / 3000 == pytest.approx(0.2, abs=0.025)
    assert 1 - len(rings) / len(disks) == pytest.approx(0.3, abs=0.03)
    counts = np.bincount([len(s.planets) for s in skies]) / 3000
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    planets = [p for s in skies for p in s.planets]

    def uniform(values, low, high):
        assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3

    uniform(np.cos(np.radians([d.inclination for d in disks])), *law.cosine)
    uniform([d.position_angle for d in disks], 0, 360)
    uniform([d.radius for d in disks], *law.radius)
    uniform([d.width for d in disks], *law.width)
    uniform([d.asymmetry for d in rings], *law.asymmetry)
    uniform(np.log([d.signal for d in disks]), *np.log(law.signal))
    uniform([d.pitch for d in disks if d.pitch], *law.pitch)
    uniform([p.separation for p in planets], *law.separation)
    uniform([p.position_angle for p in planets], 0, 360)
    uniform(np.log([p.signal for p in planets]), *np.log(law.planet_signal))


def test_a_ring_has_the_radius_and_the_width_that_were_drawn():
    law = SkyPopulation(empty=0.0, spirals=0.0, planets=(1.0,), scale_height=0.0)
    disk = law.draw(torch.Generator().manual_seed(0)).disk
    disk = disk._replace(inclination=0.0, asymmetry=0.0, radius=0.5, width=0.3)
    image = law.image(disk, (201, 221))
    profile = image[100, 110:] * torch.arange(111.0) ** 2  # dust, not its light
    assert int(profile.argmax()) == pytest.approx(50, abs=1)
    inside = (profile > profile.max() / 2).nonzero()
    assert float(inside.max() - inside.min() + 1) == pytest.approx(0.3 * 50.25, abs=1)
    assert float(image.sum()) == pytest.approx(1.0)


def test_angles_are_those_of_stars():
    """Each of its own declination, all between the bounds of the track of its latitude."""
    truths = [SMALL.truth(i) for i in range(12)]
    turns = [float(t.angles[-1] - t.angles[0]) for t in truths]
    assert len({round(t, 3) for t in turns}) == 12
    southern = SyntheticSurvey.small(
        1, declination=(-51.07, -51.07), hour_angle=(0.0, 0.0), duration=(2.0, 2.0), frames=3
    )
    assert southern.truth(0).angles.tolist() == pytest.approx([-29.19, 0, 29.19], abs=0.01)
    torch.testing.assert_close(
        southern.truth(0).visibility(4), mode_visibility(southern.truth(0).angles, 4)
    )


def test_only_the_told_psf_changes_with_its_error():
    options = {"img_size": SIZE, "frames": 4}
    wrong = SyntheticSurvey.small(2, psf_error=PSFError(0.3, 0.1), **options)
    right = SyntheticSurvey.small(2, psf_error=PSFError(0.0, 0.0), **options)
    assert torch.equal(wrong[1]["y"], right[1]["y"])
    assert torch.equal(right[1]["params"]["filter"], right.truth(1).psf)
    assert not torch.allclose(wrong[1]["params"]["filter"], wrong.truth(1).psf, rtol=0.05)


def test_gains_are_told_and_act_on_star_and_sky():
    options = {"img_size": SIZE, "frames": 5}
    dark = SkyPopulation(empty=1.0, planets=(1.0,))
    survey = SyntheticSurvey.small(2, gain_scatter=0.3, population=dark, **options)
    steady = SyntheticSurvey.small(2, population=dark, **options)
    gain = survey[0]["params"]["gain"]
    assert float(gain.std()) > 0.02
    assert torch.equal(steady[0]["params"]["gain"], torch.ones(5))
    level = [s[0]["y"][0, :, 8:13, 11:16].mean((1, 2)) for s in (survey, steady)]
    torch.testing.assert_close(level[0] / level[1], gain, rtol=5e-3, atol=0)
    bright = SkyPopulation(empty=0.0, signal=(1e5, 1e5), scale_height=0.0)
    survey = SyntheticSurvey.small(2, gain_scatter=0.3, population=bright, **options)
    params, truth = survey[0]["params"], survey.truth(0)
    physics = ADI((1, *SIZE), params["angles"], filter=truth.psf, gain=params["gain"])
    error = survey[0]["y"] - physics.A(truth.x[None])[0]
    assert float(error.norm()) < 0.01 * float(survey[0]["y"].norm())


def test_sequence_is_what_an_observer_has():
    sequence, item = SMALL.sequence(3), SMALL[3]
    assert torch.equal(sequence.y[0], item["y"])
    assert torch.equal(sequence.psf, item["params"]["filter"])
    assert sequence.center == (10.0, 13.0)
    assert sequence.target == "train-000003"


def test_memory_holds_as_many_as_asked(monkeypatch):
    calls = []
    survey = SyntheticSurvey.small(6, keep=2, img_size=SIZE, frames=3)
    plain = survey._simulate
    monkeypatch.setattr(survey, "_simulate", lambda g: calls.append(1) or plain(g))
    for i in (0, 1, 0, 1, 0):
        survey[i]
    assert len(calls) == 2
    survey[2], survey[0], survey[1]
    assert len(calls) == 4  # 1 was the oldest


def test_physical_optics():
    halo = PupilHalo(SpeckleModel(pupil_size=24, exposures=2), seeing=(0.5, 2.0))
    survey = SyntheticSurvey(3, img_size=(41, 31), frames=3, halo=halo)
    assert survey[0]["y"].shape == (1, 3, 41, 31)
    assert survey.psf_size == 15
    strengths = [halo.draw(2, (15, 15), 9, torch.Generator().manual_seed(i)) for i in range(20)]
    rms = np.log([s.detector.residual_rms / 325 for s in strengths])
    assert rms.min() < -0.3
    assert rms.max() > 0.3
    assert np.abs(rms).max() <= np.log(2) + 1e-6
    night = replace(halo, seeing=(0.5, 0.5), drift=(3.0, 3.0))
    model = night.draw(2, (15, 15), 9, torch.Generator().manual_seed(0)).detector
    assert model.residual_rms == pytest.approx(0.5 * 325)
    assert (model.drift_rms, model.pointing_rms) == pytest.approx((3 * 36, 3 * 0.06))


class _Tiny(torch.nn.Module):
    """A network of one number, and what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, y, physics, **kwargs):
        self.seen.append((physics.angles.clone(), physics.filter.clone(), y.clone()))
        return self.scale * MedianADI()(y, physics).nan_to_num()


@pytest.mark.filterwarnings("ignore:non_blocking_transfers")
@pytest.mark.parametrize("with_truth", [False, True])
def test_trainer_takes_two_steps(with_truth):
    """Each sequence meets the operator with its own parameters, and the network learns."""
    survey = SyntheticSurvey.small(6, img_size=SIZE, frames=5, with_truth=with_truth)
    physics = ADI((1, *SIZE), torch.zeros(5), filter=torch.ones(1, 1), gain=torch.ones(5))
    model = _Tiny()
    loss = dinv.loss.SupLoss() if with_truth else dinv.loss.MCLoss()
    trainer = dinv.Trainer(
        model=model, physics=physics, epochs=1, losses=loss,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2), device="cpu", save_path=None,
        train_dataloader=DataLoader(survey, batch_size=3), online_measurements=False,
        metrics=[], verbose=False, show_progress_bar=False,
    )  # fmt: skip
    trainer.train()
    assert len(model.seen) >= 2
    angles, psf, y = model.seen[1]
    assert angles.shape == (3, 5)
    for n in range(3):
        item = survey[3 + n]
        assert torch.equal(y[n], item["y"])
        assert torch.equal(angles[n], item["params"]["angles"])
        assert torch.equal(psf[n, :, 0], item["params"]["filter"])
    assert 1e-3 < abs(float(model.scale.detach()) - 1) < 0.1


def test_halo_is_the_modified_rician_it_says():
    """Mean and variance of intensities: E s = I, Var_t s given E_0, and speckles as wide as the PSF."""
    halo = RicianHalo(
        drift=(0.2, 0.2), brightness=(1.0, 1.0), memory=1e-3, fwhm=(4.0, 4.0), ratio=(1.0, 1.0),
        slope=0.0, peak=100.0,
    )  # fmt: skip
    stars = [halo.draw(200, (61, 71), 15, torch.Generator().manual_seed(i)) for i in range(6)]
    frames = torch.stack([s.frames for s in stars])
    assert float(frames.mean()) == pytest.approx(100, rel=0.05)
    # E_t circular: E_t s = I[(1-q)|E_0|^2 + q], Var_t s = I^2 [2 q (1-q) |E_0|^2 + q^2]
    static = (frames.mean(1) / 100 - 0.2) / 0.8
    expected = 2 * 0.2 * 0.8 * static + 0.04
    variance = frames.var(1) / 1e4
    assert float((variance / expected).mean()) == pytest.approx(1, rel=0.03)
    assert float(torch.corrcoef(torch.stack([variance.flatten(), static.flatten()]))[0, 1]) > 0.9
    # |correlation of the field|^2 at a lag of one FWHM: the amplitude of the PSF with itself
    s = static - static.mean()
    ratio = float((s[..., 4:] * s[..., :-4]).mean() / s.square().mean())
    assert ratio == pytest.approx(2.0**-2, abs=0.08)


def test_halo_drifts_over_its_memory():
    halo = RicianHalo(drift=(1.0, 1.0), memory=4.0, slope=0.0)
    frames = halo.draw(400, (31, 41), 15, torch.Generator().manual_seed(1)).frames
    field = (frames - frames.mean(0)).flatten(1)
    for lag in (1, 4):
        r = float((field[lag:] * field[:-lag]).mean() / field.square().mean())
        assert r == pytest.approx(np.exp(-2 * lag / 4), abs=0.08)


def test_seeing_and_drift_ranges_are_refused():
    with pytest.raises(ValueError, match="drift is a fraction of the field"):
        RicianHalo(drift=(0.1, 2.0))
    with pytest.raises(ValueError, match=r"seeing must be an increasing pair above 0"):
        PupilHalo(seeing=(0.0, 1.0))
    assert replace(RicianHalo(), memory=3.0).memory == 3.0
