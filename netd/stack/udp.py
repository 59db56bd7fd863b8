"""UDP flows of one network: demultiplexing, opening, expiry, and the frames to the guest.

The guest's endpoint keeps one host port for all its peers, and whoever answers on it reaches the guest
(endpoint-independent mapping and filtering, RFC 4787 REQ-1 and REQ-8): what hole punching needs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Final

from netd.stack import policy
from netd.stack.addressing import Addressing, is_group, is_loopback
from netd.stack.counters import Counters
from netd.stack.flow import UdpFlow
from netd.stack.headers import datagram_header
from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors
from netd.stack.output import Output
from netd.stack.ports import ADMIN_PROHIBITED, Host, HostDatagrams, HostError, Services, Transmit
from netd.stack.timers import NEVER, Timers
from netd.wire import checksum, dns, ipv4, ipv6, udp

_unpack: Final[Callable[[memoryview, int], tuple[int, int, int, int]]] = udp.HEADER.unpack_from
_DHCPV4, _DHCPV6 = (67, 68), (547, 546)  # server and client, RFC 2131 §4.1, RFC 8415 §7.2
_SEGMENTS_MAX: Final = 128  # no kernel puts more datagrams into a super-frame (linux/udp.h)
_SUPER_MAX: Final = 65535 - ipv6.SIZE - udp.SIZE


class UdpTable:
    """``flows`` by key: the guest's source and destination address and ports as on the wire, 12 or 36 bytes."""

    served = True  # else flows are not opened for the guest

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        transmit: Transmit,
        output: Output,
        host: Host,
        limits: Limits,
        counters: Counters,
        timers: Timers,
        mtu: int,
        offload: bool,
        uso: bool,
        services: Services | None,
    ) -> None:
        self.flows: dict[bytes, UdpFlow] = {}
        self._addressing = addressing
        self._neighbors = neighbors
        self._transmit = transmit
        self._output = output
        self._host = host
        self._limits = limits
        self.counters = counters
        self._timers = timers
        self._fits = mtu - ipv4.SIZE - udp.SIZE
        self._fits6 = mtu - ipv6.SIZE - udp.SIZE
        self._offload = offload
        self._uso = uso and offload
        self._services = services

    # -- from the guest ------------------------------------------------------------------------------------------

    def from_guest(
        self, frame: memoryview, at: int, end: int, key: bytes, vouched: bool, segment: int, hops: int, now: float
    ) -> None:
        """The datagram at ``frame[at:end]`` of the flow ``key``; with ``segment`` > 0 several of that size. ``hops``:
        TTL << 8 | TOS."""
        counters = self.counters
        size = end - at
        if size < udp.SIZE:
            counters.drop_short += 1
            return
        _, dport, length, number = _unpack(frame, at)
        if segment:
            length = size  # the device's: RFC 768's field may be of the first datagram alone
            if size - udp.SIZE > segment * _SEGMENTS_MAX:
                counters.drop_bad_header += 1
                return
        elif length < udp.SIZE or length > size:
            counters.drop_bad_header += 1
            return
        if not vouched and (number or len(key) != 12):  # RFC 8200 §8.1: in IPv6 it is not optional
            pseudo = checksum.pseudo(key[:-4], b"", ipv4.UDP, length)
            if not number or not checksum.valid(pseudo + checksum.total(frame[at : at + length])):
                counters.drop_bad_checksum += 1
                return
        payload = frame[at + udp.SIZE : at + length]
        flow = self.flows.get(key)
        if flow is None:
            flow = self._open(frame, at, key, dport)
            if flow is None:
                return
        flow.deadline = now + flow.idle
        if flow.deadline < flow.hinted:
            self._timers.arm(flow, flow.deadline)
        if flow.host is not None:
            flow.host.send(flow, payload, hops, segment)
        elif segment:
            for start in range(0, len(payload) or 1, segment):
                self._host.resolve(flow, payload[start : start + segment])
        else:
            self._host.resolve(flow, payload)

    def _open(self, frame: memoryview, at: int, key: bytes, dport: int) -> UdpFlow | None:
        counters = self.counters
        if not self.served:
            counters.drop_not_served += 1
            return None
        half = len(key) - 4 >> 1
        guest, dst = key[:half], key[half:-4]
        target = policy.decide(self._addressing, dst, dport)
        if target.kind == policy.DROP:
            if is_group(dst):
                counters.drop_group += 1
            else:
                counters.drop_martian += 1
            return None
        if target.kind == policy.REFUSE or target.port != dns.PORT:  # DNS over TLS is TCP's (RFC 7858)
            self._output.unreachable(guest, target.reason, bytes(frame[14 : at + 8]))
            return None
        idle = self._limits.udp_idle_dns if dport == dns.PORT else self._limits.udp_idle
        flow = UdpFlow(self, key, target.ip, dport, idle)
        if target.kind != policy.RESOLVER:
            flow.host = self._host.open_datagrams(flow)
            if flow.host is None:
                counters.drop_udp_host += 1
                self._output.unreachable(guest, ADMIN_PROHIBITED, bytes(frame[14 : at + 8]))
                return None
        self._make_room()
        self.flows[key] = flow
        counters.udp_opened += 1
        return flow

    def dhcp(self, frame: memoryview, at: int, end: int, key: bytes, now: float) -> bool:
        """A datagram to a DHCP server's port: True where it is for the one on this link, and so done with.

        Its checksum is not looked at: clients send through packet sockets before they have an address.
        """
        half = len(key) - 4 >> 1
        dst = key[half:-4]
        if half == 4:
            if dst not in (self._addressing.gateway, ipv4.BROADCAST, self._addressing.broadcast):
                return False
        elif dst != ipv6.ALL_DHCP_AGENTS:
            return False
        elif not self._addressing.may_be_guest(key[:16]):
            self.counters.drop_martian += 1  # RFC 8415 §18.2: a client has a link-local address first
            return True
        length = _unpack(frame, at)[2] if end - at >= udp.SIZE else 0
        if length < udp.SIZE or length > end - at:
            self.counters.drop_bad_header += 1
            return True
        message = bytes(frame[at + udp.SIZE : at + length])
        mac = bytes(frame[6:12])
        services = self._services
        if services is None:
            self.counters.drop_dhcp += 1
        elif half == 4:
            answer = services.dhcpv4(message, mac, now)
            if answer is not None:
                self._answer_dhcp(self._addressing.gateway, answer[1], mac, _DHCPV4, answer[0])
        else:
            reply = services.dhcpv6(message, now)
            if reply is not None:
                self._answer_dhcp(self._addressing.router6, key[:16], mac, _DHCPV6, reply)
        return True

    def _answer_dhcp(self, src: bytes, dst: bytes, mac: bytes, ports: tuple[int, int], message: bytes) -> None:
        self.counters.dhcp_answered += 1
        if self._addressing.may_be_guest(dst):
            self._neighbors.learn(dst, mac)
        self._output.udp(src, dst, *ports, message)

    def _make_room(self) -> None:
        """At the bound the oldest flow goes. Call with the new flow's host side open: that may be the old one's."""
        if len(self.flows) >= self._limits.udp_flows:
            self.counters.udp_evicted += 1
            self.expire(next(iter(self.flows.values())))

    # -- from the host -------------------------------------------------------------------------------------------

    def remote_seen(self, ip: bytes) -> bytes | None:
        """How the guest sees the host-side peer ``ip``; None for loopback where it may not talk to that."""
        addressing = self._addressing
        if is_loopback(ip) and not (addressing.loopback if len(ip) == 4 else addressing.loopback6):
            return None
        return addressing.seen_as(ip, len(ip))

    def from_host(
        self,
        guest: bytes,
        guest_port: int,
        ip: bytes,
        port: int,
        host: HostDatagrams,
        payload: memoryview,
        now: float,
        segment: int = 0,
        tos: int = 0,
    ) -> None:
        """A datagram from ``ip``:``port`` for the socket of the guest's endpoint, or with ``segment`` > 0 several of
        that size (UDP GRO)."""
        remote = self.remote_seen(ip)
        if remote is None:
            self.counters.drop_udp_host += 1
            return
        key = guest + remote + guest_port.to_bytes(2, "big") + port.to_bytes(2, "big")
        flow = self.flows.get(key)
        if flow is None:
            flow = self._adopt(key, ip, port, host)
        flow.deadline = now + flow.idle
        if flow.deadline < flow.hinted:
            self._timers.arm(flow, flow.deadline)
        self.to_guest(flow, payload, segment, tos)

    def _adopt(self, key: bytes, ip: bytes, port: int, host: HostDatagrams) -> UdpFlow:
        idle = self._limits.udp_idle_dns if port == dns.PORT else self._limits.udp_idle
        flow = UdpFlow(self, key, ip, port, idle)
        flow.host = host
        host.adopt(flow)
        self._make_room()
        self.flows[key] = flow
        self.counters.udp_opened += 1
        return flow

    def from_forward(
        self, guest: bytes, guest_port: int, ip: bytes, port: int, host: HostDatagrams, now: float
    ) -> UdpFlow:
        """The flow for a client ``ip``:``port`` of a published port; a loopback client, or one of the other family,
        appears as the gateway.

        Where that key is another host socket's already, a free port of the gateway's stands for the client.
        """
        addressing = self._addressing
        remote = addressing.seen_as(ip, len(guest))
        for seen in chain((port,), range(61000, 65535)):
            key = guest + remote + guest_port.to_bytes(2, "big") + seen.to_bytes(2, "big")
            flow = self.flows.get(key)
            if flow is None or (flow.host is host and flow.target == ip and flow.target_port == port):
                break
        else:
            self.expire(self.flows[key])  # every name is taken: the last one changes hands
            flow = None
        if flow is None:
            flow = self._adopt(key, ip, port, host)
        self._timers.arm(flow, now + flow.idle)
        return flow

    def to_guest(self, flow: UdpFlow, payload: bytes | memoryview, segment: int = 0, tos: int = 0) -> None:
        """One datagram to the guest, as from ``flow.remote``; several where ``segment`` says their size."""
        size = len(payload)
        if segment >= size:
            segment = 0
        fits = self._fits if len(flow.guest) == 4 else self._fits6
        if segment and (not self._uso or segment > fits or size > _SUPER_MAX):
            for start in range(0, size, segment):
                self.to_guest(flow, payload[start : start + segment], 0, tos)
            return
        if size > fits and not segment:
            self._output.udp(flow.remote, flow.guest, flow.remote_port, flow.guest_port, bytes(payload), tos=tos)
            return
        header = flow.header
        if header is None or flow.moves != self._neighbors.moves:
            flow.moves = self._neighbors.moves
            mac, src_mac = self._neighbors.mac_of(flow.guest), self._addressing.mac_of(flow.remote)
            ports = flow.key[-2:] + flow.key[-4:-2]
            header = flow.header = datagram_header(self._offload, mac, src_mac, flow.remote, flow.guest, ports)
        counters = self.counters
        counters.tx_frames += 1
        counters.tx_bytes += size
        self._transmit(header.pack(payload, tos, segment), payload)

    def host_error(self, guest: bytes, guest_port: int, ip: bytes, port: int, error: HostError) -> None:
        """What the host was told of a datagram of the guest's endpoint to ``ip``:``port``."""
        remote = self.remote_seen(ip)
        if remote is not None:
            flow = self.flows.get(guest + remote + guest_port.to_bytes(2, "big") + port.to_bytes(2, "big"))
            if flow is not None:
                self.error_to_guest(flow, error)

    def error_to_guest(self, flow: UdpFlow, error: HostError) -> None:
        """The ICMP error for a datagram of this flow."""
        self._output.error(flow.guest, error, flow.quote())

    # -- ends ----------------------------------------------------------------------------------------------------

    def expire(self, flow: UdpFlow) -> None:
        """Forget the flow; its endpoint's socket goes with the last one."""
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
            flow.deadline = NEVER
            if flow.host is not None:
                flow.host.release(flow)

    def close(self) -> None:
        """The network ends."""
        for flow in list(self.flows.values()):
            self.expire(flow)
