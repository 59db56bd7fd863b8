"""Where a guest's new flow goes. Pure and total: every destination has exactly one answer."""

from __future__ import annotations

from dataclasses import dataclass

from netd.stack.addressing import LOOPBACK, Addressing, is_group, is_loopback
from netd.wire import dns, icmpv4

DIRECT = 0  # to that address and port, unchanged
RESOLVER = 1  # the host's name servers
DROP = 2  # silently, counted
REFUSE = 3  # answered with ICMP destination unreachable, ``code``


@dataclass(frozen=True, slots=True)
class Target:
    """``kind``; the host-side address for DIRECT; the ICMP code for REFUSE."""

    kind: int
    ip: bytes = b""
    code: int = 0


_RESOLVER = Target(RESOLVER)
_DROP = Target(DROP)
_HOST_LOOPBACK = Target(DIRECT, LOOPBACK)
_NET_UNREACHABLE = Target(REFUSE, code=icmpv4.NET_UNREACHABLE)
_HOST_UNREACHABLE = Target(REFUSE, code=icmpv4.HOST_UNREACHABLE)


def decide(addressing: Addressing, allow_host_loopback: bool, dst: bytes, port: int) -> Target:
    """The target of a flow to ``dst``:``port`` (TCP or UDP; slirp4netns' rules, contracts §1.4)."""
    if dst == addressing.gateway:
        return _HOST_LOOPBACK if allow_host_loopback else _NET_UNREACHABLE
    if dst == addressing.dns:
        return _RESOLVER if port == dns.PORT else _NET_UNREACHABLE
    if is_group(dst) or is_loopback(dst) or dst[0] == 0 or dst == addressing.broadcast:
        return _DROP
    if addressing.on_link(dst):
        return _HOST_UNREACHABLE  # nobody else is on this link
    return Target(DIRECT, dst)
