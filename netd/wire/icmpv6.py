"""ICMPv6 (RFC 4443): type code checksum rest. The checksum is of ``checksum.pseudo`` and the message."""

from __future__ import annotations

from struct import Struct

from netd.wire import checksum, ipv6

HEADER = Struct("!BBHI")
SIZE = 8

DEST_UNREACHABLE = 1
PACKET_TOO_BIG = 2
TIME_EXCEEDED = 3
PARAMETER_PROBLEM = 4
ECHO_REQUEST = 128
ECHO_REPLY = 129
ROUTER_SOLICITATION = 133
ROUTER_ADVERTISEMENT = 134
NEIGHBOR_SOLICITATION = 135
NEIGHBOR_ADVERTISEMENT = 136

NO_ROUTE = 0
ADMIN_PROHIBITED = 1
ADDRESS_UNREACHABLE = 3
PORT_UNREACHABLE = 4
REASSEMBLY_TIME = 1  # code of TIME_EXCEEDED


def build(src: bytes, dst: bytes, type_: int, code: int, rest: int, payload: bytes | memoryview) -> bytes:
    """One message from ``src`` to ``dst``; ``rest`` is the 32 bits behind the checksum."""
    number = checksum.pseudo(src, dst, ipv6.ICMPV6, SIZE + len(payload)) + (type_ << 8 | code) + rest
    number += checksum.total(payload)
    return HEADER.pack(type_, code, checksum.finish(number), rest) + payload
