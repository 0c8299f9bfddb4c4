"""Bad input ends a command with one clear line and exit code 2, in the words of the command line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer

logger = logging.getLogger(__name__)

#: Exit codes: bad input, and an interruption as shells count it.
BAD_INPUT, INTERRUPTED = 2, 130
#: Arguments of the library whose options are not spelled alike.
SPELLED = {
    "cube": "CUBE",
    "angles": "ANGLES",
    "psf": "PSF",
    "wavelengths": "--wavelength",
    "n_components": "--components",
    "rank": "--components",
}
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")


def as_options(text: str) -> str:
    """
    A message of the library as the command line says it.

    Messages of the library write arguments in backticks, with or without a value; here they become
    options, and flags where the value is True.

    >>> as_options("`center`: found 3; pass `pixel_scale='27.19 mas'` and `overwrite=True`")
    "--center: found 3; pass --pixel-scale '27.19 mas' and --overwrite"
    """

    def spell(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        option = SPELLED.get(name, f"--{name.replace('_', '-')}")
        return option if value in (None, "True") else f"{option} {value}"

    return _ARGUMENT.sub(spell, text)


@contextmanager
def one_clear_line() -> Iterator[None]:
    """Turn errors of the input, of files and interruptions into one line and an exit code."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        logger.debug("the input was refused", exc_info=True)
        typer.echo(f"Error: {as_options(' '.join(str(error).split()))}", err=True)
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted. No file is half-written; the same command starts again.", err=True)
        raise typer.Exit(INTERRUPTED) from None


class _Collector(logging.Handler):
    """Keeps the sentences of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(as_options(record.getMessage()))


@contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Collect what the library logs as warnings, so that a command prints it with its own."""
    package, collector = logging.getLogger("deepinv_astro"), _Collector()
    level = package.level
    package.setLevel(min(level, logging.WARNING))
    package.addHandler(collector)
    try:
        yield collector.sentences
    finally:
        package.removeHandler(collector)
        package.setLevel(level)
