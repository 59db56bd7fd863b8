"""Fixtures of tests/attach, tests/plugin and tests/dialects; their conftest.py imports them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from netd.attach.server import AttachServer
from tests.attach.harness import Daemon, open_fds

uvloop.new_event_loop().close()  # libuv keeps a pipe for signals from its first loop on


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="netd-") as path:  # short: a socket's path has 107 bytes
        os.chmod(path, 0o711)  # the second uid of one test must get as far as the socket
        yield Path(path)


@pytest_asyncio.fixture
async def daemon(runtime_dir: Path) -> AsyncIterator[Daemon]:
    before = open_fds()
    daemon = Daemon(runtime_dir)
    yield daemon
    daemon.close()
    assert open_fds() == before


@pytest_asyncio.fixture
async def server(daemon: Daemon) -> AsyncIterator[AttachServer]:
    server = AttachServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    yield server
    await server.stop()
    assert not (daemon.settings.runtime_dir / "attach.sock").exists()
