"""TCP header and options (RFC 9293 §3.1, RFC 7323 §2): sport dport seq ack offset_flags wnd checksum urg."""

from __future__ import annotations

from struct import Struct
from typing import Final

HEADER: Final = Struct("!HHIIHHHH")
FRONT: Final = Struct("!4xIIHH")  # seq ack offset_flags wnd
SIZE: Final = 20
CHECKSUM_OFFSET: Final = 16

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20

DEFAULT_MSS: Final = 536  # RFC 9293 §3.7.1: what a peer without the option takes
MAX_WSCALE: Final = 14  # RFC 7323 §2.3


def parse_options(data: bytes) -> tuple[int, int, bool]:
    """(mss, wscale, sack) of a SYN's options; mss 0 and wscale -1 where absent, ``sack`` where SACK is permitted
    (RFC 2018 §2). Malformed options end the walk."""
    mss, wscale, sack = 0, -1, False
    i, end = 0, len(data)
    while i < end:
        kind = data[i]
        if kind == 0:
            break
        if kind == 1:
            i += 1
            continue
        if i + 1 >= end:
            break
        length = data[i + 1]
        if length < 2 or i + length > end:
            break
        if kind == 2 and length == 4:
            mss = data[i + 2] << 8 | data[i + 3]
        elif kind == 3 and length == 3:
            wscale = min(data[i + 2], MAX_WSCALE)
        elif kind == 4 and length == 2:
            sack = True
        i += length
    return mss, wscale, sack


def syn_options(mss: int, wscale: int, sack: bool = False) -> bytes:
    """MSS and, where ``wscale`` is not -1, NOP and window scale; then SACK-permitted."""
    options = b"\x02\x04" + mss.to_bytes(2, "big")
    if wscale >= 0:
        options += b"\x01\x03\x03" + bytes((wscale,))
    if sack:
        options += b"\x01\x01\x04\x02"
    return options
