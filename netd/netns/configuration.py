"""A TAP's link, addresses and routes, as a TapPlan has them, over rtnetlink(7). Used by the agent's children alone.

Every step replaces what is there, so a second run, on a namespace that has all this and interfaces of others, ends in
the same state. Of a device that was there before (a persistent TAP), addresses and routes of an earlier plan go.

IPv6 is usable as soon as the device is up. Its addresses skip duplicate address detection, and the link-local one is
there before the device comes up: the kernel then makes none of its own, which would have to pass it first
(addrconf_add_linklocal() in net/ipv6/addrconf.c). No sysctl is needed for that; /proc/sys may be read-only.

Routes on the link come before those by a gateway, which must be reached by one of them. A gateway that is on no subnet
of the guest's (a host with a /32, pasta's link-local mode) is taken to be on the link all the same (RTNH_F_ONLINK).

Sources: rtnetlink(7), Documentation/networking/ip-sysctl.rst, fib_table_insert() in net/ipv4/fib_trie.c,
fib6_add_rt2node() in net/ipv6/ip6_fib.c, ip-route(8).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from netd.errors import TapUnavailable
from netd.netns import messages
from netd.netns.plan import TapPlan
from netd.netns.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTPROT_KERNEL,
    Refused,
    Rtnetlink,
)

IFA_F_NODAD = 0x02  # linux/if_addr.h
IPV6_MIN_MTU = 1280  # RFC 8200 §5; on a device with less the kernel has no IPv6
LINK_LOCAL = b"\xfe\x80" + bytes(6)  # RFC 4291 §2.5.6
METRIC: dict[int, int] = {
    socket.AF_INET: 0,
    socket.AF_INET6: 1024,
}  # of a route without: IP6_RT_PRIO_USER, linux/ipv6_route.h
METRIC_MAX = (1 << 32) - 1
# What the kernel says to an IPv6 address where IPv6 is disabled, and where there is none.
NO_IPV6 = {
    errno.EACCES: "is disabled",
    errno.EOPNOTSUPP: "is not in the kernel",
    errno.EAFNOSUPPORT: "is not in the kernel",
}
# What it says to a gateway that it finds on no link.
OFF_LINK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)
VERSIONS: dict[int, str] = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


class Configured(NamedTuple):
    """What a plan came to."""

    address6: str = ""  # the first IPv6 address that is not link-local
    no_ipv6: str = ""  # why there is no IPv6 although the plan has some
    left_out: tuple[str, ...] = ()  # routes that the kernel refused, and why


class Address(NamedTuple):
    """An address and its prefix length."""

    packed: bytes
    prefix: int

    @property
    def family(self) -> int:
        return socket.AF_INET if len(self.packed) == 4 else socket.AF_INET6

    @property
    def host_bits(self) -> int:
        return (1 << (8 * len(self.packed) - self.prefix)) - 1

    @property
    def network(self) -> Address:
        number = int.from_bytes(self.packed, "big") & ~self.host_bits
        return Address(number.to_bytes(len(self.packed), "big"), self.prefix)

    def is_next_to(self, packed: bytes) -> bool:
        """Whether ``packed`` lies within the network of this address."""
        return Address(packed, self.prefix).network == self.network

    def __str__(self) -> str:
        return f"{socket.inet_ntop(self.family, self.packed)}/{self.prefix}"


class Route(NamedTuple):
    """A route as it is asked for."""

    to: Address
    gateway: str  # "" is on the link itself
    metric: int | None

    @property
    def is_default(self) -> bool:
        return self.to.prefix == 0

    @property
    def key(self) -> tuple[Address, int]:
        """The kernel has one route of each."""
        return self.to, self.metric or METRIC[self.to.family]

    def __str__(self) -> str:
        to = "default route" if self.is_default else f"route {self.to}"
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{to}{via}" + ("" if self.metric is None else f" metric {self.metric}")


# --- what the plan says ----------------------------------------------------------------------------------------


def addresses_of(plan: TapPlan, mac: str) -> list[Address]:
    """All addresses of ``plan``. Raises TapUnavailable."""
    if plan.addresses:
        return list(dict.fromkeys(_address(_family(literal), literal, mac) for literal in plan.addresses))
    found = [_address(socket.AF_INET, plan.address, mac)] if plan.address else []
    return found + ([_address(socket.AF_INET6, plan.address6, mac)] if plan.address6 else [])


def routes_of(plan: TapPlan) -> list[Route]:
    """All routes of ``plan``. Raises TapUnavailable."""
    if plan.routes:
        return [route(text) for text in plan.routes]
    found = [_default(socket.AF_INET, plan.gateway)] if plan.gateway else []
    return found + ([_default(socket.AF_INET6, plan.gateway6)] if plan.gateway6 else [])


def route(text: str) -> Route:
    """``DST [via GATEWAY] [metric N]`` (``TapPlan.routes``). Raises TapUnavailable."""
    words = text.split()
    options = dict(zip(words[1::2], words[2::2], strict=False))
    if len(words) % 2 != 1 or len(options) != len(words) // 2 or not options.keys() <= {"via", "metric"}:
        raise TapUnavailable(f"{text!r} is not a route: DST [via GATEWAY] [metric N]")
    destination, gateway = words[0], options.get("via", "")
    if destination == "default":
        to = _anywhere(_family(gateway))
    elif destination == "default6":
        to = _anywhere(socket.AF_INET6)
    else:
        family = _family(destination)
        length = 32 if family == socket.AF_INET else 128
        to = _address(family, destination if "/" in destination else f"{destination}/{length}")
    if gateway:
        _packed(to.family, gateway)
    metric = options.get("metric")
    if metric is not None and not (metric.isascii() and metric.isdigit() and int(metric[:20]) <= METRIC_MAX):
        raise TapUnavailable(f"{text!r}: {metric!r} is not a metric")
    return Route(to, gateway, None if metric is None else int(metric))


def _default(family: int, gateway: str) -> Route:
    _packed(family, gateway)
    return Route(_anywhere(family), gateway, None)


def _anywhere(family: int) -> Address:
    return Address(bytes(4 if family == socket.AF_INET else 16), 0)


def _family(literal: str) -> int:
    return socket.AF_INET6 if ":" in literal else socket.AF_INET


def _address(family: int, literal: str, mac: str = "") -> Address:
    """``10.0.2.100/24`` or ``fd00::5/64``; with a ``mac``, an IPv6 network becomes the address SLAAC makes of both."""
    address, _, length = literal.partition("/")
    packed = _packed(family, address)
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= 8 * len(packed)):
        raise TapUnavailable(f"{literal!r} is not an {VERSIONS[family]} address with its prefix length")
    found = Address(packed, int(length))
    if family == socket.AF_INET6 and mac and found.prefix < 128 and found == found.network:
        if found.prefix != 64:  # RFC 4291 §2.5.1
            raise TapUnavailable(f"{literal!r} is a network whose prefix length is not 64")
        return Address(packed[:8] + eui64(mac), 64)
    return found


def _packed(family: int, address: str) -> bytes:
    try:
        return socket.inet_pton(family, address)
    except (OSError, ValueError) as e:
        raise TapUnavailable(f"{address!r} is not an {VERSIONS[family]} address") from e


def eui64(mac: str) -> bytes:
    """The interface identifier that SLAAC makes of a MAC: ff:fe in its middle, the u bit turned (RFC 4291, app. A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return bytes((octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]))


def _mac(text: str) -> str:
    octets = text.split(":")
    if len(octets) != 6 or any(len(octet) != 2 or set(octet) - set("0123456789abcdefABCDEF") for octet in octets):
        raise TapUnavailable(f"{text!r} is not a MAC address")
    return text.lower()


# --- what is done ----------------------------------------------------------------------------------------------


def configure(plan: TapPlan, ifname: str, persistent: bool, mac: str) -> Configured:
    """lo and the TAP up, with the plan's MTU, MAC, queue, addresses and routes. Raises TapUnavailable.

    ``mac`` is the device's now; ``persistent``: it may have been there before.
    """
    mac = _mac(plan.mac) if plan.mac else mac
    addresses, routes = addresses_of(plan, mac), routes_of(plan)
    addresses4 = [a for a in addresses if a.family == socket.AF_INET]
    addresses6 = [a for a in addresses if a.family == socket.AF_INET6]
    if not plan.routes and not addresses6:  # what is left of gateway6 does not count
        routes = [r for r in routes if r.to.family == socket.AF_INET]
    wants_ipv6 = bool(addresses6) or any(r.to.family == socket.AF_INET6 for r in routes)
    if wants_ipv6:
        addresses6 = list(dict.fromkeys((Address(LINK_LOCAL + eui64(mac), 64), *addresses6)))
    with closing(Rtnetlink()) as rtnl:
        tap = Tap(rtnl, ifname)
        tap.lo_up()
        settings: dict[str, tuple[str, Any]] = {f"MTU {plan.mtu}": ("IFLA_MTU", plan.mtu)}
        settings[f"txqueuelen {plan.txqueuelen}"] = "IFLA_TXQLEN", plan.txqueuelen
        if plan.mac:
            settings[f"MAC {plan.mac}"] = "IFLA_ADDRESS", mac
        tap.set_all(settings)
        no_ipv6 = tap.enable_ipv6(plan.mtu) if wants_ipv6 else ""
        if persistent and plan.routes:
            tap.forget_routes()
        if persistent and addresses:
            tap.forget_addresses((*addresses4, *addresses6), everything=bool(plan.addresses))
        for address in addresses4:
            tap.assign(address)
        no_ipv6 = no_ipv6 or tap.assign6(addresses6)
        if no_ipv6:
            addresses6 = []
            routes = [r for r in routes if r.to.family == socket.AF_INET]
        tap.up()
        left_out = tap.install(routes, (*addresses4, *addresses6), onlink=bool(plan.routes))
    global6 = [str(a) for a in addresses6 if a.packed[:8] != LINK_LOCAL]
    return Configured(global6[0] if global6 else "", no_ipv6, tuple(left_out))


def prepare(plan: TapPlan, ifname: str) -> None:
    """lo up and the TAP's MAC set, nothing else (``TapPlan.lo``). Raises TapUnavailable."""
    with closing(Rtnetlink()) as rtnl:
        tap = Tap(rtnl, ifname)
        tap.lo_up()
        if plan.mac:
            tap.set(f"MAC {plan.mac}", ("IFLA_ADDRESS", _mac(plan.mac)))


class Rehearsal(Rtnetlink):
    """Spells what it is to change, and tells nobody."""

    def change(self, what: str, kind: int, message: Any, flags: int = 0) -> None:
        self.spell(kind, message, flags)


def rehearse() -> None:
    """Goes through ``configure`` without any effect. Raises OSError.

    The memory of a forked process is its parent's until it is touched; then it is copied, page by page.
    """
    plan = TapPlan("lo", 1500, addresses=("192.0.2.1/24", "2001:db8::1/64"), routes=("default via 192.0.2.2",))
    mac = "02:00:00:00:00:00"
    with closing(Rehearsal()) as rtnl:
        tap = Tap(rtnl, "lo")
        tap.set_all({"MTU": ("IFLA_MTU", plan.mtu), "MAC": ("IFLA_ADDRESS", mac)})
        addresses = addresses_of(plan, mac)
        for address in addresses:
            tap.assign(address)
        tap.up()
        tap.install(routes_of(plan), addresses, onlink=True)
        rtnl.links()


class Tap:
    """One device, by its index. Every method raises Refused, unless it says otherwise."""

    def __init__(self, rtnl: Rtnetlink, ifname: str) -> None:
        self._rtnl = rtnl
        self._ifname = ifname
        self._ifindex = socket.if_nametoindex(ifname)

    def lo_up(self) -> None:
        self._rtnl.change("lo", RTM_NEWLINK, messages.link(socket.if_nametoindex("lo"), up=True))

    def set(self, what: str, *attributes: tuple[str, Any]) -> None:
        self._change(what, RTM_NEWLINK, messages.link(self._ifindex, *attributes))

    def set_all(self, settings: dict[str, tuple[str, Any]]) -> None:
        """``set`` for each in one message; where that is refused one by one, to tell which it is."""
        try:
            self.set(", ".join(settings), *settings.values())
        except Refused:
            for what, attribute in settings.items():
                self.set(what, attribute)

    def up(self) -> None:
        self._change("up", RTM_NEWLINK, messages.link(self._ifindex, up=True))

    def _change(self, what: str, kind: int, message: Any, flags: int = 0) -> None:
        self._rtnl.change(f"{self._ifname}: {what}", kind, message, flags)

    # -- addresses ----------------------------------------------------------------------------------------------

    def assign(self, address: Address) -> None:
        broadcast, flags = [], 0
        if address.family == socket.AF_INET6:
            flags = IFA_F_NODAD
        elif address.prefix < 31:  # RFC 3021: a /31 has no broadcast address
            last = int.from_bytes(address.packed, "big") | address.host_bits
            broadcast = [("IFA_BROADCAST", socket.inet_ntop(socket.AF_INET, last.to_bytes(4, "big")))]
        message = messages.address(self._ifindex, address.packed, address.prefix, *broadcast, flags=flags)
        self._change(f"address {address}", RTM_NEWADDR, message, NLM_F_CREATE | NLM_F_REPLACE)

    def enable_ipv6(self, mtu: int) -> str:
        """Lets the device have IPv6 addresses: why it cannot, or "". Raises nothing."""
        if mtu < IPV6_MIN_MTU:
            return f"MTU {mtu} is less than IPv6's minimum of {IPV6_MIN_MTU}"
        for name in ("lo", self._ifname):  # without lo nothing in there can talk to the TAP's own address
            if _sysctl(name, "disable_ipv6") == "1":
                _sysctl(name, "disable_ipv6", "0")
        # What the router advertises is what the plan says: SLAAC could add no more than a second, unplanned address.
        _sysctl(self._ifname, "autoconf", "0")
        return ""

    def assign6(self, addresses: Sequence[Address]) -> str:
        """Assigns IPv6 addresses: why there can be none, or ""."""
        try:
            for address in reversed(addresses):  # of one scope the kernel puts the latest first (ipv6_link_dev_addr())
                self.assign(address)
        except Refused as e:
            if e.number not in NO_IPV6:
                raise
            return f"IPv6 {NO_IPV6[e.number]}"
        return ""

    def forget_addresses(self, wanted: Sequence[Address], everything: bool) -> None:
        """Removes addresses of an earlier plan: ``everything`` but the wanted, or what is in the wanted's networks.

        The latter would be preferred as source. One that is still, or will never be done with, duplicate address
        detection is not to be had by replacing it. Without IPv6 in the plan the kernel's link-local address stays.
        """
        families = dict.fromkeys((socket.AF_INET, socket.AF_INET6) if everything else (a.family for a in wanted))
        for family in families:
            own = [a for a in wanted if a.family == family]
            for there in self._rtnl.addresses(family):
                known = Address(there.packed, there.prefix)
                if there.ifindex != self._ifindex or (known in own and there.usable):
                    continue
                kept = everything and not own and there.packed[:8] == LINK_LOCAL
                if not kept and (everything or any(a.is_next_to(there.packed) for a in own)):
                    message = messages.address(self._ifindex, there.packed, there.prefix)
                    try:
                        self._change(f"old address {known}", RTM_DELADDR, message)
                    except Refused as e:
                        if e.number != errno.EADDRNOTAVAIL:  # it has gone with the one that it was secondary to
                            raise

    # -- routes -------------------------------------------------------------------------------------------------

    def forget_routes(self) -> None:
        """Removes all routes by this device but the kernel's own. Raises nothing."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for there in self._rtnl.routes(family):
                if there.ifindex == self._ifindex and there.protocol != RTPROT_KERNEL:
                    old = messages.any_route(self._ifindex, there.packed, there.prefix, there.metric)
                    with suppress(Refused):  # it has gone meanwhile
                        self._change("old route", RTM_DELROUTE, old)

    def install(self, routes: Iterable[Route], addresses: Iterable[Address], onlink: bool) -> list[str]:
        """The routes' installation: those that were left out, and why. Raises Refused for a family's only default."""
        connected = {address.network for address in addresses}
        defaults: dict[int, list[Refused]] = {}
        standing: set[tuple[Address, int]] = set()
        left_out = []
        for one in sorted(routes, key=lambda one: bool(one.gateway)):
            if not one.gateway and one.to in connected:
                continue  # it came with the address
            try:
                if one.key in standing:
                    raise Refused(f"{self._ifname}: {one}", errno.EEXIST)
                self._install(one, onlink)
                standing.add(one.key)
            except Refused as e:
                left_out.append(str(e))
                if one.is_default:
                    defaults.setdefault(one.to.family, []).append(e)
        for family, refused in defaults.items():
            if not any(to.prefix == 0 and to.family == family for to, _ in standing):
                raise refused[0]
        return left_out

    def _install(self, one: Route, onlink: bool) -> None:
        # Ours is the default route of that metric, whoever's was there. Another's network stays another's.
        flags = NLM_F_CREATE | (NLM_F_REPLACE if one.is_default else NLM_F_EXCL)
        try:
            self._add(one, flags, False)
        except Refused as e:
            if not (onlink and one.gateway and e.number in OFF_LINK):
                raise
            try:
                self._add(one, flags, True)
            except Refused:
                raise e from None

    def _add(self, one: Route, flags: int, onlink: bool) -> None:
        message = messages.route(self._ifindex, one.to.packed, one.to.prefix, one.gateway, one.metric, onlink)
        self._change(str(one), RTM_NEWROUTE, message, flags)


def _sysctl(ifname: str, key: str, value: str = "") -> str:
    """net.ipv6.conf.IFNAME.KEY of this namespace, or "" if it cannot be read; with ``value`` it is set, if it can be.

    A file object would make twice the system calls.
    """
    try:
        fd = os.open(f"/proc/sys/net/ipv6/conf/{ifname}/{key}", (os.O_WRONLY if value else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError:  # no IPv6 in this kernel, a read-only /proc/sys, none
        return ""
    try:
        if not value:
            return os.read(fd, 32).decode().strip()
        os.write(fd, value.encode())
        return value
    except OSError:
        return ""
    finally:
        os.close(fd)
