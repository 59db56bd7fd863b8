"""Published ports: host listeners that open flows towards the guest, added and removed at any time.

The guest sees the client's own address and port. A client on the host's loopback, or with an address of the guest's
own subnet, appears as the gateway: nothing else could be answered.
"""

from __future__ import annotations

import errno
import socket
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING

from netd.errors import AddressUnavailable, InvalidSpec, LimitReached, NoSuchPort, PortInUse, PortPrivileged
from netd.relay.stream import Stream
from netd.relay.udp_listener import UdpListener
from netd.specs import ForwardSpec, ForwardStatus

if TYPE_CHECKING:
    from netd.relay.host import HostNetwork
    from netd.stack.addressing import Addressing
    from netd.stack.tcp.table import TcpTable
    from netd.stack.udp import UdpTable

MAX_PORTS = 4096  # listening sockets per network
BACKLOG = 4096  # the kernel caps it at net.core.somaxconn
ACCEPTS = 32  # connections taken per wake-up


def check(spec: ForwardSpec) -> None:
    """InvalidSpec if the spec contradicts itself; the doors have checked syntax."""
    if spec.protocol not in ("tcp", "udp"):
        raise InvalidSpec(f"protocol {spec.protocol!r} cannot be forwarded; tcp and udp can")
    if spec.range < 1 or not 0 < spec.container_port <= 65536 - spec.range:
        raise InvalidSpec(f"container port {spec.container_port} with range {spec.range} is outside 1-65535")
    if not 0 <= spec.host_port <= 65536 - spec.range or (spec.host_port == 0 and spec.range > 1):
        raise InvalidSpec(f"host port {spec.host_port} with range {spec.range} is outside 1-65535")
    for name, text in (("host_ip", spec.host_ip), ("container_ip", spec.container_ip)):
        if text:
            try:
                socket.inet_pton(socket.AF_INET, text)
            except OSError:
                raise InvalidSpec(f"{name} {text!r} is not an IPv4 address") from None


def listen(spec: ForwardSpec, kept: dict[int, socket.socket]) -> list[socket.socket]:
    """Bind every port of ``spec`` on the host, except those that ``kept`` has: all or none.

    PortInUse, PortPrivileged, AddressUnavailable, OSError for want of descriptors.
    """
    sockets: list[socket.socket] = []
    try:
        for port in range(spec.host_port, spec.host_port + spec.range):
            sock = kept.pop(port) if port in kept else _listen_one(spec.protocol, spec.host_ip or "0.0.0.0", port)
            sockets.append(sock)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


# UDP addresses given up a moment ago, in order of time. The service manager holds a duplicate of each socket until it
# has read the message that says so, and nothing but its close unbinds a UDP socket.
_released: dict[tuple[str, int], float] = {}
_RELEASE_SECONDS = 5.0


def release(sock: socket.socket) -> None:
    """Before a UDP listener is closed for good: let us bind its address anew at once."""
    now = time.monotonic()
    while _released and next(iter(_released.values())) < now - _RELEASE_SECONDS:
        del _released[next(iter(_released))]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # takes both sides of a bind (udp_lib_lport_inuse)
    _released.pop(sock.getsockname(), None)
    _released[sock.getsockname()] = now


def _bind_datagrams(sock: socket.socket, address: tuple[str, int]) -> None:
    try:
        sock.bind(address)
    except OSError as e:
        if e.errno != errno.EADDRINUSE or _released.get(address, 0.0) < time.monotonic() - _RELEASE_SECONDS:
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # ours alone again


def _listen_one(protocol: str, ip: str, port: int) -> socket.socket:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((ip, port))
            sock.listen(BACKLOG)
        else:
            _bind_datagrams(sock, (ip, port))
    except OSError as e:
        sock.close()
        where = f"{ip}:{port}/{protocol}"
        if e.errno == errno.EADDRINUSE:
            raise PortInUse(f"cannot publish {where}: Address already in use") from None
        if e.errno in (errno.EACCES, errno.EPERM):
            raise PortPrivileged(
                f"cannot publish {where}: Permission denied (port below net.ipv4.ip_unprivileged_port_start)",
                f"as root: sysctl -w net.ipv4.ip_unprivileged_port_start={port}, or take a higher port",
            ) from None
        if e.errno == errno.EADDRNOTAVAIL:
            raise AddressUnavailable(f"cannot publish {where}: {ip} is not an address of this host") from None
        raise InvalidSpec(f"cannot publish {where}: {e.strerror}") from None
    return sock


class Forward:
    """One published port or range, and its listeners."""

    def __init__(self, id_: int, spec: ForwardSpec, origin: str, sockets: list[socket.socket]) -> None:
        self.id = id_
        self.spec = spec
        self.origin = origin
        self.sockets = sockets
        self.streams: set[Stream] = set()
        self.udp: list[UdpListener] = []

    def status(self) -> ForwardStatus:
        """As it stands."""
        connections = len(self.streams) + sum(len(listener) for listener in self.udp)
        return ForwardStatus(self.id, self.spec, self.origin, "listening", connections)


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
        self._forwards: dict[int, Forward] = {}
        self.next_id = 1

    def port_count(self) -> int:
        """How many ports are published, those of ranges included."""
        return sum(forward.spec.range for forward in self._forwards.values())

    def add(
        self, spec: ForwardSpec, origin: str, kept: dict[int, socket.socket] | None = None, id_: int = 0
    ) -> ForwardStatus:
        """Publish. ``kept`` and ``id_``: listeners of a life before this one by their port, which are taken out where
        they are used, and the forward's number then."""
        check(spec)
        if self.port_count() + spec.range > MAX_PORTS:
            raise LimitReached(f"a network publishes at most {MAX_PORTS} ports")
        try:
            sockets = listen(spec, {} if kept is None else kept)
        except OSError as e:  # out of descriptors
            raise LimitReached(f"cannot publish: {e.strerror}") from None
        if spec.host_port == 0:
            port = sockets[0].getsockname()[1]
            spec = ForwardSpec(spec.protocol, port, spec.container_port, spec.host_ip, spec.range, spec.container_ip)
        forward = Forward(id_ or self.next_id, spec, origin, sockets)
        self.next_id = max(self.next_id, forward.id) + 1
        self._forwards[forward.id] = forward
        guest = socket.inet_aton(spec.container_ip) if spec.container_ip else self._addressing.guest
        for offset, sock in enumerate(sockets):
            port = spec.container_port + offset
            if spec.protocol == "tcp":
                self._loop.add_reader(sock.fileno(), self._on_accept, forward, sock, guest, port)
            else:
                forward.udp.append(self._udp_listener(sock, guest, port))
        return forward.status()

    def _udp_listener(self, sock: socket.socket, guest: bytes, port: int) -> UdpListener:
        return UdpListener(self._loop, self._clock, self._flush, self._udp, sock, guest, port)

    def remove(self, id_: int, close_connections: bool, kept: bool = False) -> None:
        """Unpublish; established connections live on unless asked otherwise. NoSuchPort.

        ``kept``: only this process lets go of the listeners, which live on in the service manager's store.
        """
        forward = self._forwards.pop(id_, None)
        if forward is None:
            raise NoSuchPort(f"no port forward {id_}")
        for sock, listener in zip(forward.sockets, forward.udp, strict=False):  # without listeners for TCP
            if not kept:
                release(sock)
            listener.close()
        if forward.spec.protocol == "tcp":
            for sock in forward.sockets:
                self._loop.remove_reader(sock.fileno())
                if not kept:
                    # Frees the port at once, also while the service manager still holds a duplicate.
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        if close_connections:
            for stream in list(forward.streams):
                stream.cut()
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

    def listeners(self) -> list[tuple[int, list[socket.socket]]]:
        """(number, sockets) of each, for the service manager's store."""
        return [(forward.id, forward.sockets) for forward in self._forwards.values()]

    def _on_accept(self, forward: Forward, listener: socket.socket, guest: bytes, port: int) -> None:
        now = self._clock()
        addressing = self._addressing
        for _ in range(ACCEPTS):
            try:
                sock, (ip, sport) = listener.accept()
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(forward, listener, guest, port)
                break  # else the client has gone already
            sock.setblocking(False)
            src = socket.inet_aton(ip)
            if src[0] == 127 or addressing.on_link(src):
                src = addressing.gateway
            stream = self._host.new_stream(sock)
            connection = self._tcp.open_to_guest(src, sport, guest, port, stream, now)
            if connection is None:
                stream.abort()
                continue
            stream.connection = connection
            stream.on_close = forward.streams.discard
            forward.streams.add(stream)
        self._flush()

    def _pause(self, forward: Forward, listener: socket.socket, guest: bytes, port: int) -> None:
        """Out of descriptors: the backlog waits, instead of a loop that accepts nothing."""
        self._loop.remove_reader(listener.fileno())

        def again() -> None:
            if self._forwards.get(forward.id) is forward:
                self._loop.add_reader(listener.fileno(), self._on_accept, forward, listener, guest, port)

        self._loop.call_later(0.1, again)

    def close(self, kept: bool) -> None:
        """The network ends, or (``kept``) only this process."""
        for id_ in list(self._forwards):
            self.remove(id_, close_connections=False, kept=kept)
