"""The network of the namespace this process is in, as one object of JSON, and what the daemon makes of it.

The agent itself never leaves the host's namespace, so it reads the host's.
"""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

from netd.netns.plan import HostInterface, HostRoute, HostView
from netd.netns.rtnetlink import Rtnetlink

FAMILIES = (socket.AF_INET, socket.AF_INET6)


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
