"""ARP: the gateway and the DNS address answer; nobody else is on the link (RFC 826)."""

from __future__ import annotations

from netd.stack.addressing import Addressing
from netd.stack.neighbor import Neighbors
from netd.wire import arp, ethernet


def answer(addressing: Addressing, neighbors: Neighbors, packet: memoryview) -> bytes | None:
    """The reply frame to one ARP packet (without Ethernet header), or None. Learns the sender either way."""
    htype, ptype, hlen, plen, oper, sha, spa, _, tpa = arp.PACKET.unpack_from(packet)
    if (htype, ptype, hlen, plen) != arp.ETHERNET_IPV4:
        return None
    if spa in (addressing.gateway, addressing.dns):
        return None  # our own addresses are not the guest's to claim
    if addressing.may_be_guest(spa):
        neighbors.learn(spa, sha)
    if oper != arp.REQUEST:
        return None
    if tpa == addressing.gateway:
        mac = addressing.gateway_mac
    elif addressing.dns and tpa == addressing.dns:
        mac = addressing.dns_mac
    else:
        return None
    return ethernet.HEADER.pack(sha, mac, ethernet.ARP) + arp.build(arp.REPLY, mac, tpa, sha, spa)
