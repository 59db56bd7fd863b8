"""ARP (RFC 826): we answer for whoever is on the link beside the guest."""

from __future__ import annotations

from typing import Final

from netd.stack.addressing import Addressing
from netd.stack.neighbor import Neighbors
from netd.wire import arp, ethernet

_PROBE: Final = bytes(4)


def answer(addressing: Addressing, neighbors: Neighbors, packet: memoryview) -> bytes | None:
    """The reply frame to one ARP packet (without Ethernet header), or None. Learns the sender either way."""
    htype, ptype, hlen, plen, oper, sha, spa, _, tpa = arp.PACKET.unpack_from(packet)
    if (htype, ptype, hlen, plen) != arp.ETHERNET_IPV4:
        return None
    if addressing.ours(spa) or spa == addressing.gateway:
        return None  # our own addresses are not the guest's to claim
    if addressing.may_be_guest(spa):
        neighbors.learn(spa, sha)
    if oper != arp.REQUEST or not addressing.answers_for(tpa):
        return None
    if addressing.host_like and spa in (_PROBE, tpa):
        return None  # RFC 5227: it asks whether it may have that address, or says that it has
    mac = addressing.mac_of(tpa)
    return ethernet.HEADER.pack(sha, mac, ethernet.ARP) + arp.build(arp.REPLY, mac, tpa, sha, spa)
