"""ARP for IPv4 over Ethernet (RFC 826): htype ptype hlen plen oper sha spa tha tpa."""

from __future__ import annotations

from struct import Struct
from typing import Final

PACKET: Final = Struct("!HHBBH6s4s6s4s")
SIZE: Final = 28

REQUEST: Final = 1
REPLY: Final = 2
ETHERNET_IPV4: Final = (1, 0x0800, 6, 4)


def build(oper: int, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    """One ARP packet without its Ethernet header."""
    return PACKET.pack(1, 0x0800, 6, 4, oper, sha, spa, tha, tpa)
