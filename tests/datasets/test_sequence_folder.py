"""Sequences on disk: read as they are, missing data out of the operator, errors all at once."""

from __future__ import annotations

import csv
import json
import pickle
import re

import deepinv as dinv
import numpy as np
import pytest
import torch
from astropy.io import fits
from torch.utils.data import DataLoader

from deepinv_astro.cli.demo import write_files
from deepinv_astro.datasets import (
    BetaPictoris,
    BucketBatchSampler,
    SequenceFolder,
    SyntheticSurvey,
    check_manifest,
    collate_sequences,
    cut_about,
    data_weights,
    find_targets,
    read_manifest,
    write_manifest,
)
from deepinv_astro.physics import ADI

#: Rows, columns, frames and side of the PSF of each target.
KINDS = {"a": (31, 37, 4, 15), "b": (27, 27, 6, 13), "c": (31, 37, 4, 15), "d": (35, 29, 5, 13)}


def _survey(name):
    rows, columns, frames, psf = KINDS[name]
    return SyntheticSurvey.small(
        1, seed=ord(name), img_size=(rows, columns), frames=frames, psf_size=psf
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("survey")
    for name in KINDS:
        survey = _survey(name)
        write_files(survey.sequence(0), root / name, overwrite=False)
        if name != "b":
            x = survey.truth(0).x[0].numpy()
            fits.PrimaryHDU(x).writeto(root / name / "truth.fits")
    return root


@pytest.fixture
def root(source, tmp_path):
    """A copy that a test may spoil."""
    for file in source.glob("*/*"):
        copy = tmp_path / file.parent.name / file.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path


def test_items_are_what_was_written(source):
    folder = SequenceFolder(source, with_truth=True)
    assert [e.target for e in folder.entries] == list("abcd")
    assert folder.shapes == [(1, t, h, w) for h, w, t, _ in KINDS.values()]
    for n, name in enumerate(KINDS):
        survey, item = _survey(name), folder[n]
        told = survey[0]
        assert torch.equal(item["y"], told["y"])
        assert item["y"].shape == folder.shapes[n]
        params = item["params"]
        torch.testing.assert_close(params["angles"], told["params"]["angles"])
        assert torch.equal(params["center"], told["params"]["center"])
        assert bool((params["gain"] == 1).all() and (params["transmission"] == 1).all())
        core = params["filter"].shape[-1] // 2
        assert int(params["filter"].argmax()) == core * (2 * core + 1) + core
        assert ("x" in item) == (name != "b")
    assert torch.equal(folder[0]["x"], _survey("a").truth(0).x)
    assert "x" not in SequenceFolder(source)[0]
    folder.check_dataset()


def test_cache_and_copies(source, monkeypatch):
    folder = SequenceFolder(source, keep=2)
    reads = []
    plain = folder._read
    monkeypatch.setattr(folder, "_read", lambda e: reads.append(e.target) or plain(e))
    first = folder[0]
    first["y"].zero_()
    first["params"]["angles"].zero_()
    assert bool(folder[0]["y"].any())
    assert bool(folder[0]["params"]["angles"].any())
    folder[1], folder[0], folder[2], folder[0], folder[1]
    assert reads == ["a", "b", "c", "b"]
    monkeypatch.undo()
    assert torch.equal(pickle.loads(pickle.dumps(folder))[-1]["y"], folder[3]["y"])
    with pytest.raises(IndexError, match="target 4 of a folder of 4"):
        folder[4]


def test_cut_about_moves_the_star_to_the_middle():
    image = torch.zeros(2, 7, 9)
    image[:, 5, 2] = 1.0
    cut = cut_about(image, (5.3, 1.8), (8, 5))
    assert cut.shape == (2, 8, 5)
    assert divmod(int(cut[1].argmax()), 5) == (4, 2)
    assert not bool(cut_about(image, (100.0, 100.0), (3, 3)).any())


def test_one_size_about_the_star(source):
    """Cropped or padded, the residual of the true sky is that of the frames as they were."""
    whole, cut = SequenceFolder(source), SequenceFolder(source, img_size=(33, 33))
    assert cut.shapes == [(1, t, 33, 33) for _, _, t, _ in KINDS.values()]
    for n in range(4):
        before, after = whole[n], cut[n]
        assert after["params"]["center"].tolist() == [16.0, 16.0]
        rows, columns = before["y"].shape[-2:]
        seen = after["params"]["transmission"]
        assert float(seen.sum()) == min(rows, 33) * min(columns, 33)
        outside = seen == 0
        assert not bool(after["y"][..., outside].any())
        x = torch.zeros(1, 1, 33, 33)
        x[0, 0, 13, 21] = 500.0
        physics = ADI((1, 33, 33), **{k: v[None] for k, v in after["params"].items()})
        native = cut_about(x, (16, 16), (rows, columns))
        alone = ADI((1, rows, columns), **{k: v[None] for k, v in before["params"].items()})
        r0, r1 = (before["y"] - alone.A(native))[0], (after["y"] - physics.A(x))[0]
        weights = data_weights(physics.gain, physics.transmission)[0]
        risk = (weights * r1.square()).mean()
        if rows <= 33 and columns <= 33:
            assert float(risk) == pytest.approx(float(r0.square().mean()), rel=1e-4)
        torch.testing.assert_close(
            cut_about(r0, (rows // 2, columns // 2), (21, 21)),
            cut_about(r1, (16, 16), (21, 21)),
            rtol=1e-4, atol=0.05,
        )  # fmt: skip


def test_true_sky_is_cut_about_its_own_star(source):
    item = SequenceFolder(source, img_size=(33, 33), with_truth=True)[3]
    x = _survey("d").truth(0).x
    torch.testing.assert_close(item["x"][0, 16:18, 2:31], x[0, 17:19, 0:29])


def test_missing_data_leave_the_operator(root):
    path = root / "a" / "cube.fits"
    cube = fits.getdata(path).astype("f4")
    cube[:, 0, 1] = np.nan  # never seen
    cube[2, 20, 5] = np.nan  # in one frame
    cube[1, 3:] = np.nan  # a broken frame
    fits.writeto(path, cube, fits.getheader(path), overwrite=True)
    item = SequenceFolder(root)[0]
    params = item["params"]
    assert bool(torch.isfinite(item["y"]).all())
    assert params["gain"].tolist() == [1.0, 0.0, 1.0, 1.0]
    lost = (params["transmission"] == 0).nonzero().tolist()
    assert lost == [[0, 1], [20, 5]]
    assert not bool(item["y"][0, 1].any() | item["y"][0, :, 20, 5].any())
    physics = ADI((1, 31, 37), **{k: v[None] for k, v in params.items()})
    y = physics.A(torch.ones(1, 1, 31, 37))[0, 0]
    assert not bool(y[1].any() | y[:, 20, 5].any() | y[:, 0, 1].any())
    weights = data_weights(physics.gain, physics.transmission)[0, 0]
    there = torch.from_numpy(np.isfinite(cube))
    there[1] = False
    there[:, 20, 5] = False
    assert torch.equal(weights > 0, there)


def test_transmission_of_the_coronagraph_is_kept(root):
    table = np.ones((31, 37), "f4") * 0.5
    fits.writeto(root / "t.fits", table)
    entries = find_targets(root)
    rows = [{"target": e.target, "cube": str(e.cube), "angles": str(e.angles), "psf": str(e.psf)}
            for e in entries[:1]]  # fmt: skip
    rows[0]["transmission"] = "t.fits"
    (root / "manifest.json").write_text(json.dumps({"targets": rows}))
    transmission = SequenceFolder(root)[0]["params"]["transmission"]
    torch.testing.assert_close(transmission, torch.full((31, 37), 0.5))


def test_star_off_centre_and_without_header(root, caplog):
    """Unknown centres are found in the halo; given ones are kept to a fraction of a pixel."""
    path = root / "b" / "cube.fits"
    cube = fits.getdata(path).astype("f4")
    fits.writeto(path, cube, overwrite=True)
    with pytest.raises(ValueError, match=r"cube.fits: found the light peaks .* `center` in the"):
        SequenceFolder(root)[1]
    rows, columns = np.indices((27, 27))
    halo = 1e3 * np.exp(-np.hypot(rows - 14.3, columns - 11.6) / 4) + rows % 2
    fits.writeto(path, np.broadcast_to(halo, (6, 27, 27)).astype("f4"), overwrite=True)
    found = SequenceFolder(root)[1]["params"]["center"]
    assert "the star's position is not given" in caplog.text
    torch.testing.assert_close(found, torch.tensor([14.3, 11.6]), rtol=0, atol=0.2)
    entries = [
        e if e.target != "b" else type(e)(**{**e.__dict__, "center": (12.75, 13.5)})
        for e in find_targets(root)
    ]
    write_manifest(root, entries)
    folder = SequenceFolder(root, img_size=(33, 33))
    assert folder[1]["params"]["center"].tolist() == [15.75, 15.5]  # 13.5 rounds to 14


def test_manifest_is_written_and_read(root):
    path = write_manifest(root)
    entries = read_manifest(path)
    assert entries == find_targets(root)
    assert json.loads(path.read_text())["targets"][0]["cube"] == "a/cube.fits"
    with pytest.raises(FileExistsError):
        write_manifest(root)
    assert len(SequenceFolder(path)) == len(SequenceFolder(root)) == 4
    content = json.loads(path.read_text())
    content["targets"] = content["targets"][1:3]
    path.write_text(json.dumps(content))
    assert [e.target for e in SequenceFolder(root).entries] == ["b", "c"]


def test_manifest_as_csv(root):
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["target", "cube", "angles", "psf", "center", "true_north", "pixel_scale"])
        writer.writerow(
            ["HD 1", "a/cube.fits", "a/angles.fits", "a/psf.fits", "15 18.25", "-2.5", "12 mas"]
        )
        writer.writerow(["HD 2", "b/cube.fits", "b/angles.fits", "b/psf.fits", "", "", ""])
    folder = SequenceFolder(root)
    assert [e.target for e in folder.entries] == ["HD 1", "HD 2"]
    assert folder[0]["params"]["center"].tolist() == [15.0, 18.25]
    shift = folder[0]["params"]["angles"] - _survey("a")[0]["params"]["angles"]
    torch.testing.assert_close(shift, torch.full((4,), -2.5), rtol=0, atol=1e-4)
    assert folder.sequence(0).pixel_scale.to_value("mas") == pytest.approx(12)


def test_all_that_is_broken_is_listed_at_once(root):
    (root / "a" / "angles.fits").unlink()
    (root / "b" / "cube.fits").write_bytes((root / "b" / "cube.fits").read_bytes()[:5000])
    fits.writeto(root / "c" / "angles.fits", np.arange(3.0), overwrite=True)
    (root / "d" / "psf.fits").write_text("no PSF")
    (root / "e").mkdir()  # holds nothing: no target
    problems = check_manifest(find_targets(root))
    assert len(problems) == 4
    for text, words in zip(
        problems,
        [
            "a: .*a/angles.fits: found no such file",
            "b: .*b/cube.fits",
            "c: .*found 3 angles; expected 4",
            "d: .*psf.fits",
        ],
        strict=True,
    ):
        assert re.search(words, text), text
    with pytest.raises(ValueError, match=r"has 4 problems:\n  a: .*\n  b: .*\n  c: .*\n  d: "):
        SequenceFolder(root)
    with pytest.raises(ValueError, match="has 4 problems"):
        write_manifest(root)
    assert not (root / "manifest.json").exists()


def test_deep_check_reads_the_frames(root):
    path = root / "c" / "cube.fits"
    cube = fits.getdata(path).astype("f4")
    cube[1] = np.nan
    fits.writeto(path, cube, fits.getheader(path), overwrite=True)
    entries = find_targets(root)
    assert check_manifest(entries) == ()
    (problem,) = check_manifest(entries, deep=True)
    assert problem.startswith("c: ")
    assert "no finite pixel in (channel 0, frame 1)" in problem


def test_wrong_manifests_are_refused(root, tmp_path_factory):
    path = root / "manifest.json"
    row = {"target": "a", "cube": "a/cube.fits", "angles": "a/angles.fits", "psf": "a/psf.fits"}
    for rows, words in (
        ([row, row], "target 'a' is there twice"),
        ([{**row, "cubes": 1}], "a: it has unknown fields cubes"),
        ([{"target": "z", "cube": "z.fits"}], "z: it has no angles, psf"),
        ([{**row, "center": "12"}], "target 1: "),
        ([{**row, "pixel_scale": "27 parsnips"}], "target 1: "),
        ([{**row, "true_north": "north"}], "target 1: .*north"),
    ):
        path.write_text(json.dumps({"targets": rows}))
        with pytest.raises(ValueError, match=words):
            SequenceFolder(root)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match='no list "targets"'):
        SequenceFolder(root)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no manifest"):
        SequenceFolder(root)
    with pytest.raises(ValueError, match="holds no sequence: expected manifest"):
        SequenceFolder(tmp_path_factory.mktemp("empty"))
    star = tmp_path_factory.mktemp("one") / "survey" / "star"
    star.mkdir(parents=True)
    (star / "cube.fits").write_bytes(b"")
    with pytest.raises(ValueError, match=r"for one star, name the folder above it, .*survey$"):
        SequenceFolder(star)
    with pytest.raises(ValueError, match="no such folder"):
        SequenceFolder(root / "nowhere")


class _Back(torch.nn.Module):
    """A network of one number."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))
        self.shapes = []

    def forward(self, y, physics, **kwargs):
        self.shapes.append(tuple(y.shape))
        return self.scale * physics.A_adjoint(y)


@pytest.mark.filterwarnings("ignore:non_blocking_transfers")
@pytest.mark.parametrize("buckets", [True, False])
def test_trainer_meets_different_lengths(source, buckets):
    folder = SequenceFolder(source, img_size=(29, 29))
    how = {"batch_sampler": BucketBatchSampler(folder.shapes, 2)} if buckets else {"batch_size": 2}
    model = _Back()
    trainer = dinv.Trainer(
        model=model, physics=ADI((1, 29, 29), torch.zeros(2)), epochs=1,
        losses=dinv.loss.MCLoss(), optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        train_dataloader=DataLoader(folder, collate_fn=collate_sequences, **how),
        device="cpu", save_path=None, metrics=[], verbose=False, show_progress_bar=False,
    )  # fmt: skip
    trainer.train()
    frames = sorted((s[0], s[2]) for s in model.shapes)
    expected = [(1, 5), (1, 6), (2, 4)] if buckets else [(2, 5), (2, 6)]
    assert set(frames) == set(expected)
    assert 1e-3 < abs(float(model.scale.detach()) - 0.1) < 0.1


def test_real_files_through_a_manifest(data_root, tmp_path):
    """Beta Pictoris by a CSV: its star is not the middle of the array, its files have other names."""
    name = data_root / "naco_betapic" / "naco_betapic"
    row = [
        "beta Pic",
        *(f"{name}_{part}.fits" for part in ("cube", "pa", "psf")),
        "51 51",
        "-104.39",
    ]
    manifest = tmp_path / "night.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["target", "cube", "angles", "psf", "center", "true_north"], row]
        )
    folder = SequenceFolder(manifest, img_size=(91, 91))
    expected = BetaPictoris(data_root)
    assert folder.shapes == [(1, 61, 91, 91)]
    item = folder[0]
    assert torch.equal(item["y"], expected.y[0, :, :, 6:97, 6:97])
    assert item["params"]["center"].tolist() == [45.0, 45.0]
    torch.testing.assert_close(item["params"]["angles"], expected.angles.float())
    torch.testing.assert_close(item["params"]["filter"], expected.psf)
