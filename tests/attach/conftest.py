from __future__ import annotations

import pytest

from tests.attach import fixtures
from tests.attach.fixtures import daemon, runtime_dir, server

__all__ = ["daemon", "runtime_dir", "server"]

# pytest-asyncio before 1.4 has no such hook, and runs on asyncio alone
pytest_asyncio_loop_factories = pytest.hookimpl(optionalhook=True)(fixtures.pytest_asyncio_loop_factories)
