"""Whether the guest is still where its addresses were last seen: neighbor unreachability detection (RFC 4861 §7.3),
and the same by ARP (RFC 1122 §2.3.2.1).

What RFC 4861 calls a state is here what is known anyway, so that no frame pays for it:

* REACHABLE and STALE: an entry of ``Neighbors``. Reachability is confirmed as §7.3.1 prefers, by upper layers: a guest
  that acknowledges is there. No clock is needed to doubt it in between, and none runs.
* DELAY: a connection waits for the guest's acknowledgment, until its second time-out.
* PROBE: that was in vain. The guest's MAC is asked for, at the address that is known (three times, a second apart), and
  then of everybody on the link (three times more). Whatever teaches the MAC ends it, and flows that exist follow.
* INCOMPLETE: no entry. Nothing has to wait for an answer: the MAC of the device itself is as good as one, and where the
  agent could not tell it frames are broadcast.

A guest that never answers loses its entry and is sent to as one without. Datagrams tell nothing of reachability and
raise no doubt: a guest they do not reach asks for our MAC when it speaks next, and is known again.
"""

from __future__ import annotations

from typing import Final

from netd.stack.addressing import Addressing
from netd.stack.counters import Counters
from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors
from netd.stack.output import Output
from netd.stack.ports import Transmit
from netd.stack.timers import NEVER, Timers
from netd.wire import arp, ethernet, icmpv6, ipv6, ndp, vnet_hdr

UNICAST: Final = 3  # MAX_UNICAST_SOLICIT, RFC 4861 §10
MULTICAST: Final = 3  # MAX_MULTICAST_SOLICIT


class Reachability:
    """The doubts of one network (``timers.Timed``)."""

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        output: Output,
        transmit: Transmit,
        limits: Limits,
        counters: Counters,
        timers: Timers,
    ) -> None:
        self._addressing = addressing
        self._neighbors = neighbors
        self._output = output
        self._transmit = transmit
        self._limits = limits
        self._counters = counters
        self._timers = timers
        self.deadline = self.hinted = NEVER

    def doubt(self, ip: bytes, now: float) -> None:
        """The guest's address ``ip`` has been sent to in vain."""
        doubted = self._neighbors.doubted
        if ip in doubted or len(doubted) >= self._limits.neighbors:
            return
        doubted[ip] = 0
        self._ask(ip, 0)
        if self.deadline == NEVER:
            self._timers.arm(self, now + self._limits.probe)

    def on_deadline(self, now: float) -> None:
        """Ask again, or give up."""
        doubted = self._neighbors.doubted
        for ip in list(doubted):
            doubted[ip] = asked = doubted[ip] + 1
            if asked < UNICAST + MULTICAST:
                self._ask(ip, asked)
            else:
                self._neighbors.forget(ip)
        if doubted:
            self._timers.arm(self, now + self._limits.probe)

    def _ask(self, ip: bytes, asked: int) -> None:
        addressing = self._addressing
        everybody = asked >= UNICAST
        if len(ip) == 4:
            mac = ethernet.BROADCAST if everybody else self._neighbors.mac_of(ip)
            head = ethernet.HEADER.pack(mac, addressing.gateway_mac, ethernet.ARP)
            request = arp.build(arp.REQUEST, addressing.gateway_mac, addressing.gateway, bytes(6), ip)
            self._counters.tx_frames += 1
            self._transmit(vnet_hdr.PLAIN + head + request, b"")
        else:
            payload = ip + ndp.link_layer(ndp.SOURCE_LINK_LAYER, addressing.gateway_mac)
            to = ipv6.solicited_node(ip) if everybody else ip
            self._output.icmp(to, icmpv6.NEIGHBOR_SOLICITATION, 0, 0, payload, addressing.router6)
