"""DHCP for IPv4 (RFC 2131 §2, RFC 2132): a BOOTP header, a cookie, options.

Options come as one mapping of code to value: pieces of a long option are put together in the order of RFC 3396 §5
(options, file, sname), so option overload (52) is not seen by whoever reads the mapping. ``parse`` raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

# op htype hlen hops xid secs flags ciaddr yiaddr siaddr giaddr chaddr sname file
HEADER: Final = Struct("!BBBBIHH4s4s4s4s16s64s128s")
COOKIE: Final = b"\x63\x82\x53\x63"
SIZE: Final = 240  # header and cookie
MIN_SIZE: Final = 300  # what a BOOTP client may insist on (RFC 1542 §2.1)
MAX_SIZE: Final = 4096  # of a message that is read at all

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
ETHERNET: Final = 1
BROADCAST: Final = 0x8000  # flags (RFC 2131 §2, figure 2)

DISCOVER: Final = 1  # option 53 (RFC 2132 §9.6)
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

PAD: Final = 0
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DOMAIN_NAME_SERVER: Final = 6
HOST_NAME: Final = 12
CLIENT_FQDN: Final = 81  # RFC 4702
DOMAIN_NAME: Final = 15
INTERFACE_MTU: Final = 26
REQUESTED_ADDRESS: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER_IDENTIFIER: Final = 54
PARAMETER_REQUEST_LIST: Final = 55
MESSAGE: Final = 56
MAX_MESSAGE_SIZE: Final = 57
RENEWAL_TIME: Final = 58
REBINDING_TIME: Final = 59
CLIENT_IDENTIFIER: Final = 61
RAPID_COMMIT: Final = 80  # RFC 4039
DOMAIN_SEARCH: Final = 119  # RFC 3397
CLASSLESS_ROUTE: Final = 121  # RFC 3442
END: Final = 255

ANY: Final[bytes] = bytes(4)


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``sname`` and ``file`` are left out, but for the options that overload them."""

    op: int = BOOTREQUEST
    htype: int = ETHERNET
    hops: int = 0
    xid: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: bytes = ANY
    yiaddr: bytes = ANY
    siaddr: bytes = ANY
    giaddr: bytes = ANY
    chaddr: bytes = b""  # hlen octets
    options: Mapping[int, bytes] = field(default_factory=dict)


def parse(data: bytes | memoryview) -> Message | None:
    """The message in ``data``, or None where there is none. A malformed option ends the walk of its field."""
    if not SIZE <= len(data) <= MAX_SIZE:
        return None
    data = bytes(data)
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file = HEADER.unpack_from(
        data
    )
    if hlen > len(chaddr) or data[HEADER.size : SIZE] != COOKIE:
        return None
    options: dict[int, bytes] = {}
    _walk(data[SIZE:], options)
    overload = options.pop(OVERLOAD, b"")
    if overload in (b"\x01", b"\x03"):  # RFC 2132 §9.3
        _walk(file, options)
    if overload in (b"\x02", b"\x03"):
        _walk(sname, options)
    options.pop(OVERLOAD, None)
    return Message(op, htype, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr[:hlen], options)


def _walk(data: bytes, options: dict[int, bytes]) -> None:
    i, end = 0, len(data)
    while i < end and data[i] != END:
        code = data[i]
        if code == PAD:
            i += 1
            continue
        behind = i + 2 + data[i + 1] if i + 1 < end else end + 1
        if behind > end:
            break
        options[code] = options.get(code, b"") + data[i + 2 : behind]  # RFC 3396 §5
        i = behind


def option(code: int, value: bytes) -> bytes:
    """One option, in as many pieces of 255 octets as it takes (RFC 3396 §6)."""
    pieces = [value[i : i + 255] for i in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def build(message: Message) -> bytes:
    """``message`` with its options in their order, padded to ``MIN_SIZE``."""
    m = message
    header = HEADER.pack(
        m.op,
        m.htype,
        len(m.chaddr),
        m.hops,
        m.xid,
        m.secs,
        m.flags,
        m.ciaddr,
        m.yiaddr,
        m.siaddr,
        m.giaddr,
        m.chaddr,
        b"",
        b"",
    )
    options = b"".join(option(code, value) for code, value in m.options.items())
    return (header + COOKIE + options + bytes((END,))).ljust(MIN_SIZE, b"\x00")


def domain_list(names: Iterable[str]) -> bytes:
    """Domain names as in RFC 1035 §3.1, without compression; what cannot be written so is left out.

    The form of option 119 (RFC 3397 §2, where compression is allowed but not asked for) and of DHCPv6 (RFC 8415 §10).
    """
    return b"".join(map(_domain, names))


def _domain(name: str) -> bytes:
    labels = name.removesuffix(".").split(".")
    if not name.isascii() or not all(0 < len(label) < 64 for label in labels):
        return b""
    wire = b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\x00"
    return wire if len(wire) <= 255 else b""
