"""FITS in and out: the only place that knows files."""

from deepinv_astro.io.atomic import atomic_path, check_writable, write_json
from deepinv_astro.io.dialects import DIALECTS, Dialect
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.fits import read_sequence
from deepinv_astro.io.sequence import Sequence
from deepinv_astro.io.stamps import Core, fit_core
from deepinv_astro.io.vectors import AnglesUnit
from deepinv_astro.io.writer import offset_wcs, read_parameters, write_result

__all__ = [
    "DIALECTS",
    "AnglesUnit",
    "Core",
    "Dialect",
    "Sequence",
    "SequenceError",
    "atomic_path",
    "check_writable",
    "fit_core",
    "offset_wcs",
    "read_parameters",
    "read_sequence",
    "write_json",
    "write_result",
]
