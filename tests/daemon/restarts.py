"""Lives of one service, in this process: each ``Daemon`` starts with what the one before left in the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netd.daemon import Daemon
from netd.network import Network
from netd.sdnotify import Notifier
from netd.settings import Settings
from tests.lab import HOST, OUTSIDE, Netns, World, both_ways, connected

from .service_manager import ServiceManager

Start = Callable[[], Awaitable[Daemon]]


@pytest.fixture
def manager(world: World, tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path)
    yield manager
    manager.close()


@pytest_asyncio.fixture
async def start(manager: ServiceManager, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """``await start()``: the next life of the service; the one before is stopped first."""
    lives: list[Daemon] = []
    notifiers: list[Notifier] = []
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

    async def start() -> Daemon:
        if lives and not lives[-1]._stopping:
            await stop()
        monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
        notifiers.append(Notifier())
        lives.append(Daemon(settings, notifiers[-1]))
        await lives[-1].start(manager.hand_over())
        lives[-1].announce()
        return lives[-1]

    async def stop() -> None:
        await lives[-1].stop()
        notifiers[-1].close()

    start.stop = stop  # type: ignore[attr-defined]
    yield start
    if lives and not lives[-1]._stopping:
        await stop()
    assert not failed


async def works(world: World, guest: Netns) -> None:
    """A new connection of the guest's, there and back."""
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            await both_ways(client, server, 50_000)


async def answers(world: World, guest: Netns, network: Network, id_: int, port: int = 80) -> None:
    """A published TCP port does."""
    spec = network.forward(id_).spec
    with guest.listener(port=port) as listener, world.outside.socket() as client:
        with await connected(client, (HOST, spec.host_port), listener) as server:
            assert server.getpeername() == client.getsockname()
            await both_ways(client, server, 50_000)
