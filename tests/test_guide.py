"""What the user guide says of its own tests."""

import re
from pathlib import Path

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
