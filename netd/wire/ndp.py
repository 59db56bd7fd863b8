"""Neighbor discovery messages (RFC 4861 §4): what stands behind the ICMPv6 header's first 8 bytes, and options."""

from __future__ import annotations

from struct import Struct
from typing import Final

HOP_LIMIT: Final = 255  # RFC 4861 §7.1: what came through a router has less

SOURCE_LINK_LAYER: Final = 1
TARGET_LINK_LAYER: Final = 2
PREFIX_INFORMATION: Final = 3
MTU: Final = 5
RDNSS: Final = 25  # RFC 8106 §5.1

# Bits of a neighbor advertisement's first 32 (RFC 4861 §4.4)
ROUTER: Final = 0x80000000
SOLICITED: Final = 0x40000000
OVERRIDE: Final = 0x20000000
# One of a router advertisement's (§4.2), beside the hop limit and the router's lifetime
OTHER: Final = 0x00400000
# of a prefix (§4.6.2)
ON_LINK: Final = 0x80
AUTONOMOUS: Final = 0x40

_TIMERS: Final = Struct("!II")  # reachable time, retrans timer (ms)
_PREFIX: Final = Struct("!BBBBIII16s")
_MTU: Final = Struct("!BBHI")
_RDNSS: Final = Struct("!BBHI")


def options(data: bytes | memoryview) -> dict[int, bytes] | None:
    """The first option of each type, without type and length; None where one is malformed (RFC 4861 §6.1.1, §7.1.1)."""
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        if at + 2 > end:
            return None
        size = data[at + 1] * 8
        if not size or at + size > end:
            return None
        found.setdefault(data[at], bytes(data[at + 2 : at + size]))
        at += size
    return found


def link_layer(kind: int, mac: bytes) -> bytes:
    """A source or target link-layer address option (RFC 2464 §6)."""
    return bytes((kind, 1)) + mac


def router_advertisement(
    mac: bytes, prefix: bytes, prefix_length: int, valid: int, preferred: int, mtu: int, dns: bytes, dns_lifetime: int
) -> bytes:
    """What follows the first 8 bytes of a router advertisement; lifetimes in seconds, b"" is no prefix or server."""
    message = _TIMERS.pack(0, 0) + link_layer(SOURCE_LINK_LAYER, mac)
    message += _MTU.pack(MTU, 1, 0, mtu)
    if prefix:
        flags = ON_LINK | AUTONOMOUS
        message += _PREFIX.pack(PREFIX_INFORMATION, 4, prefix_length, flags, valid, preferred, 0, prefix)
    if dns:
        message += _RDNSS.pack(RDNSS, 3, 0, dns_lifetime) + dns
    return message
