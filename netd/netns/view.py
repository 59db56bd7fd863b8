"""The host's network: read by the agent, who never leaves that namespace, as one object of JSON, and kept by the daemon
until the kernel tells of a change (rtnetlink(7), multicast groups).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

from netd.netns.plan import HostInterface, HostRoute, HostView
from netd.netns.rtnetlink import Rtnetlink

FAMILIES = (socket.AF_INET, socket.AF_INET6)
# linux/rtnetlink.h, RTMGRP_*: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class Host:
    """The host's network as it is now, asked for again only when the kernel has told of a change."""

    def __init__(self, ask: Callable[[], Awaitable[HostView]]) -> None:
        self._ask = ask
        self._news: socket.socket | None = None
        self._last: HostView | None = None
        self._asked = 0

    async def view(self) -> HostView:
        """Raises what ``ask`` does."""
        if self._changed():
            self._last = None
        if self._last is not None:
            return self._last
        self._asked += 1
        asked = self._asked
        seen = await self._ask()
        if asked == self._asked:  # else it may be older than a change that another has seen
            self._last = seen
        return seen

    def close(self) -> None:
        """Idempotent."""
        if self._news is not None:
            self._news.close()
            self._news = None

    def _changed(self) -> bool:
        """True if the kernel has told of a change since the last time, or may have."""
        try:
            if self._news is None:
                self._news = _open()
                return True
        except OSError:  # out of descriptors, or a service without netlink
            return True
        told = False
        while True:
            try:
                self._news.recv(1)  # a message's rest is thrown away
                told = True
            except BlockingIOError:
                return told
            except OSError as e:
                told = True
                if e.errno != errno.ENOBUFS:  # more than its queue holds
                    return told


def _open() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    news = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        news.bind((0, GROUPS))
    except OSError:
        news.close()
        raise
    return news


def read() -> dict[str, Any]:
    """All interfaces, addresses and routes of this process's namespace; ``parse`` says what of. Raises OSError."""
    addresses: dict[int, list[str]] = {}
    routes: list[tuple[Any, ...]] = []
    with closing(Rtnetlink()) as rtnl:
        links = rtnl.links()
        for family in FAMILIES:
            for a in rtnl.addresses(family):
                if a.usable and not a.deprecated:
                    addresses.setdefault(a.ifindex, []).append(f"{socket.inet_ntop(family, a.packed)}/{a.prefix}")
            for r in rtnl.routes(family):
                gateway = socket.inet_ntop(family, r.gateway) if r.gateway else ""
                routes.append((f"{socket.inet_ntop(family, r.packed)}/{r.prefix}", r.ifindex, gateway, r.metric))
        interfaces = [
            (k.ifindex, k.name, k.mtu, k.mac.hex(":"), k.up, k.loopback, addresses.get(k.ifindex, ())) for k in links
        ]
        return {"interfaces": interfaces, "routes": routes, "cut_short": rtnl.cut_short}


def parse(view: dict[str, Any]) -> HostView:
    """What ``read`` has read, elsewhere. Raises KeyError, TypeError, ValueError."""
    interfaces = [
        HostInterface(index, name, mtu, mac, up, loopback, tuple(addresses))
        for index, name, mtu, mac, up, loopback, addresses in view["interfaces"]
    ]
    return HostView(tuple(interfaces), tuple(HostRoute(*fields) for fields in view["routes"]))
