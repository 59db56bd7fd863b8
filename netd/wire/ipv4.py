"""IPv4 header (RFC 791): version_ihl tos length id fragment ttl protocol checksum src dst."""

from __future__ import annotations

from struct import Struct
from typing import Final

from netd.wire import checksum

HEADER: Final = Struct("!BBHHHBBH4s4s")
SIZE: Final = 20
FRONT: Final = Struct("!BxH2xHxB2x12s")  # version_ihl length fragment protocol; addresses and what follows: ports
FRONT_SIZE: Final = FRONT.size

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17

DF: Final = 0x4000
MF: Final = 0x2000
OFFSET: Final = 0x1FFF

BROADCAST: Final = b"\xff\xff\xff\xff"  # RFC 919 §7


def build(src: bytes, dst: bytes, protocol: int, payload_length: int, ttl: int = 64, tos: int = 0) -> bytes:
    """A header without options, DF set and id 0 (an atomic datagram, RFC 6864 §4.1), checksum filled in."""
    length = SIZE + payload_length
    ttl_protocol = ttl << 8 | protocol
    number = 0x4500 + tos + length + DF + ttl_protocol + int.from_bytes(src, "big") + int.from_bytes(dst, "big")
    return HEADER.pack(0x45, tos, length, 0, DF, ttl, protocol, checksum.finish(number), src, dst)


def build_fragment(
    src: bytes, dst: bytes, protocol: int, payload_length: int, ttl: int, tos: int, ident: int, fragment: int
) -> bytes:
    """The same for a fragment: ``fragment`` is MF and the offset in eights (RFC 791 §3.2)."""
    length = SIZE + payload_length
    ttl_protocol = ttl << 8 | protocol
    number = 0x4500 + tos + length + ident + fragment + ttl_protocol
    number += int.from_bytes(src, "big") + int.from_bytes(dst, "big")
    return HEADER.pack(0x45, tos, length, ident, fragment, ttl, protocol, checksum.finish(number), src, dst)
