"""Neighbor discovery (RFC 4861): who answers for our addresses, and the router that guests configure themselves by.

The prefix is advertised for ever (it is the network's own), the router for half an hour, renewed every ten minutes.
"""

from __future__ import annotations

from typing import Final

from netd.stack.addressing import Addressing, is_link_local
from netd.stack.counters import Counters
from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors
from netd.stack.output import Output
from netd.stack.timers import NEVER, Timers
from netd.wire import icmpv6, ipv6, ndp

INFINITE: Final = 0xFFFFFFFF  # RFC 4861 §4.6.2
ROUTER_LIFETIME: Final = 1800  # seconds
TYPES: Final = frozenset(range(icmpv6.ROUTER_SOLICITATION, icmpv6.NEIGHBOR_ADVERTISEMENT + 1)) | {137}
_TARGET_END: Final = icmpv6.SIZE + 16


class Ndp:
    """Our half of the link's neighbor discovery.

    ``served``: else nothing is heard or said; ``router``: whether we advertise ourselves as one.
    """

    served = True
    router = True

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        output: Output,
        limits: Limits,
        counters: Counters,
        timers: Timers,
        mtu: int,
    ) -> None:
        self._addressing = addressing
        self._neighbors = neighbors
        self._output = output
        self._limits = limits
        self._counters = counters
        self._timers = timers
        prefix = addressing.network6.to_bytes(16, "big")
        if is_link_local(prefix):
            prefix = b""  # a host-like link of a host without IPv6
        length = addressing.mask6.bit_count()
        self._advertisement = ndp.router_advertisement(
            addressing.gateway_mac,
            prefix,
            length,
            INFINITE,
            INFINITE,
            max(mtu, ipv6.MTU_MIN),
            addressing.rdnss or (addressing.dns6 if addressing.advertise_dns else b""),
            ROUTER_LIFETIME,
        )
        self.deadline = self.hinted = NEVER

    def start(self, now: float) -> None:
        """The link is up: say who we are, and ask who the guest is."""
        if not self.served:
            return
        if self.router:
            self._advertise(ipv6.ALL_NODES)
            self._timers.arm(self, now + self._limits.advertise)
        guest = self._addressing.guest6
        if guest:
            payload = guest + ndp.link_layer(ndp.SOURCE_LINK_LAYER, self._addressing.gateway_mac)
            group = ipv6.solicited_node(guest)
            self._output.icmp(group, icmpv6.NEIGHBOR_SOLICITATION, 0, 0, payload, self._addressing.router6)

    def on_deadline(self, now: float) -> None:
        """Time to advertise again (RFC 4861 §6.2.4)."""
        self._advertise(ipv6.ALL_NODES)
        self._timers.arm(self, now + self._limits.advertise)

    def _advertise(self, dst: bytes) -> None:
        rest = 64 << 24 | ndp.OTHER | ROUTER_LIFETIME
        src = self._addressing.router6
        self._output.icmp(dst, icmpv6.ROUTER_ADVERTISEMENT, 0, rest, self._advertisement, src)

    def from_guest(self, frame: memoryview, at: int, end: int, src: bytes, dst: bytes) -> None:
        """A message of one of ``TYPES`` at ``frame[at:end]``, its checksum verified."""
        hop_limit, type_, code = frame[21], frame[at], frame[at + 1]
        if hop_limit != ndp.HOP_LIMIT or code:
            self._counters.drop_ndp += 1
            return
        if not self.served or (type_ == icmpv6.ROUTER_SOLICITATION and not self.router):
            self._counters.drop_not_served += 1
            return
        if type_ == icmpv6.ROUTER_SOLICITATION:
            self._solicited(frame[at + icmpv6.SIZE : end], src, bytes(frame[6:12]))
        elif type_ == icmpv6.NEIGHBOR_SOLICITATION and end - at >= _TARGET_END:
            target = bytes(frame[at + icmpv6.SIZE : at + _TARGET_END])
            self._asked(target, frame[at + _TARGET_END : end], src, dst, bytes(frame[6:12]))
        elif type_ == icmpv6.NEIGHBOR_ADVERTISEMENT and end - at >= _TARGET_END:
            target = bytes(frame[at + icmpv6.SIZE : at + _TARGET_END])
            self._told(target, frame[at + _TARGET_END : end])
        else:
            self._counters.drop_ndp += 1  # a guest is no router here: advertisements and redirects are not heard

    def _solicited(self, options: memoryview, src: bytes, mac: bytes) -> None:
        found = ndp.options(options)
        if found is None or (src == ipv6.UNSPECIFIED and ndp.SOURCE_LINK_LAYER in found):
            self._counters.drop_ndp += 1  # RFC 4861 §6.1.1
            return
        if src == ipv6.UNSPECIFIED:
            self._advertise(ipv6.ALL_NODES)
        elif self._addressing.may_be_guest(src):
            self._neighbors.learn(src, found.get(ndp.SOURCE_LINK_LAYER, mac)[:6])
            self._advertise(src)
        else:
            self._counters.drop_martian += 1

    def _asked(self, target: bytes, options: memoryview, src: bytes, dst: bytes, mac: bytes) -> None:
        found = ndp.options(options)
        if found is None or target[0] == 0xFF:
            self._counters.drop_ndp += 1  # RFC 4861 §7.1.1
            return
        if src == ipv6.UNSPECIFIED:  # duplicate address detection, RFC 4862 §5.4
            if ndp.SOURCE_LINK_LAYER in found or dst[0] != 0xFF:
                self._counters.drop_ndp += 1
            elif self._addressing.ours(target):
                self._answer(target, ipv6.ALL_NODES, ndp.ROUTER | ndp.OVERRIDE)
            elif self._addressing.may_be_guest(target):
                self._neighbors.learn(target, mac)  # about to be the guest's
            else:
                self._counters.drop_ndp += 1
            return
        if not self._addressing.may_be_guest(src):
            self._counters.drop_martian += 1
            return
        self._neighbors.learn(src, found.get(ndp.SOURCE_LINK_LAYER, mac)[:6])
        if self._addressing.answers_for(target):
            self._answer(target, src, ndp.ROUTER | ndp.SOLICITED | ndp.OVERRIDE)
        else:
            self._counters.drop_ndp += 1  # nobody else is on the link

    def _told(self, target: bytes, options: memoryview) -> None:
        mac = (ndp.options(options) or {}).get(ndp.TARGET_LINK_LAYER)
        if mac is not None and not mac[0] & 1 and self._addressing.may_be_guest(target):
            self._neighbors.learn(target, mac[:6])
        else:
            self._counters.drop_ndp += 1

    def _answer(self, target: bytes, dst: bytes, flags: int) -> None:
        payload = target + ndp.link_layer(ndp.TARGET_LINK_LAYER, self._addressing.mac_of(target))
        self._output.icmp(dst, icmpv6.NEIGHBOR_ADVERTISEMENT, 0, flags, payload, target)
