"""Where a guest's new flow goes. Pure and total: every destination has exactly one answer."""

from __future__ import annotations

from typing import Final, NamedTuple

from netd.stack.addressing import LOOPBACK, Addressing, is_remote
from netd.wire import dns, icmpv4, ipv6

DIRECT: Final = 0  # to that address and port, unchanged
RESOLVER: Final = 1  # the host's name servers
DROP: Final = 2  # silently, counted
REFUSE: Final = 3  # answered with ICMP destination unreachable, ``reason``


class Target(NamedTuple):
    """``kind``; the host-side address for DIRECT; the reason (an ICMPv4 code, in either family) for REFUSE."""

    kind: int
    ip: bytes = b""
    reason: int = 0
    port: int = dns.PORT  # of RESOLVER


_RESOLVER: Final = Target(RESOLVER)
_DROP: Final = Target(DROP)
_SECURE_RESOLVER: Final = Target(RESOLVER, port=dns.PORT_TLS)
_HOST_LOOPBACK: Final = Target(DIRECT, LOOPBACK)
_HOST_LOOPBACK6: Final = Target(DIRECT, ipv6.LOOPBACK)
_NET_UNREACHABLE: Final = Target(REFUSE, reason=icmpv4.NET_UNREACHABLE)
_HOST_UNREACHABLE: Final = Target(REFUSE, reason=icmpv4.HOST_UNREACHABLE)


def decide(addressing: Addressing, dst: bytes, port: int) -> Target:
    """The target of a flow to ``dst``:``port`` (TCP or UDP).

    slirp4netns' rules on a private link, pasta's on a host-like one (contracts/slirp4netns.md §1.4, pasta.md §1.1).
    """
    if dst in (addressing.dns, addressing.dns6) or dst in addressing.more_dns:
        if port == dns.PORT:
            return _RESOLVER
        return _SECURE_RESOLVER if port == dns.PORT_TLS and addressing.host_like else _NET_UNREACHABLE
    if dst == addressing.loopback:
        return _HOST_LOOPBACK
    if dst == addressing.loopback6:
        return _HOST_LOOPBACK6
    if dst in addressing.mapped:
        return Target(DIRECT, addressing.guest if len(dst) == 4 else addressing.guest6)
    if not is_remote(dst) or dst == addressing.broadcast:
        return _DROP
    if not addressing.host_like and dst in (addressing.gateway, addressing.gateway6):
        return _NET_UNREACHABLE
    if addressing.private(dst):
        return _HOST_UNREACHABLE  # nobody else is on this link
    return Target(DIRECT, dst)
