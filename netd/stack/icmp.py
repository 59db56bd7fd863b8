"""ICMP for IPv4: the gateway's own echo answers, echo flows to the outside, errors to the guest."""

from __future__ import annotations

from collections.abc import Callable

from netd.stack import policy
from netd.stack.addressing import Addressing
from netd.stack.counters import Counters
from netd.stack.flow import EchoFlow
from netd.stack.limits import Limits
from netd.stack.ports import Host, HostError
from netd.stack.timers import Timers
from netd.wire import checksum, icmpv4


def unreachable(code: int, quote: bytes) -> bytes:
    """Destination unreachable for the datagram that begins with ``quote`` (its IP header and 8 bytes, RFC 792)."""
    return icmpv4.build(icmpv4.DEST_UNREACHABLE, code, 0, 0, quote)


def error(error: HostError, quote: bytes) -> bytes:
    """The ICMP error that says what the host was told (RFC 792; RFC 1191 §4 for the MTU)."""
    return icmpv4.build(error.type, error.code, 0, min(error.info, 0xFFFF), quote)


class Icmp:
    """Echo requests of the guest. ``send_icmp(dst, message, src)`` puts a message on the link."""

    def __init__(
        self,
        addressing: Addressing,
        send_icmp: Callable[[bytes, bytes, bytes], None],
        host: Host,
        limits: Limits,
        counters: Counters,
        timers: Timers,
        allow_host_loopback: bool,
    ) -> None:
        self.flows: dict[bytes, EchoFlow] = {}
        self._addressing = addressing
        self._send_icmp = send_icmp
        self._host = host
        self._limits = limits
        self._counters = counters
        self._timers = timers
        self._allow_host_loopback = allow_host_loopback

    def from_guest(self, frame: memoryview, at: int, end: int, src: bytes, dst: bytes, now: float) -> None:
        """The ICMP message at ``frame[at:end]``."""
        counters = self._counters
        if end - at < icmpv4.SIZE:
            counters.drop_short += 1
            return
        message = frame[at:end]
        if not checksum.valid(checksum.total(message)):
            counters.drop_bad_checksum += 1
            return
        type_, code, _, ident, sequence = icmpv4.HEADER.unpack_from(message)
        if type_ != icmpv4.ECHO_REQUEST or code:
            counters.drop_icmp += 1
            return
        payload = message[icmpv4.SIZE :]
        addressing = self._addressing
        if dst in (addressing.gateway, addressing.dns):
            self._send_icmp(src, icmpv4.build(icmpv4.ECHO_REPLY, 0, ident, sequence, payload), dst)
            return
        target = policy.decide(addressing, self._allow_host_loopback, dst, 0)
        if target.kind == policy.DROP:
            counters.drop_martian += 1
            return
        quote = bytes(frame[14 : at + 8])
        if target.kind != policy.DIRECT:
            self._send_icmp(src, unreachable(target.code, quote), addressing.gateway)
            return
        key = src + dst + ident.to_bytes(2, "big")
        flow = self.flows.get(key)
        if flow is None:
            if len(self.flows) >= self._limits.echo_flows:
                counters.drop_echo_limit += 1
                return
            flow = EchoFlow(self, key, src, dst, ident)
            socket = self._host.open_echo(flow)
            if isinstance(socket, int):
                counters.drop_echo_refused += 1
                self._send_icmp(src, unreachable(socket, quote), addressing.gateway)
                return
            flow.host = socket
            self.flows[key] = flow
        self._timers.arm(flow, now + self._limits.echo_idle)
        flow.host.send(flow, sequence, payload, frame[22] << 8 | frame[15])

    def reply_to_guest(self, flow: EchoFlow, sequence: int, payload: bytes) -> None:
        """An echo reply came back."""
        self._send_icmp(flow.guest, icmpv4.build(icmpv4.ECHO_REPLY, 0, flow.ident, sequence, payload), flow.remote)

    def error_to_guest(self, flow: EchoFlow, reason: HostError, sequence: int) -> None:
        """What the host was told of a request, or why it could not be sent."""
        message = error(reason, flow.quote(sequence))
        self._send_icmp(flow.guest, message, reason.offender or self._addressing.gateway)

    def expire(self, flow: EchoFlow) -> None:
        """The flow's time is over."""
        if self.flows.pop(flow.key, None) is not None:
            flow.host.close()

    def close(self) -> None:
        """The network ends."""
        for flow in list(self.flows.values()):
            self.expire(flow)
