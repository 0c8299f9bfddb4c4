"""What the user guide says of its own tests."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from deepinv_astro.datasets import images
from deepinv_astro.io.images import write_gray_image

ROOT = Path(__file__).parents[1]


def test_each_row_of_what_can_be_known_names_tests_that_exist():
    page = (ROOT / "docs/user_guide/self_calibration.rst").read_text(encoding="utf-8")
    table = page[page.index("   * - parameter\n") : page.index("What is not known is not moved")]
    rows = table.split("\n   * - ")[1:]
    assert len(rows) >= 10
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py")]
    for row in rows:
        names = re.findall(r"``(test_\w+)``", row)
        assert names, f"no test is named for: {row}"
        for name in names:
            assert any(f"def {name}(" in source for source in sources), name


@pytest.mark.filterwarnings("ignore::UserWarning:deepinv.training.trainer")
def test_the_training_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loops, word for word but for their length."""
    page = (ROOT / "docs/user_guide/training.rst").read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", page)
    code = "\n".join(textwrap.dedent(block) for block in blocks)
    for long, short in (
        ("steps=1500", "steps=2, warmup=1, crop=16, validation_crops=2"),
        ("epochs=20", "epochs=1"),
        ("recipe.crop, 1000", "recipe.crop, 8"),
    ):
        assert long in code
        code = code.replace(long, short)
    field = images.deep_field(90) + 0.02 * torch.randn(
        1, 90, 90, generator=torch.Generator().manual_seed(0)
    )
    write_gray_image(tmp_path / "FOLDER" / "a.fits", field[0].numpy())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "training.rst", "exec"), names)
    assert Path("checkpoint.pt").exists()
    assert names["restored"].shape == (1, 90, 90)
    before, after = names["training"].best["last.bias"], names["restoration"].model.last.bias
    assert not torch.equal(before, after)  # the second loop has trained as well
