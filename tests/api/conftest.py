from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from netd.api.app import ApiServer
from tests.standin import Daemon, process_in_netns


@pytest.hookimpl(optionalhook=True)  # pytest-asyncio before 1.4 has it not, and runs on asyncio alone
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="netd-") as path:  # short: a socket's path has 107 bytes
        os.chmod(path, 0o711)  # the second uid of one test must get as far as the socket
        yield Path(path)


@pytest_asyncio.fixture
async def daemon(runtime_dir: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(runtime_dir)
    yield daemon
    await daemon.close()


@pytest_asyncio.fixture
async def api(daemon: Daemon) -> AsyncIterator[ApiServer]:
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    yield server
    await server.stop()


@pytest.fixture
def netns_pid() -> Iterator[int]:
    """A process in a network namespace of its own."""
    with process_in_netns() as pid:
        yield pid
