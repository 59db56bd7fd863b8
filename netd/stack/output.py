"""IP packets to the guest that are not the bulk of a flow: whole where they fit the link, else in fragments."""

from __future__ import annotations

from typing import Final

from netd.stack.addressing import Addressing, is_remote
from netd.stack.counters import Counters
from netd.stack.headers import TTL
from netd.stack.neighbor import Neighbors
from netd.stack.ports import HostError, Transmit
from netd.wire import checksum, ethernet, icmpv4, icmpv6, ipv4, ipv6, udp, vnet_hdr

PACKET_MAX: Final = 65535
ERROR_MAX: Final = ipv6.MTU_MIN - ipv6.SIZE - icmpv6.SIZE  # how much an ICMPv6 error may quote, RFC 4443 §2.4

# The reasons of ``policy`` and ``ports`` (ICMPv4 unreachable codes) in ICMPv6 (RFC 4443 §3.1).
_CODES6: Final = {
    icmpv4.NET_UNREACHABLE: icmpv6.NO_ROUTE,
    icmpv4.HOST_UNREACHABLE: icmpv6.ADDRESS_UNREACHABLE,
    icmpv4.PORT_UNREACHABLE: icmpv6.PORT_UNREACHABLE,
    icmpv4.ADMIN_PROHIBITED: icmpv6.ADMIN_PROHIBITED,
}


class Output:
    """Everything is finished in software; no offload is asked for."""

    def __init__(
        self, addressing: Addressing, neighbors: Neighbors, transmit: Transmit, counters: Counters, mtu: int
    ) -> None:
        self._addressing = addressing
        self._neighbors = neighbors
        self._transmit = transmit
        self._counters = counters
        self._mtu = mtu
        self._identification = 0

    def send(self, src: bytes, dst: bytes, protocol: int, payload: bytes, ttl: int = TTL, tos: int = 0) -> None:
        """``payload`` is layer 4, its checksum finished; ``src`` an address of this side or beyond it."""
        if len(src) == 4:
            self._send4(src, dst, protocol, payload, ttl, tos)
        else:
            self._send6(src, dst, protocol, payload, ttl, tos)

    def _frame(self, src: bytes, dst: bytes, ethertype: int, header: bytes, payload: bytes | memoryview) -> None:
        if len(dst) == 16 and dst[0] == 0xFF:
            mac = ipv6.group_mac(dst)
        else:
            mac = ethernet.BROADCAST if dst == ipv4.BROADCAST else self._neighbors.mac_of(dst)
        head = vnet_hdr.PLAIN + ethernet.HEADER.pack(mac, self._addressing.mac_of(src), ethertype)
        self._counters.tx_frames += 1
        self._counters.tx_bytes += len(payload)
        self._transmit(head + header, payload)

    def _send4(self, src: bytes, dst: bytes, protocol: int, payload: bytes, ttl: int, tos: int) -> None:
        size = len(payload)
        if ipv4.SIZE + size <= self._mtu:
            self._frame(src, dst, ethernet.IPV4, ipv4.build(src, dst, protocol, size, ttl, tos), payload)
            return
        if ipv4.SIZE + size > PACKET_MAX:
            self._counters.drop_too_big += 1
            return
        self._identification = ident = (self._identification + 1) & 0xFFFF
        step = self._mtu - ipv4.SIZE & ~7
        view = memoryview(payload)
        for offset in range(0, size, step):
            piece = view[offset : offset + step]
            more = ipv4.MF if offset + step < size else 0
            header = ipv4.build_fragment(src, dst, protocol, len(piece), ttl, tos, ident, more | offset >> 3)
            self._frame(src, dst, ethernet.IPV4, header, piece)

    def _send6(self, src: bytes, dst: bytes, protocol: int, payload: bytes, ttl: int, tos: int) -> None:
        size = len(payload)
        if ipv6.SIZE + size <= self._mtu:
            self._frame(src, dst, ethernet.IPV6, ipv6.build(src, dst, protocol, size, ttl, tos), payload)
            return
        if size > PACKET_MAX:
            self._counters.drop_too_big += 1
            return
        self._identification = ident = (self._identification + 1) & 0xFFFFFFFF
        step = self._mtu - ipv6.SIZE - ipv6.FRAGMENT_SIZE & ~7
        view = memoryview(payload)
        for offset in range(0, size, step):
            piece = view[offset : offset + step]
            header = ipv6.build(src, dst, ipv6.FRAGMENT, len(piece) + ipv6.FRAGMENT_SIZE, ttl, tos)
            more = ipv6.MORE if offset + step < size else 0
            header += ipv6.FRAGMENT_HEADER.pack(protocol, 0, offset | more, ident)
            self._frame(src, dst, ethernet.IPV6, header, piece)

    def udp(self, src: bytes, dst: bytes, sport: int, dport: int, payload: bytes, tos: int = 0) -> None:
        """One datagram, in fragments where it is too large."""
        length = udp.SIZE + len(payload)
        if length > PACKET_MAX:
            self._counters.drop_too_big += 1
            return
        number = checksum.pseudo(src, dst, ipv4.UDP, length) + sport + dport + length + checksum.total(payload)
        datagram = udp.HEADER.pack(sport, dport, length, checksum.finish(number)) + payload
        self.send(src, dst, ipv4.UDP, datagram, tos=tos)

    def icmp(
        self, guest: bytes, type_: int, code: int, rest: int, payload: bytes | memoryview, src: bytes = b""
    ) -> None:
        """One ICMP or ICMPv6 message, by the guest's family; from the gateway unless ``src`` says otherwise.

        ``rest`` is the 32 bits behind the checksum.
        """
        src = src or self._addressing.gateway_of(len(guest))
        if len(guest) == 4:
            message = icmpv4.build(type_, code, rest >> 16, rest & 0xFFFF, payload)
            self._send4(src, guest, ipv4.ICMP, message, 255, 0)
        else:
            self._send6(src, guest, ipv6.ICMPV6, icmpv6.build(src, guest, type_, code, rest, payload), 255, 0)

    def unreachable(self, guest: bytes, reason: int, quote: bytes) -> None:
        """Destination unreachable, for ``reason`` (an ICMPv4 code in either family)."""
        if len(guest) == 4:
            self.icmp(guest, icmpv4.DEST_UNREACHABLE, reason, 0, quote)
        else:
            code = _CODES6.get(reason, icmpv6.NO_ROUTE)
            self.icmp(guest, icmpv6.DEST_UNREACHABLE, code, 0, quote[:ERROR_MAX])

    def error(self, guest: bytes, error: HostError, quote: bytes) -> None:
        """What the host was told (RFC 792, RFC 4443; RFC 1191 §4 for the MTU), as from whoever said it, if the guest
        can know of them."""
        src = error.offender
        if len(src) != len(guest) or not is_remote(src) or self._addressing.private(src):
            src = b""
        rest = error.info & 0xFFFFFFFF
        if len(guest) == 4:  # RFC 792: a parameter problem's pointer is the first of these bytes, not the last
            rest = (rest & 0xFF) << 24 if error.type == icmpv4.PARAMETER_PROBLEM else min(rest, 0xFFFF)
        self.icmp(guest, error.type, error.code, rest, quote, src)
