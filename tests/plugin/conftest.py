from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attach import fixtures
from tests.attach.fixtures import daemon, runtime_dir, server
from tests.plugin.peer import Bench, altered

__all__ = ["daemon", "runtime_dir", "server"]

# pytest-asyncio before 1.4 has no such hook, and runs on asyncio alone
pytest_asyncio_loop_factories = pytest.hookimpl(optionalhook=True)(fixtures.pytest_asyncio_loop_factories)


@pytest.fixture
def bench(runtime_dir: Path) -> Iterator[Bench]:
    bench = Bench(runtime_dir)
    yield bench
    bench.close()


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """The shim with half a second of patience instead of ten."""
    return altered(tmp_path, "main", "\nWAIT = 10.0 ", "\nWAIT = 0.5 ")
