"""Which names the shim goes by, and what of a dialect lives as long as the daemon."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from netd.attach.conversation import Conversation
from netd.attach.message import Exit, Hello
from netd.dialects.pasta import command as pasta
from netd.dialects.pasta.reports import Reports
from netd.dialects.pesto import command as pesto
from netd.dialects.slirp4netns import command as slirp4netns
from netd.dialects.slirp4netns.api_socket import ApiSockets

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

Dialect = Callable[[Conversation, Hello, "Daemon"], Awaitable[None]]


class Resident(Protocol):
    """Serves networks beyond the conversation that made them."""

    async def start(self) -> None:
        """Begin, with the networks that are there."""

    async def stop(self) -> None:
        """Let go of everything; networks stay."""


def dialect(argv0: str) -> Dialect:
    """Who answers a shim that was called as ``argv0``: never nobody, an unknown name gets one line."""
    known = {"slirp4netns": slirp4netns.serve, "pasta": pasta.serve, "pesto": pesto.serve}
    return known.get(os.path.basename(argv0), _unknown)


def farewell(network: Network) -> Exit:
    """What a shim that stays is told at the end of its network, whose descriptors are still open."""
    return pasta.farewell(network) if network.spec.origin == "pasta" else slirp4netns.farewell(network)


def residents(daemon: Daemon) -> list[Resident]:
    """To be started and stopped with the attach server."""
    return [ApiSockets(daemon), Reports(daemon)]


async def _unknown(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    name = os.path.basename(hello.argv0)
    shim.tell(Exit(status=1, stderr=f"{name}: netd: call this program by the name slirp4netns, pasta or pesto\n"))
