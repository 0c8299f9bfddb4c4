"""Configuration of the documentation. Building it needs no network."""

from __future__ import annotations

import os
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

# Read by whatever imports pyplot, in this process and in those that it starts.
os.environ.setdefault("MPLBACKEND", "Agg")

project = "deepinv_astro"
author = "deepinv_astro developers"
copyright = "2026, deepinv_astro developers"
release = installed_version("deepinv_astro")
version = ".".join(release.split(".")[:2])

templates_path = ["_templates"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb"]
# The rule that separates a description from its examples, as deepinv's docstrings have it.
rst_prolog = """
.. |sep| raw:: html

   <hr>
"""

# Docstrings: reST with types in the signature; the source decides the order.
autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # :param: names them
autodoc_default_options = {"show-inheritance": True}
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries = False

bibtex_bibfiles = ["refs.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# Pictures of the pages themselves.
plot_include_source = False
plot_html_show_source_link = False
plot_html_show_formats = False
plot_apply_rcparams = True
plot_rcparams = {"savefig.bbox": "tight"}
plot_formats = [("png", 150)]
plot_working_directory = str(Path(__file__).parent)

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"demo_",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "min_reported_time": 1,
    "backreferences_dir": None,
    "copyfile_regex": "",
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
    "matplotlib_animations": False,
    "show_signature": False,
    "capture_repr": (),
    "within_subsection_order": "ExampleTitleSortKey",
    "plot_gallery": "True",
}

html_theme = "pydata_sphinx_theme"
html_title = "deepinv_astro"
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# Pages without a section of their own need no side bar.
html_sidebars = {
    name: [] for name in ("index", "installation", "quickstart", "conventions", "changelog")
}


class CommandHelp(Directive):
    """``.. command-help:: reconstruct --help``: what the command prints, asked when the page is built."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        from typer.testing import CliRunner

        from deepinv_astro.cli import app

        words = self.arguments[0].split()
        result = CliRunner().invoke(app, words, env={"COLUMNS": "84", "NO_COLOR": "1"})
        if result.exit_code != 0:
            raise self.error(f"deepinv-astro {self.arguments[0]} ended with {result.exit_code}")
        lines = (line.rstrip() for line in result.output.strip("\n").splitlines())
        text = f"$ deepinv-astro {self.arguments[0]}\n" + "\n".join(lines)
        return [nodes.literal_block(text, text, language="text")]


def setup(sphinx: Any) -> None:
    """Called by Sphinx."""
    sphinx.add_directive("command-help", CommandHelp)
