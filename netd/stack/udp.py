"""UDP flows of one network: demultiplexing, opening, expiry, and the frames to the guest.

The guest's endpoint keeps one host port for all its peers, and whoever answers on it reaches the guest
(endpoint-independent mapping and filtering, RFC 4787 REQ-1 and REQ-8): what hole punching needs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from netd.stack import icmp, policy
from netd.stack.addressing import Addressing, is_loopback
from netd.stack.counters import Counters
from netd.stack.flow import UdpFlow
from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors
from netd.stack.ports import Host, HostDatagrams, HostError, Transmit
from netd.stack.timers import NEVER, Timers
from netd.wire import checksum, dns, ethernet, icmpv4, ipv4, udp

_unpack = udp.HEADER.unpack_from
_UDP_AT = ethernet.SIZE + ipv4.SIZE


class UdpTable:
    """``flows`` by key: the guest's source and destination address and ports, 12 bytes as on the wire."""

    def __init__(
        self,
        addressing: Addressing,
        neighbors: Neighbors,
        transmit: Transmit,
        send_icmp: Callable[[bytes, bytes, bytes], None],
        host: Host,
        limits: Limits,
        counters: Counters,
        timers: Timers,
        mtu: int,
        offload: bool,
        allow_host_loopback: bool,
    ) -> None:
        self.flows: dict[bytes, UdpFlow] = {}
        self._addressing = addressing
        self._neighbors = neighbors
        self._transmit = transmit
        self._send_icmp = send_icmp
        self._host = host
        self._limits = limits
        self.counters = counters
        self._timers = timers
        self._max_payload = mtu - ipv4.SIZE - udp.SIZE
        self._offload = offload
        self._allow_host_loopback = allow_host_loopback

    # -- from the guest ------------------------------------------------------------------------------------------

    def from_guest(self, frame: memoryview, at: int, end: int, key: bytes, vouched: bool, now: float) -> None:
        """The datagram at ``frame[at:end]`` of the flow ``key``."""
        counters = self.counters
        size = end - at
        if size < udp.SIZE:
            counters.drop_short += 1
            return
        _, dport, length, number = _unpack(frame, at)
        if length < udp.SIZE or length > size:
            counters.drop_bad_header += 1
            return
        if not vouched and number:
            pseudo = checksum.pseudo_ipv4(key[:4], key[4:8], ipv4.UDP, length)
            if not checksum.valid(pseudo + checksum.total(frame[at : at + length])):
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
        if flow.host is None:
            self._host.resolve(flow, payload)
        else:
            flow.host.send(flow, payload, frame[22] << 8 | frame[15], 0)

    def _open(self, frame: memoryview, at: int, key: bytes, dport: int) -> UdpFlow | None:
        counters = self.counters
        dst = key[4:8]
        target = policy.decide(self._addressing, self._allow_host_loopback, dst, dport)
        if target.kind == policy.DROP:
            if dst[0] >= 224:
                counters.drop_group += 1
            else:
                counters.drop_martian += 1
            return None
        if target.kind == policy.REFUSE:
            self._send_icmp(key[:4], icmp.unreachable(target.code, bytes(frame[14 : at + 8])), b"")
            return None
        idle = self._limits.udp_idle_dns if dport == dns.PORT else self._limits.udp_idle
        flow = UdpFlow(self, key, target.ip, dport, idle)
        if target.kind != policy.RESOLVER:
            flow.host = self._host.open_datagrams(flow)
            if flow.host is None:
                counters.drop_udp_host += 1
                self._send_icmp(key[:4], icmp.unreachable(icmpv4.ADMIN_PROHIBITED, bytes(frame[14 : at + 8])), b"")
                return None
        self._make_room()
        self.flows[key] = flow
        counters.udp_opened += 1
        return flow

    def _make_room(self) -> None:
        """At the bound the oldest flow goes. Call with the new flow's host side open: that may be the old one's."""
        if len(self.flows) >= self._limits.udp_flows:
            self.counters.udp_evicted += 1
            self.expire(next(iter(self.flows.values())))

    # -- from the host -------------------------------------------------------------------------------------------

    def remote_seen(self, ip: bytes) -> bytes | None:
        """How the guest sees the host-side peer ``ip``: loopback and the link's own addresses as the gateway.

        None for loopback where the guest may not talk to it.
        """
        addressing = self._addressing
        if is_loopback(ip):
            return addressing.gateway if self._allow_host_loopback else None
        return addressing.gateway if addressing.on_link(ip) else ip

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
        """The flow for a client ``ip``:``port`` of a published port; a loopback client appears as the gateway.

        Where that key is another host socket's already, a free port of the gateway's stands for the client.
        """
        addressing = self._addressing
        outside = not (is_loopback(ip) or addressing.on_link(ip))
        remote = ip if outside else addressing.gateway
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
        if 0 < segment < size:
            for start in range(0, size, segment):
                self.to_guest(flow, payload[start : start + segment], 0, tos)
            return
        counters = self.counters
        if size > self._max_payload:
            counters.drop_udp_too_big += 1
            return
        addressing = self._addressing
        src, dst = flow.remote, flow.guest
        src_mac = addressing.dns_mac if src == addressing.dns else addressing.gateway_mac
        length = size + udp.SIZE
        pseudo = checksum.pseudo_ipv4(src, dst, ipv4.UDP, length)
        header = ethernet.HEADER.pack(self._neighbors.mac_of(dst), src_mac, ethernet.IPV4)
        header += ipv4.build(src, dst, ipv4.UDP, length)
        counters.tx_frames += 1
        counters.tx_bytes += size
        if self._offload:
            header += udp.HEADER.pack(flow.remote_port, flow.guest_port, length, pseudo)
            self._transmit(header, payload, _UDP_AT, udp.CHECKSUM_OFFSET, 0)
        else:
            words = flow.remote_port + flow.guest_port + length
            number = checksum.finish(pseudo + words + checksum.total(payload))
            header += udp.HEADER.pack(flow.remote_port, flow.guest_port, length, number)
            self._transmit(header, payload, 0, 0, 0)

    def host_error(self, guest: bytes, guest_port: int, ip: bytes, port: int, error: HostError) -> None:
        """What the host was told of a datagram of the guest's endpoint to ``ip``:``port``."""
        remote = self.remote_seen(ip)
        if remote is not None:
            flow = self.flows.get(guest + remote + guest_port.to_bytes(2, "big") + port.to_bytes(2, "big"))
            if flow is not None:
                self.error_to_guest(flow, error)

    def error_to_guest(self, flow: UdpFlow, error: HostError) -> None:
        """The ICMP error for a datagram of this flow."""
        self._send_icmp(flow.guest, icmp.error(error, flow.quote()), error.offender)

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
