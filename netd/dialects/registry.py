"""Which names the shim goes by, and what of a dialect lives as long as the daemon."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from netd.attach.conversation import Conversation
from netd.attach.message import Exit, Hello
from netd.dialects.slirp4netns import command
from netd.dialects.slirp4netns.api_socket import ApiSockets

if TYPE_CHECKING:
    from netd.daemon import Daemon

Dialect = Callable[[Conversation, Hello, "Daemon"], Awaitable[None]]


class Resident(Protocol):
    """Serves networks beyond the conversation that made them."""

    async def start(self) -> None:
        """Begin, with the networks that are there."""

    async def stop(self) -> None:
        """Let go of everything; networks stay."""


def dialect(argv0: str) -> Dialect:
    """Who answers a shim that was called as ``argv0``: never nobody, an unknown name gets one line."""
    return {"slirp4netns": command.serve, "pasta": _not_yet, "pesto": _not_yet}.get(os.path.basename(argv0), _unknown)


def residents(daemon: Daemon) -> list[Resident]:
    """To be started and stopped with the attach server."""
    return [ApiSockets(daemon)]


async def _not_yet(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    name = os.path.basename(hello.argv0)
    shim.tell(Exit(status=1, stderr=f"{name}: netd does not speak {name}'s command line, only slirp4netns'\n"))


async def _unknown(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    name = os.path.basename(hello.argv0)
    shim.tell(Exit(status=1, stderr=f"{name}: netd: call this program by the name slirp4netns\n"))
