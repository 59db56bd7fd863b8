"""IPv6 header and extension headers (RFC 8200): version_class_flow length next_header hop_limit src dst."""

from __future__ import annotations

from struct import Struct
from typing import Final

from netd.wire.checksum import Bytes

HEADER: Final = Struct("!IHBB16s16s")
SIZE: Final = 40
FRONT: Final = Struct("!IHBB36s")  # version_class_flow length next_header hop_limit; addresses and what follows: ports
FRONT_SIZE: Final = FRONT.size
LENGTH_OFFSET: Final = 4
NEXT_HEADER_OFFSET: Final = 6
MTU_MIN: Final = 1280  # RFC 8200 §5

HOP_BY_HOP: Final = 0
TCP: Final = 6
UDP: Final = 17
ROUTING: Final = 43
FRAGMENT: Final = 44
ICMPV6: Final = 58
NO_NEXT: Final = 59
DESTINATION: Final = 60

EXTENSIONS: Final = frozenset((HOP_BY_HOP, ROUTING, DESTINATION))
EXTENSIONS_MAX: Final = 8  # headers walked; RFC 8200 §4.1 knows six places
FRAGMENT_HEADER: Final = Struct("!BBHI")  # next_header reserved offset_more identification
FRAGMENT_SIZE: Final = 8
MORE: Final = 1
OFFSET: Final = 0xFFF8  # in bytes: the field counts eights and stands three bits to the left

UNSPECIFIED: Final = bytes(16)
LOOPBACK: Final = bytes(15) + b"\x01"
ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"
ALL_DHCP_AGENTS: Final = b"\xff\x02" + bytes(11) + b"\x01\x00\x02"  # RFC 8415 §7.1


def build(src: bytes, dst: bytes, next_header: int, length: int, hop_limit: int = 64, traffic_class: int = 0) -> bytes:
    """A header with flow label 0 for ``length`` bytes behind it."""
    return HEADER.pack(0x60000000 | traffic_class << 20, length, next_header, hop_limit, src, dst)


def walk(frame: Bytes, at: int, end: int, next_header: int) -> tuple[int, int, int]:
    """(protocol, offset, offset of the field that names it) behind the extension headers that begin at ``at``.

    A fragment header ends the walk, and so does a routing header with segments left (RFC 8200 §4.4, RFC 5095). The
    protocol is -1 where the headers cannot be walked (§4): truncated, or more than ``EXTENSIONS_MAX``.
    """
    named_at = at - SIZE + NEXT_HEADER_OFFSET
    for _ in range(EXTENSIONS_MAX):
        if next_header not in EXTENSIONS:
            break
        if at + 8 > end or (behind := at + (frame[at + 1] + 1) * 8) > end:
            return -1, at, named_at
        if next_header == ROUTING and frame[at + 3]:
            return ROUTING, at, named_at
        next_header, named_at, at = frame[at], at, behind
    return (-1 if next_header in EXTENSIONS else next_header), at, named_at


def solicited_node(address: bytes) -> bytes:
    """The group whose members answer for ``address`` (RFC 4291 §2.7.1)."""
    return b"\xff\x02" + bytes(9) + b"\x01\xff" + address[13:]


def group_mac(group: bytes) -> bytes:
    """The Ethernet address of a multicast group (RFC 2464 §7)."""
    return b"\x33\x33" + group[12:]


def interface_identifier(mac: bytes) -> bytes:
    """The modified EUI-64 of a MAC: the lower half of the address that SLAAC makes (RFC 4291, appendix A)."""
    return bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
