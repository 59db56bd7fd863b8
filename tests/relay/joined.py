"""A client, a server and the two sockets between them: for the tests of what joins those."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netd.relay.splice import Splice, Splices
from tests.lab import Netns, World, aside

RST = struct.pack("ii", 1, 0)


class Pace:
    turn = 200e-6


class Stage:
    """A guest's namespace that connects to a host's server by way of a splice, or the other way round."""

    def __init__(self, world: World, splices: Splices) -> None:
        self.guest = world.guest()
        self.guest.ip("link set lo up")
        self.host = world.host
        self.splices = splices
        self.closed = 0
        self.splice: Splice | None = None

    def noted(self) -> None:
        self.closed += 1

    def connect(self, accepted: socket.socket, outgoing: socket.socket, *rest: Any) -> Splice | None:
        """Both non-blocking, as our listeners and the agent give them."""
        accepted.setblocking(False)
        outgoing.setblocking(False)
        return self.splices.connect(accepted, outgoing, *rest)

    async def accepted(self, inside: Netns, family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
        """A client in ``inside`` and our end of its connection."""
        ip = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with inside.socket(family=family) as listener:
            listener.bind((ip, 0))
            listener.listen(1)
            client = inside.socket(family=family)
            await aside(client.connect, listener.getsockname())
            return client, listener.accept()[0]

    async def joined(
        self, inside: Netns | None = None, outside: Netns | None = None, family: int = socket.AF_INET
    ) -> tuple[socket.socket, socket.socket]:
        """A client in ``inside`` (the guest) and the server's end in ``outside`` (the host), joined."""
        inside, outside = inside or self.guest, outside or self.host
        ip = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        client, ours = await self.accepted(inside, family)
        with outside.socket(family=family) as listener:
            listener.bind((ip, 0))
            listener.listen(1)
            address = listener.getsockname()
            self.splice = self.connect(ours, outside.socket(family=family), address, self.noted)
            server, _ = await aside(listener.accept)
        server.settimeout(20)
        return client, server


@contextmanager
def staged(world: World) -> Iterator[Stage]:
    """One whose callbacks have not failed, and that keeps nothing."""
    failed: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    splices = Splices(loop, time.monotonic, Pace(), lambda: None)
    stage = Stage(world, splices)
    yield stage
    splices.close()
    assert not failed and not len(splices) and splices._held == 0


def end_of(sock: socket.socket) -> tuple[bytes, int]:
    """What comes until the end, and the errno that it is."""
    data = b""
    while True:
        try:
            chunk = sock.recv(1 << 16)
        except OSError as e:
            return data, e.errno or -1
        if not chunk:
            return data, 0
        data += chunk


def fill(sock: socket.socket) -> int:
    """Write until nothing is taken for a while."""
    sock.setblocking(False)
    total = 0
    while True:
        try:
            total += sock.send(bytes(1 << 16))
        except BlockingIOError:
            if not select.select([], [sock], [], 0.2)[1]:
                sock.settimeout(20)
                return total


def reset_by(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    sock.close()
