"""Name servers of both families: where from, and the next one where a family is missing."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from netd.relay.resolver import Resolver
from netd.relay.source import Source
from netd.services import dns
from netd.stack.counters import Counters
from tests.lab import HOST, OUTSIDE, Netns, World, aside
from tests.relay.beyond import HOST6, OUTSIDE6, Beyond

QUERY = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\3www\0\0\1\0\1"
Ask = Callable[[list[str], str, str], "asyncio.Future[bytes]"]


@pytest.fixture
def ask() -> Ask:
    def ask(servers: list[str], source: str = "", source6: str = "") -> asyncio.Future[bytes]:
        class Servers:
            def current(self) -> list[str]:
                return servers

        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        resolver = Resolver(loop, dns, Servers(), Counters(), Source(source, source6))  # type: ignore[arg-type]
        resolver.query(QUERY, answer.set_result)
        return answer

    return ask


def serve(netns: Netns, ip: str) -> tuple[socket.socket, Callable[[], tuple[Any, ...]]]:
    """A name server, and what answers one query: who asked."""
    sock = netns.socket(socket.SOCK_DGRAM, family=socket.AF_INET6 if ":" in ip else socket.AF_INET)
    sock.bind((ip, 53))

    def once() -> tuple[Any, ...]:
        message, client = sock.recvfrom(512)
        sock.sendto(message[:2] + b"\x81\x80" + message[4:], client)
        return client

    return sock, once


async def test_each_family_from_its_own_source(beyond: Beyond, ask: Ask) -> None:
    beyond.host.ip("address add 2001:db8::77/64 dev out0 nodad")
    for server, sources, seen in (
        (OUTSIDE, (HOST, "2001:db8::77"), HOST),
        (OUTSIDE6, (HOST, "2001:db8::77"), "2001:db8::77"),
        (OUTSIDE6, (HOST, HOST6), HOST6),
    ):
        sock, once = serve(beyond.outside, server)
        with sock:
            answer = ask([server], *sources)
            assert (await aside(once))[0] == seen
            assert (await asyncio.wait_for(answer, 5))[:4] == b"\x12\x34\x81\x80"


async def test_a_link_local_server_has_a_zone(beyond: Beyond, ask: Ask) -> None:
    beyond.outside.ip("address add fe80::53/64 dev in0 nodad")
    beyond.host.ip("address add fe80::99/64 dev out0 nodad")
    sock = beyond.outside.socket(socket.SOCK_DGRAM, family=socket.AF_INET6)
    with sock:
        sock.bind(("::", 53))
        for servers in (["fe80::53%out0"], ["fe80::53%gone0", "fe80::53%out0"]):
            answer = ask(servers, "", "")
            message, client = await aside(sock.recvfrom, 512)
            sock.sendto(message[:2] + b"\x81\x80" + message[4:], client)
            assert (await asyncio.wait_for(answer, 5))[3] & 15 == 0


async def test_a_host_without_ipv6_asks_the_next(world: World, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    world.host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
    sock, once = serve(world.outside, OUTSIDE)
    genuine = socket.socket

    def without(family: int, *args: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return genuine(family, *args)

    with sock:
        for absent in (False, True):
            with monkeypatch.context() as patch:
                if absent:
                    patch.setattr(socket, "socket", without)
                answer = ask(["2001:db8::53", "::1", OUTSIDE], "", "")
            await aside(once)
            assert (await asyncio.wait_for(answer, 5))[3] & 15 == 0
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", without)
            answer = ask(["2001:db8::53"], "", "")
        assert (await asyncio.wait_for(answer, 5))[3] & 15 == 2  # SERVFAIL, at once
