"""Images of disks and planets from high-contrast sequences, with deepinv."""

from importlib.metadata import version

__version__ = version("deepinv_astro")
