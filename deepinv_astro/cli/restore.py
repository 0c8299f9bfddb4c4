"""``deepinv-astro restore``: an image, by weights of ``train --images``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepinv_astro.cli.errors import one_clear_line


def restore(
    image: Annotated[Path, typer.Argument(help="Measured image, FITS or PNG.")],
    weights: Annotated[Path, typer.Option("--weights", help="weights.pt of deepinv-astro train.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FITS or PNG. Default: IMAGE_restored, here."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace the result if it exists.")
    ] = False,
) -> None:
    """Restore an image with trained weights; write FITS or PNG."""
    with one_clear_line():
        from deepinv_astro.io.atomic import check_free
        from deepinv_astro.io.files import existing_file
        from deepinv_astro.io.images import read_gray_image, write_gray_image

        existing_file(image, "image")
        existing_file(weights, "weights")
        name = image.name.removesuffix(".gz").removesuffix(".fz")
        suffix = ".png" if image.suffix.lower() == ".png" else ".fits"
        target = check_free(out or Path(Path(name).stem + "_restored" + suffix), overwrite)
        if target.suffix.lower() not in (".png", ".fits", ".fit", ".gz"):
            raise ValueError(
                f"`out`: found {target.name}; expected a name that ends in .fits or .png"
            )
        measured = read_gray_image(image)

        import torch

        from deepinv_astro.training import Restoration

        restoration = Restoration.load(weights)
        with torch.no_grad():
            x = restoration(torch.from_numpy(measured.values).float()[None])[0].numpy()
        write_gray_image(target, x, measured.header, restoration.factor, overwrite)
        typer.echo(f"Wrote {target}")
