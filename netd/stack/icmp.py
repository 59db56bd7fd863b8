"""Echo of both families: the gateway's own answers, and flows to the outside."""

from __future__ import annotations

from netd.stack import policy
from netd.stack.addressing import Addressing
from netd.stack.counters import Counters
from netd.stack.flow import EchoFlow
from netd.stack.limits import Limits
from netd.stack.output import Output
from netd.stack.ports import Host, HostError
from netd.stack.timers import Timers
from netd.wire import checksum, icmpv4, icmpv6, ipv6


class Icmp:
    """ICMP messages of the guest that are no neighbor discovery: echo requests are served, all else is counted."""

    served = True  # else requests are not answered

    def __init__(
        self,
        addressing: Addressing,
        output: Output,
        host: Host,
        limits: Limits,
        counters: Counters,
        timers: Timers,
    ) -> None:
        self.flows: dict[bytes, EchoFlow] = {}
        self._addressing = addressing
        self._output = output
        self._host = host
        self._limits = limits
        self._counters = counters
        self._timers = timers

    def from_guest(self, frame: memoryview, at: int, end: int, src: bytes, dst: bytes, hops: int, now: float) -> None:
        """The ICMP message at ``frame[at:end]``; ``hops`` as in ``ports.HostDatagrams``."""
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
        self._request(src, dst, ident, sequence, message[icmpv4.SIZE :], bytes(frame[14 : at + 8]), hops, now)

    def from_guest6(self, frame: memoryview, at: int, end: int, src: bytes, dst: bytes, hops: int, now: float) -> None:
        """The ICMPv6 message at ``frame[at:end]``, its checksum verified."""
        type_, code, _, rest = icmpv6.HEADER.unpack_from(frame, at)
        if type_ != icmpv6.ECHO_REQUEST or code:
            self._counters.drop_icmp += 1
            return
        self._request(
            src, dst, rest >> 16, rest & 0xFFFF, frame[at + icmpv6.SIZE : end], bytes(frame[14:end]), hops, now
        )

    def _request(
        self,
        src: bytes,
        dst: bytes,
        ident: int,
        sequence: int,
        payload: memoryview,
        quote: bytes,
        hops: int,
        now: float,
    ) -> None:
        addressing, counters = self._addressing, self._counters
        if not self.served:
            counters.drop_not_served += 1
            return
        if addressing.ours(dst):
            self._reply(src, dst, ident, sequence, payload)
            return
        if dst == ipv6.ALL_NODES:  # RFC 4443 §4.2
            self._reply(src, addressing.router6, ident, sequence, payload)
            return
        target = policy.decide(addressing, dst, 0)
        if target.kind == policy.DROP:
            counters.drop_martian += 1
            return
        if target.kind != policy.DIRECT:
            self._output.unreachable(src, target.reason, quote)
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
                self._output.unreachable(src, socket, quote)
                return
            flow.host = socket
            self.flows[key] = flow
        self._timers.arm(flow, now + self._limits.echo_idle)
        flow.host.send(flow, sequence, payload, hops)

    def _reply(self, guest: bytes, src: bytes, ident: int, sequence: int, payload: bytes | memoryview) -> None:
        type_ = icmpv4.ECHO_REPLY if len(guest) == 4 else icmpv6.ECHO_REPLY
        self._output.icmp(guest, type_, 0, ident << 16 | sequence, payload, src)

    def reply_to_guest(self, flow: EchoFlow, sequence: int, payload: bytes) -> None:
        """An echo reply came back."""
        self._reply(flow.guest, flow.remote, flow.ident, sequence, payload)

    def error_to_guest(self, flow: EchoFlow, error: HostError, sequence: int) -> None:
        """What the host was told of a request, or why it could not be sent."""
        self._output.error(flow.guest, error, flow.quote(sequence))

    def expire(self, flow: EchoFlow) -> None:
        """The flow's time is over."""
        if self.flows.pop(flow.key, None) is not None:
            flow.host.close()

    def close(self) -> None:
        """The network ends."""
        for flow in list(self.flows.values()):
            self.expire(flow)
