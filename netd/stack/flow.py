"""The flows that are not TCP connections: who talks to whom, and which host socket carries it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.stack.timers import NEVER
from netd.wire import icmpv4, icmpv6, ipv4, ipv6, udp

if TYPE_CHECKING:
    from netd.stack.headers import DatagramHeader
    from netd.stack.icmp import Icmp
    from netd.stack.ports import HostDatagrams, HostEcho, HostError
    from netd.stack.udp import UdpTable


class UdpFlow:
    """One guest endpoint and one peer, as the guest sees the peer (``remote``) and as the host does (``target``)."""

    __slots__ = (
        "address",  # the peer for the host side's sendto; the host side's own affair
        "deadline",
        "guest",
        "guest_port",
        "header",  # of the frames to the guest, made with the first one
        "hinted",
        "host",
        "idle",
        "key",
        "moves",  # ``Neighbors.moves`` when the header was made
        "remote",
        "remote_port",
        "table",
        "target",
        "target_port",
    )

    host: HostDatagrams | None
    address: Any

    def __init__(self, table: UdpTable, key: bytes, target: bytes, target_port: int, idle: float) -> None:
        self.table = table
        self.key = key
        size = len(key) - 4 >> 1
        self.guest, self.remote = key[:size], key[size : 2 * size]
        self.guest_port = key[-4] << 8 | key[-3]
        self.remote_port = key[-2] << 8 | key[-1]
        self.target, self.target_port = target, target_port
        self.idle = idle
        self.deadline = self.hinted = NEVER
        self.host = None
        self.header: DatagramHeader | None = None
        self.moves = 0
        self.address = None

    def to_guest(self, payload: bytes | memoryview, segment: int = 0, tos: int = 0) -> None:
        """A datagram from the peer, or with ``segment`` > 0 several of that size (UDP GRO); ``tos`` as it came."""
        self.table.to_guest(self, payload, segment, tos)

    def refused(self, error: HostError) -> None:
        """What the host was told of a datagram to the peer."""
        self.table.error_to_guest(self, error)

    def quote(self) -> bytes:
        """What an ICMP error quotes: the header of a datagram of this flow."""
        ports = udp.HEADER.pack(self.guest_port, self.remote_port, udp.SIZE, 0)
        build = ipv4.build if len(self.guest) == 4 else ipv6.build
        return build(self.guest, self.remote, ipv4.UDP, udp.SIZE) + ports

    def on_deadline(self, now: float) -> None:
        """Idle for too long."""
        self.table.expire(self)


class EchoFlow:
    """One guest's pings to one address under one identifier."""

    __slots__ = ("deadline", "guest", "hinted", "host", "icmp", "ident", "key", "remote")

    host: HostEcho

    def __init__(self, icmp: Icmp, key: bytes, guest: bytes, remote: bytes, ident: int) -> None:
        self.icmp = icmp
        self.key = key
        self.guest, self.remote = guest, remote
        self.ident = ident
        self.deadline = self.hinted = NEVER

    def to_guest(self, sequence: int, payload: bytes) -> None:
        """An echo reply from the outside."""
        self.icmp.reply_to_guest(self, sequence, payload)

    def refused(self, error: HostError, sequence: int = 0) -> None:
        """What the host was told of the request with that number."""
        self.icmp.error_to_guest(self, error, sequence)

    def quote(self, sequence: int) -> bytes:
        """What an ICMP error quotes: the header of a request of this flow."""
        guest, remote = self.guest, self.remote
        if len(guest) == 4:
            header = ipv4.build(guest, remote, ipv4.ICMP, icmpv4.SIZE)
            return header + icmpv4.build(icmpv4.ECHO_REQUEST, 0, self.ident, sequence, b"")
        header = ipv6.build(guest, remote, ipv6.ICMPV6, icmpv6.SIZE)
        rest = self.ident << 16 | sequence
        return header + icmpv6.build(guest, remote, icmpv6.ECHO_REQUEST, 0, rest, b"")

    def on_deadline(self, now: float) -> None:
        """Idle for too long."""
        self.icmp.expire(self)
