"""A guest's loopback and the host's, and what leads from the one to the other: for the tests of both ways."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from netd.relay.outward import Outward
from netd.relay.splice import Splices
from netd.relay.udp_relay import UdpClients
from tests.lab import Netns, World, aside

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])


class Pace:
    turn = 200e-6


class Stage:
    def __init__(self, world: World) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.now = 1000.0
        self.guest, self.host = world.guest(), world.host
        self.guest.ip("link set lo up")
        self.events = 0
        self.splices = Splices(loop, time.monotonic, Pace(), self.noted)
        self.clients = UdpClients(loop, lambda: self.now, self.noted)
        self.outward = Outward(loop, self.splices, self.clients, self.noted)

    def noted(self) -> None:
        self.events += 1

    def close(self) -> None:
        self.outward.close()
        self.clients.close()
        self.splices.close()
        assert not len(self.clients) and not len(self.splices)

    def listener(self, protocol: str, port: int, family: int = socket.AF_INET) -> socket.socket:
        """As the agent makes it: all addresses, bound to lo."""
        sock = self.guest.socket(socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM, family=family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        if protocol == "tcp":
            sock.listen(128)
        return sock

    def service(self, protocol: str, family: int = socket.AF_INET, netns: Netns | None = None) -> socket.socket:
        """Of the host's loopback."""
        sock = (netns or self.host).socket(
            socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM, family=family
        )
        sock.bind((LOOPBACK[socket.AddressFamily(family)], 0))
        if protocol == "tcp":
            sock.listen(128)
        return sock


@contextmanager
def staged(world: World) -> Iterator[Stage]:
    """One whose callbacks have not failed."""
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    stage = Stage(world)
    yield stage
    stage.close()
    assert not failed


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


async def exchange(client: socket.socket, data: bytes, service: socket.socket) -> Any:
    """One datagram and its answer; the address that the service saw."""
    await aside(client.send, data)
    got, peer = await aside(service.recvfrom, 1 << 16)
    assert got == data
    service.sendto(data[::-1], peer)
    assert await aside(client.recv, 1 << 16) == data[::-1]
    return peer
