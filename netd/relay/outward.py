"""From the guest's loopback to the host's: what listens on ``lo`` in the namespace leads to a port of the host's
127.0.0.1 or ::1, of the family that the client came by (pasta(1), -T and -U).

The listeners were made inside the namespace and belong to it; this process has nothing to do with it otherwise.
"""

from __future__ import annotations

import errno
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from functools import partial
from typing import Final

from netd.relay.sockaddr import Sockaddr, family_of, packed
from netd.relay.splice import Splice, Splices, reset
from netd.relay.tcp_socket import accept, prepare
from netd.relay.udp_relay import UdpClients, UdpEntrance
from netd.specs import LoopbackPort

PAUSE: Final = 0.1  # seconds, where there is no descriptor for one more
_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Port:
    """One of them, with its listeners: of both families, mostly."""

    def __init__(self, protocol: str, port: int, host_port: int) -> None:
        self.protocol, self.port, self.host_port = protocol, port, host_port
        self.sockets: list[socket.socket] = []
        self.entrances: list[UdpEntrance] = []
        self.splices: set[Splice] = set()
        self.paused: dict[int, TimerHandle] = {}  # by descriptor


class Outward:
    """The ports of one network. ``on_event`` is called after every event."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        splices: Splices,
        clients: UdpClients,
        on_event: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._splices = splices
        self._clients = clients
        self._on_event = on_event
        self._ports: dict[tuple[str, int], _Port] = {}
        self.unavailable = 0  # connections for which there was no socket

    def add(self, listener: socket.socket, host_port: int, protocol: str) -> None:
        """``listener`` is ours from now on: TCP, and it listens, or UDP, and it is bound. Of a port there may be one of
        each family. OSError, and ``listener`` is closed."""
        try:
            listener.setblocking(False)
            key = (protocol, int(listener.getsockname()[1]))
            port = self._ports.get(key) or _Port(*key, host_port)
            if protocol == "tcp":
                prepare(listener)
                self._loop.add_reader(listener.fileno(), self._on_accept, port, listener)
            else:
                family = socket.AF_INET6 if listener.family == socket.AF_INET6 else socket.AF_INET
                open_socket = partial(_open, family, socket.SOCK_DGRAM)
                service = loopback(family, port.host_port)
                port.entrances.append(
                    UdpEntrance(self._loop, self._clients, self._on_event, listener, service, open_socket)
                )
        except BaseException:
            listener.close()
            raise
        port.sockets.append(listener)
        self._ports[key] = port

    def remove(self, protocol: str, port: int, close_connections: bool = False, kept: bool = False) -> bool:
        """Close the listeners of ``port``; established connections live on unless asked otherwise, UDP's clients end.

        ``kept``: only this process lets go of the listeners. False: there are none.
        """
        gone = self._ports.pop((protocol, port), None)
        if gone is None:
            return False
        for entrance in gone.entrances:
            entrance.close()
        for timer in gone.paused.values():
            timer.cancel()
        if protocol == "tcp":
            for sock in gone.sockets:
                self._loop.remove_reader(sock.fileno())
                if not kept:
                    sock.shutdown(socket.SHUT_RDWR)  # at once, whoever has a duplicate
                sock.close()
        if close_connections:
            for splice in list(gone.splices):
                splice.cut()
        return True

    def all(self) -> list[LoopbackPort]:
        """As they stand."""
        counts = self._clients.counts()
        return [
            LoopbackPort(
                port.protocol,
                port.port,
                port.host_port,
                len(port.splices) + sum(counts[entrance.sock.fileno()] for entrance in port.entrances),
            )
            for port in self._ports.values()
        ]

    def ports(self, protocol: str) -> set[int]:
        """Those of the namespace that are ours."""
        return {port for kind, port in self._ports if kind == protocol}

    def listeners(self) -> list[tuple[str, int, int, list[socket.socket]]]:
        """(protocol, port, host_port, sockets) of each, for the service manager's store."""
        return [(port.protocol, port.port, port.host_port, port.sockets) for port in self._ports.values()]

    # -- TCP -----------------------------------------------------------------------------------------------------

    def _on_accept(self, port: _Port, listener: socket.socket) -> None:
        """One a wake-up: few connect this way, and the listener stays ready for the next."""
        try:
            accepted, client = accept(listener)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno in _NONE_LEFT:
                self._pause(port, listener)
            return  # else the client has gone already
        family = family_of(packed(client[0]))
        try:
            outgoing = _open(family, socket.SOCK_STREAM)
        except OSError:
            self.unavailable += 1
            reset(accepted)
            return
        splice = self._splices.connect(accepted, outgoing, loopback(family, port.host_port))
        if splice is not None:
            port.splices.add(splice)
            splice.on_close = partial(port.splices.discard, splice)
        self._on_event()

    def _pause(self, port: _Port, listener: socket.socket) -> None:
        """Out of descriptors: the backlog waits, instead of a loop that accepts nothing."""
        self._loop.remove_reader(listener.fileno())

        def again() -> None:
            del port.paused[listener.fileno()]
            self._loop.add_reader(listener.fileno(), self._on_accept, port, listener)

        port.paused[listener.fileno()] = self._loop.call_later(PAUSE, again)

    def close(self, kept: bool = False) -> None:
        """The network ends, or (``kept``) only this process. What has been spliced is ``Splices``' to close."""
        for protocol, port in list(self._ports):
            self.remove(protocol, port, kept=kept)


def loopback(family: int, port: int) -> Sockaddr:
    """127.0.0.1 or ::1."""
    return ("::1", port, 0, 0) if family == socket.AF_INET6 else ("127.0.0.1", port)


def _open(family: int, kind: int) -> socket.SocketType:
    return socket.SocketType(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
