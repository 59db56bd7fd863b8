"""Ethernet II header (IEEE 802.3): dst, src, ethertype."""

from __future__ import annotations

from struct import Struct
from typing import Final

HEADER: Final = Struct("!6s6sH")
SIZE: Final = 14

IPV4: Final = 0x0800
ARP: Final = 0x0806
IPV6: Final = 0x86DD

BROADCAST: Final = b"\xff" * 6
