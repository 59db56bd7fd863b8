"""What of the host's network the guest is given: an interface of the host is the example, the command line overrides.

Pure: the host's network comes as a HostView, which the agent has read. Where the host has none of a family, the guest
gets link-local addresses (contracts/pasta.md §1.1), so that it starts whatever the host's state.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface

from netd.dialects.pasta.grammar import class_prefix
from netd.netns.plan import HostInterface, HostRoute, HostView

LOCAL_GUEST, LOCAL_GATEWAY, LOCAL_PREFIX = "169.254.2.1", "169.254.2.2", 16
LOCAL_GATEWAY6 = "fe80::1"
PREFIX6 = 64

# A host's addresses and routes are the same from call to call, and take long to read.
ip_interface = functools.lru_cache(1024)(ipaddress.ip_interface)
ip_network = functools.lru_cache(1024)(ipaddress.ip_network)


class NoSuchInterface(Exception):
    """The command line names an interface that the host has not, or that is of no use. Its text is the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line says of one family; "" and 0 are nothing."""

    interface: str = ""  # --interface
    outbound: str = ""  # --outbound-if4, --outbound-if6: an example, too
    address: str = ""
    prefix: int = 0
    gateway: str = ""
    copy_addresses: bool = True
    copy_routes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the guest has of one family."""

    interface: str  # the example's name; "" is none
    address: str  # the first and most important one; "" only in IPv6: none but the link-local
    prefix: int
    gateway: str
    addresses: tuple[str, ...]  # all of them, "192.0.2.2/24"
    routes: tuple[str, ...]  # "DST [via GATEWAY] [metric N]"


def family(view: HostView, version: int, wish: Wish) -> Family:
    """The guest's network of IP ``version`` 4 or 6. NoSuchInterface."""
    routes = [route for route in view.routes if ip_network(route.destination).version == version]
    example = _example(view, routes, wish)
    if example is None:
        return _overridden(_local(version), wish, version)
    addresses = tuple(a for a in example.addresses if ip_interface(a).version == version and not _link_local(a))
    if not addresses and not wish.address:
        return _overridden(replace(_local(version), interface=example.name), wish, version)
    own = [route for route in routes if route.interface == example.index]
    gateway = next((r.gateway for r in own if _is_default(r) and r.gateway), "")
    first = ip_interface(addresses[0]) if addresses else None
    found = Family(
        interface=example.name,
        address=str(first.ip) if first else "",
        prefix=first.network.prefixlen if first else 0,
        gateway=gateway or (LOCAL_GATEWAY if version == 4 else LOCAL_GATEWAY6),
        addresses=addresses,
        routes=_copied(own, addresses),
    )
    return _overridden(found, wish, version)


def interface_name(view: HostView, name: str) -> str:
    """The name that the guest's interface gets: the example's, which must not be one that is there already."""
    loopback = {i.name for i in view.interfaces if i.loopback}
    return name if name and name not in loopback else "tap0"


def _example(view: HostView, routes: Sequence[HostRoute], wish: Wish) -> HostInterface | None:
    """The named interface; else that of the first default route; else the only one that has routes."""
    by_name = {interface.name: interface for interface in view.interfaces}
    by_index = {interface.index: interface for interface in view.interfaces}
    for name in (wish.interface, wish.outbound):
        if name:
            if name not in by_name:
                raise NoSuchInterface(name)
            return by_name[name]
    usable = [r for r in routes if r.interface in by_index and not by_index[r.interface].loopback]
    for route in usable:
        if _is_default(route):
            return by_index[route.interface]
    only = {r.interface for r in usable if not _link_local(r.destination)}
    return by_index[only.pop()] if len(only) == 1 else None


def _is_default(route: HostRoute) -> bool:
    return route.destination in ("0.0.0.0/0", "::/0")


def _link_local(text: str) -> bool:
    return ip_interface(text).ip.is_link_local


def _copied(routes: Sequence[HostRoute], addresses: Sequence[str]) -> tuple[str, ...]:
    """The example's routes without those that the kernel makes of the addresses; what lies on the link comes first,
    so that the gateways are reachable."""
    by_kernel = {str(ip_interface(a).network) for a in addresses}
    kept = [
        r
        for r in routes
        if not (not r.gateway and r.destination in by_kernel)
        and not ip_network(r.destination).is_multicast
        and not (not r.gateway and ip_network(r.destination).version == 6 and _link_local(r.destination))
        and not (ip_network(r.destination).version == 6 and ip_network(r.destination).is_loopback)
    ]
    kept.sort(key=lambda r: (bool(r.gateway), _is_default(r)))
    return tuple(_text(r) for r in kept)


def _text(route: HostRoute) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"{route.destination}{via}{metric}"


def _local(version: int) -> Family:
    if version == 4:
        return Family(
            interface="",
            address=LOCAL_GUEST,
            prefix=LOCAL_PREFIX,
            gateway=LOCAL_GATEWAY,
            addresses=(f"{LOCAL_GUEST}/{LOCAL_PREFIX}",),
            routes=(f"0.0.0.0/0 via {LOCAL_GATEWAY}",),
        )
    return Family(
        interface="",
        address="",
        prefix=PREFIX6,
        gateway=LOCAL_GATEWAY6,
        addresses=(),
        routes=(f"::/0 via {LOCAL_GATEWAY6}",),
    )


def _overridden(found: Family, wish: Wish, version: int) -> Family:
    """``found`` with what the command line says instead."""
    if wish.address:
        prefix = wish.prefix or (class_prefix(wish.address) if version == 4 else PREFIX6)
        addresses = (f"{wish.address}/{prefix}",)
        found = replace(found, address=wish.address, prefix=prefix, addresses=addresses)
    elif wish.prefix and found.address:
        addresses = (f"{found.address}/{wish.prefix}",)
        found = replace(found, prefix=wish.prefix, addresses=addresses)
    elif not wish.copy_addresses and found.address:
        found = replace(found, addresses=(f"{found.address}/{found.prefix}",))
    if wish.gateway:
        found = replace(found, gateway=wish.gateway)
    default = "0.0.0.0/0" if version == 4 else "::/0"
    if wish.gateway or not wish.copy_routes:
        found = replace(found, routes=(f"{default} via {found.gateway}",))
    elif not any(route.startswith(("0.0.0.0/0", "::/0")) for route in found.routes):
        # The host may have no default route; the addresses that we lead elsewhere need one.
        found = replace(found, routes=(*found.routes, f"{default} via {found.gateway}"))
    return found


def network_of(found: Family) -> str:
    """The subnet of the guest's address; "fe80::/64" where it has none but its link-local."""
    if not found.address:
        return f"fe80::/{PREFIX6}"
    interface: IPv4Interface | IPv6Interface = ip_interface(f"{found.address}/{found.prefix}")
    return str(interface.network)
