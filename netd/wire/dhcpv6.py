"""DHCP for IPv6 (RFC 8415 §8, §21): type and transaction id, then options, some of which hold options.

``parse`` and ``options`` raise nothing; a list of options that is malformed anywhere is none at all (RFC 8415 §16).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

OPTION: Final = Struct("!HH")  # code length
IA: Final = Struct("!4sII")  # IAID T1 T2: IA_NA and IA_PD; an IA_TA has the IAID alone
IA_ADDRESS: Final = Struct("!16sII")  # address preferred-lifetime valid-lifetime
SIZE: Final = 4
MAX_SIZE: Final = 4096  # of a message that is read at all

CLIENT_PORT: Final = 546
SERVER_PORT: Final = 547
SERVERS: Final = b"\xff\x02" + bytes(11) + b"\x01\x00\x02"  # All_DHCP_Relay_Agents_and_Servers (§7.1)

SOLICIT: Final = 1  # §7.3
ADVERTISE: Final = 2
REQUEST: Final = 3
CONFIRM: Final = 4
RENEW: Final = 5
REBIND: Final = 6
REPLY: Final = 7
RELEASE: Final = 8
DECLINE: Final = 9
RECONFIGURE: Final = 10
INFORMATION_REQUEST: Final = 11

CLIENTID: Final = 1  # §21.2 and on
SERVERID: Final = 2
IA_NA: Final = 3
IA_TA: Final = 4
IAADDR: Final = 5
ORO: Final = 6
PREFERENCE: Final = 7
STATUS_CODE: Final = 13
RAPID_COMMIT: Final = 14
DNS_SERVERS: Final = 23  # RFC 3646
DOMAIN_LIST: Final = 24
CLIENT_FQDN: Final = 39  # RFC 4704
IA_PD: Final = 25
INFORMATION_REFRESH_TIME: Final = 32

SUCCESS: Final = 0  # §21.13
NO_ADDRS_AVAIL: Final = 2
NO_BINDING: Final = 3
NOT_ON_LINK: Final = 4
NO_PREFIX_AVAIL: Final = 6

MIN_DUID: Final = 3  # two octets of type and 1..128 more (§11.1)
MAX_DUID: Final = 130


@dataclass(frozen=True, slots=True)
class Message:
    """One message between client and server; ``xid`` is 24 bits."""

    type: int
    xid: int
    options: tuple[tuple[int, bytes], ...] = ()

    def first(self, code: int) -> bytes | None:
        """The value of the first option of that code."""
        return next((value for c, value in self.options if c == code), None)


@dataclass(frozen=True, slots=True)
class Association:
    """An IA_NA, IA_TA or IA_PD as a client sends it: which addresses it names, an IA_PD none."""

    code: int
    iaid: bytes
    addresses: tuple[bytes, ...]


def parse(data: bytes | memoryview) -> Message | None:
    """The message in ``data``, or None where there is none."""
    if not SIZE <= len(data) <= MAX_SIZE:
        return None
    data = bytes(data)
    found = options(data[SIZE:])
    return None if found is None else Message(data[0], int.from_bytes(data[1:SIZE], "big"), found)


def options(data: bytes) -> tuple[tuple[int, bytes], ...] | None:
    """Codes and values in their order, or None where a length does not fit."""
    found = []
    i, end = 0, len(data)
    while i < end:
        if i + OPTION.size > end:
            return None
        code, length = OPTION.unpack_from(data, i)
        i += OPTION.size + length
        if i > end:
            return None
        found.append((code, data[i - length : i]))
    return tuple(found)


def association(code: int, value: bytes) -> Association | None:
    """The IA option (§21.4, §21.5, §21.21) of that code and value, or None where it is malformed."""
    head = SIZE if code == IA_TA else IA.size
    inner = options(value[head:])
    if len(value) < head or inner is None:
        return None
    addresses = tuple(v[:16] for c, v in inner if c == IAADDR and len(v) >= IA_ADDRESS.size and code != IA_PD)
    return Association(code, value[:SIZE], addresses)


def build(message: Message) -> bytes:
    """``message`` as bytes."""
    head = bytes((message.type,)) + message.xid.to_bytes(3, "big")
    return head + b"".join(option(code, value) for code, value in message.options)


def option(code: int, value: bytes) -> bytes:
    """One option (§21.1)."""
    return OPTION.pack(code, len(value)) + value


def status(code: int, text: str) -> bytes:
    """A Status Code option (§21.13)."""
    return option(STATUS_CODE, code.to_bytes(2, "big") + text.encode())


def ia(code: int, iaid: bytes, t1: int, t2: int, inner: bytes) -> tuple[int, bytes]:
    """An IA_NA, IA_TA or IA_PD option as code and value."""
    return code, iaid + inner if code == IA_TA else IA.pack(iaid, t1, t2) + inner


def ia_address(address: bytes, preferred: int, valid: int) -> bytes:
    """An IA Address option (§21.6) without options of its own."""
    return option(IAADDR, IA_ADDRESS.pack(address, preferred, valid))


def duid_ll(mac: bytes) -> bytes:
    """The DUID of an Ethernet address (DUID-LL, §11.4)."""
    return b"\x00\x03\x00\x01" + mac
