"""From the host's loopback to the guest's: what a client of 127.0.0.1 or ::1 said to a published port goes to the same
address inside the namespace, and not to the guest's address (pasta(1), --host-lo-to-ns-lo).

The sockets that connect there have to be made there, by a process that enters the namespace. A few are always ready;
a connection for which there is none waits for the next ones, and gets an RST if none come.
"""

from __future__ import annotations

import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from netd.relay.sockaddr import packed, sockaddr
from netd.relay.splice import Splice, Splices, reset
from netd.relay.udp_relay import Control, UdpClients

READY = 8  # sockets of a kind; more are asked for when it is fewer than half of them
READY_MAX = 64  # and at most so many at a time
WAITING_MAX = 256  # connections
PATIENCE = 5.0  # seconds

Refill = Callable[[int, str, int], None]  # family (4, 6), protocol, how many: ``supply`` is called later, or at once
Kind = tuple[int, str]


class _Waiting(NamedTuple):
    accepted: socket.socket
    ip: bytes
    port: int
    on_splice: Callable[[Splice], None] | None


class Inward:
    """The way in of one network."""

    def __init__(self, loop: AbstractEventLoop, splices: Splices, clients: UdpClients, refill: Refill) -> None:
        self._loop = loop
        self._splices = splices
        self._clients = clients
        self._refill = refill
        self._ready: dict[Kind, list[socket.socket]] = {}
        self._asked: dict[Kind, TimerHandle] = {}
        self._waiting: dict[Kind, deque[_Waiting]] = {}
        self._closed = False
        self.unavailable = 0  # connections and datagrams for which there was no socket

    def accept(
        self, accepted: socket.socket, ip: str, port: int, on_splice: Callable[[Splice], None] | None = None
    ) -> None:
        """Join ``accepted``, which is ours from now on, to ``ip``:``port`` in the namespace. ``on_splice`` is called
        with the connection if there is one, now or later."""
        address = packed(ip)
        kind = (4 if len(address) == 4 else 6, "tcp")
        wanted = _Waiting(accepted, address, port, on_splice)
        sock = self._take(kind)
        if sock is not None:
            self._connect(wanted, sock)
            return
        waiting = self._waiting.setdefault(kind, deque())
        if kind not in self._asked or len(waiting) >= WAITING_MAX:
            self.unavailable += 1
            reset(accepted)
            return
        waiting.append(wanted)

    def _connect(self, wanted: _Waiting, sock: socket.socket) -> None:
        splice = self._splices.connect(wanted.accepted, sock, sockaddr(wanted.ip, wanted.port))
        if splice is not None and wanted.on_splice is not None:
            wanted.on_splice(splice)

    def carry(
        self,
        listener: socket.socket,
        client: tuple[str, int],
        control: Control,
        payload: memoryview,
        ip: str,
        port: int,
    ) -> None:
        """A datagram that ``listener`` had from ``client`` goes to ``ip``:``port`` in the namespace; answers go back
        with ``control``. The first ones of a client are lost where no socket is ready."""
        address = packed(ip)
        kind = (4 if len(address) == 4 else 6, "udp")
        self._clients.carry(
            listener, client, control, payload, sockaddr(address, port), partial(self._take_or_count, kind)
        )

    def forget(self, listener: socket.socket) -> None:
        """End all clients of ``listener``, which is about to be closed."""
        self._clients.forget(listener)

    def _take_or_count(self, kind: Kind) -> socket.socket | None:
        sock = self._take(kind)
        if sock is None:
            self.unavailable += 1
        return sock

    # -- sockets that are ready ----------------------------------------------------------------------------------

    def _take(self, kind: Kind) -> socket.socket | None:
        ready = self._ready.setdefault(kind, [])
        if not ready:
            self._ask(kind)  # which may be answered at once
        sock = ready.pop() if ready else None
        if len(ready) < READY // 2:
            self._ask(kind)
        return sock

    def _ask(self, kind: Kind) -> None:
        if kind in self._asked or self._closed:
            return
        self._asked[kind] = self._loop.call_later(PATIENCE, self.supply, *kind, [])
        missing = READY - len(self._ready[kind]) + len(self._waiting.get(kind, ()))
        self._refill(*kind, min(missing, READY_MAX))

    def supply(self, family: int, protocol: str, sockets: list[socket.socket]) -> None:
        """What ``refill`` asked for: bare sockets, which are ours from now on. None at all is a refusal."""
        kind = (family, protocol)
        asked = self._asked.pop(kind, None)
        if asked is not None:
            asked.cancel()
        ready = self._ready.setdefault(kind, [])
        ready.extend(sockets)
        waiting = self._waiting.get(kind, deque())
        while waiting and ready:
            self._connect(waiting.popleft(), ready.pop())
        if self._closed or not sockets:
            while waiting:
                self.unavailable += 1
                reset(waiting.popleft().accepted)
        elif waiting:
            self._ask(kind)
        while ready and (self._closed or len(ready) > READY_MAX):
            ready.pop().close()

    def close(self) -> None:
        """The network ends. Sockets that are supplied yet are closed."""
        self._closed = True
        for kind in {*self._ready, *self._waiting}:
            self.supply(*kind, [])
