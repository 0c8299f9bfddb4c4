"""What ``reconstruct`` writes and prints about its result."""

from __future__ import annotations

import math
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.table import Table

from deepinv_astro.cli import checks
from deepinv_astro.cli.search import MOST_SOURCES, Found, is_point, source_entry
from deepinv_astro.identifiability import visibility
from deepinv_astro.io import write_result
from deepinv_astro.physics.functional.psf import blur

if TYPE_CHECKING:
    from deepinv_astro.cli.methods import Method, Solution
    from deepinv_astro.cli.problem import Problem

#: Images of which less of the energy is constrained are doubtful: that of the demonstration, with
#: its ring, has 0.37; that of beta Pictoris in L', a planet and what is left of the halo, 0.25.
LITTLE_SEEN = 0.3
SCALE_HINT = "Pass --pixel-scale (such as 27.19mas) to get separations in arcseconds."


def versions() -> dict[str, str]:
    """Versions of what made the result."""
    packages = ("deepinv_astro", "deepinv", "torch", "scipy", "astropy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def write_image(
    path: Path,
    problem: Problem,
    method: Method,
    solution: Solution,
    found: Found | None,
    overwrite: bool,
) -> Path:
    """Write the image as FITS, with the maps once they are known."""
    sequence = problem.sequence
    meaning = "sky" if method.deconvolves else "sky blurred by the PSF"
    made = f"Reconstructed with method {method.value}: {meaning}."
    history = [*sequence.provenance, made, *solution.notes]
    return write_result(
        path,
        solution.image,
        uncertainty=None if found is None else found.flux_std,
        snr=None if found is None else found.snr,
        visibility=None if found is None else found.visibility,
        unit=sequence.unit,
        center=problem.sky_center,
        pixel_scale=sequence.pixel_scale,
        wavelengths=sequence.wavelengths,
        target=sequence.target,
        parameters={"method": method.value, **solution.parameters},
        history=history,
        overwrite=overwrite,
    )


def write_quicklook(
    path: Path,
    problem: Problem,
    method: Method,
    solution: Solution,
    found: Found,
    content: dict[str, Any],
) -> None:
    """Write the figure, channels averaged, the points among the sources of the report circled."""
    from matplotlib.figure import Figure

    from deepinv_astro.plot import quicklook

    sequence = problem.sequence
    unit = str(sequence.unit)
    turn = checks.rotation_range(sequence.angles)
    parts = [sequence.target] if sequence.target else []
    channels = sequence.img_size[0]
    parts += [method.value] + ([f"mean of {channels} channels"] if channels > 1 else [])
    parts += [f"{sequence.n_frames} frames, {turn:.1f}° of rotation"]
    parts += [f"{content['image_visibility']:.0%} of the energy of the image constrained"]
    points = {e["name"]: SimpleNamespace(**e) for e in reversed(content["sources"]) if e["name"]}
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    quicklook(
        figure,
        solution.image[0].mean(0).cpu().numpy(),
        found.snr[0].mean(0).cpu().numpy(),
        sequence.y[0, :, sequence.n_frames // 2].mean(0).cpu().numpy(),
        center=problem.sky_center,
        frame_center=problem.center,
        pixel_scale=sequence.pixel_scale,
        unit=unit,
        sources=[points[name] for name in sorted(points, key=lambda n: (len(n), n))],
        fwhm=problem.fwhm,
        title=" · ".join(parts),
    )
    figure.savefig(path, dpi=150)


def sources_of(
    problem: Problem, method: Method, solution: Solution, found: Found
) -> list[dict[str, Any]]:
    """All sources, the most significant first; ``kind`` tells points from pieces of a disk."""
    sequence = problem.sequence
    image = solution.image.nan_to_num()
    shown = blur(image, sequence.psf) if method.deconvolves else image
    entries = []
    for channel, sources in enumerate(found.sources):
        flux = None if sequence.star_flux is None else float(sequence.star_flux[channel])
        for source in sources:
            point = is_point(source, shown[0, channel], problem.fwhm)
            entry = source_entry(source, problem.sky_center, sequence.pixel_scale, flux)
            kind = "point" if point else "extended"
            entries.append({"name": None, "channel": channel, "kind": kind, **entry})
    entries.sort(key=lambda e: -e["snr"])
    name_points(entries, problem.fwhm)
    return entries


def name_points(entries: list[dict[str, Any]], fwhm: float) -> None:
    """
    Name the points A, B, ... in their order; one at the same place in another channel has the same name.

    >>> entries = [
    ...     {"kind": "point", "channel": c, "row": r, "column": 5.0, "name": None}
    ...     for c, r in ((0, 9.0), (0, 3.0), (1, 3.1))
    ... ]
    >>> name_points(entries, fwhm=3.0)
    >>> [entry["name"] for entry in entries]
    ['A', 'B', 'B']
    """
    from deepinv_astro.plot import source_name

    first: list[dict[str, Any]] = []
    for entry in (e for e in entries if e["kind"] == "point"):
        for twin in first:
            apart = math.hypot(entry["row"] - twin["row"], entry["column"] - twin["column"])
            taken = any(
                e["name"] == twin["name"] and e["channel"] == entry["channel"] for e in entries
            )
            if apart < fwhm / 2 and not taken:
                entry["name"] = twin["name"]
                break
        else:
            entry["name"] = source_name(len(first))
            first.append(entry)


def search_is_complete(entries: list[dict[str, Any]]) -> bool:
    """
    Whether the search ended because nothing was left above the threshold, in each channel.

    >>> search_is_complete([{"channel": 0}] * MOST_SOURCES), search_is_complete([{"channel": 1}])
    (False, True)
    """
    counts = Counter(entry["channel"] for entry in entries)
    return all(count < MOST_SOURCES for count in counts.values())


def result_warnings(
    problem: Problem, solution: Solution, entries: list[dict[str, Any]], seen: float
) -> list[str]:
    """Sentences about doubtful input or a doubtful result."""
    sequence = problem.sequence
    found = [
        *problem.warnings,
        *checks.missing_warnings(sequence),
        *checks.rotation_warnings(sequence, problem.fwhm),
    ]
    if not bool((solution.image.nan_to_num() > 0).any()):
        found.append("The image is empty: nothing stands out of the noise.")
    elif seen < LITTLE_SEEN:
        found.append(
            f"Only {seen:.0%} of the energy of this image is constrained: smooth light about the star in it may be "
            "the star's own halo. Trust what stands out in the S/N map."
        )
    # along a disk the peaks end only at the limit, and the disk is said by itself
    if not search_is_complete(entries) and all(e["kind"] == "point" for e in entries):
        found.append(
            f"The search stopped at {MOST_SOURCES} peaks of a channel; fainter ones may exist."
        )
    if sequence.pixel_scale is None:
        found.append(f"The pixel scale is unknown. {SCALE_HINT}")
    return found


def report(
    problem: Problem,
    method: Method,
    solution: Solution,
    found: Found,
    settings: dict[str, Any],
    seconds: dict[str, float],
    more_warnings: list[str],
) -> dict[str, Any]:
    """
    The content of ``report.json``.

    :param Problem problem: what was solved.
    :param Method method: by what.
    :param Solution solution: image and parameters.
    :param Found found: maps and sources.
    :param dict settings: of the command.
    :param dict seconds: time of each part.
    :param list more_warnings: from other checks.
    :return: ready for JSON.
    """
    sequence = problem.sequence
    entries = sources_of(problem, method, solution, found)
    with torch.no_grad():
        seen = float(visibility(solution.image.nan_to_num(), problem.physics)[0])
    return {
        "target": sequence.target,
        "method": method.value,
        "parameters": solution.parameters,
        "notes": solution.notes,
        "settings": settings,
        "image": "flux per pixel of the sky"
        if method.deconvolves
        else "flux per pixel of the sky blurred by the PSF, with the losses of the method",
        "unit": str(sequence.unit),
        "star_flux": sequence.star_flux,
        "center": problem.center,
        "sky_center": problem.sky_center,
        "pixel_scale_arcsec": None
        if sequence.pixel_scale is None
        else float(sequence.pixel_scale.to_value("arcsec")),
        "psf_fwhm_px": problem.fwhm,
        "frames": sequence.n_frames,
        "rotation_deg": checks.rotation_range(sequence.angles),
        "true_north_deg": sequence.true_north,
        "sources": entries,
        "sources_complete": search_is_complete(entries),
        "visibility": checks.mode_list(sequence.angles),
        "image_visibility": seen,
        "unconstrained": checks.UNCONSTRAINED,
        "warnings": [*result_warnings(problem, solution, entries, seen), *more_warnings],
        "provenance": sequence.provenance,
        "device": str(sequence.y.device),
        "seconds": seconds,
        "versions": versions(),
    }


def plus_minus(value: float, std: float) -> str:
    """
    A value with its error, both with the digits that the error deserves.

    >>> plus_minus(1353.2, 48.0), plus_minus(6.154e-4, 1.6e-5), plus_minus(451.51, 0.693)
    ('1353 ± 48', '(6.15 ± 0.16)e-4', '451.51 ± 0.69')
    >>> plus_minus(-2e-8, 0.2)
    '0.00 ± 0.20'
    """
    if not (std > 0 and math.isfinite(std) and math.isfinite(value)):
        return f"{value:.4g}"
    size = max(abs(value), std)
    small = size < 1e-2
    power = math.floor(math.log10(size)) if small else 0
    value, std = value / 10.0**power, std / 10.0**power
    digits = max(0, 1 - math.floor(math.log10(std)))
    text = f"{round(value, digits) + 0.0:.{digits}f} ± {std:.{digits}f}"  # and no -0.00
    return f"({text})e{power}" if small else text


def sources_table(entries: list[dict[str, Any]]) -> Table:
    """Points as a small table; channels where there are several, arcseconds and contrast if known."""
    arcsec = any(e["separation_arcsec"] is not None for e in entries)
    contrast = any(e["contrast"] is not None for e in entries)
    channels = any(e["channel"] > 0 for e in entries)
    table = Table(title="Point sources", box=box.SIMPLE_HEAD, title_justify="left")
    unit = "mas" if arcsec else "px"
    last = "contrast" if contrast else "flux"
    table.add_column("")
    if channels:
        table.add_column("channel", justify="right")
    for name in (f"separation ({unit})", "PA (°)", last, "S/N"):
        table.add_column(name, justify="right")
    for e in sorted(entries, key=lambda e: (len(e["name"]), e["name"], e["channel"])):
        scale = 1e3 if arcsec else 1.0
        key = "separation_arcsec" if arcsec else "separation_px"
        table.add_row(
            e["name"],
            *([str(e["channel"])] if channels else []),
            plus_minus(scale * e[key], scale * e[f"{key}_std"]),
            plus_minus(e["position_angle_deg"], e["position_angle_deg_std"]),
            plus_minus(e[last], e[f"{last}_std"]),
            f"{e['snr']:.1f}",
        )
    return table
