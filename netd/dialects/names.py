"""Names of networks: what a caller's files tell of a container, unless another network goes by that name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

NAME_DEADLINE = 0.2  # seconds for a predecessor to give the network's name back


async def free_name(daemon: Daemon, name: str) -> str:
    """``name`` if no network has it, or one that has it goes in a moment: its end may just not be seen yet. Else ""."""
    ended = asyncio.Event()

    def observe(event: str, network: Network) -> None:
        if event == "detached" and network.name == name:
            ended.set()

    if not name or all(network.name != name for network in daemon.networks.values()):
        return name
    daemon.observers.append(observe)
    try:
        async with asyncio.timeout(NAME_DEADLINE):
            await ended.wait()
        return name
    except TimeoutError:
        return ""
    finally:
        daemon.observers.remove(observe)
