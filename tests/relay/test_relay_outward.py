"""From the guest's loopback to the host's and back: real namespaces, real sockets; a clock that jumps."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from netd.relay import inward as inward_
from netd.relay.inward import Inward
from netd.relay.outward import Outward
from netd.relay.sockaddr import packed
from netd.relay.splice import Splices
from netd.relay.tcp_socket import accept, prepare
from netd.relay.udp_relay import IDLE, UdpClients, UdpEntrance
from netd.specs import LoopbackPort
from tests.lab import Netns, World, aside, both_ways, open_fds, until
from tests.relay.test_relay_limits import out_of_descriptors
from tests.relay.test_relay_splice import end_of, reset_by

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


@pytest_asyncio.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    stage = Stage(world)
    yield stage
    stage.close()
    assert not failed


def reset_at_once(client: socket.socket, address: tuple[str, int]) -> bool:
    """While it connects, or right afterwards."""
    try:
        client.connect(address)
    except ConnectionResetError:
        return True
    return end_of(client) == (b"", errno.ECONNRESET)


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


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


async def exchange(client: socket.socket, data: bytes, service: socket.socket) -> Any:
    """One datagram and its answer; the address that the service saw."""
    await aside(client.send, data)
    got, peer = await aside(service.recvfrom, 1 << 16)
    assert got == data
    service.sendto(data[::-1], peer)
    assert await aside(client.recv, 1 << 16) == data[::-1]
    return peer


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
async def test_inward_tcp(stage: Stage, supplier: Supplier, family: int, mode: str) -> None:
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
async def test_inward_without_sockets(
    stage: Stage, supplier: Supplier, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_inward_has_more_ready_where_they_do_not_suffice(
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
        monkeypatch.setattr(inward_, "PATIENCE", 0.0)
        supplier.inward._calm.clear()
        supplier.inward._ready[4, "tcp"].pop().close()
        while len(supplier.inward._ready[4, "tcp"]) > 3:
            supplier.inward._ready[4, "tcp"].pop().close()
        supplier.asked.clear()
        [client], [sock] = await published(stage, socket.AF_INET)
        supplier.inward.accept(sock, packed("127.0.0.1"), port_of(service))
        assert supplier.asked == [(4, "tcp", 6)], "after a while it is content with 8"
        client.close()
        (await aside(service.accept))[0].close()


async def test_inward_waits_for_no_more_than(stage: Stage, supplier: Supplier, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_inward_refused(stage: Stage, supplier: Supplier) -> None:
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
async def test_inward_udp(stage: Stage, supplier: Supplier, family: int) -> None:
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


async def test_inward_udp_carry(stage: Stage, supplier: Supplier) -> None:
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
