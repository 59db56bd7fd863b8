"""Published ports: host listeners that open flows towards the guest, added and removed at any time.

The guest sees the client's own address and port, where it could answer them (``Addressing.seen_as``).
"""

from __future__ import annotations

import errno
import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from netd.errors import InvalidSpec, LimitReached, NoSuchPort
from netd.relay.listeners import Kept, check, listen, release
from netd.relay.sockaddr import is_loopback, packed
from netd.relay.splice import Splice
from netd.relay.stream import Stream
from netd.relay.tcp_socket import TcpSocket, accept, prepare, waiting
from netd.relay.udp_listener import UdpListener
from netd.specs import ForwardSpec, ForwardStatus

if TYPE_CHECKING:
    from netd.relay.host import HostNetwork
    from netd.relay.inward import Inward
    from netd.stack.addressing import Addressing
    from netd.stack.tcp.table import TcpTable
    from netd.stack.udp import UdpTable

MAX_PORTS: Final = 4096  # published ports per network; each is one listening socket or, for all addresses, two
MAX_BEST_EFFORT: Final = 65535  # and further ones of forwards that do without the ports they cannot get


class Forward:
    """One published port or range, and its listeners."""

    def __init__(self, id_: int, spec: ForwardSpec, origin: str, sockets: list[socket.socket]) -> None:
        self.id = id_
        self.spec = spec
        self.origin = origin
        self.sockets = sockets
        self.fds = [sock.fileno() for sock in sockets]
        self.streams: set[Stream] = set()
        self.splices: set[Splice] = set()  # what comes from the host's loopback
        self.udp: list[UdpListener] = []

    def status(self) -> ForwardStatus:
        """As it stands."""
        connections = len(self.streams) + len(self.splices) + sum(len(listener) for listener in self.udp)
        return ForwardStatus(self.id, self.spec, self.origin, "listening", connections)


class _Listener:
    """One for TCP."""

    __slots__ = ("forward", "guest_of", "port", "sock")

    def __init__(self, forward: Forward, sock: socket.socket, guest_of: Callable[[bytes], bytes], port: int) -> None:
        self.forward, self.sock, self.guest_of, self.port = forward, sock, guest_of, port


class Forwards:
    """The published ports of one network."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        host: HostNetwork,
        tcp: TcpTable,
        udp: UdpTable,
        addressing: Addressing,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._flush = flush
        self._host = host
        self._tcp = tcp
        self._udp = udp
        self._addressing = addressing
        # Where the guest is that was planned to have an address: one that configures itself may have another.
        self.address_of: Callable[[bytes], bytes] = lambda planned: planned
        self.inward: Inward | None = None  # the way of clients on the host's loopback, past the interface
        self.to_loopback = False  # it leads to the guest's loopback, and not to its address
        self._forwards: dict[int, Forward] = {}
        self.next_id = 1

    def port_count(self) -> int:
        """How many ports are published, those of ranges included."""
        return sum(forward.spec.range for forward in self._forwards.values())

    def add(self, spec: ForwardSpec, origin: str, kept: Kept | None = None, id_: int = 0) -> ForwardStatus:
        """Publish. ``kept`` and ``id_``: listeners of a life before this one by their family and port, which are taken
        out where they are used, and the forward's number then."""
        check(spec)
        if ":" in spec.container_ip and not self._addressing.gateway6:
            raise InvalidSpec(f"container_ip {spec.container_ip!r}: this network has no IPv6")
        alike = sum(f.spec.range for f in self._forwards.values() if f.spec.best_effort == spec.best_effort)
        limit = MAX_BEST_EFFORT if spec.best_effort else MAX_PORTS
        if alike + spec.range > limit:
            raise LimitReached(f"a network publishes at most {limit} ports")
        try:
            ports = listen(spec, {} if kept is None else kept)
        except OSError as e:  # out of descriptors
            raise LimitReached(f"cannot publish: {e.strerror}") from None
        if spec.host_port == 0:
            spec = replace(spec, host_port=ports[0][0].getsockname()[1])
        forward = Forward(id_ or self.next_id, spec, origin, [sock for sockets in ports for sock in sockets])
        self.next_id = max(self.next_id, forward.id) + 1
        self._forwards[forward.id] = forward
        try:
            for port, sockets in enumerate(ports, spec.container_port):
                for sock in sockets:
                    self._open(forward, sock, port)
        except BaseException:
            self.remove(forward.id, close_connections=False)
            raise
        return forward.status()

    def _open(self, forward: Forward, sock: socket.socket, port: int) -> None:
        spec = forward.spec
        guest = partial(self._guest, packed(spec.container_ip) if spec.container_ip else b"")
        if spec.protocol == "tcp":
            prepare(sock)
            self._loop.add_reader(sock.fileno(), self._on_accept, _Listener(forward, sock, guest, port))
        else:
            listener = UdpListener(self._loop, self._clock, self._flush, self._udp, sock, guest, port)
            listener.inward, listener.to_loopback = None if spec.container_ip else self.inward, self.to_loopback
            forward.udp.append(listener)

    def _guest(self, address: bytes, client: bytes) -> bytes:
        """``address``, or the guest's address for clients of that family, or the one it has."""
        if address:
            return address
        guest, guest6 = self._addressing.guest, self._addressing.guest6
        return self.address_of(guest6 or guest if len(client) == 16 else guest or guest6)

    def remove(self, id_: int, close_connections: bool, kept: bool = False) -> None:
        """Unpublish; established connections live on unless asked otherwise. NoSuchPort.

        ``kept``: only this process lets go of the listeners, which live on in the service manager's store.
        """
        forward = self._forwards.pop(id_, None)
        if forward is None:
            raise NoSuchPort(f"no port forward {id_}")
        if forward.spec.protocol == "udp" and not kept:
            for sock in forward.sockets:
                release(sock)
        for listener in forward.udp:
            listener.close()
        for sock in forward.sockets:
            if forward.spec.protocol == "tcp":
                self._loop.remove_reader(sock.fileno())
                if not kept:
                    # Frees the port at once, also while the service manager still holds a duplicate.
                    sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        if close_connections:
            for stream in list(forward.streams):
                stream.cut()
            for splice in list(forward.splices):
                splice.cut()
            self._flush()

    def get(self, id_: int) -> ForwardStatus:
        """NoSuchPort."""
        forward = self._forwards.get(id_)
        if forward is None:
            raise NoSuchPort(f"no port forward {id_}")
        return forward.status()

    def all(self) -> list[ForwardStatus]:
        """In order of their numbers."""
        return [forward.status() for forward in self._forwards.values()]

    def __iter__(self) -> Iterator[Forward]:
        """In order of their numbers."""
        return iter(self._forwards.values())

    def _on_accept(self, listener: _Listener) -> None:
        """As many as there are and a turn has time for. How many is asked first: to be told by an exception that there
        is no other one takes ten times as long."""
        forward, guest_of, port = listener.forward, listener.guest_of, listener.port
        until = self._clock() + self._host.pace.turn
        for _ in range(max(waiting(listener.sock), 1)):
            try:
                sock, client = accept(listener.sock)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listener)
                break  # else the client has gone already
            ip = packed(client[0])
            guest = guest_of(ip)
            if self.inward is not None and is_loopback(ip) and not forward.spec.container_ip:
                self._splice(self.inward, forward, sock, guest, port)
            else:
                self._open_to_guest(forward, sock, ip, client[1], guest, port)
            if self._clock() > until:
                break
        self._flush()

    def _open_to_guest(self, forward: Forward, sock: TcpSocket, ip: bytes, sport: int, guest: bytes, port: int) -> None:
        src = self._addressing.seen_as(ip, len(guest))
        stream = self._host.new_stream(sock)
        connection = self._tcp.open_to_guest(src, sport, guest, port, stream, self._clock())
        if connection is None:
            stream.abort()
            return
        stream.connection = connection
        stream.on_close = forward.streams.discard
        if len(guest) == 16 and not forward.spec.container_ip and self._addressing.guest:
            stream.on_refused = partial(self._by_ipv4, sport, port)
        forward.streams.add(stream)

    def _splice(self, inward: Inward, forward: Forward, sock: TcpSocket, guest: bytes, port: int) -> None:
        joined = partial(_joined, forward)
        if self.to_loopback:
            inward.accept(sock, packed(sock.getsockname()[0]), port, joined)
        elif len(guest) == 16 and self._addressing.guest:
            inward.accept(sock, guest, port, joined, partial(self._splice_by_ipv4, inward, joined, port))
        else:
            inward.accept(sock, guest, port, joined)

    def _splice_by_ipv4(self, inward: Inward, joined: Callable[[Splice], None], port: int, sock: TcpSocket) -> None:
        inward.accept(sock, self.address_of(self._addressing.guest), port, joined)

    def _by_ipv4(self, sport: int, port: int, stream: Stream, now: float) -> bool:
        """Nobody listens on the guest's IPv6 address: what came to ``localhost`` may be meant for IPv4."""
        guest, gateway = self.address_of(self._addressing.guest), self._addressing.gateway
        connection = self._tcp.open_to_guest(gateway, sport, guest, port, stream, now)
        if connection is None:
            return False
        stream.connection = connection
        return True

    def _pause(self, listener: _Listener) -> None:
        """Out of descriptors: the backlog waits, instead of a loop that accepts nothing."""
        self._loop.remove_reader(listener.sock.fileno())

        def again() -> None:
            if self._forwards.get(listener.forward.id) is listener.forward:
                self._loop.add_reader(listener.sock.fileno(), self._on_accept, listener)

        self._loop.call_later(0.1, again)

    def close(self, kept: bool) -> None:
        """The network ends, or (``kept``) only this process."""
        for id_ in list(self._forwards):
            self.remove(id_, close_connections=False, kept=kept)


def _joined(forward: Forward, splice: Splice) -> None:
    forward.splices.add(splice)
    splice.on_close = partial(forward.splices.discard, splice)
