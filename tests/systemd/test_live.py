"""The daemon itself under a real user manager: socket activation, restart, kill -9 (live.py, as a normal user)."""

from __future__ import annotations

import re
import sys

import pytest

from tests.systemd.test_units import TREE, needs, nothing_is_left, session

__all__ = ["needs", "nothing_is_left"]


@pytest.mark.usefixtures("nothing_is_left")
def test_live() -> None:
    if session("test", "-r", __file__, "-a", "-x", sys.executable).returncode != 0:
        pytest.skip(f"a normal user may not read this tree or {sys.executable}")
    words = ["-B", "-m", "pytest", str(TREE / "tests/systemd/live.py"), "-x", "-v", "-p", "no:cacheprovider"]
    done = session(sys.executable, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 7, done.stdout
