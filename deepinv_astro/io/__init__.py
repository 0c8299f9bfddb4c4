"""FITS in and out: the only place that knows files."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from deepinv_astro.io.atomic import atomic_path, check_writable
    from deepinv_astro.io.dialects import DIALECTS, AnglesUnit, Dialect
    from deepinv_astro.io.errors import SequenceError
    from deepinv_astro.io.fits import read_sequence
    from deepinv_astro.io.sequence import Sequence
    from deepinv_astro.io.stamps import Core, fit_core
    from deepinv_astro.io.strict_json import write_json
    from deepinv_astro.io.writer import offset_wcs, read_parameters, write_result
else:
    _MODULES = {
        "atomic": ("atomic_path", "check_writable"),
        "dialects": ("DIALECTS", "AnglesUnit", "Dialect"),
        "errors": ("SequenceError",),
        "fits": ("read_sequence",),
        "sequence": ("Sequence",),
        "stamps": ("Core", "fit_core"),
        "strict_json": ("write_json",),
        "writer": ("offset_wcs", "read_parameters", "write_result"),
    }

    def __getattr__(name: str) -> Any:
        """Import a module when it is asked for: a wrong file name is told before torch is loaded."""
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
