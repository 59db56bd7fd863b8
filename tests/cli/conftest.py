from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.standin import ServerThread, process_in_netns

TREE = Path(__file__).parents[2]


@dataclass
class Said:
    """What one ``netd`` said."""

    status: int
    out: str
    err: str

    def failed(self, *words: str) -> None:
        """It is one error line (and maybe a hint) with ``words`` in it, nothing more, and exit code 125."""
        assert self.status == 125, self
        lines = self.err.splitlines()
        assert lines[0].startswith("Error: "), self
        assert all(line.startswith("hint: ") for line in lines[1:]) and len(lines) <= 2, self
        for word in words:
            assert word in self.err, self


Netd = Callable[..., Said]


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would lead to a daemon of the person who runs the tests."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NETD_", "XDG_", "LISTEN_"))}
    return {**env, "PYTHONPATH": str(TREE), "HOME": "/nonexistent", **changes}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "netd", *words]


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="netd-") as path:
        yield Path(path)


@pytest.fixture
def server(runtime_dir: Path) -> Iterator[ServerThread]:
    with ServerThread(runtime_dir) as thread:
        yield thread


@pytest.fixture
def netd(runtime_dir: Path) -> Netd:
    """Run ``netd WORDS…`` with its API socket in ``runtime_dir``."""

    def run(*words: str, **changes: str) -> Said:
        env = environment(**{"NETD_RUNTIME_DIR": str(runtime_dir), **changes})
        done = subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=60, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def netns_pid() -> Iterator[int]:
    with process_in_netns() as pid:
        yield pid
