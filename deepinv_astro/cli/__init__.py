"""The command line: deepinv-astro. Heavy modules are imported when a command runs."""

from __future__ import annotations

import functools
import logging
from typing import Annotated

import typer

from deepinv_astro.cli.calibrate import calibrate
from deepinv_astro.cli.demo import demo
from deepinv_astro.cli.inspect import inspect
from deepinv_astro.cli.reconstruct import reconstruct
from deepinv_astro.cli.restore import restore
from deepinv_astro.cli.simulate import simulate
from deepinv_astro.cli.train import train

app = typer.Typer(
    name="deepinv-astro",
    help="Images of disks and planets from high-contrast sequences of one star.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("calibrate")(calibrate)
app.command("demo")(demo)
app.command("inspect")(inspect)
app.command("reconstruct")(reconstruct)
app.command("restore")(restore)
app.command("train")(train)
app.command("simulate")(simulate)


def _show_version(wanted: bool) -> None:
    if wanted:
        from deepinv_astro import __version__

        typer.echo(f"deepinv-astro {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log what the library does, and where errors arise.")
    ] = False,
) -> None:
    """Images of disks and planets from high-contrast sequences of one star."""
    if verbose:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    package = logging.getLogger("deepinv_astro")
    context.call_on_close(functools.partial(package.setLevel, package.level))
    # What matters to the user is printed by the commands, once.
    package.setLevel(logging.DEBUG if verbose else logging.ERROR)
