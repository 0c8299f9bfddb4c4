"""Bad input ends a command with one clear line and exit code 2."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

logger = logging.getLogger(__name__)

#: Exit codes: bad input, and an interruption as shells count it.
BAD_INPUT, INTERRUPTED = 2, 130


@contextmanager
def one_clear_line() -> Iterator[None]:
    """Turn errors of the input, of files and interruptions into one line and an exit code."""
    try:
        yield
    except (ValueError, OSError) as error:
        logger.debug("the input was refused", exc_info=True)
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt:
        typer.echo(
            "Interrupted. Files already announced are whole; nothing is half-written.", err=True
        )
        raise typer.Exit(INTERRUPTED) from None
