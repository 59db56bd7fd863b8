"""A host in memory: ``netd.stack.ports.Host`` with every socket replaced by plain lists.

It behaves as ``relay`` does (reads only as much as there is room, pauses, resumes, writes partly, fails from within a
write) and is stricter: what the stack may not do to a closed stream is a fault that fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from netd.stack import ports
from netd.stack.flow import EchoFlow, UdpFlow

from .cast import ICMP6

if TYPE_CHECKING:
    from .world import World


class FakeStream:
    """One TCP socket of the host's. ``capacity`` is what its send buffer takes (None: all)."""

    def __init__(self, world: World, address: tuple[bytes, int] | None) -> None:
        self.world = world
        self.address = address  # None: a name server
        self.connection: ports.GuestStream
        self.taken = bytearray()
        self.capacity: int | None = None
        self.waiting: bytearray = bytearray()  # sent by the host's peer, not read yet
        self.eof = self.eof_told = False
        self.reading = self.paused = self.wanted = False
        self.failing = False
        self.finished = self.closed = self.aborted = False
        self.read_at_most = 1 << 30
        self.frames = 1  # that one read may fill
        self.joins = True  # the last bytes and the end where they are there together

    # -- what the stack calls ------------------------------------------------------------------------------------

    def _alive(self, call: str) -> None:
        if self.closed:
            self.world.host.faults.append(f"{call} after close")

    def write(self, view: ports.Buffer) -> int:
        self._alive("write")
        if self.finished:
            self.world.host.faults.append("write after finish")
        if self.failing:
            self.connection.host_reset(self.world.now)
            return 0
        size = len(view) if self.capacity is None else min(len(view), self.capacity)
        self.taken += bytes(view[:size])
        if self.capacity is not None:
            self.capacity -= size
        return size

    def want_write(self) -> None:
        self._alive("want_write")
        self.wanted = True

    def resume(self, now: float) -> None:
        self._alive("resume")
        self.reading = True
        self.paused = False
        self.pull()

    def finish(self) -> None:
        self._alive("finish")
        if self.failing:
            self.connection.host_reset(self.world.now)
            return
        self.finished = True

    def guest_refused(self, now: float) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closed:
            self.aborted = True
        self.close()

    def close(self) -> None:
        self.closed = True
        self.reading = self.wanted = False

    # -- what happens to it --------------------------------------------------------------------------------------

    def connects(self) -> None:
        """The host's handshake is over."""
        self.connection.host_connected(self.world.now)
        self.world.flush()

    def refuses(self, code: int = ports.RESET) -> None:
        """It failed."""
        self.connection.host_refused(code, self.world.now)
        self.world.flush()

    def gets(self, data: bytes) -> None:
        """The host's peer sent ``data``."""
        self.waiting += data
        self.pull()
        self.world.flush()

    def ends(self) -> None:
        """The host's peer sent FIN."""
        self.eof = True
        self.pull()
        self.world.flush()

    def takes(self, size: int | None) -> None:
        """The send buffer has room for ``size`` bytes more (None: for everything from now on)."""
        self.capacity = None if size is None else (self.capacity or 0) + size
        if self.wanted:
            self.wanted = False
            self.connection.host_writable(self.world.now)
        self.world.flush()

    def resets(self) -> None:
        """The host's peer sent RST."""
        self.connection.host_reset(self.world.now)
        self.world.flush()

    def pull(self) -> None:
        """As ``relay.stream.Stream._pull``: room is asked for first, and again after what filled it."""
        filled = True
        while self.reading and not self.closed and not self.eof_told and (filled or self.waiting or self.eof):
            room = self.connection.room(self.frames)
            assert 0 <= room <= 65535 * self.frames, room
            if not room:
                self.reading = False
                self.paused = True
                self.connection.host_paused(self.world.now)
                return
            data = bytes(self.waiting[: min(room, self.read_at_most)])
            if data:
                del self.waiting[: len(data)]
                if self.eof and self.joins and not self.waiting and len(data) < room:
                    self.eof_told = True
                    self.reading = False
                    self.connection.host_eof(self.world.now, data)
                    return
                self.connection.from_host(data, self.world.now)
                filled = len(data) == room
            elif not self.eof:
                return
            else:
                self.eof_told = True
                self.reading = False
                self.connection.host_eof(self.world.now)


class FakeDatagrams:
    """One UDP socket of the host's, for the guest's endpoint ``guest``:``port``."""

    def __init__(self, world: World, guest: bytes, port: int) -> None:
        self.world = world
        self.guest, self.port = guest, port
        self.flows: list[UdpFlow] = []
        self.sent: list[tuple[bytes, int, bytes]] = []
        self.hops: list[int] = []  # of each, TTL << 8 | TOS
        self.segments: list[int] = []  # of each
        self.closed = False

    def send(self, flow: UdpFlow, payload: ports.Buffer, hops: int, segment: int) -> None:
        assert flow in self.flows, "sends for a flow it does not serve"
        if self.closed:
            self.world.host.faults.append("datagram after close")
        self.sent.append((self.world.cast.name(flow.target), flow.target_port, bytes(payload)))
        self.hops.append(hops)
        self.segments.append(segment)

    def adopt(self, flow: UdpFlow) -> None:
        assert flow not in self.flows
        if self.closed:
            self.world.host.faults.append("a closed socket adopts a flow")
        self.flows.append(flow)

    def release(self, flow: UdpFlow) -> None:
        self.flows.remove(flow)
        if not self.flows:
            self.closed = True
            self.world.host.endpoints.pop((self.guest, self.port), None)

    def gets(self, ip: bytes, port: int, payload: bytes, segment: int = 0, tos: int = 0) -> None:
        """A datagram from ``ip``:``port`` arrives on the socket; several of size ``segment`` (UDP GRO)."""
        buffer, now, ip = bytearray(payload), self.world.now, self.world.cast.real(ip)
        udp = self.world.interface.udp
        udp.from_host(self.guest, self.port, ip, port, self, memoryview(buffer), now, segment, tos)
        buffer[:] = b"\xaa" * len(buffer)
        self.world.flush()

    def learns(self, ip: bytes, port: int, code: int) -> None:
        """Unreachable, about ``ip``:``port``; the code is IPv4's."""
        error = self.world.host.error(3, code)
        self.world.interface.udp.host_error(self.guest, self.port, self.world.cast.real(ip), port, error)


class FakeListener:
    """A published UDP port: the host side of its clients' flows."""

    def __init__(self, world: World, guest: bytes, port: int) -> None:
        self.world = world
        self.guest, self.port = world.cast.real(guest), port
        self.flows: list[UdpFlow] = []
        self.sent: list[tuple[bytes, int, bytes]] = []

    def send(self, flow: UdpFlow, payload: ports.Buffer, hops: int, segment: int) -> None:
        self.sent.append((self.world.cast.name(flow.target), flow.target_port, bytes(payload)))

    def adopt(self, flow: UdpFlow) -> None:
        self.flows.append(flow)

    def release(self, flow: UdpFlow) -> None:
        self.flows.remove(flow)

    def gets(self, ip: bytes, port: int, payload: bytes) -> UdpFlow:
        """A client's datagram."""
        world = self.world
        udp = world.interface.udp
        flow = udp.from_forward(self.guest, self.port, world.cast.real(ip), port, self, world.now)
        flow.deadline = world.now + flow.idle
        flow.to_guest(memoryview(payload))
        world.flush()
        return flow


class FakeEcho:
    """A ping socket."""

    def __init__(self, flow: EchoFlow) -> None:
        self.flow = flow
        self.sent: list[tuple[int, bytes]] = []
        self.hops: list[int] = []
        self.closed = False

    def send(self, flow: EchoFlow, sequence: int, payload: ports.Buffer, hops: int) -> None:
        assert flow is self.flow and not self.closed
        self.sent.append((sequence, bytes(payload)))
        self.hops.append(hops)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class FakeHost:
    """``ports.Host``. What was opened is kept in order; ``faults`` must stay empty."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.streams: list[FakeStream] = []
        self.sockets: list[FakeDatagrams] = []
        self.endpoints: dict[tuple[bytes, int], FakeDatagrams] = {}
        self.echoes: list[FakeEcho] = []
        self.queries: list[tuple[UdpFlow, bytes]] = []
        self.faults: list[str] = []
        self.no_datagrams = False
        self.no_echo: int | None = None
        self.on_connect: Callable[[FakeStream], None] | None = None

    @property
    def stream(self) -> FakeStream:
        """The last one opened."""
        return self.streams[-1]

    def new_stream(self, address: tuple[bytes, int] | None) -> FakeStream:
        stream = FakeStream(self.world, address)
        self.streams.append(stream)
        return stream

    def error(self, type_: int, code: int, info: int = 0, offender: bytes = b"") -> ports.HostError:
        """In the script's family; type and code are IPv4's."""
        cast = self.world.cast
        if cast.family == 6:
            type_, code = ICMP6[type_, code]
        return ports.HostError(type_, code, info, cast.real(offender))

    def connect(self, connection: ports.GuestStream, ip: bytes, port: int) -> FakeStream:
        stream = self.new_stream((self.world.cast.name(ip), port))
        stream.connection = connection
        if self.on_connect is not None:
            self.on_connect(stream)
        return stream

    def connect_resolver(self, connection: ports.GuestStream, port: int) -> FakeStream:
        stream = self.new_stream(None)
        stream.connection = connection
        return stream

    def open_datagrams(self, flow: UdpFlow) -> FakeDatagrams | None:
        if self.no_datagrams:
            return None
        key = flow.guest, flow.guest_port
        socket = self.endpoints.get(key)
        if socket is None:
            socket = self.endpoints[key] = FakeDatagrams(self.world, *key)
            self.sockets.append(socket)
        socket.adopt(flow)
        return socket

    def resolve(self, flow: UdpFlow, query: ports.Buffer) -> None:
        self.queries.append((flow, bytes(query)))

    def open_echo(self, flow: EchoFlow) -> FakeEcho | int:
        if self.no_echo is not None:
            return self.no_echo
        echo = FakeEcho(flow)
        self.echoes.append(echo)
        return echo
