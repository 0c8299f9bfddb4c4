"""The pages that show the shipped network, beside the file that is shipped."""

import doctest
from pathlib import Path

from PIL import Image

from deepinv_astro.models import read_weights_card

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_says_what_the_file_says() -> None:
    """After new weights: ``python docs/figures/shipped_network.py``, which writes the page."""
    failed, tried = doctest.testfile(
        str(DOCS / "user_guide/model_card.rst"), module_relative=False,
        optionflags=doctest.NORMALIZE_WHITESPACE, encoding="utf-8",
    )  # fmt: skip
    assert failed == 0
    assert tried >= 6


def test_the_screen_of_the_demo_is_that_of_the_shipped_weights() -> None:
    """After new weights: ``python docs/figures/shipped_network.py``."""
    page = (DOCS / "user_guide/command_line.rst").read_text(encoding="utf-8")
    assert f"SHA-256 {read_weights_card().digest}..." in page


def test_the_picture_of_the_demo_is_that_of_the_shipped_weights() -> None:
    """After new weights: ``python docs/figures/shipped_network.py``."""
    with Image.open(DOCS / "_static/demo.png") as picture:
        assert picture.text.get("Source") == f"weights {read_weights_card().digest}"
