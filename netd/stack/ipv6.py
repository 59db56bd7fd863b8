"""IPv6 from the guest: the header's checks, extension headers, fragments, and on to TCP, UDP, ICMPv6 or NDP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from netd.stack.addressing import Addressing, is_group
from netd.stack.counters import Counters
from netd.stack.icmp import Icmp
from netd.stack.ndp import TYPES, Ndp
from netd.stack.neighbor import Neighbors
from netd.stack.output import ERROR_MAX, Output
from netd.stack.reassembly import PACKET_MAX, Reassembly
from netd.stack.tcp.table import TcpTable
from netd.stack.udp import UdpTable
from netd.wire import checksum, ethernet, icmpv6, ipv6

_unpack: Final[Callable[[memoryview, int], tuple[int, int, int, int, bytes]]] = ipv6.FRONT.unpack_from
_AT: Final = ethernet.SIZE
_DHCP: Final = b"\x02\x23"  # the server's port, 547
_L4: Final = ethernet.SIZE + ipv6.SIZE
_FRONT: Final = ethernet.SIZE + ipv6.FRONT_SIZE
_ERRONEOUS: Final = 0  # codes of a parameter problem, RFC 4443 §3.4
_UNRECOGNIZED: Final = 1


class Ipv6:
    """Of one interface."""

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        reassembly: Reassembly,
        tcp: TcpTable,
        udp: UdpTable,
        icmp: Icmp,
        ndp: Ndp,
        output: Output,
        counters: Counters,
    ) -> None:
        self._addressing = addressing
        self._neighbors = neighbors
        self._reassembly = reassembly
        self._tcp = tcp
        self._udp = udp
        self._icmp = icmp
        self._ndp = ndp
        self._output = output
        self._counters = counters
        self._allowed = b""  # the last source that was

    def from_guest(self, frame: memoryview, vouched: bool, segment: int, now: float, reassembled: bool = False) -> None:
        """One frame, at least Ethernet's and IPv6's headers long; see ``Interface.from_guest``."""
        counters = self._counters
        size = len(frame)
        if size < _FRONT:  # a packet without a payload, or hardly any
            frame = memoryview(bytes(frame) + bytes(_FRONT - size))
        version_class_flow, length, protocol, hop_limit, key = _unpack(frame, _AT)
        at, end, named_at = _L4, _L4 + length, _AT + ipv6.NEXT_HEADER_OFFSET
        if version_class_flow >> 28 != 6 or end > size:
            counters.drop_bad_header += 1
            return
        if protocol in ipv6.EXTENSIONS or protocol == ipv6.FRAGMENT:
            protocol, at, named_at = ipv6.walk(frame, at, end, protocol)
            if protocol < 0:
                counters.drop_bad_header += 1
                return
            if protocol == ipv6.FRAGMENT:
                if reassembled:  # a fragment in a fragment: nobody makes these, and they would nest without end
                    counters.drop_fragment += 1
                    return
                self._fragment(frame, at, end, key[:16], key[16:32], now)
                return
        if at != _L4 or length < 4:
            key = key[:32] + bytes(frame[at : min(at + 4, end)])
        if protocol == ipv6.TCP:
            if key not in self._tcp.connections and not self._source_allowed(frame, key[:16]):
                return
            self._tcp.from_guest(frame, at, end, key, vouched, now)
        elif protocol == ipv6.UDP:
            if key not in self._udp.flows:
                if key[-2:] == _DHCP and self._udp.dhcp(frame, at, end, key, now):
                    return
                if not self._source_allowed(frame, key[:16]):
                    return
            hops = hop_limit << 8 | version_class_flow >> 20 & 0xFF
            self._udp.from_guest(frame, at, end, key, vouched, segment, hops, now)
        elif protocol == ipv6.ICMPV6:
            if reassembled and at < end and frame[at] in TYPES:
                counters.drop_ndp += 1  # RFC 6980 §5
                return
            self._icmpv6(frame, at, end, key[:16], key[16:32], hop_limit << 8 | version_class_flow >> 20 & 0xFF, now)
        elif protocol == ipv6.NO_NEXT:
            counters.drop_protocol += 1
        elif self._source_allowed(frame, key[:16]):
            counters.drop_protocol += 1
            if key[16] != 0xFF:
                # RFC 8200 §4, §4.4: the pointer is where the unrecognized next header, or routing type, is named
                code, at = (_ERRONEOUS, at + 2) if protocol == ipv6.ROUTING else (_UNRECOGNIZED, named_at)
                self._output.icmp(key[:16], icmpv6.PARAMETER_PROBLEM, code, at - _AT, frame[_AT:end][:ERROR_MAX])

    def _icmpv6(self, frame: memoryview, at: int, end: int, src: bytes, dst: bytes, hops: int, now: float) -> None:
        counters = self._counters
        if end - at < icmpv6.SIZE:
            counters.drop_short += 1
            return
        pseudo = checksum.pseudo(src, dst, ipv6.ICMPV6, end - at)
        if not checksum.valid(pseudo + checksum.total(frame[at:end])):
            counters.drop_bad_checksum += 1
            return
        if frame[at] in TYPES:
            self._ndp.from_guest(frame, at, end, src, dst)
        elif self._source_allowed(frame, src):
            self._icmp.from_guest6(frame, at, end, src, dst, hops, now)

    def _source_allowed(self, frame: memoryview, src: bytes) -> bool:
        """A new flow's source must be an address of the guest's link that is not ours; its MAC is learned."""
        if src != self._allowed:
            if not self._addressing.may_be_guest(src):
                self._counters.drop_martian += 1
                return False
            self._allowed = src
        self._neighbors.learn(src, bytes(frame[6:12]))
        return True

    def _fragment(self, frame: memoryview, at: int, end: int, src: bytes, dst: bytes, now: float) -> None:
        """Part of a datagram; the last missing one takes the whole datagram through again."""
        data_at = at + ipv6.FRAGMENT_SIZE
        if is_group(dst):
            self._counters.drop_group += 1
            return
        if data_at >= end:
            self._counters.drop_fragment += 1
            return
        if not self._source_allowed(frame, src):
            return
        protocol, _, offset, ident = ipv6.FRAGMENT_HEADER.unpack_from(frame, at)
        more, offset, size = bool(offset & ipv6.MORE), offset & ipv6.OFFSET, end - data_at
        quote = bytes(frame[_AT:end][:ERROR_MAX])
        if (
            more and size & 7
        ) or offset + size > PACKET_MAX:  # RFC 8200 §4.5: the pointer is of the field that is wrong
            self._counters.drop_fragment += 1
            pointer = ipv6.LENGTH_OFFSET if more and size & 7 else at + 2 - _AT
            self._output.icmp(src, icmpv6.PARAMETER_PROBLEM, _ERRONEOUS, pointer, quote)
        elif not offset and not more:  # an atomic fragment, RFC 6946: by itself
            self._whole(frame, protocol, quote, bytes(frame[data_at:end]), now)
        else:
            key = src + dst + ident.to_bytes(4, "big")
            datagram = self._reassembly.add(key, offset, more, frame[data_at:end], protocol, quote, now)
            if datagram is not None:
                self._whole(frame, datagram.protocol, datagram.quote, datagram.whole(), now)

    def _whole(self, frame: memoryview, protocol: int, first: bytes, payload: bytes, now: float) -> None:
        """A datagram put together, with the header of its ``first`` fragment."""
        class_ = (first[0] & 15) << 4 | first[1] >> 4
        header = ipv6.build(first[8:24], first[24:40], protocol, len(payload), first[7], class_)
        self.from_guest(memoryview(bytes(frame[:_AT]) + header + payload), False, 0, now, True)
