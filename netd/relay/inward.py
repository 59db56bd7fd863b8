"""From the host's loopback into the namespace, from socket to socket: to the guest's own address, which it then sees as
the client's, too, or (pasta(1), --host-lo-to-ns-lo) from its loopback to its loopback.

The sockets that connect there have to be made there, by a process that enters the namespace. A few are always ready,
and more where many are wanted; a connection or datagram for which there is none waits for the next ones. If none come
a connection gets an RST.
"""

from __future__ import annotations

import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from netd.relay.sockaddr import Sockaddr, sockaddr
from netd.relay.splice import Splice, Splices, reset
from netd.relay.tcp_socket import TcpSocket
from netd.relay.udp_relay import Control, UdpClients

READY: Final = 8  # sockets of a kind; more are asked for when it is fewer than half of them
READY_MAX: Final = 128  # and so many where that was not enough, or did not last, again and again
OFTEN: Final = 0.02  # seconds between requests: with eight sockets each the agent took 50 us a connection
WAITING_MAX: Final = 256  # connections
DATAGRAMS_MAX: Final = 64  # that wait
# Seconds, more than the agent is given (spawn.DEADLINE): a refusal that comes late is not to be taken for the answer to
# the next request. Who did not ask for so long is content with READY again.
PATIENCE: Final = 6.0

Buffer = bytes | memoryview
Refill = Callable[[int, str, int], None]  # family (4, 6), protocol, how many: ``supply`` is called later, or at once
Kind = tuple[int, str]


class _Waiting(NamedTuple):
    accepted: TcpSocket
    ip: bytes
    port: int
    on_splice: Callable[[Splice], None] | None
    on_refused: Callable[[TcpSocket], None] | None


class _Late(NamedTuple):
    listener: socket.SocketType
    client: Sockaddr
    control: Control
    payload: bytes
    address: bytes
    port: int


class Inward:
    """The way in of one network."""

    def __init__(self, loop: AbstractEventLoop, splices: Splices, clients: UdpClients, refill: Refill) -> None:
        self._loop = loop
        self._splices = splices
        self._clients = clients
        self._refill = refill
        self._ready: dict[Kind, list[socket.SocketType]] = {}
        self._target: dict[Kind, int] = {}  # how many shall be ready
        self._starved: set[Kind] = set()  # since it was asked
        self._last: dict[Kind, float] = {}  # when it was asked
        self._calming: dict[Kind, TimerHandle] = {}  # until that is READY again
        self._asked: dict[Kind, TimerHandle] = {}
        self._waiting: dict[Kind, deque[_Waiting]] = {}
        self._late: dict[Kind, deque[_Late]] = {}
        self._closed = False
        self.unavailable = 0  # connections and datagrams for which there was no socket

    def accept(
        self,
        accepted: TcpSocket,
        address: bytes,
        port: int,
        on_splice: Callable[[Splice], None] | None = None,
        on_refused: Callable[[TcpSocket], None] | None = None,
    ) -> None:
        """Join ``accepted``, which is ours from now on, to ``address``:``port`` in the namespace. ``on_splice`` is
        called with the connection if there is one, now or later, ``on_refused`` with ``accepted``, which is the
        caller's again, where nobody listens."""
        kind = (4 if len(address) == 4 else 6, "tcp")
        sock = self._take(kind)
        if sock is not None:
            self._connect(sock, accepted, address, port, on_splice, on_refused)
            return
        waiting = self._waiting.setdefault(kind, deque())
        if kind not in self._asked or len(waiting) >= WAITING_MAX:
            self.unavailable += 1
            reset(accepted)
            return
        waiting.append(_Waiting(accepted, address, port, on_splice, on_refused))

    def _connect(
        self,
        sock: TcpSocket,
        accepted: TcpSocket,
        ip: bytes,
        port: int,
        on_splice: Callable[[Splice], None] | None,
        on_refused: Callable[[TcpSocket], None] | None,
    ) -> None:
        splice = self._splices.connect(accepted, sock, sockaddr(ip, port), on_refused=on_refused)
        if splice is not None and on_splice is not None:
            on_splice(splice)

    def carry(
        self,
        listener: socket.SocketType,
        client: Sockaddr,
        control: Control,
        payload: Buffer,
        address: bytes,
        port: int,
    ) -> None:
        """A datagram that ``listener`` had from ``client`` goes to ``address``:``port`` in the namespace; answers go
        back with ``control``."""
        kind = (4 if len(address) == 4 else 6, "udp")
        ready = self._ready.setdefault(kind, [])
        if not ready and not self._clients.knows(listener, client):
            self._starved.add(kind)
            self._ask(kind)  # which may be answered at once
            if not ready:
                late = self._late.setdefault(kind, deque())
                if kind in self._asked and len(late) < DATAGRAMS_MAX:
                    late.append(_Late(listener, client, control, bytes(payload), address, port))
                else:
                    self.unavailable += 1
                return
        self._clients.carry(listener, client, control, payload, sockaddr(address, port), partial(self._take, kind))

    def clients_of(self, listener: socket.SocketType) -> int:
        """How many clients of ``listener`` there are."""
        return self._clients.counts()[listener.fileno()]

    def forget(self, listener: socket.SocketType) -> None:
        """End all clients of ``listener``, which is about to be closed."""
        self._clients.forget(listener)
        for kind, late in self._late.items():
            self._late[kind] = deque(each for each in late if each.listener is not listener)

    # -- sockets that are ready ----------------------------------------------------------------------------------

    def _take(self, kind: Kind) -> socket.SocketType | None:
        ready = self._ready.setdefault(kind, [])
        if not ready:
            self._starved.add(kind)
            self._ask(kind)  # which may be answered at once
        sock = ready.pop() if ready else None
        if len(ready) < self._target.get(kind, READY) // 2:
            self._ask(kind)
        return sock

    def _ask(self, kind: Kind) -> None:
        if kind in self._asked or self._closed:
            return
        now = self._loop.time()
        target = self._target.get(kind, READY)
        if kind in self._starved or now - self._last.get(kind, 0.0) < OFTEN:
            target = min(2 * target, READY_MAX) if kind in self._last else READY
        self._starved.discard(kind)
        self._last[kind] = now
        self._target[kind] = target
        if target > READY and kind not in self._calming:
            self._calming[kind] = self._loop.call_later(PATIENCE, self._calm_down, kind)
        missing = target - len(self._ready[kind]) + len(self._waiting.get(kind, ())) + len(self._late.get(kind, ()))
        self._asked[kind] = self._loop.call_later(PATIENCE, self.supply, *kind, [])
        self._refill(*kind, min(missing, READY_MAX))

    def _calm_down(self, kind: Kind) -> None:
        """Who has not asked for a while is content with READY again."""
        left = self._last[kind] + PATIENCE - self._loop.time()
        if left > 0:
            self._calming[kind] = self._loop.call_later(max(left, 0.001), self._calm_down, kind)
            return
        del self._calming[kind]
        self._target[kind] = READY
        ready = self._ready[kind]
        while len(ready) > READY:
            ready.pop().close()

    def supply(self, family: int, protocol: str, sockets: list[socket.SocketType]) -> None:
        """What ``refill`` asked for: bare sockets, which are ours from now on. None at all is a refusal."""
        kind = (family, protocol)
        asked = self._asked.pop(kind, None)
        if asked is not None:
            asked.cancel()
        ready = self._ready.setdefault(kind, [])
        ready.extend(sockets)
        waiting = self._waiting.get(kind, deque())
        while waiting and ready:
            self._connect(ready.pop(), *waiting.popleft())
        late, self._late[kind] = self._late.get(kind, deque()), deque()
        if not sockets:
            self._target[kind] = READY
        if self._closed or not sockets:
            self.unavailable += len(late)
            while waiting:
                self.unavailable += 1
                reset(waiting.popleft().accepted)
        elif waiting:
            self._ask(kind)
        else:
            for each in late:
                self.carry(*each)
        while ready and (self._closed or len(ready) > self._target.get(kind, READY)):
            ready.pop().close()

    def close(self) -> None:
        """The network ends. Sockets that are supplied yet are closed."""
        self._closed = True
        for timer in self._calming.values():
            timer.cancel()
        for kind in {*self._ready, *self._waiting, *self._late}:
            self.supply(*kind, [])
