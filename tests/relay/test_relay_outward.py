"""From the guest's loopback to the host's and back: real namespaces, real sockets; a clock that jumps."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netd.relay.udp_relay import IDLE
from netd.specs import LoopbackPort
from tests.lab import World, aside, both_ways, open_fds, until
from tests.relay.joined import end_of
from tests.relay.loopbacks import FAMILIES, LOOPBACK, Stage, exchange, port_of, staged
from tests.relay.test_relay_limits import out_of_descriptors


@pytest_asyncio.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    with staged(world) as stage:
        yield stage


def reset_at_once(client: socket.socket, address: tuple[str, int]) -> bool:
    """While it connects, or right afterwards."""
    try:
        client.connect(address)
    except ConnectionResetError:
        return True
    return end_of(client) == (b"", errno.ECONNRESET)


@FAMILIES
async def test_tcp(stage: Stage, family: int) -> None:
    with stage.service("tcp", family) as service, stage.guest.socket(family=family) as client:
        stage.outward.add(stage.listener("tcp", 8080, family), port_of(service), "tcp")
        await aside(client.connect, (LOOPBACK[family], 8080))
        server, peer = await aside(service.accept)
        with server:
            server.settimeout(20)
            assert peer[0] == LOOPBACK[family]
            assert stage.outward.all() == [LoopbackPort("tcp", 8080, port_of(service), 1)]
            await both_ways(client, server, 1_000_000)
        await until(lambda: stage.outward.all()[0].connections == 0)
    assert stage.events


async def test_each_family_leads_to_its_own(stage: Stage) -> None:
    """A service on 127.0.0.1 alone is refused to a client of ::1."""
    with stage.service("tcp") as service:
        for family in LOOPBACK:
            stage.outward.add(stage.listener("tcp", 8080, family), port_of(service), "tcp")
        assert stage.outward.ports("tcp") == {8080} and stage.outward.ports("udp") == set()
        with stage.guest.socket() as client, stage.guest.socket(family=socket.AF_INET6) as client6:
            assert await aside(reset_at_once, client6, ("::1", 8080))
            await aside(client.connect, ("127.0.0.1", 8080))
            server, _ = await aside(service.accept)
            server.close()
            assert await aside(end_of, client) == (b"", 0)
        assert len(stage.outward.all()) == 1


async def test_one_refusal_is_nobody_elses(stage: Stage) -> None:
    with stage.service("tcp") as service:
        stage.outward.add(stage.listener("tcp", 8080), 9, "tcp")
        stage.outward.add(stage.listener("tcp", 8081), port_of(service), "tcp")
        for _ in range(50):
            with stage.guest.socket() as client:
                assert await aside(reset_at_once, client, ("127.0.0.1", 8080))
        with stage.guest.socket() as client:
            await aside(client.connect, ("127.0.0.1", 8081))
            server, _ = await aside(service.accept)
            with server:
                server.settimeout(20)
                await both_ways(client, server, 1000)
    assert stage.splices.refused == 50


@pytest.mark.parametrize("close_connections", [False, True])
async def test_removed(stage: Stage, close_connections: bool) -> None:
    before = open_fds()
    with stage.service("tcp") as service, stage.guest.socket() as client:
        stage.outward.add(stage.listener("tcp", 8080), port_of(service), "tcp")
        await aside(client.connect, ("127.0.0.1", 8080))
        server, _ = await aside(service.accept)
        with server:
            server.settimeout(20)
            assert stage.outward.remove("tcp", 8080, close_connections)
            assert not stage.outward.remove("tcp", 8080) and not stage.outward.remove("udp", 8080)
            with stage.guest.socket() as late, pytest.raises(ConnectionRefusedError):
                late.connect(("127.0.0.1", 8080))
            if close_connections:
                assert await aside(end_of, client) == (b"", errno.ECONNRESET)
            else:
                await both_ways(client, server, 1000)
        again = stage.listener("tcp", 8080)
        again.close()
    await until(lambda: not len(stage.splices))
    stage.splices.close()
    assert open_fds() == before


async def test_many_at_once(stage: Stage) -> None:
    with stage.service("tcp") as service:
        stage.outward.add(stage.listener("tcp", 8080), port_of(service), "tcp")

        def one(number: int, client: socket.socket) -> bytes:
            with client:
                client.connect(("127.0.0.1", 8080))
                client.sendall(b"%d" % number)
                client.shutdown(socket.SHUT_WR)
                return end_of(client)[0]

        def serve() -> None:
            for _ in range(200):
                server, _ = service.accept()
                with server:
                    server.settimeout(20)
                    server.sendall(end_of(server)[0] * 2)

        serving = asyncio.ensure_future(aside(serve))
        answers = await asyncio.gather(*(aside(one, number, stage.guest.socket()) for number in range(200)))
        await serving
        assert answers == [b"%d" % number * 2 for number in range(200)]


async def test_out_of_descriptors(stage: Stage) -> None:
    """Nothing spins, and the backlog is served afterwards."""
    with stage.service("tcp") as service, stage.guest.socket() as client:
        stage.outward.add(stage.listener("tcp", 8080), port_of(service), "tcp")
        with out_of_descriptors():
            await aside(client.connect, ("127.0.0.1", 8080))
            await asyncio.sleep(0.15)
            before = stage.events
            await asyncio.sleep(0.25)
            assert stage.events - before < 6
        server, _ = await aside(service.accept)
        with server:
            server.settimeout(20)
            await both_ways(client, server, 1000)


@FAMILIES
async def test_udp(stage: Stage, family: int) -> None:
    with stage.service("udp", family) as service:
        stage.outward.add(stage.listener("udp", 5353, family), port_of(service), "udp")
        clients = [stage.guest.socket(socket.SOCK_DGRAM, family=family) for _ in range(3)]
        seen = set()
        for client in clients:
            client.connect((LOOPBACK[family], 5353))
            for data in (b"abc", b"", b"x" * 65000, b"end"):
                seen.add(await exchange(client, data, service))
        assert len(seen) == 3  # as many clients as there are
        assert stage.outward.all() == [LoopbackPort("udp", 5353, port_of(service), 3)]
        assert stage.outward.ports("udp") == {5353}
        for client in clients:
            client.close()
        assert stage.outward.remove("udp", 5353)
        assert not len(stage.clients)
        stage.listener("udp", 5353, family).close()


async def test_answers_come_from_where_the_client_wrote_to(stage: Stage) -> None:
    with stage.service("udp") as service, stage.guest.datagrams("127.0.0.1") as client:
        stage.outward.add(stage.listener("udp", 5353), port_of(service), "udp")
        for ip in ("127.0.0.5", "127.0.0.1", "127.0.0.5"):
            await aside(client.sendto, b"x", (ip, 5353))
            _, peer = await aside(service.recvfrom, 10)
            service.sendto(b"y", peer)
            assert await aside(client.recvfrom, 10) == (b"y", (ip, 5353))
        assert len(stage.clients) == 1


async def test_idle_clients_end(stage: Stage) -> None:
    with stage.service("udp") as service, stage.guest.datagrams() as one, stage.guest.datagrams() as two:
        stage.outward.add(stage.listener("udp", 5353), port_of(service), "udp")
        for client in (one, two):
            client.connect(("127.0.0.1", 5353))
            await exchange(client, b"first", service)
        peer = await exchange(one, b"x", service)
        stage.now += IDLE - 1
        stage.clients.expire()
        assert len(stage.clients) == 2
        service.sendto(b"an answer counts, too", peer)
        assert await aside(one.recv, 100)
        stage.now += 2
        stage.clients._on_timer()
        assert len(stage.clients) == 1
        assert await exchange(one, b"same", service) == peer
        await exchange(two, b"anew", service)
        stage.now += IDLE + 1
        stage.clients._on_timer()
        assert not len(stage.clients) and stage.clients._timer is None
        await exchange(one, b"again", service)
        assert stage.clients._timer is not None


async def test_the_longest_idle_one_is_evicted(stage: Stage) -> None:
    stage.clients._limit = 3
    with stage.service("udp") as service:
        stage.outward.add(stage.listener("udp", 5353), port_of(service), "udp")
        clients = [stage.guest.datagrams() for _ in range(4)]
        for client in clients:
            client.connect(("127.0.0.1", 5353))
        peers = [await exchange(client, b"x", service) for client in clients[:3]]
        assert await exchange(clients[0], b"x", service) == peers[0]
        fds = open_fds()
        await exchange(clients[3], b"x", service)
        assert (len(stage.clients), stage.clients.evicted, open_fds()) == (3, 1, fds)
        assert await exchange(clients[0], b"x", service) == peers[0]
        assert await exchange(clients[1], b"x", service) != peers[1]
        for client in clients:
            client.close()


async def test_a_service_that_refuses(stage: Stage) -> None:
    """It is heard of without a datagram going astray, and the service may come later."""
    with stage.service("udp") as service, stage.guest.datagrams() as client, stage.guest.datagrams() as other:
        port = port_of(service)
        service.close()
        stage.outward.add(stage.listener("udp", 5353), port, "udp")
        for datagrams in (client, other):
            datagrams.connect(("127.0.0.1", 5353))
            for _ in range(10):
                datagrams.send(b"x")
                await asyncio.sleep(0.01)
        await until(lambda: not len(stage.clients))
        assert stage.clients.refused
        with stage.host.datagrams("127.0.0.1", port) as service:
            for _ in range(5):
                await exchange(client, b"hello", service)
                await exchange(other, b"hello", service)


async def test_no_descriptor_for_a_client(stage: Stage) -> None:
    with stage.service("udp") as service, stage.guest.datagrams() as client:
        stage.outward.add(stage.listener("udp", 5353), port_of(service), "udp")
        client.connect(("127.0.0.1", 5353))
        with out_of_descriptors():
            client.send(b"x")
            await until(lambda: stage.clients.dropped == 1)
        await exchange(client, b"hello", service)


async def test_a_burst(stage: Stage) -> None:
    """In order; what the service's queue does not hold is lost."""
    with stage.service("udp") as service, stage.guest.datagrams() as client:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        stage.outward.add(stage.listener("udp", 5353), port_of(service), "udp")
        client.connect(("127.0.0.1", 5353))
        for number in range(100):
            client.send(b"%d" % number)
        got = [int(await aside(service.recv, 100)) for _ in range(100)]
        assert got == list(range(100))


# -- inward ---------------------------------------------------------------------------------------------------------
