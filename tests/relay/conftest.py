"""What the tests of this room stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import uvloop

from tests.lab import Netns, World
from tests.relay.beyond import LINKS, Beyond
from tests.relay.guest_side import Table
from tests.stage import attach, daemon, settings, world

__all__ = ["attach", "daemon", "settings", "world"]


@pytest.hookimpl(optionalhook=True)  # pytest-asyncio before 1.4 has it not, and runs on asyncio
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def beyond(world: World) -> Iterator[Beyond]:
    """The world with IPv6, and a network behind the outside machine whose link takes 1300 bytes."""
    far = Netns.bare()
    try:
        there = Beyond(world, far)
        for namespace, lines in LINKS.items():
            getattr(there, namespace).ip(lines.format(far=there.path()))
        there.outside.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
        there.outside.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
        yield there
    finally:
        far.close()
