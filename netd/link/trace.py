"""One line of text for each frame of a link: when, which way, what, from whom, to whom, how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final

from netd.link.mirror import Link, Mirror
from netd.link.tap import Buffer
from netd.wire import arp, ethernet, icmpv4, icmpv6, ipv4, ipv6, tcp, udp

_HEAD: Final = 160  # bytes looked at: Ethernet, IPv6 and some extension headers, TCP without its options
_FLAGS: Final = (
    (tcp.SYN, "SYN"),
    (tcp.FIN, "FIN"),
    (tcp.RST, "RST"),
    (tcp.PSH, "PSH"),
    (tcp.ACK, "ACK"),
    (tcp.URG, "URG"),
)
_ICMPV4: Final = {icmpv4.ECHO_REQUEST: "echo request", icmpv4.ECHO_REPLY: "echo reply"}
_ICMPV6: Final = {
    icmpv6.ECHO_REQUEST: "echo request",
    icmpv6.ECHO_REPLY: "echo reply",
    icmpv6.ROUTER_SOLICITATION: "router solicitation",
    icmpv6.ROUTER_ADVERTISEMENT: "router advertisement",
    icmpv6.NEIGHBOR_SOLICITATION: "neighbor solicitation",
    icmpv6.NEIGHBOR_ADVERTISEMENT: "neighbor advertisement",
}


class Trace(Mirror):
    """A link that tells ``line`` of each frame, without a newline. ``line`` must not raise."""

    __slots__ = ("_line",)

    def __init__(self, link: Link, line: Callable[[str], None]) -> None:
        self._line = line
        super().__init__(link, self._frame)

    def _frame(self, from_guest: bool, head: Buffer, rest: Buffer) -> bool:
        data = bytes(head[:_HEAD]) + bytes(rest[: max(_HEAD - len(head), 0)])
        seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        way = "from guest" if from_guest else "to guest"
        self._line(f"{clock}.{fraction // 1000:06} {way}: {describe(data, len(head) + len(rest))}")
        return True


def describe(frame: bytes, size: int) -> str:
    """A frame of ``size`` bytes of which ``frame`` is the beginning. Total: any bytes have a description.

    The length at the end is that of TCP's or UDP's payload, of the ICMP message, or else of the packet.
    """
    if len(frame) < ethernet.SIZE:
        return f"cut off, length {size}"
    _, _, kind = ethernet.HEADER.unpack_from(frame)
    what = {ethernet.IPV4: _ipv4, ethernet.IPV6: _ipv6, ethernet.ARP: _arp}.get(kind)
    text = what(frame, size) if what else ""
    return text or f"ethertype 0x{kind:04x}, length {size - ethernet.SIZE}"


def _arp(frame: bytes, size: int) -> str:
    if len(frame) < ethernet.SIZE + arp.SIZE:
        return ""
    *kind, oper, sha, spa, _, tpa = arp.PACKET.unpack_from(frame, ethernet.SIZE)
    if tuple(kind) != arp.ETHERNET_IPV4:
        return ""
    asker, asked = inet_ntop(AF_INET, spa), inet_ntop(AF_INET, tpa)
    if oper == arp.REQUEST:
        return f"ARP who has {asked}, tell {asker}"
    return f"ARP {asker} is at {sha.hex(':')}"


def _ipv4(frame: bytes, size: int) -> str:
    at = ethernet.SIZE
    if len(frame) < at + ipv4.SIZE:
        return ""
    first, _, length, _, fragment, _, protocol, _, src, dst = ipv4.HEADER.unpack_from(frame, at)
    source, target = inet_ntop(AF_INET, src), inet_ntop(AF_INET, dst)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < ipv4.SIZE or not header <= length <= size - at:
        return f"IPv4 malformed {source} > {target}, length {size - at}"
    if fragment & ipv4.OFFSET:
        return f"IPv4 fragment at {(fragment & ipv4.OFFSET) * 8} {source} > {target}, length {length}"
    return _transport(frame, at + header, length - header, protocol, source, target, _ICMPV4, ipv4.ICMP, "ICMP")


def _ipv6(frame: bytes, size: int) -> str:
    at = ethernet.SIZE
    if len(frame) < at + ipv6.SIZE:
        return ""
    _, length, next_header, _, src, dst = ipv6.HEADER.unpack_from(frame, at)
    source, target = f"[{inet_ntop(AF_INET6, src)}]", f"[{inet_ntop(AF_INET6, dst)}]"
    end = at + ipv6.SIZE + length
    protocol, behind, _ = ipv6.walk(frame, at + ipv6.SIZE, min(end, len(frame)), next_header)
    if frame[at] >> 4 != 6 or protocol < 0 or end > size:
        return f"IPv6 malformed {source} > {target}, length {size - at}"
    return _transport(frame, behind, end - behind, protocol, source, target, _ICMPV6, ipv6.ICMPV6, "ICMPv6")


def _transport(
    frame: bytes, at: int, size: int, protocol: int, src: str, dst: str, icmp: dict[int, str], icmp_is: int, name: str
) -> str:
    left = min(len(frame) - at, size)
    if protocol == ipv4.TCP and left >= tcp.SIZE:
        sport, dport, seq, ack, offset_flags, window, _, _ = tcp.HEADER.unpack_from(frame, at)
        flags = ",".join(word for bit, word in _FLAGS if offset_flags & bit) or "none"
        length = max(size - (offset_flags >> 12) * 4, 0)
        return f"TCP {src}:{sport} > {dst}:{dport} {flags} seq {seq} ack {ack} win {window}, length {length}"
    if protocol == ipv4.UDP and left >= udp.SIZE:
        sport, dport, _, _ = udp.HEADER.unpack_from(frame, at)
        return f"UDP {src}:{sport} > {dst}:{dport}, length {size - udp.SIZE}"
    if protocol == icmp_is and left >= icmpv4.SIZE:
        kind, code = frame[at], frame[at + 1]
        return f"{name} {src} > {dst} {icmp.get(kind) or f'type {kind} code {code}'}, length {size}"
    return f"protocol {protocol} {src} > {dst}, length {size}"
