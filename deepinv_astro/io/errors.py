"""The one error of bad input files."""

from __future__ import annotations


class SequenceError(ValueError):
    """
    Bad input: the message names the file, what was found, what was expected and what to do.

    :param str source: file, extension or argument at fault.
    :param str found: what it holds.
    :param str expected: what it should hold.
    :param str remedy: what the user can do about it.

    >>> print(SequenceError("pa.fits", "60 angles", "61, one per frame", "use the other file"))
    pa.fits: found 60 angles; expected 61, one per frame. To fix it: use the other file.
    """

    def __init__(self, source: str, found: str, expected: str, remedy: str) -> None:
        self.source, self.found, self.expected, self.remedy = source, found, expected, remedy
        super().__init__(f"{source}: found {found}; expected {expected}. To fix it: {remedy}.")

    def __reduce__(self) -> tuple[type[SequenceError], tuple[str, str, str, str]]:
        return type(self), (self.source, self.found, self.expected, self.remedy)
