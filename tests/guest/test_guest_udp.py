"""UDP out of the guest: endpoints, errors, sizes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time

import pytest

from netd.settings import Settings
from tests.lab import (
    FORBIDDEN,
    HOST,
    NO_ROUTE,
    OUTSIDE,
    OUTSIDE_TOO,
    PROHIBITED,
    UNREACHABLE,
    World,
    aside,
    until,
)
from tests.stage import Attach, Guest

IP_RECVERR = 11


def ask(sock: socket.socket, payload: bytes, address: tuple[str, int], server: socket.socket) -> tuple[str, int]:
    """``payload`` to the server and back; who the server saw."""
    sock.sendto(payload, address)
    seen, client = server.recvfrom(65535)
    assert seen == payload
    server.sendto(payload[::-1], client)
    assert sock.recvfrom(65535) == (payload[::-1], address)
    return client


def error_of(sock: socket.socket, address: tuple[str, int]) -> int:
    """errno that a datagram to ``address`` brings back, at once."""
    start = time.monotonic()
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    sock.connect(address)
    sock.send(b"anybody?")
    try:
        sock.recv(100)
    except OSError as e:
        assert time.monotonic() - start < 2
        return e.errno or -1
    return 0


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest.mark.parametrize("mtu", [65520, 1500, 68])
async def test_there_and_back_at_every_size(
    world: World, attach: Attach, settings: Settings, mtu: int, offload: bool
) -> None:
    guest = await attach(mtu=mtu)
    with guest.datagrams() as client, world.outside.datagrams(OUTSIDE) as server:
        for size in (1, 0, 2, 39, mtu - 28):
            seen = await aside(ask, client, os.urandom(size), server.getsockname(), server)
            assert seen[0] == HOST
    assert guest.network.status().flows["udp"] == 1


@pytest.fixture(autouse=True)
def _offload(request: pytest.FixtureRequest) -> None:
    """Nothing unless the test is parametrized so; see ``settings``."""


@pytest.fixture
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    callspec = getattr(request.node, "callspec", None)
    offload = callspec.params.get("offload", True) if callspec else True
    return settings.model_copy(update={"offload": offload})


async def test_an_endpoint_keeps_its_port_towards_all_and_hears_from_strangers(world: World, attach: Attach) -> None:
    guest = await attach()
    with (
        guest.datagrams() as client,
        guest.datagrams() as another,
        world.outside.datagrams(OUTSIDE) as first,
        world.outside.datagrams(OUTSIDE_TOO) as second,
        world.outside.datagrams(OUTSIDE_TOO) as stranger,
    ):
        seen = await aside(ask, client, b"one", first.getsockname(), first)
        assert await aside(ask, client, b"two", second.getsockname(), second) == seen
        assert await aside(ask, another, b"three", first.getsockname(), first) != seen
        stranger.sendto(b"hello", seen)
        assert await aside(client.recvfrom, 100) == (b"hello", stranger.getsockname())
        assert await aside(ask, client, b"four", stranger.getsockname(), stranger) == seen


async def test_errors_come_back_as_the_hosts_network_says_them(world: World, attach: Attach) -> None:
    guest = await attach()
    for address, expected in (
        ((OUTSIDE, 9), errno.ECONNREFUSED),
        ((UNREACHABLE, 9), errno.EHOSTUNREACH),
        ((NO_ROUTE, 9), errno.ENETUNREACH),
        ((PROHIBITED, 9), errno.EHOSTUNREACH),  # by the host itself; ICMP code 13 to the guest
        ((FORBIDDEN, 9), errno.EHOSTUNREACH),  # by a router
        (("10.0.2.2", 9), errno.ENETUNREACH),  # the host's loopback, which is not allowed
        (("10.0.2.3", 54), errno.ENETUNREACH),
        (("10.0.2.77", 9), errno.EHOSTUNREACH),  # nobody on the link
    ):
        if address[0] == "10.0.2.77":
            guest.ip("neighbor add 10.0.2.77 lladdr 52:55:0a:00:02:02 dev tap0")
        for _ in range(2):
            with guest.datagrams() as client:
                assert await aside(error_of, client, address) == expected, address


async def test_an_endpoint_lives_on_after_a_refusal(world: World, attach: Attach) -> None:
    """Once POLLERR is polled libuv does not watch a descriptor any more: everything after was lost."""
    guest = await attach()
    with guest.datagrams(port=5555) as client, world.outside.datagrams(OUTSIDE) as server:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # errors of an unconnected socket, too
        for turn in range(5):
            client.sendto(b"x", (OUTSIDE, 9))
            with pytest.raises(ConnectionRefusedError):
                await aside(client.recvfrom, 100)
            client.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            assert await aside(ask, client, b"%d" % turn, server.getsockname(), server)
        # Refused first, listening later.
        late = ("0.0.0.0", 9)
        with world.outside.socket(socket.SOCK_DGRAM) as latecomer:
            latecomer.bind((OUTSIDE, late[1]))
            await aside(ask, client, b"late", (OUTSIDE, 9), latecomer)


async def test_one_peers_refusal_costs_no_other_peer_a_datagram(world: World, attach: Attach) -> None:
    guest = await attach()
    for dead in ((OUTSIDE, 9), (UNREACHABLE, 9)):
        with guest.datagrams() as client, world.outside.datagrams(OUTSIDE) as server:
            await aside(ask, client, b"first", server.getsockname(), server)  # the guest knows the gateway's MAC now
            for number in range(100):
                client.sendto(b"x", dead)
                client.sendto(b"%d" % number, server.getsockname())
            got = [await aside(server.recv, 100) for _ in range(100)]
            assert got == [b"%d" % number for number in range(100)]
    assert guest.counters()["drop_udp_host"] == 0


async def test_many_endpoints_at_once(world: World, attach: Attach) -> None:
    guest = await attach()
    clients = [guest.datagrams() for _ in range(200)]
    with world.outside.datagrams(OUTSIDE) as server:
        await aside(ask, clients[0], b"first", server.getsockname(), server)  # the guest knows the gateway's MAC now

        def serve() -> None:
            for _ in clients:
                payload, client = server.recvfrom(100)
                server.sendto(payload, client)

        def all_of_them() -> None:
            for number, client in enumerate(clients):
                client.sendto(b"%d" % number, server.getsockname())
            for number, client in enumerate(clients):
                assert client.recv(100) == b"%d" % number

        await asyncio.gather(aside(serve), aside(all_of_them))
    for client in clients:
        client.close()
    assert guest.network.status().flows["udp"] == 200


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest.mark.parametrize("mtu", [65520, 1500, 1280])
async def test_what_does_not_fit_goes_in_fragments(world: World, attach: Attach, mtu: int, offload: bool) -> None:
    """Both ways, up to the largest datagram there is."""
    guest = await attach(mtu=mtu)
    with guest.datagrams() as client, world.outside.datagrams(OUTSIDE) as server:
        for sock in (client, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for size in (mtu - 28, mtu - 27, 2 * mtu, 60_000, 65_507):
            if size <= 65_507:
                await aside(ask, client, os.urandom(size), server.getsockname(), server)
    counters = guest.counters()
    assert counters["reassembled"] >= 2 and counters["drop_fragment"] == counters["drop_too_big"] == 0


async def test_groups_loopback_and_broadcast_go_nowhere(world: World, attach: Attach) -> None:
    guest = await attach()
    guest.run("sh", "-c", "ip route add 127.0.0.0/8 dev tap0 table 7; ip route add multicast 239.0.0.0/8 dev tap0")
    with guest.datagrams("10.0.2.100") as client, world.host.datagrams("0.0.0.0") as host:
        port = host.getsockname()[1]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        before = sum(guest.counters()[name] for name in ("drop_group", "drop_martian"))
        for ip in ("239.1.2.3", "255.255.255.255", "10.0.2.255"):
            client.sendto(b"x", (ip, port))
        await until(lambda: sum(guest.counters()[n] for n in ("drop_group", "drop_martian")) == before + 3)
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.recv(100)
    assert guest.network.status().flows["udp"] == 0


async def test_a_name_server_of_the_outside_is_no_special_case(world: World, attach: Attach) -> None:
    guest: Guest = await attach()
    with guest.datagrams() as client, world.outside.datagrams(OUTSIDE, 53) as server:
        await aside(ask, client, os.urandom(40), (OUTSIDE, 53), server)
    assert guest.counters()["dns_queries"] == 0
