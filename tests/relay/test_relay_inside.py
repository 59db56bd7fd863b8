"""The ways between the two loopbacks in a real daemon: the agent makes the sockets in there."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from netd import inside
from netd.relay import autoports
from netd.rules import RuleFailed
from netd.specs import ForwardSpec, LoopbackPort, PortRule
from tests.lab import HOST, World, aside, both_ways, open_fds, until
from tests.relay.joined import end_of
from tests.relay.test_relay_outward import exchange, reset_at_once
from tests.stage import Attach

V4, V6 = socket.AF_INET, socket.AF_INET6
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
LIKE = {
    "host_like": True,
    "ifname": "out0",
    "cidr": "198.51.100.0/24",
    "guest_ip": HOST,
    "gateway_ip": "198.51.100.254",
    "dns_ip": "",
    "addresses": (f"{HOST}/24",),
    "routes": ("default via 198.51.100.254",),
}
FAMILIES = pytest.mark.parametrize("family", [V4, V6])


def served(netns: Any, protocol: str, family: int, ip: str = "", port: int = 0) -> socket.socket:
    sock = netns.socket(socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM, family=family)
    sock.bind((ip or LOOPBACK[socket.AddressFamily(family)], port))
    if protocol == "tcp":
        sock.listen(64)
    return sock


@FAMILIES
async def test_out_and_away_again(world: World, attach: Attach, family: int) -> None:
    guest = await attach(**LIKE)
    before = open_fds()
    with served(world.host, "tcp", family) as service, served(world.host, "udp", family) as asked:
        rules = [
            PortRule("tcp", 8080, 8080, service.getsockname()[1], interface="lo"),
            PortRule("udp", 5353, 5353, asked.getsockname()[1], interface="lo"),
        ]
        for rule in rules:
            await guest.network.rules.add("out", rule, "pasta")
        client = guest.socket(family=family)
        with client, guest.socket(socket.SOCK_DGRAM, family=family) as datagrams:
            await aside(client.connect, (LOOPBACK[socket.AddressFamily(family)], 8080))
            server, _ = await aside(service.accept)
            server.settimeout(20)
            with server:
                await both_ways(client, server, 3_000_000)
            datagrams.connect((LOOPBACK[socket.AddressFamily(family)], 5353))
            for data in (b"", b"x" * 9000, b"end"):
                await exchange(datagrams, data, asked)
        # Only its own loopback leads there.
        with guest.socket() as other:
            with pytest.raises(ConnectionRefusedError):
                other.connect((HOST, 8080))
        for rule in rules:
            await guest.network.rules.remove("out", rule)
        with guest.socket(family=family) as late, pytest.raises(ConnectionRefusedError):
            late.connect((LOOPBACK[socket.AddressFamily(family)], 8080))
        served(guest, "udp", family, port=5353).close()
    await until(lambda: open_fds() <= before + 3)  # the pipe and the epoll instance


async def test_out_as_long_as_somebody_listens(world: World, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoports, "PERIOD", 0.03)
    guest = await attach(**LIKE)
    outward = guest.network._inside.outward
    await guest.network.rules.add("out", PortRule("tcp", 1, 32767, 1, interface="lo", auto=True), "pasta")
    with served(world.host, "tcp", V4, port=8003) as service:
        await until(lambda: outward.all() == [LoopbackPort("tcp", 8003, 8003, 0)])
        with guest.socket() as client, guest.socket(family=V6) as client6:
            await aside(client.connect, ("127.0.0.1", 8003))
            server, _ = await aside(service.accept)
            server.close()
            assert await aside(end_of, client) == (b"", 0)
            assert await aside(reset_at_once, client6, ("::1", 8003))
    await until(lambda: not outward.all())


async def test_in_as_long_as_somebody_listens(world: World, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoports, "PERIOD", 0.03)
    guest = await attach(**LIKE)
    for protocol in ("tcp", "udp"):
        await guest.network.rules.add("in", PortRule(protocol, 1, 32767, 1, auto=True), "pasta")
    with served(guest, "tcp", V4, "127.0.0.1", 8002), served(guest, "tcp", V4, "0.0.0.0", 8003) as service:
        await until(lambda: len(guest.network.forwards()) == 2)
        assert {(f.spec.protocol, f.spec.host_port) for f in guest.network.forwards()} == {("tcp", 8003), ("udp", 8003)}
        with world.outside.socket() as client:
            await aside(client.connect, (HOST, 8003))
            server, _ = await aside(service.accept)
            server.settimeout(20)
            with server:
                await both_ways(client, server, 100_000)
    await until(lambda: not guest.network.forwards())


@FAMILIES
async def test_from_loopback_to_loopback(world: World, attach: Attach, family: int) -> None:
    """A service that listens on the guest's loopback alone; from elsewhere it is not reached."""
    guest = await attach(**LIKE, host_lo_to_ns_lo=True)
    ip = LOOPBACK[socket.AddressFamily(family)]
    for protocol in ("tcp", "udp"):
        guest.network.add_forward(ForwardSpec(protocol, 8080, 80), "pasta")
    with served(guest, "tcp", family, port=80) as service, served(guest, "udp", family, port=80) as asked:
        clients = [world.host.socket(family=family) for _ in range(30)]  # more than are ready
        await asyncio.gather(*(aside(client.connect, (ip, 8080)) for client in clients))
        servers = [(await aside(service.accept))[0] for _ in clients]
        for server in servers:
            server.settimeout(20)
        await aside(clients[0].sendall, b"x")
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        assert sorted([(await aside(end_of, server))[0] for server in servers]) == [b""] * 29 + [b"x"]
        assert guest.network.forwards()[0].connections == 30
        for sock in (*clients, *servers):
            sock.close()
        await until(lambda: guest.network.forwards()[0].connections == 0)
        with world.host.socket(socket.SOCK_DGRAM, family=family) as datagrams:
            datagrams.connect((ip, 8080))
            for data in (b"", b"y" * 9000, b"x"):
                await exchange(datagrams, data, asked)
        if family == V4:
            with world.outside.socket() as client:
                assert await aside(reset_at_once, client, (HOST, 8080))
    for forward in guest.network.forwards():
        guest.network.remove_forward(forward.id)


GUEST6 = "2001:db8:9::2"
BOTH = {"cidr6": "2001:db8:9::/64", "guest_ip6": GUEST6, "gateway_ip6": "fe80::1", "dns_ip6": ""}
BOTH["addresses"] = (f"{HOST}/24", f"{GUEST6}/64")  # type: ignore[assignment]


@FAMILIES
async def test_from_loopback_to_the_guests_address(world: World, attach: Attach, family: int) -> None:
    """It comes from there as well (pasta(1)); what listens on the guest's loopback alone is not for the host."""
    guest = await attach(**LIKE | BOTH, splice=True)
    address = {V4: HOST, V6: GUEST6}[socket.AddressFamily(family)]
    for port in (80, 81):
        guest.network.add_forward(ForwardSpec("tcp", 8000 + port, port), "pasta")
    loopback = LOOPBACK[socket.AddressFamily(family)]
    with served(guest, "tcp", family, address, 80) as service, served(guest, "tcp", family, port=81):
        with world.host.socket(family=family) as client, world.host.socket(family=family) as other:
            await aside(client.connect, (loopback, 8080))
            server, peer = await aside(service.accept)
            server.settimeout(20)
            with server:
                assert peer[0] == address
                await both_ways(client, server, 3_000_000)
            assert await aside(reset_at_once, other, (loopback, 8081))
        assert guest.network.status().flows["tcp"] == 0
        if family == V4:
            with world.outside.socket() as client:
                await aside(client.connect, (HOST, 8080))
                server, peer = await aside(service.accept)
                server.close()
                assert peer[:2] == client.getsockname()
    assert guest.counters()["spliced_refused"] == 1
    guest.network.add_forward(ForwardSpec("udp", 8080, 80), "pasta")
    with served(guest, "udp", family, address, 80) as asked:
        with world.host.socket(socket.SOCK_DGRAM, family=family) as datagrams:
            datagrams.sendto(b"who", (loopback, 8080))
            got, peer = await aside(asked.recvfrom, 100)
            assert got == b"who" and peer[0] == address
            asked.sendto(b"me", peer)
            assert (await aside(datagrams.recvfrom, 100)) == (b"me", (loopback, 8080, 0, 0)[: len(peer)])
            assert guest.network.forwards()[-1].connections == 1
        assert guest.network.status().flows["udp"] == 0
    for forward in guest.network.forwards():
        guest.network.remove_forward(forward.id)


async def test_from_loopback_by_the_family_that_somebody_listens_on(world: World, attach: Attach) -> None:
    guest = await attach(**LIKE | BOTH, splice=True)
    guest.network.add_forward(ForwardSpec("tcp", 8080, 80), "pasta")
    guest.network.add_forward(ForwardSpec("tcp", 8081, 81, container_ip=GUEST6), "pasta")
    with served(guest, "tcp", V4, "0.0.0.0", 80) as service, world.host.socket(family=V6) as client:
        await aside(client.connect, ("::1", 8080))
        server, peer = await aside(service.accept)
        server.close()
        assert peer[0] == HOST
    with served(guest, "tcp", V6, "::", 81) as service, world.host.socket() as client:
        await aside(client.connect, ("127.0.0.1", 8081))  # to a target of its own: through the interface
        server, peer = await aside(service.accept)
        server.close()
        assert peer[0] != GUEST6


async def test_from_loopback_where_the_namespace_is_not_known(world: World, attach: Attach) -> None:
    guest = await attach(**LIKE | {"host_like": False}, splice=True)
    guest.network.add_forward(ForwardSpec("tcp", 8080, 80), "pasta")
    with served(guest, "tcp", V4, "0.0.0.0", 80) as service, world.host.socket() as client:
        await aside(client.connect, ("127.0.0.1", 8080))
        server, peer = await aside(service.accept)
        server.close()
        assert peer[0] == LIKE["gateway_ip"]


async def test_from_loopback_to_nobody(world: World, attach: Attach) -> None:
    guest = await attach(**LIKE, host_lo_to_ns_lo=True)
    guest.network.add_forward(ForwardSpec("tcp", 8080, 80), "pasta")
    with world.host.socket() as client:
        assert await aside(reset_at_once, client, ("127.0.0.1", 8080))


async def test_the_end_takes_all_along(world: World, attach: Attach) -> None:
    """A network with connections of each kind is closed; nothing is left (the fixture counts descriptors)."""
    guest = await attach(**LIKE, host_lo_to_ns_lo=True)
    guest.network.add_forward(ForwardSpec("tcp", 8080, 80), "pasta")
    with served(world.host, "tcp", V4) as service, served(guest, "tcp", V4, port=80) as inner:
        await guest.network.rules.add(
            "out", PortRule("tcp", 8081, 8081, service.getsockname()[1], interface="lo"), "pasta"
        )
        with guest.socket() as out, world.host.socket() as back:
            await aside(out.connect, ("127.0.0.1", 8081))
            await aside(back.connect, ("127.0.0.1", 8080))
            ends = [(await aside(listener.accept))[0] for listener in (service, inner)]
            await guest.daemon.detach(guest.network)
            for sock in (out, back, *ends):
                assert (await aside(end_of, sock))[1] == errno.ECONNRESET
                sock.close()


async def test_so_many_ports_of_the_guests_loopback(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """PORTS_MAX: a rule is refused as a whole, one of best effort has what there is room for."""
    monkeypatch.setattr(inside, "PORTS_MAX", 10)
    guest = await attach(**LIKE)
    before, rules = open_fds(), guest.network.rules
    await rules.add("out", PortRule("tcp", 8000, 8005, 8000, interface="lo"), "pasta")
    with pytest.raises(RuleFailed, match="at most 10 ports"):
        await rules.add("out", PortRule("tcp", 9000, 9004, 9000, interface="lo"), "pasta")
    await rules.add("out", PortRule("udp", 1, 32767, 1, interface="lo", best_effort=True), "pasta")
    ports = guest.network.status().loopback_ports
    assert [p.port for p in ports] == [8000, 8001, 8002, 8003, 8004, 8005, 1, 2, 3, 4]
    for rule in rules.table("out"):
        await rules.remove("out", rule)
    assert guest.network.status().loopback_ports == () and open_fds() == before


async def test_a_rule_is_had_whole_or_not_at_all(attach: Attach) -> None:
    guest = await attach(**LIKE)
    before, rules = open_fds(), guest.network.rules
    with served(guest, "tcp", V4, port=8003), pytest.raises(RuleFailed) as failed:
        await rules.add("out", PortRule("tcp", 8000, 8005, 8000, interface="lo"), "pasta")
    assert (failed.value.error.port, failed.value.error.reason) == (8003, "Address already in use")  # type: ignore[attr-defined]
    assert guest.network.status().loopback_ports == () and open_fds() == before
