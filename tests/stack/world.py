"""A stage for one interface: a clock that jumps, a wire that checks every frame, a host and a guest.

``World.check`` holds what must be true after every event; ``World.ends`` what must be true when all is over.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from wire import oracle

from netd.stack.addressing import Addressing
from netd.stack.interface import Interface
from netd.stack.limits import Limits
from netd.stack.ports import Services
from netd.stack.tcp.connection import Connection
from netd.stack.tcp.sender import CHUNK_COST, DEFERRED, DUE
from netd.stack.tcp.states import CLOSED, CONNECTING, FIN_WAIT_2, LAST_ACK, SYN_RECEIVED, SYN_SENT, TIME_WAIT
from netd.stack.timers import NEVER, Timed

from .cast import Cast, ip, ip6
from .host import FakeHost, FakeStream

__all__ = ["World", "ip", "ip6"]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


GUEST = ip("10.0.2.100")
GATEWAY = ip("10.0.2.2")
DNS = ip("10.0.2.3")
WEB = ip("93.184.216.34")
GUEST_MAC = mac("02:00:00:00:00:64")
GATEWAY_MAC = mac("52:55:0a:00:02:02")
DNS_MAC = mac("52:55:0a:00:02:03")
GUEST6, GATEWAY6, DNS6 = map(Cast(6).real, (GUEST, GATEWAY, DNS))
ROUTER6 = ip6("fe80::2")
WEB6 = Cast(6).real(WEB)

ADDRESSING = Addressing(
    guest=GUEST,
    gateway=GATEWAY,
    dns=DNS,
    network=int.from_bytes(ip("10.0.2.0"), "big"),
    mask=0xFFFFFF00,
    gateway_mac=GATEWAY_MAC,
    dns_mac=DNS_MAC,
    guest_mac=GUEST_MAC,
    guest6=GUEST6,
    gateway6=GATEWAY6,
    dns6=DNS6,
    router6=ROUTER6,
    network6=int.from_bytes(ip6("fd00::"), "big"),
    mask6=((1 << 64) - 1) << 64,
)
ONLY4 = replace(ADDRESSING, guest6=b"", gateway6=b"", dns6=b"", router6=b"", network6=0, mask6=0)
MTU = {4: 1500, 6: 1520}
"""So that in both families a segment carries the same number of bytes, and a datagram, too."""


@dataclass(frozen=True)
class Sent:
    """A frame the stack put on the wire: completed as the device would, read by the oracle."""

    frame: bytes
    packet: oracle.Packet | None  # None: ARP
    data: bytes  # layer 4, checksum finished
    gso_size: int


class World:
    """One network without sockets or devices."""

    def __init__(
        self,
        *,
        offload: bool = True,
        mtu: int = 0,
        loopback: bool = False,
        without: frozenset[str] = frozenset(),
        limits: Limits | None = None,
        start: float = 1000.0,
        addressing: Addressing = ADDRESSING,
        secret: bytes = b"0123456789abcdef",
        uso: bool = False,
        services: Services | None = None,
        family: int = 4,
    ) -> None:
        """``family``: in which the script is played."""
        self.cast = Cast(family)
        self.now = start
        self.offload = offload
        self.mtu = mtu = mtu or MTU[family]
        self.limits = limits or Limits()
        self.host = FakeHost(self)
        self.sent: deque[Sent] = deque()
        self.asked: deque[Sent] = deque()  # where is the guest? Apart from the scripts of connections
        self.deaf = False  # the device takes nothing
        self.batching = False
        self.patient = False  # connections begin as they do, with deferred ACKs
        if loopback:
            addressing = replace(addressing, loopback=addressing.gateway, loopback6=addressing.gateway6)
        self.interface = Interface(
            addressing, self.transmit, self.host, self.limits, mtu, offload, secret, uso, services, without
        )
        self.counters = self.interface.counters
        self.frames_in = 0

    # -- the wire ------------------------------------------------------------------------------------------------

    def transmit(self, header: bytes | bytearray | memoryview, payload: bytes | bytearray | memoryview) -> bool:
        """Every frame must be one that a device and a kernel take."""
        flags, kind, hdr_len, gso_size, checksum_at, checksum_offset = struct.unpack_from("=BBHHHH", header)
        frame = bytes(header)[10:] + bytes(payload)
        assert self.offload or not any(bytes(header)[:10]), "no offload on this link"
        assert flags in (0, 1) and bool(kind) == bool(gso_size) == bool(hdr_len)
        if frame[12:14] == b"\x08\x06":
            oracle.read_arp(frame)
            sent = Sent(frame, None, b"", 0)
        else:
            packet = oracle.read_ip(frame)
            data = packet.payload
            ip_size = 20 if len(packet.src) == 4 else 40
            if checksum_at:
                assert flags == 1 and checksum_at == 14 + ip_size, "layer 4 begins behind the IP header"
                assert checksum_offset == {6: 16, 17: 6}[packet.protocol]
                data = oracle.complete(packet, checksum_offset)
            if gso_size:
                kinds = {(6, 20): 1, (6, 40): 4, (17, 20): 5, (17, 40): 5}
                assert kind == kinds[packet.protocol, ip_size] and checksum_at
                l4_size = 20 if packet.protocol == 6 else 8
                assert hdr_len == len(header) - 10 == 14 + ip_size + l4_size
                assert len(payload) > gso_size, "a super-frame is more than one segment"
                assert ip_size + l4_size + gso_size <= self.mtu and len(packet.payload) + ip_size <= 65535
            else:
                assert len(packet.payload) + ip_size <= self.mtu, "larger than the link's MTU"
            sent = Sent(frame, packet, data, gso_size)
        if self.deaf:
            return False
        packet = sent.packet  # ARP, or a neighbor solicitation
        question = packet is None or (packet.protocol == 58 and sent.data[0] == 135)
        if question and self.interface.neighbors.doubted:
            self.asked.append(sent)
            return True
        self.sent.append(sent)
        return True

    def receive(self, frame: bytes, vouched: bool | None = None, segment: int = 0) -> None:
        """One frame from the guest; its buffer is overwritten afterwards, as the device's next read would."""
        buffer = bytearray(frame)
        view = memoryview(buffer)
        self.frames_in += 1
        self.interface.from_guest(view, self.offload if vouched is None else vouched, segment, self.now)
        view.release()
        buffer[:] = b"\xaa" * len(buffer)
        buffer += b"\xaa"  # BufferError: a view of the frame was kept
        if not self.batching:
            self.flush()

    def hurries(self, stream: FakeStream) -> None:
        """From now on the connection has taken no turns: its ACKs are immediate, as scripts that are about something
        else have them."""
        connection = stream.connection
        assert isinstance(connection, Connection)
        connection.interactive = self.patient

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Frames of one read of the device: the end of the batch comes once."""
        self.batching = True
        yield
        self.batching = False
        self.flush()

    def flush(self) -> None:
        """The end of an event."""
        if not self.batching:
            self.interface.flush()
            self.check()

    # -- time ----------------------------------------------------------------------------------------------------

    def jump(self) -> float:
        """To the next deadline, waking the stack whenever it asks to be; how long that was."""
        before = self.now
        deadline = min((owner.deadline for owner in self.owners()), default=NEVER)
        assert deadline != NEVER, "nothing is waited for"
        while self.interface.poll_at() <= deadline:
            self.wake()
        assert self.now >= deadline
        return self.now - before

    def wake(self) -> None:
        """To when the stack wants to be woken next, which may be early."""
        self.now = max(self.now, self.interface.poll_at())
        self.interface.poll(self.now)
        self.flush()

    def owners(self) -> Iterator[Timed]:
        """Who may wait for something."""
        yield from self.interface.tcp.connections.values()
        yield self.interface.tcp  # deferred ACKs
        yield self.interface.tcp.repeats
        yield from self.interface.udp.flows.values()
        yield from self.interface.icmp.flows.values()
        yield from self.interface.reassembly.partials.values()
        if self.interface.ndp is not None:
            yield self.interface.ndp

    def passes(self, seconds: float) -> None:
        """Time passes; every timer fires when it is due."""
        end = self.now + seconds
        while self.interface.poll_at() <= end:
            self.wake()
        self.now = end

    @staticmethod
    def held_by(connection: Connection) -> int:
        """What a connection is to account for: both queues, and what each chunk costs besides its bytes."""
        held = connection.ahead.held if connection.ahead is not None else 0
        kept = sum(map(len, connection.chunks)) + CHUNK_COST * len(connection.chunks)
        return kept + len(connection.overflow or b"") + held

    # -- truths --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every event."""
        interface, limits = self.interface, self.limits
        tcp, udp, icmp = interface.tcp, interface.udp, interface.icmp
        assert not self.host.faults, self.host.faults
        assert self.counters.rx_frames == self.frames_in
        assert all(value >= 0 for value in self.counters.as_dict().values())
        assert len(tcp.connections) <= limits.tcp_flows
        assert len(tcp.half_open) <= limits.tcp_half_open
        assert len(udp.flows) <= limits.udp_flows
        assert len(icmp.flows) <= limits.echo_flows
        assert len(interface.neighbors) <= limits.neighbors
        assert not tcp.touched
        held = 0
        for key, connection in tcp.connections.items():
            assert connection.key == key and connection.state != CLOSED
            opening = connection.state in (CONNECTING, SYN_SENT, SYN_RECEIVED)
            assert opening == (tcp.half_open.get(key) is connection)
            assert (connection.state in (FIN_WAIT_2, TIME_WAIT)) == (tcp.ending.get(key) is connection)
            assert connection.ack_pending != DUE
            assert connection.ack_pending != DEFERRED or tcp.deadline <= self.now + limits.ack_delay
            assert connection.buffered == sum(map(len, connection.chunks)) - connection._head
            assert len(connection.overflow or b"") <= tcp.receive_window
            assert not connection.host.closed or connection.state in (LAST_ACK, TIME_WAIT)
            waits = connection.state != CONNECTING and connection.snd_una != connection.snd_nxt
            assert not waits or connection.deadline != NEVER, "in flight, and no timer"
            assert not connection.host_waiting or waits or connection.deadline != NEVER, "paused for ever"
            held += self.held_by(connection)
        assert tcp.half_open.keys() <= tcp.connections.keys()
        assert tcp.ending.keys() <= tcp.connections.keys()
        for connection in tcp.draining:
            assert connection.overflow and not connection.host.closed
            held += self.held_by(connection)
        assert tcp.memory.used == held
        partials = interface.reassembly.partials
        assert len(partials) <= limits.fragmented
        assert interface.reassembly.held == sum(p.held for p in partials.values()) <= limits.fragment_bytes
        assert interface.poll_at() <= min((owner.deadline for owner in self.owners()), default=NEVER)

    def ends(self) -> None:
        """The network is detached: nothing may be left."""
        self.interface.close()
        tcp = self.interface.tcp
        self.check()
        assert self.interface.flow_counts() == {"tcp": 0, "udp": 0, "icmp": 0}
        assert not tcp.half_open and not tcp.ending and not tcp.draining
        assert tcp.memory.used == 0
        assert all(stream.closed for stream in self.host.streams)
        assert all(socket.closed for socket in self.host.sockets)
        assert all(echo.closed for echo in self.host.echoes)
        self.sent.clear()
        self.interface.flush()
        assert not self.sent, "a word after the end"
