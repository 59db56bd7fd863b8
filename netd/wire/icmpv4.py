"""ICMP for IPv4 (RFC 792): type code checksum rest."""

from __future__ import annotations

from struct import Struct
from typing import Final

from netd.wire import checksum

HEADER: Final = Struct("!BBHHH")
SIZE: Final = 8

ECHO_REPLY: Final = 0
DEST_UNREACHABLE: Final = 3
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
ADMIN_PROHIBITED: Final = 13  # RFC 1812 §5.2.7.1
REASSEMBLY_TIME: Final = 1  # code of TIME_EXCEEDED


def build(type_: int, code: int, word1: int, word2: int, payload: bytes | memoryview) -> bytes:
    """One ICMP message; the two 16-bit words after the checksum are id/sequence or unused/MTU."""
    number = (type_ << 8 | code) + word1 + word2 + checksum.total(payload)
    return HEADER.pack(type_, code, checksum.finish(number), word1, word2) + payload
