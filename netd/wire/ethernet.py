"""Ethernet II header (IEEE 802.3): dst, src, ethertype."""

from __future__ import annotations

from struct import Struct

HEADER = Struct("!6s6sH")
SIZE = 14

IPV4 = 0x0800
ARP = 0x0806
IPV6 = 0x86DD

BROADCAST = b"\xff" * 6
