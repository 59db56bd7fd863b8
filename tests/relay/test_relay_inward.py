"""From the host's loopback into the namespace: sockets made in there, now, later or never."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from netd.relay import inward as inward_
from netd.relay.inward import Inward
from netd.relay.sockaddr import packed
from netd.relay.tcp_socket import accept, prepare
from netd.relay.udp_relay import UdpEntrance
from tests.lab import World, aside, open_fds, until
from tests.relay.joined import end_of, reset_by
from tests.relay.loopbacks import FAMILIES, LOOPBACK, Stage, exchange, port_of, staged


@pytest_asyncio.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    with staged(world) as stage:
        yield stage


class Supplier:
    """Stands for the agent: sockets made in the guest's namespace, now, later, or never."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.asked: list[tuple[int, str, int]] = []
        self.inward = Inward(stage.loop, stage.splices, stage.clients, self.refill)
        self.mode: Callable[[int, str, int], None] = self.later

    def refill(self, family: int, protocol: str, count: int) -> None:
        self.asked.append((family, protocol, count))
        self.mode(family, protocol, count)

    def now(self, family: int, protocol: str, count: int) -> None:
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        made = [
            self.stage.guest.socket(kind, family=socket.AF_INET if family == 4 else socket.AF_INET6)
            for _ in range(count)
        ]
        for sock in made:
            sock.setblocking(False)
        self.inward.supply(family, protocol, made)

    def later(self, family: int, protocol: str, count: int) -> None:
        self.stage.loop.call_later(0.01, self.now, family, protocol, count)

    def refused(self, family: int, protocol: str, count: int) -> None:
        self.stage.loop.call_later(0.01, self.inward.supply, family, protocol, [])

    def never(self, family: int, protocol: str, count: int) -> None:
        pass


class Clocked:
    """The loop with another clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, time: Callable[[], float]) -> None:
        self.time = time
        self.call_later = loop.call_later


@pytest_asyncio.fixture
async def supplier(stage: Stage) -> AsyncIterator[Supplier]:
    supplier = Supplier(stage)
    yield supplier
    supplier.inward.close()
    await asyncio.sleep(0.03)
    assert all(not ready for ready in supplier.inward._ready.values()) and not supplier.inward._asked


async def published(stage: Stage, family: int, count: int = 1) -> tuple[list[socket.socket], list[socket.socket]]:
    """Clients of the host's loopback, and our ends of their connections."""
    with stage.service("tcp", family) as listener:
        prepare(listener)
        clients = [stage.host.socket(family=family) for _ in range(count)]
        ours = []
        for client in clients:
            await aside(client.connect, listener.getsockname())
            ours.append(accept(listener)[0])
        return clients, ours


@FAMILIES
@pytest.mark.parametrize("mode", ["now", "later"])
async def test_tcp(stage: Stage, supplier: Supplier, family: int, mode: str) -> None:
    supplier.mode = getattr(supplier, mode)
    splices: list[Any] = []
    clients, ours = await published(stage, family, 30)
    with stage.service("tcp", family, stage.guest) as service:
        for sock in ours:
            supplier.inward.accept(sock, packed(LOOPBACK[family]), port_of(service), splices.append)
        for client in clients:
            client.sendall(b"%d" % port_of(client))
            client.shutdown(socket.SHUT_WR)
        seen = []
        for _ in clients:
            server, peer = await aside(service.accept)
            with server:
                assert peer[0] == LOOPBACK[family]
                seen.append(int((await aside(end_of, server))[0]))
        assert sorted(seen) == sorted(port_of(client) for client in clients)
    assert len(splices) == 30
    for client in clients:
        client.close()
    await until(lambda: all(splice.closed for splice in splices))
    assert sum(count for _, _, count in supplier.asked) < 100


@pytest.mark.parametrize("mode", ["refused", "never"])
async def test_without_sockets(stage: Stage, supplier: Supplier, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inward_, "PATIENCE", 0.1)
    supplier.mode = getattr(supplier, mode)
    clients, ours = await published(stage, socket.AF_INET, 5)
    for sock in ours:
        supplier.inward.accept(sock, packed("127.0.0.1"), 80)
    for client in clients:
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
        client.close()
    assert supplier.inward.unavailable == 5 and len(supplier.asked) == 1
    supplier.mode = supplier.later
    (client,), (sock,) = await published(stage, socket.AF_INET)
    with stage.service("tcp", netns=stage.guest) as service, client:
        supplier.inward.accept(sock, packed("127.0.0.1"), port_of(service))
        server, _ = await aside(service.accept)
        server.close()
        assert await aside(end_of, client) == (b"", 0)


async def test_has_more_ready_where_they_do_not_suffice(
    stage: Stage, supplier: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inward_, "READY_MAX", 30)
    counts = []
    with stage.service("tcp", netns=stage.guest) as service:
        for _ in range(4):
            clients, ours = await published(stage, socket.AF_INET, 25)
            splices: list[Any] = []
            supplier.asked.clear()
            for sock in ours:
                supplier.inward.accept(sock, packed("127.0.0.1"), port_of(service), splices.append)
            await until(lambda splices=splices: len(splices) == 25)
            await until(lambda: not supplier.inward._asked)
            counts.append(len(supplier.asked))
            assert all(count <= 30 for *_, count in supplier.asked)
            assert sum(map(len, supplier.inward._ready.values())) <= 30
            for client in clients:
                client.close()
                (await aside(service.accept))[0].close()
            await until(lambda splices=splices: all(splice.closed for splice in splices))
        assert counts[0] > 1 == counts[-1], "the first time there were 8"


async def test_has_more_ready_where_they_do_not_last(
    stage: Stage, supplier: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection after the other: there is always a socket, but every few of them the agent is asked."""
    now = stage.loop.time()
    monkeypatch.setattr(supplier.inward, "_loop", Clocked(stage.loop, lambda: now))
    monkeypatch.setattr(inward_, "READY_MAX", 30)
    supplier.mode = supplier.now
    take = partial(supplier.inward._take, (4, "tcp"))

    def counts(taken: int) -> list[int]:
        supplier.asked.clear()
        for _ in range(taken):
            sock = take()
            assert sock is not None
            sock.close()
        return [count for *_, count in supplier.asked]

    assert counts(1) == [8]
    now += 2 * inward_.OFTEN
    assert counts(4) == [5]
    assert counts(5) == [13], "twice as many"
    assert counts(40) == [23, 16], "and no more than 30"
    ready = supplier.inward._ready[4, "tcp"]
    assert len(ready) > 8
    now += inward_.PATIENCE / 2
    supplier.inward._calm_down((4, "tcp"))
    assert len(ready) > 8, "it may go on"
    now += inward_.PATIENCE
    supplier.inward._calm_down((4, "tcp"))
    assert len(ready) == 8, "after a while it is content with that again"
    assert counts(5) == [5]


async def test_no_more_are_asked_for_where_there_are_none(stage: Stage, supplier: Supplier) -> None:
    supplier.mode = lambda family, protocol, count: supplier.inward.supply(family, protocol, [])
    for _ in range(10):
        assert supplier.inward._take((4, "tcp")) is None
    assert {count for *_, count in supplier.asked} == {8, 16}


async def test_waits_for_no_more_than(stage: Stage, supplier: Supplier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inward_, "WAITING_MAX", 3)
    supplier.mode = supplier.never
    clients, ours = await published(stage, socket.AF_INET, 5)
    for sock in ours:
        supplier.inward.accept(sock, packed("127.0.0.1"), 80)
    assert supplier.inward.unavailable == 2
    reset_by(clients.pop(0))  # gives up while it waits
    supplier.inward.close()
    for client in clients:
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
        client.close()


async def test_refused(stage: Stage, supplier: Supplier) -> None:
    (client,), (sock,) = await published(stage, socket.AF_INET)
    with client:
        supplier.inward.accept(sock, packed("127.0.0.1"), 9)
        assert await aside(end_of, client) == (b"", errno.ECONNRESET)
    assert stage.splices.refused == 1


async def test_sockets_after_the_end_are_closed(stage: Stage, supplier: Supplier) -> None:
    before = open_fds()
    (client,), (sock,) = await published(stage, socket.AF_INET)
    supplier.inward.accept(sock, packed("127.0.0.1"), 9)
    supplier.inward.close()
    await asyncio.sleep(0.05)
    client.close()
    assert open_fds() == before


@FAMILIES
async def test_udp(stage: Stage, supplier: Supplier, family: int) -> None:
    supplier.mode = supplier.now
    with stage.service("udp", family, stage.guest) as service, stage.service("udp", family) as sock:
        carried = partial(supplier.inward._take, (4 if family == socket.AF_INET else 6, "udp"))
        entrance = UdpEntrance(
            stage.loop, stage.clients, stage.noted, sock, (LOOPBACK[family], port_of(service)), carried
        )
        with stage.host.socket(socket.SOCK_DGRAM, family=family) as client:
            client.connect(sock.getsockname())
            for data in (b"x", b"", b"y" * 9000):
                await exchange(client, data, service)
        assert len(stage.clients) == 1
        entrance.close()


async def test_udp_carry(stage: Stage, supplier: Supplier) -> None:
    with stage.service("udp", netns=stage.guest) as service, stage.service("udp") as sock:
        with stage.host.datagrams("127.0.0.1") as client:
            peer = client.getsockname()

            def carry(data: bytes) -> None:
                supplier.inward.carry(sock, peer, (), memoryview(data), packed("127.0.0.1"), port_of(service))

            for data in (b"first", b"second", b""):  # they wait for a socket
                carry(data)
            assert not len(stage.clients)
            for data in (b"first", b"second", b""):
                got, seen = await aside(service.recvfrom, 100)
                assert got == data and seen[0] == "127.0.0.1"
            assert len(stage.clients) == 1 and supplier.inward.unavailable == stage.clients.dropped == 0
            service.sendto(b"answer", seen)
            assert await aside(client.recvfrom, 100) == (b"answer", sock.getsockname())
            stage.clients.forget(sock)
            assert not len(stage.clients)
            assert not select.select([client], [], [], 0)[0]


async def test_datagrams_that_wait_in_vain(stage: Stage, supplier: Supplier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inward_, "DATAGRAMS_MAX", 3)
    supplier.mode = supplier.never
    with stage.service("udp") as sock, stage.service("udp") as other:
        for listener in (sock, other, sock, sock, sock):
            supplier.inward.carry(listener, ("127.0.0.1", 9), (), memoryview(b"x"), packed("127.0.0.1"), 9)
        assert supplier.inward.unavailable == 2
        supplier.inward.forget(sock)
        supplier.inward.supply(4, "udp", [])  # a refusal
        assert supplier.inward.unavailable == 3 and not len(stage.clients)


async def test_a_listener_that_is_gone(stage: Stage, supplier: Supplier) -> None:
    """Answers to it end its clients, and another one with its descriptor's number has clients of its own."""
    supplier.mode = supplier.now
    with stage.service("udp", netns=stage.guest) as service, stage.host.datagrams("127.0.0.1") as client:
        peer = client.getsockname()
        seen = []
        for data in (b"first", b"second"):
            sock = stage.service("udp")
            number = sock.fileno()
            supplier.inward.carry(sock, peer, (), memoryview(data), packed("127.0.0.1"), port_of(service))
            assert len(stage.clients) == 1
            got, address = await aside(service.recvfrom, 100)
            assert got == data
            seen.append((number, address))
            where = sock.getsockname()
            if data == b"second":
                service.sendto(b"answer", address)
                assert await aside(client.recvfrom, 100) == (b"answer", where)
            sock.close()
        assert seen[0][0] == seen[1][0] and seen[0][1] != seen[1][1]
        service.sendto(b"nobody", seen[1][1])
        await until(lambda: not len(stage.clients))
        with stage.service("udp") as sock:
            supplier.inward.carry(sock, peer, (), memoryview(b"third"), packed("127.0.0.1"), port_of(service))
            assert len(stage.clients) == 1
            supplier.inward.forget(sock)
            assert not len(stage.clients)
