"""UDP between two of our sockets: one that a service is published on, and one for each of its clients.

A client's socket is connected to the service, so that the service sees as many clients as there are; it ends when
nothing has come or gone for ``IDLE`` seconds, when the service refuses, or as the longest idle one where there are too
many. Answers go back from the address that the client wrote to (IP_PKTINFO, ip(7); IPV6_PKTINFO, RFC 3542 §6).
"""

from __future__ import annotations

import socket
import struct
from asyncio import AbstractEventLoop, TimerHandle
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from netd.relay.sockaddr import Sockaddr
from netd.relay.udp_listener import IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO
from netd.relay.udp_socket import BATCH, BATCH_BYTES, buffer, buffers, view

IDLE: Final = 180.0
CLIENTS_MAX: Final = 1024  # of a network
_TICK: Final = 1.0  # seconds by which an end may be late

_IN_PKTINFO: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: ifindex, local address, header's destination
_IN6_PKTINFO: Final = struct.Struct("=16si")  # struct in6_pktinfo: local address, ifindex
_SPACE: Final = socket.CMSG_SPACE(_IN6_PKTINFO.size)

Control = tuple[tuple[int, int, bytes], ...]


class _Client:
    """One client, and the socket that speaks for it."""

    __slots__ = ("address", "control", "deadline", "listener", "sock")

    def __init__(self, listener: socket.SocketType, address: Sockaddr, sock: socket.SocketType) -> None:
        self.listener = listener
        self.address = address
        self.sock = sock
        self.control: Control = ()
        self.deadline = 0.0


class UdpClients:
    """The clients of one network. ``on_event`` is called after every event of their sockets."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        on_event: Callable[[], None],
        limit: int = CLIENTS_MAX,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._on_event = on_event
        self._limit = limit
        self._clients: OrderedDict[tuple[int, Sockaddr], _Client] = OrderedDict()  # the longest idle one first
        self._counts: Counter[int] = Counter()
        self._timer: TimerHandle | None = None
        self.evicted = self.refused = 0  # clients
        self.dropped = 0  # datagrams

    def __len__(self) -> int:
        return len(self._clients)

    def counts(self) -> Mapping[int, int]:
        """How many clients each listener has, by its descriptor."""
        return self._counts

    def knows(self, listener: socket.SocketType, address: Sockaddr) -> bool:
        """Whether the next datagram of that client needs no new socket."""
        client = self._clients.get((listener.fileno(), address))
        return client is not None and client.listener is listener

    def carry(
        self,
        listener: socket.SocketType,
        address: Sockaddr,
        control: Control,
        payload: bytes | memoryview,
        service: Sockaddr,
        open_socket: Callable[[], socket.SocketType | None],
    ) -> None:
        """A datagram that ``listener`` had from ``address`` goes to ``service``, by a new socket of ``open_socket``'s
        (OSError, None: there can be none) if it is the first. ``control`` is what the answers are sent with."""
        key = (listener.fileno(), address)
        client = self._clients.get(key)
        if client is not None and client.listener is not listener:  # that one is closed, and its number another's
            self._end(key, client)
            client = None
        if client is None:
            client = self._open(listener, address, service, open_socket)
            if client is None:
                self.dropped += 1
                return
            self._clients[key] = client
            self._counts[key[0]] += 1
            self._arm()
        client.control = control
        self._touch(key, client)
        try:
            client.sock.send(payload)
        except BlockingIOError:
            self.dropped += 1
        except OSError:  # refused, by the answer to an earlier one
            self.dropped += 1
            self.refused += 1
            self._end(key, client)

    def _open(
        self,
        listener: socket.SocketType,
        address: Sockaddr,
        service: Sockaddr,
        open_socket: Callable[[], socket.SocketType | None],
    ) -> _Client | None:
        if len(self._clients) >= self._limit:
            self.evicted += 1
            self._end(*next(iter(self._clients.items())))
        try:
            sock = open_socket()
            if sock is None:
                return None
            try:
                sock.setblocking(False)
                sock.connect(service)
                client = _Client(listener, address, sock)
                self._loop.add_reader(sock.fileno(), self._on_readable, (listener.fileno(), address), client)
            except BaseException:
                sock.close()
                raise
        except OSError:
            return None
        return client

    def _touch(self, key: tuple[int, Sockaddr], client: _Client) -> None:
        client.deadline = self._clock() + IDLE
        self._clients.move_to_end(key)

    def _on_readable(self, key: tuple[int, Sockaddr], client: _Client) -> None:
        if client.listener.fileno() < 0:
            self._end(key, client)
            return
        recv_into, sendmsg = client.sock.recv_into, client.listener.sendmsg
        budget = BATCH_BYTES
        for _ in range(BATCH):
            try:
                size = recv_into(buffer)
            except BlockingIOError:
                break
            except OSError:
                # The service has refused. libuv stops to watch a descriptor that it has polled POLLERR of: the next
                # datagram opens another one.
                self.refused += 1
                self._end(key, client)
                break
            self._touch(key, client)
            try:
                sendmsg((view[:size],), client.control, 0, client.address)
            except OSError:
                self.dropped += 1
            budget -= size
            if budget < 0:
                break
        self._on_event()

    # -- ends ----------------------------------------------------------------------------------------------------

    def _end(self, key: tuple[int, Sockaddr], client: _Client) -> None:
        if self._clients.get(key) is client:
            del self._clients[key]
            self._counts[key[0]] -= 1
            self._loop.remove_reader(client.sock.fileno())
            client.sock.close()

    def forget(self, listener: socket.SocketType) -> None:
        """End all clients of ``listener``, which is about to be closed."""
        for key, client in list(self._clients.items()):
            if client.listener is listener:
                self._end(key, client)

    def expire(self) -> None:
        """End those that are idle for too long; a timer calls this."""
        now = self._clock()
        while self._clients:
            key, client = next(iter(self._clients.items()))
            if client.deadline > now:
                break
            self._end(key, client)

    def _arm(self) -> None:
        if self._timer is None and self._clients:
            oldest = next(iter(self._clients.values()))
            wait = oldest.deadline - self._clock() if oldest.deadline else IDLE
            self._timer = self._loop.call_later(max(wait, 0.0) + _TICK, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.expire()
        self._arm()

    def close(self) -> None:
        """The network ends."""
        for key, client in list(self._clients.items()):
            self._end(key, client)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UdpEntrance:
    """A bound UDP socket whose datagrams are carried to ``service``. Owns ``sock``."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clients: UdpClients,
        on_event: Callable[[], None],
        sock: socket.SocketType,
        service: Sockaddr,
        open_socket: Callable[[], socket.SocketType | None],
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._on_event = on_event
        self.sock = sock
        self._service = service
        self._open_socket = open_socket
        self._told: list[Any] = []  # with the datagram before, and what answers to it are sent with
        self._control: Control = ()
        sock.setblocking(False)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        loop.add_reader(sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        sock = self.sock
        budget = BATCH_BYTES
        for _ in range(BATCH):
            try:
                size, told, _, address = sock.recvmsg_into(buffers, _SPACE)
            except BlockingIOError:
                break
            except OSError:
                continue  # an error of the socket's, which is told once
            if told != self._told:
                self._told = told
                self._control = answer_with(told)
            self._clients.carry(sock, address, self._control, view[:size], self._service, self._open_socket)
            budget -= size
            if budget < 0:
                break
        self._on_event()

    def close(self) -> None:
        """Close the socket; its clients end."""
        self._clients.forget(self.sock)
        self._loop.remove_reader(self.sock.fileno())
        self.sock.close()


def answer_with(told: list[tuple[int, int, bytes]]) -> Control:
    """The control message that sends an answer from where a datagram came to, by the one it came with."""
    for level, kind, data in told:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(data) == _IN_PKTINFO.size:
            _, local, _ = _IN_PKTINFO.unpack(data)
            return ((level, kind, _IN_PKTINFO.pack(0, local, bytes(4))),)
        if (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO) and len(data) == _IN6_PKTINFO.size:
            return ((level, kind, data),)
    return ()
