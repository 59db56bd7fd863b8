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
        far.no_duplicates()
        for namespace, lines in LINKS.items():
            getattr(there, namespace).ip(lines.format(far=there.path()))
        there.outside.sysctl("conf/all/forwarding", "1", "ipv6")
        far.sysctl("icmp_ratelimit", "0")
        for machine in (there.outside, far):
            machine.sysctl("icmp/ratelimit", "0", "ipv6")
        yield there
    finally:
        far.close()
