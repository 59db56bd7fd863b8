"""Fixtures: a world, a daemon on uvloop in it, and guests with the machine's own kernel. Conftests import them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from netd.daemon import Daemon
from netd.network import Network
from netd.settings import Settings
from netd.specs import Lifeline, NetworkSpec
from tests.lab import Netns, World, missing, open_fds

uvloop.new_event_loop().close()  # libuv keeps a pipe for signals from its first loop on


@pytest.fixture
def world() -> Iterator[World]:
    """Skips where there can be none; fails when a test leaves a descriptor behind."""
    if why := missing():
        pytest.skip(why)
    before = open_fds()
    world = World()
    yield world
    world.close()
    assert open_fds() == before


@dataclass
class Guest:
    """An attached namespace."""

    netns: Netns
    network: Network
    daemon: Daemon

    def __getattr__(self, name: str) -> Any:
        return getattr(self.netns, name)

    def counters(self) -> dict[str, int]:
        return self.network.status().counters


Attach = Callable[..., Awaitable[Guest]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("")
    return Settings(runtime_dir=tmp_path, resolv_conf=resolv_conf)


@pytest_asyncio.fixture
async def daemon(world: World, settings: Settings) -> AsyncIterator[Daemon]:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    daemon = Daemon(settings)
    await daemon.start()
    yield daemon
    await daemon.stop()
    assert not failed  # an exception in a callback of the loop


@pytest.fixture
def attach(world: World, daemon: Daemon) -> Attach:
    """``await attach(**fields of NetworkSpec)``: a new guest with its network."""

    async def attach(**fields: Any) -> Guest:
        netns = world.guest()
        network = await daemon.attach(NetworkSpec(**fields), os.dup(netns.fd), Lifeline("explicit"))
        return Guest(netns, network, daemon)

    return attach
