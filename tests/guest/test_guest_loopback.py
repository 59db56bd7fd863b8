"""10.0.2.2 is the host's loopback where that is allowed, and nothing where it is not."""

from __future__ import annotations

import errno

import pytest

from tests.lab import HOST, World, aside, both_ways, connected, refusal
from tests.stage import Attach

from .test_guest_udp import ask, error_of

GATEWAY = "10.0.2.2"


async def test_allowed(world: World, attach: Attach) -> None:
    guest = await attach(allow_host_loopback=True)
    with world.host.listener("127.0.0.1") as listener, guest.socket() as client:
        port = listener.getsockname()[1]
        with await connected(client, (GATEWAY, port), listener) as server:
            assert server.getpeername()[0] == "127.0.0.1"
            await both_ways(client, server, 1 << 20)
    with world.host.datagrams("127.0.0.1") as server, guest.datagrams() as client:
        port = server.getsockname()[1]
        seen = await aside(ask, client, b"hello", (GATEWAY, port), server)
        assert seen[0] == "127.0.0.1"
    with guest.socket() as client:
        assert (await aside(refusal, client, (GATEWAY, 9)))[0] == errno.ECONNREFUSED
    with guest.datagrams() as client:
        assert await aside(error_of, client, (GATEWAY, 9)) == errno.ECONNREFUSED


async def test_not_allowed(world: World, attach: Attach) -> None:
    guest = await attach()
    with world.host.listener("127.0.0.1") as listener, world.host.datagrams("127.0.0.1") as server:
        with guest.socket() as client:
            number, seconds = await aside(refusal, client, (GATEWAY, listener.getsockname()[1]))
            assert (number, seconds < 1) == (errno.ENETUNREACH, True)
        with guest.datagrams() as client:
            assert await aside(error_of, client, (GATEWAY, server.getsockname()[1])) == errno.ENETUNREACH
        for sock in (listener, server):
            sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        with pytest.raises(BlockingIOError):
            server.recv(100)


async def test_not_by_other_names_of_the_loopback(world: World, attach: Attach) -> None:
    """The guest may route 127.0.0.0/8 and 0.0.0.0/8 into its TAP; nobody takes it."""
    guest = await attach()
    guest.sysctl("conf/tap0/route_localnet", "1")
    guest.run(
        "sh",
        "-c",
        "ip route del table local 127.0.0.0/8 dev lo; ip route del table local 127.0.0.1 dev lo;"
        "ip route add 127.0.0.0/8 via 10.0.2.2 dev tap0",
    )
    with world.host.listener("127.0.0.1") as listener, guest.datagrams("10.0.2.100") as client:
        before = guest.counters()["drop_martian"]
        client.sendto(b"x", ("127.0.0.1", listener.getsockname()[1]))
        with guest.socket() as stream:
            stream.bind(("10.0.2.100", 0))
            stream.settimeout(0.3)
            number, _ = await aside(refusal, stream, ("127.0.0.1", listener.getsockname()[1]))
            assert number != 0
        assert guest.counters()["drop_martian"] > before
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_host_that_talks_to_the_guests_port_from_its_loopback_is_not_heard(
    world: World, attach: Attach
) -> None:
    """The guest's UDP endpoint is a port of the host; its loopback may not speak through it unless allowed."""
    for allowed in (False, True):
        guest = await attach(allow_host_loopback=allowed)
        with guest.datagrams() as client, world.outside.datagrams("198.51.100.2") as server:
            _, port = await aside(ask, client, b"hello", server.getsockname(), server)
            with world.host.datagrams("127.0.0.1") as local, world.host.datagrams(HOST) as own:
                local.sendto(b"from the loopback", ("127.0.0.1", port))
                own.sendto(b"from the host", (HOST, port))
                heard = [await aside(client.recvfrom, 100) for _ in range(2 if allowed else 1)]
                assert (b"from the host", own.getsockname()) in heard
                assert ((b"from the loopback", (GATEWAY, local.getsockname()[1])) in heard) is allowed
