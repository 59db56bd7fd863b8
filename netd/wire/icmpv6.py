"""ICMPv6 (RFC 4443): type code checksum rest. The checksum is of ``checksum.pseudo`` and the message."""

from __future__ import annotations

from struct import Struct
from typing import Final

from netd.wire import checksum, ipv6

HEADER: Final = Struct("!BBHI")
SIZE: Final = 8

DEST_UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOR_SOLICITATION: Final = 135
NEIGHBOR_ADVERTISEMENT: Final = 136

NO_ROUTE: Final = 0
ADMIN_PROHIBITED: Final = 1
ADDRESS_UNREACHABLE: Final = 3
PORT_UNREACHABLE: Final = 4
REASSEMBLY_TIME: Final = 1  # code of TIME_EXCEEDED


def build(src: bytes, dst: bytes, type_: int, code: int, rest: int, payload: bytes | memoryview) -> bytes:
    """One message from ``src`` to ``dst``; ``rest`` is the 32 bits behind the checksum."""
    number = checksum.pseudo(src, dst, ipv6.ICMPV6, SIZE + len(payload)) + (type_ << 8 | code) + rest
    number += checksum.total(payload)
    return HEADER.pack(type_, code, checksum.finish(number), rest) + payload
