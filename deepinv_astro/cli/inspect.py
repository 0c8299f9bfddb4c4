"""``deepinv-astro inspect``: what the files hold and what can be seen with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinv_astro.cli.errors import heard_warnings, one_clear_line
from deepinv_astro.cli.options import (
    AnglesArgument,
    AnglesUnitOption,
    BadPixelsOption,
    CenterOption,
    CubeArgument,
    DialectOption,
    HduOption,
    PixelScaleOption,
    PsfArgument,
    ReverseAnglesOption,
    SequenceFiles,
    StarApertureOption,
    StarFluxOption,
    TargetOption,
    TransmissionOption,
    TrueNorthOption,
    WavelengthOption,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deepinv_astro.io import Sequence


def inspect(
    cube: CubeArgument,
    angles: AnglesArgument = None,
    psf: PsfArgument = None,
    target: TargetOption = "",
    center: CenterOption = None,
    pixel_scale: PixelScaleOption = None,
    true_north: TrueNorthOption = 0.0,
    star_flux: StarFluxOption = None,
    star_flux_aperture: StarApertureOption = None,
    dialect: DialectOption = "generic",
    angles_unit: AnglesUnitOption = "auto",
    reverse_angles: ReverseAnglesOption = False,
    hdu: HduOption = None,
    transmission: TransmissionOption = None,
    wavelength: WavelengthOption = None,
    bad_pixels: BadPixelsOption = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the same as JSON to this file.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Draw what ADI can see into this file (PNG, PDF)."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the JSON file and the figure if they exist."),
    ] = False,
) -> None:
    """Say what the files of a sequence hold, what ADI can see with them, and what looks wrong."""
    with one_clear_line():
        from deepinv_astro.io.atomic import check_writable

        files = SequenceFiles(
            cube, angles, psf, center, pixel_scale, true_north, dialect, reverse_angles, hdu,
            bad_pixels, transmission, wavelength, star_flux, star_flux_aperture, angles_unit, target,
        )  # fmt: skip
        files.check()
        for path in (json, figure):
            if path is not None:
                check_writable(path, overwrite)

        from rich.console import Console

        from deepinv_astro.io import write_json

        with heard_warnings() as doubts:
            sequence = files.read()
        facts = examine(sequence)
        facts["warnings"] = [*doubts, *facts["warnings"]]
        show(Console(), facts)
        if json is not None:
            write_json(json, facts, overwrite)
            typer.echo(f"Wrote {json}")
        if figure is not None:
            draw(figure, facts)
            typer.echo(f"Wrote {figure}")


def examine(sequence: Sequence) -> dict[str, Any]:
    """
    All that ``inspect`` tells, ready for JSON.

    :param Sequence sequence: the data.
    :return: facts by name.
    """
    import dataclasses

    from deepinv_astro.cli import checks
    from deepinv_astro.cli.problem import operator, prepare, star_center
    from deepinv_astro.cli.search import sign_test
    from deepinv_astro.physics.functional.psf import half_maximum_width

    warnings: list[str] = checks.missing_warnings(sequence)
    found = None
    try:
        found = star_center(sequence)
    except ValueError as error:
        warnings.append(f"The star's position could not be estimated: {error}.")
    if found is not None and sequence.center is not None:
        warnings += checks.center_warnings(sequence.center, found[:2])
    fwhm = None if sequence.psf is None else half_maximum_width(sequence.psf)
    used = sequence.center or (None if found is None else found[:2])
    rows: list[checks.Reach] = []
    modes = checks.mode_list(sequence.angles)
    sign = None
    if fwhm is not None and used is not None:
        warnings += checks.rotation_warnings(sequence, fwhm)
        physics = operator(sequence, used)
        rows = checks.reach(sequence, physics, fwhm)
        modes = checks.mode_list(sequence.angles, physics=physics)
        sign = sign_test(prepare(dataclasses.replace(sequence, center=used)))
        warnings += checks.sign_warnings(sign)
    arcsec = (
        None if sequence.pixel_scale is None else float(sequence.pixel_scale.to_value("arcsec"))
    )
    channels, height, width = sequence.img_size
    return {
        "target": sequence.target,
        "channels": channels,
        "frames": sequence.n_frames,
        "height": height,
        "width": width,
        "unit": str(sequence.unit),
        "pixel_scale_arcsec": arcsec,
        "wavelengths": sequence.wavelengths,
        "angles_deg": [float(sequence.angles[0]), float(sequence.angles[-1])],
        "rotation_deg": checks.rotation_range(sequence.angles),
        "true_north_deg": sequence.true_north,
        "psf_fwhm_px": fwhm,
        "star_flux": sequence.star_flux,
        "center": sequence.center,
        "center_estimated": None if found is None else found[:2],
        "center_estimated_std": None if found is None else found[2:],
        "sign_test": None if sign is None else sign._asdict(),
        "reach": [
            {**row._asdict(), "separation_arcsec": None if arcsec is None else arcsec * row[0]}
            for row in rows
        ],
        "visibility": modes,
        "unconstrained": checks.UNCONSTRAINED,
        "provenance": sequence.provenance,
        "warnings": warnings,
    }


def show(console: Console, facts: dict[str, Any]) -> None:
    """Print the facts as tables, the warnings last."""
    console.print(_summary(facts))
    if facts["reach"]:
        console.print(_reach_table(facts))
    else:
        console.print("Give the PSF as third argument to see what ADI can see at each separation.")
    modes = "  ".join(f"{v['mode']}: {v['visibility']:.3f}" for v in facts["visibility"][:6])
    console.print(f"Fraction seen of angular mode m   {modes}", highlight=False)
    if "measured" in facts["visibility"][0]:
        modes = "  ".join(f"{v['mode']}: {v['measured']:.3f}" for v in facts["visibility"][:6])
        console.print(f"  the same through the operator   {modes}", highlight=False)
    console.print(facts["unconstrained"], style="dim", highlight=False)
    for warning in facts["warnings"]:
        console.print(f"[bold yellow]Warning[/] {warning}", highlight=False)
    if not facts["warnings"]:
        console.print("[green]No warnings.[/]")


def draw(path: Path, facts: dict[str, Any]) -> None:
    """Write the figure of what ADI can see."""
    from matplotlib.figure import Figure

    from deepinv_astro.plot import draw_adi_visibility

    canvas = Figure(figsize=(9.0, 3.6), layout="constrained")
    draw_adi_visibility(canvas.subplots(1, 2), facts["visibility"], facts["reach"])
    if facts["target"]:
        canvas.suptitle(facts["target"])
    canvas.savefig(path, dpi=150)


def _summary(facts: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=facts["target"] or None, box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(facts):
        table.add_row(name, value)
    return table


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    size = f"{facts['frames']} frames of {facts['height']} x {facts['width']} pixels"
    if facts["channels"] > 1:
        size += f" in {facts['channels']} channels"
    scale, fwhm, flux = facts["pixel_scale_arcsec"], facts["psf_fwhm_px"], facts["star_flux"]
    unit = facts["unit"] or "unit of the file, not named"
    first, last = facts["angles_deg"]
    assumed, found = facts["center"], facts["center_estimated"]
    fluxes = "unknown" if flux is None else ", ".join(f"{f:.5g}" for f in flux.tolist())
    psf = "no PSF given" if fwhm is None else f"FWHM {fwhm:.2f} px"
    if fwhm is not None and scale is not None:
        psf += f" = {1e3 * fwhm * scale:.1f} mas"
    estimate = "could not be estimated"
    if found is not None:
        row_std, column_std = facts["center_estimated_std"]
        estimate = f"row {found[0]:.2f} ± {row_std:.2f}, column {found[1]:.2f} ± {column_std:.2f}"
    return [
        ("Data", f"{size}, {unit}"),
        (
            "Pixel scale",
            "unknown, pass --pixel-scale" if scale is None else f"{1e3 * scale:.4g} mas",
        ),
        ("Rotation", f"{facts['rotation_deg']:.1f}°, from {first:.2f}° to {last:.2f}°"),
        ("PSF", psf),
        ("Star's flux", fluxes),
        ("Centre given", "no" if assumed is None else f"row {assumed[0]:g}, column {assumed[1]:g}"),
        ("Centre from the halo", estimate),
    ]


def _reach_table(facts: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title="What ADI can see of a point source", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for name in ("separation (px)", "(arcsec)", "arc (FWHM)", "fraction seen"):
        table.add_column(name, justify="right")
    for row in facts["reach"]:
        arcsec = row["separation_arcsec"]
        table.add_row(
            f"{row['separation_px']:.1f}",
            "-" if arcsec is None else f"{arcsec:.3f}",
            f"{row['arc_fwhm']:.1f}",
            f"{row['point_visibility']:.2f}",
        )
    return table
