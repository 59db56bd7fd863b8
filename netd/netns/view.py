"""The network of the namespace this process is in, as one object of JSON, and what the daemon makes of it.

The agent itself never leaves the host's namespace, so it reads the host's: when it is asked for the first time, and
again when the kernel has told of a change (rtnetlink(7), multicast groups).
"""

from __future__ import annotations

import errno
import socket
from contextlib import closing
from typing import Any

from netd.netns.plan import HostInterface, HostRoute, HostView
from netd.netns.rtnetlink import Rtnetlink

FAMILIES = (socket.AF_INET, socket.AF_INET6)
# linux/rtnetlink.h, RTMGRP_*: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class Host:
    """What ``read`` reads, as it is now."""

    def __init__(self) -> None:
        self._news: socket.socket | None = None
        self._last: dict[str, Any] | None = None

    def view(self) -> dict[str, Any]:
        """Raises OSError."""
        if self._changed() or self._last is None:
            self._last = None
            self._last = read()
        return self._last

    def _changed(self) -> bool:
        """True if the kernel has told of a change since the last time, or may have."""
        if self._news is None:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            news = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            try:
                news.bind((0, GROUPS))
            except OSError:
                news.close()
                raise
            self._news = news
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


def read() -> dict[str, Any]:
    """All interfaces, addresses and routes; ``parse`` says what of. Raises OSError."""
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
