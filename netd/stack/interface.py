"""The one door of the stack: Ethernet frames of one guest in, ``transmit`` out.

start()            the link is up
from_guest(frame)  one frame, whatever its bytes; never raises, every frame is counted
flush()            the end of a batch of frames
poll(), poll_at()  the timers
"""

from __future__ import annotations

from typing import Final

from netd.stack import arp
from netd.stack.addressing import Addressing
from netd.stack.counters import Counters
from netd.stack.icmp import Icmp
from netd.stack.ipv4 import Ipv4
from netd.stack.ipv6 import Ipv6
from netd.stack.limits import Limits
from netd.stack.ndp import Ndp
from netd.stack.neighbor import Neighbors
from netd.stack.output import Output
from netd.stack.ports import Host, Services, Transmit
from netd.stack.reassembly import Reassembly
from netd.stack.tcp.table import TcpTable
from netd.stack.timers import Timers
from netd.stack.udp import UdpTable
from netd.wire import arp as wire_arp
from netd.wire import ethernet, icmpv4, icmpv6, ipv4, ipv6, vnet_hdr

_AT: Final = ethernet.SIZE
_IPV4_MIN: Final = _AT + ipv4.SIZE
_IPV6_MIN: Final = _AT + ipv6.SIZE
_ARP_MIN: Final = _AT + wire_arp.SIZE


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
        secret: bytes,
        uso: bool = False,
        services: Services | None = None,
        without: frozenset[str] = frozenset(),
    ) -> None:
        """``uso``: the device takes and gives UDP super-frames. ``without``: of tcp udp icmp ndp ra, not served."""
        self.addressing = addressing
        self.counters = counters = Counters()
        self.timers = timers = Timers()
        self.neighbors = neighbors = Neighbors(addressing.guest_mac, limits.neighbors)
        self._transmit = transmit
        self._output = output = Output(addressing, neighbors, transmit, counters, mtu)
        self.tcp = TcpTable(
            addressing,
            neighbors,
            transmit,
            output,
            host,
            limits,
            counters,
            timers,
            mtu,
            offload,
            secret,
        )
        self.udp = UdpTable(
            addressing,
            neighbors,
            transmit,
            output,
            host,
            limits,
            counters,
            timers,
            mtu,
            offload,
            uso,
            services,
        )
        self.icmp = Icmp(addressing, output, host, limits, counters, timers)
        self.reassembly = reassembly = Reassembly(limits, counters, timers)
        self.tcp.served, self.udp.served, self.icmp.served = (w not in without for w in ("tcp", "udp", "icmp"))
        self._ipv4: Ipv4 | None = None
        if addressing.gateway:
            self._ipv4 = Ipv4(addressing, neighbors, reassembly, self.tcp, self.udp, self.icmp, counters)
        self._ipv6: Ipv6 | None = None
        self.ndp: Ndp | None = None
        if addressing.gateway6:
            self.ndp = Ndp(addressing, neighbors, output, limits, counters, timers, mtu)
            self.ndp.served = "ndp" not in without
            self.ndp.router = "ra" not in without
            self._ipv6 = Ipv6(
                addressing, neighbors, reassembly, self.tcp, self.udp, self.icmp, self.ndp, output, counters
            )

    def start(self, now: float) -> None:
        """The link is up."""
        if self.ndp is not None:
            self.ndp.start(now)

    def from_guest(self, frame: memoryview, vouched: bool, segment: int, now: float) -> None:
        """One frame from the TAP. ``vouched``: the device says its layer-4 checksum is right, or will be; ``segment``
        > 0: a UDP super-frame of datagrams with so much payload each.

        The view is not kept.
        """
        counters = self.counters
        counters.rx_frames += 1
        size = len(frame)
        counters.rx_bytes += size
        if size < _IPV4_MIN:
            counters.drop_short += 1
        elif frame[12] == 8 and frame[13] == 0 and self._ipv4 is not None:
            self._ipv4.from_guest(frame, vouched, segment, now)
        elif frame[12] == 0x86 and frame[13] == 0xDD and self._ipv6 is not None:
            if size < _IPV6_MIN:
                counters.drop_short += 1
            else:
                self._ipv6.from_guest(frame, vouched, segment, now)
        elif frame[12] == 8 and frame[13] == 6 and size >= _ARP_MIN:
            self._arp(frame)
        else:
            counters.drop_ethertype += 1

    def _arp(self, frame: memoryview) -> None:
        reply = arp.answer(self.addressing, self.neighbors, frame[_AT:])
        if reply is None:
            self.counters.drop_arp += 1
            return
        self.counters.tx_frames += 1
        self._transmit(vnet_hdr.PLAIN + reply, b"")

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
        expired = self.reassembly.expired
        while expired:
            quote = expired.pop().quote
            if quote[0] >> 4 == 4:
                self._output.icmp(quote[12:16], icmpv4.TIME_EXCEEDED, icmpv4.REASSEMBLY_TIME, 0, quote)
            else:
                self._output.icmp(quote[8:24], icmpv6.TIME_EXCEEDED, icmpv6.REASSEMBLY_TIME, 0, quote)

    def flow_counts(self) -> dict[str, int]:
        """Flows by protocol."""
        return {"tcp": len(self.tcp.connections), "udp": len(self.udp.flows), "icmp": len(self.icmp.flows)}

    def close(self, kept: bool = False) -> None:
        """The network ends, or (``kept``) only this process: every host side is released."""
        self.tcp.close(kept)
        self.udp.close()
        self.icmp.close()
