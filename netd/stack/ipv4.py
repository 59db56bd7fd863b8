"""IPv4 from the guest: the header's checks, fragments, and on to TCP, UDP or ICMP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from netd.stack.addressing import Addressing, is_group
from netd.stack.counters import Counters
from netd.stack.icmp import Icmp
from netd.stack.neighbor import Neighbors
from netd.stack.reassembly import Reassembly
from netd.stack.tcp.table import TcpTable
from netd.stack.udp import UdpTable
from netd.wire import checksum, ethernet, ipv4

_unpack: Final[Callable[[memoryview, int], tuple[int, int, int, int, bytes]]] = ipv4.FRONT.unpack_from
_AT: Final = ethernet.SIZE
_DHCP: Final = b"\x00\x43"  # the server's port, 67
_L4: Final = ethernet.SIZE + ipv4.SIZE
_FRONT: Final = ethernet.SIZE + ipv4.FRONT_SIZE


class Ipv4:
    """Of one interface."""

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        reassembly: Reassembly,
        tcp: TcpTable,
        udp: UdpTable,
        icmp: Icmp,
        counters: Counters,
    ) -> None:
        self._addressing = addressing
        self._neighbors = neighbors
        self._reassembly = reassembly
        self._tcp = tcp
        self._udp = udp
        self._icmp = icmp
        self._counters = counters
        self._allowed = b""  # the last source that was

    def from_guest(self, frame: memoryview, vouched: bool, segment: int, now: float) -> None:
        """One frame, at least Ethernet's and IPv4's headers long; see ``Interface.from_guest``."""
        counters = self._counters
        size = len(frame)
        if size < _FRONT:  # a fragment can be as short
            frame = memoryview(bytes(frame) + bytes(_FRONT - size))
        version_ihl, length, fragment, protocol, key = _unpack(frame, _AT)
        end = _AT + length
        if version_ihl == 0x45:
            at = _L4
        else:
            at = _AT + (version_ihl & 15) * 4
            if version_ihl >> 4 != 4 or at < _L4 or at > size:
                counters.drop_bad_header += 1
                return
        if end > size or end < at:
            counters.drop_bad_header += 1
            return
        if not vouched and not checksum.valid(checksum.total(frame[_AT:at])):
            counters.drop_bad_checksum += 1
            return
        if fragment & (ipv4.MF | ipv4.OFFSET):
            self._fragment(frame, at, end, fragment, protocol, now)
            return
        if at != _L4 or end < _FRONT:
            key = key[:8] + bytes(frame[at : min(at + 4, end)])
        if protocol == ipv4.TCP:
            if key not in self._tcp.connections and not self._source_allowed(frame, key[:4]):
                return
            self._tcp.from_guest(frame, at, end, key, vouched, now)
        elif protocol == ipv4.UDP:
            if key not in self._udp.flows:
                if key[-2:] == _DHCP and self._udp.dhcp(frame, at, end, key, now):
                    return
                if not self._source_allowed(frame, key[:4]):
                    return
            self._udp.from_guest(frame, at, end, key, vouched, segment, frame[22] << 8 | frame[15], now)
        elif protocol == ipv4.ICMP:
            src = key[:4]
            if self._source_allowed(frame, src):
                self._icmp.from_guest(frame, at, end, src, key[4:8], frame[22] << 8 | frame[15], now)
        else:
            counters.drop_protocol += 1

    def _source_allowed(self, frame: memoryview, src: bytes) -> bool:
        """A new flow's source must be an address of the guest's subnet that is not ours; its MAC is learned."""
        if src != self._allowed:
            if not self._addressing.may_be_guest(src):
                self._counters.drop_martian += 1
                return False
            self._allowed = src
        self._neighbors.learn(src, bytes(frame[6:12]))
        return True

    def _fragment(
        self,
        frame: memoryview,
        at: int,
        end: int,
        fragment: int,
        protocol: int,
        now: float,
    ) -> None:
        """Part of a datagram; the last missing one takes the whole datagram through again."""
        src, dst = bytes(frame[26:30]), bytes(frame[30:34])
        if is_group(dst) or dst == self._addressing.broadcast:
            self._counters.drop_group += 1
            return
        if not self._source_allowed(frame, src):
            return
        key = src + dst + bytes((protocol, frame[_AT + 4], frame[_AT + 5]))
        more = bool(fragment & ipv4.MF)
        offset = (fragment & ipv4.OFFSET) << 3
        quote = bytes(frame[_AT : min(at + 8, end)])
        datagram = self._reassembly.add(key, offset, more, frame[at:end], protocol, quote, now)
        if datagram is not None:
            whole, first = datagram.whole(), datagram.quote
            if ipv4.SIZE + len(whole) > 0xFFFF:
                self._counters.drop_fragment += 1
                return
            header = ipv4.build(src, dst, protocol, len(whole), first[8], first[1])
            self.from_guest(memoryview(bytes(frame[:_AT]) + header + whole), False, 0, now)
