"""The table in README.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent


def test_every_test_that_it_names_exists() -> None:
    places = {
        **{path.stem.removeprefix("test_podman_"): path for path in HERE.glob("test_podman_*.py")},
        **{p.stem.removeprefix("test_slirp4netns_"): p for p in (TESTS / "dialects").glob("test_slirp4netns_*.py")},
        **{p.stem.removeprefix("test_"): p for p in (TESTS / "plugin").glob("test_shim*.py")},
    }
    rows = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("| ") and "`" in line]
    found = 0
    for row in rows:
        for place, names in re.findall(r"\b([a-z0-9_]+): ((?:`[a-z0-9_]+`(?:, )?)+)", row.split(" | ", 1)[1]):
            for name in re.findall(r"`([a-z0-9_]+)`", names):
                assert f"def test_{name}(" in places[place].read_text(), f"{place}: {name}"
                found += 1
    assert found > 90
    said = (HERE / "README.md").read_text()
    assert all(f"\n| T{number} " in said for number in range(1, 21))
