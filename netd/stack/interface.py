"""The one door of the stack: Ethernet frames of one guest in, ``transmit`` out.

from_guest(frame)  one frame, whatever its bytes; never raises, every frame is counted
flush()            the end of a batch of frames
poll(), poll_at()  the timers
"""

from __future__ import annotations

from netd.stack import arp
from netd.stack.addressing import Addressing
from netd.stack.counters import Counters
from netd.stack.icmp import Icmp
from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors
from netd.stack.ports import Host, Transmit
from netd.stack.tcp.table import TcpTable
from netd.stack.timers import Timers
from netd.stack.udp import UdpTable
from netd.wire import arp as wire_arp
from netd.wire import checksum, ethernet, ipv4

_unpack = ipv4.HEADER.unpack_from
_AT = ethernet.SIZE
_L4 = ethernet.SIZE + ipv4.SIZE


class Interface:
    """The stack of one network. Not thread-safe; all calls from one loop."""

    def __init__(
        self,
        addressing: Addressing,
        transmit: Transmit,
        host: Host,
        limits: Limits,
        mtu: int,
        offload: bool,
        allow_host_loopback: bool,
        secret: bytes,
    ) -> None:
        self.addressing = addressing
        self.counters = Counters()
        self.timers = Timers()
        self.neighbors = Neighbors(addressing.guest_mac, limits.neighbors)
        self._transmit = transmit
        self.tcp = TcpTable(
            addressing,
            self.neighbors,
            transmit,
            self.send_icmp,
            host,
            limits,
            self.counters,
            self.timers,
            mtu,
            offload,
            allow_host_loopback,
            secret,
        )
        self.udp = UdpTable(
            addressing,
            self.neighbors,
            transmit,
            self.send_icmp,
            host,
            limits,
            self.counters,
            self.timers,
            mtu,
            offload,
            allow_host_loopback,
        )
        self.icmp = Icmp(addressing, self.send_icmp, host, limits, self.counters, self.timers, allow_host_loopback)
        self._mtu = mtu

    def from_guest(self, frame: memoryview, vouched: bool, now: float) -> None:
        """One frame from the TAP. ``vouched``: the device says its layer-4 checksum is right, or will be.

        The view is not kept.
        """
        counters = self.counters
        counters.rx_frames += 1
        size = len(frame)
        counters.rx_bytes += size
        if size < _L4:
            counters.drop_short += 1
            return
        if frame[12] != 8 or frame[13] != 0:
            if frame[12] == 8 and frame[13] == 6 and size >= _AT + wire_arp.SIZE:
                self._arp(frame)
            else:
                counters.drop_ethertype += 1
            return
        version_ihl, _, length, _, fragment, _, protocol, _, src, dst = _unpack(frame, _AT)
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
            counters.drop_fragment += 1
            return
        if protocol == ipv4.TCP:
            key = bytes(frame[26:38]) if at == _L4 and end >= 38 else src + dst + bytes(frame[at : at + 4])
            if key not in self.tcp.connections and not self._source_allowed(frame, src):
                return
            self.tcp.from_guest(frame, at, end, key, vouched, now)
        elif protocol == ipv4.UDP:
            key = bytes(frame[26:38]) if at == _L4 and end >= 38 else src + dst + bytes(frame[at : at + 4])
            if key not in self.udp.flows and not self._source_allowed(frame, src):
                return
            self.udp.from_guest(frame, at, end, key, vouched, now)
        elif protocol == ipv4.ICMP:
            if self._source_allowed(frame, src):
                self.icmp.from_guest(frame, at, end, src, dst, now)
        else:
            counters.drop_protocol += 1

    def _source_allowed(self, frame: memoryview, src: bytes) -> bool:
        """A new flow's source must be an address of the guest's subnet that is not ours; its MAC is learned."""
        addressing = self.addressing
        ours = src == addressing.gateway or src == addressing.dns
        if ours or not addressing.on_link(src) or src == addressing.broadcast != addressing.guest:
            self.counters.drop_martian += 1
            return False
        self.neighbors.learn(src, bytes(frame[6:12]))
        return True

    def _arp(self, frame: memoryview) -> None:
        reply = arp.answer(self.addressing, self.neighbors, frame[_AT:])
        if reply is None:
            self.counters.drop_arp += 1
            return
        self.counters.tx_frames += 1
        self._transmit(reply, b"", 0, 0, 0)

    def send_icmp(self, dst: bytes, message: bytes, src: bytes = b"") -> None:
        """One ICMP message to the guest, from the gateway unless ``src`` says otherwise."""
        if ipv4.SIZE + len(message) > self._mtu:
            self.counters.drop_udp_too_big += 1
            return
        addressing = self.addressing
        src = src or addressing.gateway
        src_mac = addressing.dns_mac if src == addressing.dns else addressing.gateway_mac
        header = ethernet.HEADER.pack(self.neighbors.mac_of(dst), src_mac, ethernet.IPV4)
        self.counters.tx_frames += 1
        self._transmit(header + ipv4.build(src, dst, ipv4.ICMP, len(message), ttl=255), message, 0, 0, 0)

    def flush(self) -> None:
        """Call after each batch of frames and after each event of the host side."""
        if self.tcp.touched:
            self.tcp.flush()

    def poll_at(self) -> float:
        """When ``poll`` is due."""
        return self.timers.poll_at()

    def poll(self, now: float) -> None:
        """Fire the timers."""
        self.timers.poll(now)

    def flow_counts(self) -> dict[str, int]:
        """Flows by protocol."""
        return {"tcp": len(self.tcp.connections), "udp": len(self.udp.flows), "icmp": len(self.icmp.flows)}

    def close(self) -> None:
        """The network ends: every host side is released."""
        self.tcp.close()
        self.udp.close()
        self.icmp.close()
