"""What the pages show of the shipped network, written into them: to be run after new weights.

The screen of ``deepinv-astro demo`` in ``user_guide/command_line.rst``, its picture, and the card in
``user_guide/model_card.rst``. Run::

    python docs/figures/shipped_network.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from deepinv_astro.models import load_weights, read_weights_card

DOCS = Path(__file__).parents[1]


def screen(folder: Path) -> str:
    """What the demonstration prints, progress included."""
    done = subprocess.run(
        [sys.executable, "-m", "deepinv_astro.cli", "demo"],
        env=os.environ | {"COLUMNS": "84", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def between(text: str, first: str, last: str, new: str) -> str:
    """Text with another part between two others."""
    start = text.index(first) + len(first)
    return text[:start] + new + text[text.index(last, start) :]


def main() -> None:
    """Write both pages and the picture."""
    page = DOCS / "user_guide/command_line.rst"
    with tempfile.TemporaryDirectory() as folder:
        shown = textwrap.indent(screen(Path(folder)), "   ")
        shutil.copy(Path(folder) / "demo/comparison.png", DOCS / "_static/demo.png")
    text = page.read_text(encoding="utf-8")
    text = between(
        text, "   $ deepinv-astro demo\n", "The number of components of PCA", f"\n{shown}\n\n"
    )
    page.write_text(text, encoding="utf-8")

    file, network = read_weights_card(), load_weights()
    card = "\n".join(
        textwrap.fill(f"{name}: {value}", 100, subsequent_indent="    ", break_on_hyphens=False)
        for name, value in file.card.items()
    )
    page = DOCS / "user_guide/model_card.rst"
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\S+, SHA-256 \w+\.\.\.$", f"{file.name}, SHA-256 {file.digest}...", text)
    text = between(text, '"{name}: {text}")\n', ">>> network", f"{card}\n")
    weights = sum(p.numel() for p in network.parameters())
    steps = f"{len(network.prox)} steps, {weights} weights"
    page.write_text(re.sub(r"(?m)^\d+ steps, \d+ weights$", steps, text), encoding="utf-8")


if __name__ == "__main__":
    main()
