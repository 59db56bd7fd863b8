"""Out of descriptors, with a real guest: each door says so, nothing spins, and everything works again afterwards."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netd.errors import LimitReached
from netd.settings import Settings
from netd.specs import ForwardSpec
from tests.guest.test_guest_dns import over_udp
from tests.guest.test_guest_ping import UNREACHABLE_TYPE, Pinger, open_ping_sockets
from tests.guest.test_guest_udp import ask, error_of
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, connected, open_fds, refusal, until
from tests.stage import Attach


@contextmanager
def out_of_descriptors() -> Iterator[None]:
    """Not one is left to this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                fillers.append(os.dup(fillers[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


async def test_connecting_is_refused_at_once(world: World, attach: Attach) -> None:
    guest = await attach()
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client, guest.socket() as later:
        with out_of_descriptors():
            number, seconds = await aside(refusal, client, listener.getsockname())
        assert number in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH) and seconds < 1
        with await connected(later, listener.getsockname(), listener) as server:
            await both_ways(later, server, 10_000)


async def test_datagrams_are_refused_and_the_owner_is_told_once(
    world: World, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    guest = await attach()
    clients = [guest.datagrams() for _ in range(5)]
    with world.outside.datagrams(OUTSIDE) as server, caplog.at_level(logging.INFO):
        with out_of_descriptors():
            for client in clients:
                assert await aside(error_of, client, server.getsockname()) == errno.EHOSTUNREACH
        assert len([record for record in caplog.records if "UDP" in record.getMessage()]) == 1
        for client in clients:
            client.connect(server.getsockname())
            client.send(b"now")
            assert await aside(server.recv, 10) == b"now"
    for client in clients:
        client.close()


async def test_pings_and_names_fail_in_their_own_words(world: World, attach: Attach, settings: Settings) -> None:
    settings.resolv_conf.write_text(f"nameserver {OUTSIDE}\n")
    open_ping_sockets(world)
    guest = await attach()
    with Pinger(guest) as pinger, guest.datagrams() as resolver:
        query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\3www\0\0\1\0\1"
        with out_of_descriptors():
            assert (await aside(pinger.ping, OUTSIDE, 1))[1] == UNREACHABLE_TYPE
            resolver.sendto(query, ("10.0.2.3", 53))
            assert (await aside(resolver.recv, 512))[3] & 15 == 2  # SERVFAIL
        assert (await aside(pinger.ping, OUTSIDE, 2))[1] == 0
    assert (await aside(over_udp, guest))[0] == 2  # nobody listens there; asked and answered
    assert guest.counters()["dns_failed"] == 2


async def test_publishing_says_why_not(world: World, attach: Attach) -> None:
    guest = await attach()
    with out_of_descriptors():
        for protocol in ("tcp", "udp"):
            with pytest.raises(LimitReached, match="open files"):
                guest.network.add_forward(ForwardSpec(protocol, 0, 80), "api")
    assert guest.network.forwards() == []
    guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")


async def test_clients_wait_in_the_backlog_and_nothing_spins(world: World, attach: Attach) -> None:
    guest = await attach()
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    clients = [world.outside.socket() for _ in range(3)]
    with guest.listener(port=80) as listener:
        at_guest = []
        with out_of_descriptors():
            for client in clients:
                await aside(client.connect, (HOST, port))
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            while time.monotonic() < start + 0.5:
                await asyncio.sleep(0.1)
            after = resource.getrusage(resource.RUSAGE_SELF)
            assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.15
            assert guest.network.forwards()[0].connections == 0
        await until(lambda: guest.network.forwards()[0].connections == 3)
        for _ in clients:
            at_guest.append((await aside(listener.accept))[0])
        for sock in at_guest:
            sock.settimeout(10)
        by_peer = {sock.getpeername(): sock for sock in at_guest}
        for client in clients:
            await both_ways(client, by_peer[client.getsockname()], 10_000)
        for sock in (*at_guest, *clients):
            sock.close()


async def test_a_forward_removed_while_its_listener_pauses(world: World, attach: Attach) -> None:
    guest = await attach()
    status = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    with world.outside.socket() as client:
        with out_of_descriptors():
            await aside(client.connect, (HOST, status.spec.host_port))
            await asyncio.sleep(0.02)
            guest.network.remove_forward(status.id)
        await asyncio.sleep(0.15)  # the pause is over
        with pytest.raises(ConnectionResetError):
            await aside(client.recv, 1)


async def test_flows_at_their_bound_make_room(world: World, attach: Attach) -> None:
    """UDP: the oldest of 4096 goes for the next. Descriptors follow."""
    guest = await attach()
    before = open_fds()
    with world.outside.datagrams(OUTSIDE) as server:
        with guest.datagrams() as first:
            await aside(ask, first, b"x", server.getsockname(), server)
        guest.network._interface.udp._limits = type(guest.network._interface.udp._limits)(udp_flows=50)
        clients = [guest.datagrams() for _ in range(120)]
        for client in clients:
            await aside(ask, client, b"x", server.getsockname(), server)
        assert guest.network.status().flows["udp"] == 50
        assert guest.counters()["udp_evicted"] == 71
        assert open_fds() - before == 50 + len(clients) + 1
        for client in clients:
            client.close()
    await guest.daemon.detach(guest.network)
    assert open_fds() <= before


async def test_an_inherited_reset_is_no_error(world: World, attach: Attach) -> None:
    """Clients that connect and reset before anybody accepts them."""
    guest = await attach()
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    with guest.listener(port=80) as listener:
        for _ in range(50):
            client = world.outside.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await aside(client.connect, (HOST, port))
            client.close()
        await until(lambda: guest.network.forwards()[0].connections == 0)
        with world.outside.socket() as client:
            client.connect((HOST, port))
            while True:
                sock, peer = await aside(listener.accept)
                with sock:
                    sock.settimeout(10)
                    if peer == client.getsockname():
                        await both_ways(client, sock, 1000)
                        break
