"""Mutation sample of the operators: one mistake at a time in a copy, which the tests must see.

It changes nothing in place::

    python tests/mutation.py            # all of them, some ten seconds each
    python tests/mutation.py --only gain prefilter

A mutation whose text is no longer found stops the script: rewrite it here together with the code.
"""

# ruff: noqa: E501  (code of the package is quoted as it is)

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/physics/functional", "tests/physics/test_adi.py"]
# The tests that most likely see a mistake in a file are run first; only if they do not, all.
FIRST = {
    "adi": "each_image or closed_form or stale or default_cent or lands or bad_param or copies "
    "or smear or disturb",
    "frames": "test_frames or (transpose and (everything or gain or smear or before)) or twin "
    "or closed_form",
    "otf": "test_otf",
    "rotation": "test_rotation or closed_form",
    "interpolation": "test_interpolation",
}
OTHERS = ["test_pupil.py", "test_aperture.py", "test_points.py", "test_psf.py", "test_centering.py"]


class Mutation(NamedTuple):
    """The first ``old`` in ``file`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


_PHYSICS = "deepinv_astro/physics"
ADI = f"{_PHYSICS}/adi.py"
FRAMES = f"{_PHYSICS}/functional/frames.py"
OTF = f"{_PHYSICS}/functional/otf.py"
ROTATION = f"{_PHYSICS}/functional/rotation.py"
SPLINE = f"{_PHYSICS}/functional/interpolation.py"

MUTATIONS = [
    Mutation(
        "parameters of image n // b instead of n mod b",
        ADI,
        "list(range(row, batch, given))",
        "list(range(row * (batch // given), (row + 1) * (batch // given)))",
    ),
    Mutation(
        "parameters of the first image for all",
        ADI,
        "None if value is None else value[row % len(value)]",
        "None if value is None else value[0]",
    ),
    Mutation(
        "batch and frame swapped in the gain",
        ADI,
        "gain[chunk, None, None]",
        "gain[row % len(gain), None, None]",
    ),
    Mutation(
        "the first centre for all frames",
        ADI,
        "center.expand(self.frames, 2)[chunk]",
        "center[:1].expand(self.frames, 2)[chunk]",
    ),
    Mutation(
        "the PSF of the first frame for all",
        ADI,
        "psf = psf[:, chunk]",
        "psf = psf[:, :1].expand(-1, self.frames, -1, -1)[:, chunk]",
    ),
    Mutation("smear from the middle of the exposure on", ADI, "/ steps - 0.5", "/ steps"),
    Mutation("smear by the left rule", ADI, ".to(angles) + 0.5) / steps", ".to(angles)) / steps"),
    Mutation("smear of the first frame for all", ADI, "smear[chunk, None]", "smear[:1, None]"),
    Mutation(
        "orders of transmission swapped",
        ADI,
        "is TransmissionOrder.BEFORE_PSF",
        "is TransmissionOrder.AFTER_PSF",
    ),
    Mutation(
        "gain replaced by the transmission",
        ADI,
        "weight = transmission if weight is None else weight * transmission",
        "weight = transmission",
    ),
    Mutation("stale tables after an in-place change", ADI, "(value, value._version)", "(value, 0)"),
    Mutation("stale tables after any change", ADI, "not _same(self._tables[0], state)", "False"),
    Mutation(
        "gradients through kept tables",
        ADI,
        "gradient = torch.is_grad_enabled() and",
        "gradient = False and",
    ),
    Mutation("tables are copied", ADI, '{**self.__dict__, "_tables": None}', "dict(self.__dict__)"),
    Mutation(
        "default centre off by half a pixel",
        ADI,
        "center = (h // 2, w // 2)",
        "center = ((h - 1) / 2, (w - 1) / 2)",
    ),
    Mutation("NaN let through", ADI, "if not torch.isfinite(value).all():", "if False:"),
    Mutation(
        "no gain in the adjoint", FRAMES, "            y = y * self.weight\n", "            pass\n"
    ),
    Mutation("adjoint of the sum instead of the mean", FRAMES, "(y / self.steps)", "y"),
    Mutation("sum instead of mean over the exposure", FRAMES, ".mean(2)", ".sum(2)"),
    Mutation("no conjugate in the adjoint", FRAMES, "self.otf.conj()", "self.otf"),
    Mutation(
        "forgotten prefilter",
        FRAMES,
        "otf = otf * spline_prefilter_response(geometry.grid, like)",
        "pass",
    ),
    Mutation(
        "no transmission in the adjoint",
        FRAMES,
        "(sky if self.before is None else sky * self.before)",
        "sky",
    ),
    Mutation("no margin in the grid", FRAMES, "high - low + 1 + margin", "high - low + 1"),
    Mutation(
        "map read with the wrong sign of the angle",
        FRAMES,
        "sky_positions(-angles, sky_center",
        "sky_positions(angles, sky_center",
    ),
    Mutation("map read at (column, row)", FRAMES, "unit.flip(-1)", "unit"),
    Mutation(
        "PSF turned the wrong way",
        OTF,
        "theta = torch.deg2rad(angles.double())",
        "theta = -torch.deg2rad(angles.double())",
    ),
    Mutation(
        "PSF sheared",
        OTF,
        "_waves(u, turn.cos() * rows, turn.sin() * columns, psf)",
        "_waves(u, turn.cos() * rows, -turn.sin() * columns, psf)",
    ),
    Mutation(
        "PSF not turned",
        OTF,
        "theta = torch.deg2rad(angles.double())",
        "theta = 0 * angles.double()",
    ),
    Mutation(
        "PSF in radians", OTF, "theta = torch.deg2rad(angles.double())", "theta = angles.double()"
    ),
    Mutation("centre of even stamps at (k - 1) // 2", OTF, "- height // 2", "- (height - 1) // 2"),
    Mutation(
        "wrong sign of the angles",
        ROTATION,
        "theta = torch.deg2rad(angles)[:, None, None]",
        "theta = -torch.deg2rad(angles)[:, None, None]",
    ),
    Mutation(
        "degrees for radians",
        ROTATION,
        "theta = torch.deg2rad(angles)[:, None, None]",
        "theta = angles[:, None, None]",
    ),
    Mutation(
        "centre off by half a pixel",
        ROTATION,
        "row = sky_center[0] +",
        "row = sky_center[0] + 0.5 +",
    ),
    Mutation(
        "row and column of the centre swapped",
        ROTATION,
        "- center[:, 1, None, None]",
        "- center[:, 0, None, None]",
    ),
    Mutation(
        "spline: adjoint by the inverse rotation",
        FRAMES,
        "blurred = _stacked([sampler.adjoint(frames) for frames in y])",
        "blurred = _stacked([SplineSampler(sky_positions(-self.angles, self.sky_center.expand(len(self.angles), 2), self.center[0], self.geometry.grid), SplineGrid(self.geometry.detector, (0, 0), (self.geometry.detector[0] - 1, self.geometry.detector[1] - 1), False, y.dtype), False).forward(frames) for frames in y])",
    ),
    Mutation(
        "shear: adjoint turns as the forward",
        ROTATION,
        "self._turn(square, -1)",
        "self._turn(square, 1)",
    ),
    Mutation(
        "shear: adjoint shifts as the forward",
        ROTATION,
        "self._shift(square, -by, dim)\n        square = self._turn",
        "self._shift(square, by, dim)\n        square = self._turn",
    ),
    Mutation(
        "shear: wrong sign",
        ROTATION,
        "along_row = -torch.sin(self.phi)",
        "along_row = torch.sin(self.phi)",
    ),
    Mutation(
        "shear: sub-pixel shift of the sky's star forgotten",
        ROTATION,
        "(anchor.to(sky_center) - sky_center)",
        "(0 * sky_center)",
    ),
    Mutation(
        "rotate: turns the other way",
        ROTATION,
        "_positions_in_frame(-angles,",
        "_positions_in_frame(angles,",
    ),
    Mutation("rotate: no mask outside", ROTATION, "turned.masked_fill(outside, fill)", "turned"),
    Mutation(
        "spline: one tap too far", SPLINE, "torch.arange(-1, 3, device", "torch.arange(0, 4, device"
    ),
    Mutation(
        "spline: reads beyond the edge",
        SPLINE,
        "torch.where(inside[..., None], weight, 0.0)",
        "weight",
    ),
    Mutation(
        "spline: adjoint without accumulation",
        SPLINE,
        "out.index_add_(0, indices.flatten(), (weights",
        "out.index_copy_(0, indices.flatten().long(), (weights",
    ),
    Mutation(
        "spline: slopes along rows and columns swapped",
        SPLINE,
        "((row + 1, column), (row, column + 1))",
        "((row, column + 1), (row + 1, column))",
    ),
    Mutation("spline: all frames read one image", SPLINE, "if not self.shared:", "if False:"),
]


def first_failure(root: Path, mutation: Mutation | None) -> str | None:
    """First test that fails on a copy, mutated or not, or ``None``."""
    likely = FIRST[Path(mutation.file).stem] if mutation else None
    return (likely and _failure(root, mutation, ["-k", likely])) or _failure(root, mutation, [])


def _failure(root: Path, mutation: Mutation | None, selection: list[str]) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        skip = shutil.ignore_patterns("__pycache__", "*.pyc", *OTHERS)
        for part in ("deepinv_astro", "tests"):
            shutil.copytree(root / part, work / part, ignore=skip)
        shutil.copy(root / "pyproject.toml", work)
        if mutation is not None:
            file = work / mutation.file
            text = file.read_text()
            if mutation.old not in text:
                raise SystemExit(f"{mutation.name}: not found in {mutation.file}: {mutation.old}")
            file.write_text(text.replace(mutation.old, mutation.new, 1))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *selection, *TESTS],
            cwd=work,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"exit {done.returncode}: {done.stdout[-300:]}"


def main() -> int:
    """Print killed or survived for each mutation; return 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to copy")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of mutations")
    options = parser.parse_args()
    broken = first_failure(options.root, None)
    if broken is not None:
        print(f"The tests fail without a mutation: {broken}")
        return 2
    survived = 0
    for mutation in MUTATIONS:
        if options.only and not any(word in mutation.name for word in options.only):
            continue
        failure = first_failure(options.root, mutation)
        survived += failure is None
        print(
            "SURVIVED" if failure is None else "killed",
            mutation.name,
            failure,
            sep=" | ",
            flush=True,
        )
    print(f"{survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main())
