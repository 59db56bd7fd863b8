"""What a forwarder must see of a DNS message (RFC 1035 §4.1): the header, no more of the rest than its end."""

from __future__ import annotations

from struct import Struct
from typing import Final

HEADER: Final = Struct("!HHHHHH")  # id flags qdcount ancount nscount arcount
SIZE: Final = 12
PORT: Final = 53
PORT_TLS: Final = 853  # RFC 7858

QR: Final = 0x8000
RA: Final = 0x0080
OPCODE: Final = 0x7800
RD: Final = 0x0100
RCODE: Final = 0x000F
SERVFAIL: Final = 2
REFUSED: Final = 5


def question_end(message: bytes | memoryview) -> int:
    """Offset behind the first question, or 0 where none can be walked (plain labels only, RFC 1035 §3.1)."""
    i, end = SIZE, len(message)
    while i < end:
        length = message[i]
        if length == 0:
            return i + 5 if i + 5 <= end else 0
        if length > 63:
            return 0
        i += length + 1
    return 0


def servfail(query: bytes | memoryview) -> bytes:
    """The SERVFAIL answer to ``query`` (at least a header long), its first question repeated."""
    ident, flags, _, _, _, _ = HEADER.unpack_from(query)
    end = question_end(query)
    header = HEADER.pack(ident, QR | (flags & (OPCODE | RD)) | RA | SERVFAIL, 1 if end else 0, 0, 0, 0)
    return header + bytes(query[SIZE:end]) if end else header
