"""Published ports against the guest's kernel: who is seen, who is heard, what stays open."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netd.errors import AddressUnavailable, InvalidSpec, LimitReached, NoSuchPort, PortInUse, PortPrivileged
from netd.specs import ForwardSpec
from tests.lab import HOST, HOST_TOO, OUTSIDE, World, aside, both_ways, connected, open_fds, receive_all, refusal, until
from tests.stage import Attach, Guest

GATEWAY = "10.0.2.2"


def publish(guest: Guest, protocol: str = "tcp", container_port: int = 80, **fields: object) -> int:
    """The host port."""
    spec = ForwardSpec(protocol, fields.pop("host_port", 0), container_port, **fields)  # type: ignore[arg-type]
    return guest.network.add_forward(spec, "api").spec.host_port


def free_ports(world: World, number: int) -> int:
    """The first of ``number`` consecutive free ports."""
    for start in range(20000, 60000, number):
        try:
            for port in range(start, start + number):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with world.host.socket(kind) as probe:
                        probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        return start
    raise AssertionError


async def test_the_client_is_seen_as_it_is(world: World, attach: Attach) -> None:
    guest = await attach()
    port = publish(guest)
    with guest.listener(port=80) as listener:
        for netns, own, to, seen in (
            (world.outside, OUTSIDE, HOST, OUTSIDE),
            (world.host, HOST, HOST, HOST),
            (world.host, "127.0.0.1", "127.0.0.1", GATEWAY),
        ):
            with netns.socket() as client:
                client.bind((own, 0))
                with await connected(client, (to, port), listener) as server:
                    assert server.getpeername() == (seen, client.getsockname()[1])
                    assert server.getsockname() == ("10.0.2.100", 80)
                    await both_ways(client, server, 100_000)


async def test_two_loopback_clients_with_the_same_port(world: World, attach: Attach) -> None:
    """Both are the gateway to the guest, so one of them must get another port."""
    guest = await attach()
    port = publish(guest)
    with guest.listener(port=80) as listener, world.host.socket() as one, world.host.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.2", one.getsockname()[1]))
        with (
            await connected(one, ("127.0.0.1", port), listener) as at_one,
            await connected(two, ("127.0.0.1", port), listener) as at_two,
        ):
            assert at_one.getpeername() == (GATEWAY, one.getsockname()[1])
            assert at_two.getpeername()[0] == GATEWAY and at_two.getpeername() != at_one.getpeername()
            await asyncio.gather(both_ways(one, at_one, 200_000), both_ways(two, at_two, 200_000))


async def test_the_same_for_udp(world: World, attach: Attach) -> None:
    guest = await attach()
    port = publish(guest, "udp", 53)
    with guest.datagrams(port=53) as server, world.host.socket(socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        with world.host.datagrams("127.0.0.2", one.getsockname()[1]) as two:
            for client, text in ((one, b"one"), (two, b"two")):
                client.sendto(text, ("127.0.0.1", port))
            heard = dict([await aside(server.recvfrom, 100) for _ in range(2)])
            assert set(heard) == {b"one", b"two"} and len({*heard.values()}) == 2
            assert {ip for ip, _ in heard.values()} == {GATEWAY}
            for text, peer in heard.items():
                server.sendto(text.upper(), peer)
            assert await aside(one.recvfrom, 100) == (b"ONE", ("127.0.0.1", port))
            assert await aside(two.recvfrom, 100) == (b"TWO", ("127.0.0.1", port))
            assert guest.network.forwards()[0].connections == 2


async def test_udp_is_answered_from_the_address_that_was_asked(world: World, attach: Attach) -> None:
    guest = await attach()
    port = publish(guest, "udp", 7)
    with guest.datagrams(port=7) as server, world.outside.datagrams(OUTSIDE) as client:
        for address in (HOST_TOO, HOST, HOST_TOO):
            for size in (0, 5, 20000):
                payload = os.urandom(size)
                client.sendto(payload, (address, port))
                got, peer = await aside(server.recvfrom, 65535)
                assert (got, peer) == (payload, client.getsockname())
                server.sendto(payload[::-1], peer)
                assert await aside(client.recvfrom, 65535) == (payload[::-1], (address, port))


async def test_a_published_endpoint_that_talks_out_uses_another_socket(world: World, attach: Attach) -> None:
    """The guest asks a peer from the published port itself: as a client it is an endpoint like any other."""
    guest = await attach()
    port = publish(guest, "udp", 5060)
    with guest.datagrams(port=5060) as phone, world.outside.datagrams(OUTSIDE) as peer:
        phone.sendto(b"register", peer.getsockname())
        _, seen = await aside(peer.recvfrom, 100)
        peer.sendto(b"ok", seen)
        assert await aside(phone.recvfrom, 100) == (b"ok", peer.getsockname())
        # The same peer calls the published port: that flow's key is taken by the one above.
        peer.sendto(b"invite", (HOST, port))
        got, caller = await aside(phone.recvfrom, 100)
        assert got == b"invite"
        phone.sendto(b"ringing", caller)
        assert await aside(peer.recvfrom, 100) == (b"ringing", (HOST, port))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_range(world: World, attach: Attach, protocol: str) -> None:
    guest = await attach()
    first = free_ports(world, 20)
    status = guest.network.add_forward(ForwardSpec(protocol, first, 8000, range=20), "api")
    assert (status.spec.host_port, status.spec.range, status.state) == (first, 20, "listening")
    for offset in (0, 7, 19):
        if protocol == "tcp":
            with guest.listener(port=8000 + offset) as listener, world.outside.socket() as client:
                (await connected(client, (HOST, first + offset), listener)).close()
        else:
            with guest.datagrams(port=8000 + offset) as server, world.outside.datagrams() as client:
                client.sendto(b"x", (HOST, first + offset))
                assert (await aside(server.recv, 10)) == b"x"
    guest.network.remove_forward(status.id)
    if protocol == "tcp":
        for offset in (0, 7, 19):
            with world.outside.socket() as client:
                assert (await aside(refusal, client, (HOST, first + offset)))[0] == errno.ECONNREFUSED
    assert free_ports(world, 20) <= first


async def test_a_range_is_bound_whole_or_not_at_all(world: World, attach: Attach) -> None:
    guest = await attach()
    first = free_ports(world, 5)
    before = open_fds()
    with world.host.listener("0.0.0.0", first + 3):
        with pytest.raises(PortInUse) as refused:
            publish(guest, host_port=first, range=5)
        assert refused.value.holder == "" and f":{first + 3}/tcp" in str(refused.value)
    assert open_fds() == before and guest.network.forwards() == []
    publish(guest, host_port=first, range=5)


async def test_bound_to_one_address_only(world: World, attach: Attach) -> None:
    guest = await attach()
    port = publish(guest, host_ip=HOST_TOO)
    with guest.listener(port=80) as listener, world.outside.socket() as client, world.outside.socket() as other:
        (await connected(client, (HOST_TOO, port), listener)).close()
        assert (await aside(refusal, other, (HOST, port)))[0] == errno.ECONNREFUSED
    publish(guest, host_port=port, host_ip=HOST, container_port=81)  # the same port of another address is free
    with pytest.raises(AddressUnavailable, match=r"192\.0\.2\.200"):
        publish(guest, host_ip="192.0.2.200")


async def test_another_address_of_the_guests(world: World, attach: Attach) -> None:
    guest = await attach()
    guest.ip("address add 10.0.2.50/24 dev tap0")
    port = publish(guest, container_ip="10.0.2.50")
    with guest.listener("10.0.2.50", 80) as listener, world.outside.socket() as client:
        with await connected(client, (HOST, port), listener) as server:
            assert server.getsockname() == ("10.0.2.50", 80)


@pytest.mark.parametrize("close_connections", [False, True])
async def test_removing(world: World, attach: Attach, close_connections: bool) -> None:
    guest = await attach()
    status = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    port = status.spec.host_port
    with guest.listener(port=80) as listener, world.outside.socket() as client, world.outside.socket() as late:
        with await connected(client, (HOST, port), listener) as server:
            await until(lambda: guest.network.forward(status.id).connections == 1)
            guest.network.remove_forward(status.id, close_connections)
            assert guest.network.forwards() == []
            with pytest.raises(NoSuchPort):
                guest.network.remove_forward(status.id)
            assert (await aside(refusal, late, (HOST, port)))[0] == errno.ECONNREFUSED
            if close_connections:
                for sock in (client, server):  # neither may take it for the end of the stream
                    with pytest.raises(ConnectionResetError):
                        await aside(sock.recv, 1)
            else:
                await both_ways(client, server, 300_000)
    if not close_connections:
        again = guest.network.add_forward(ForwardSpec("tcp", port, 80), "api")
        assert again.id == status.id + 1  # numbers are never given out twice


async def test_removing_a_udp_port_ends_its_flows(world: World, attach: Attach) -> None:
    guest = await attach()
    status = guest.network.add_forward(ForwardSpec("udp", 0, 80), "api")
    with guest.datagrams(port=80) as server, world.outside.datagrams(OUTSIDE) as client:
        client.sendto(b"x", (HOST, status.spec.host_port))
        _, peer = await aside(server.recvfrom, 10)
        assert guest.network.forward(status.id).connections == guest.network.status().flows["udp"] == 1
        guest.network.remove_forward(status.id)
        assert guest.network.status().flows["udp"] == 0
        server.sendto(b"late", peer)  # an endpoint of its own now
        assert (await aside(client.recvfrom, 100))[0] == b"late"


async def test_a_busy_port_names_its_holder_when_it_is_ours(world: World, attach: Attach) -> None:
    one, two = await attach(name="one"), await attach(name="two")
    port = publish(one, host_ip=HOST)
    for guest, host_ip in ((two, HOST), (two, ""), (one, HOST)):
        with pytest.raises(PortInUse) as refused:
            publish(guest, host_port=port, host_ip=host_ip)
        assert (
            refused.value.holder == "one"
            and "one" in str(refused.value)
            and "Address already in use" in str(refused.value)
        )
        assert refused.value.hint
    publish(two, "udp", host_port=port, host_ip=HOST)
    await one.daemon.detach(one.network)
    publish(two, host_port=port)


@contextmanager
def without_net_bind_service() -> Iterator[None]:
    """This thread without CAP_NET_BIND_SERVICE (10) in its effective set, as a user has it (capset(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    before = data[0]
    data[0] &= ~(1 << 10)
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0


async def test_a_privileged_port_names_the_sysctl(world: World, attach: Attach) -> None:
    guest = await attach()
    with without_net_bind_service():
        for protocol in ("tcp", "udp"):
            with pytest.raises(PortPrivileged, match="ip_unprivileged_port_start") as refused:
                publish(guest, protocol, host_port=80)
            assert "sysctl -w net.ipv4.ip_unprivileged_port_start=80" in refused.value.hint
            with pytest.raises(PortPrivileged) as refused:
                publish(guest, protocol, host_port=1000, range=100)  # begins below
            assert "ip_unprivileged_port_start=1000" in refused.value.hint
        world.host.sysctl("ip_unprivileged_port_start", "80")
        assert publish(guest, host_port=80) == 80


async def test_specs_that_cannot_be(world: World, attach: Attach) -> None:
    guest = await attach()
    for spec in (
        ForwardSpec("sctp", 1000, 80),
        ForwardSpec("tcp", 1000, 0),
        ForwardSpec("tcp", -1, 80),
        ForwardSpec("tcp", 65536, 80),
        ForwardSpec("tcp", 65535, 80, range=2),
        ForwardSpec("tcp", 1000, 65535, range=2),
        ForwardSpec("tcp", 0, 80, range=2),
        ForwardSpec("tcp", 1000, 80, range=0),
        ForwardSpec("tcp", 1000, 80, range=-5),
        ForwardSpec("tcp", 1000, 80, host_ip="localhost"),
        ForwardSpec("tcp", 1000, 80, host_ip="127.1"),
        ForwardSpec("tcp", 1000, 80, host_ip="::1%"),
        ForwardSpec("tcp", 1000, 80, container_ip="web"),
    ):
        with pytest.raises(InvalidSpec):
            guest.network.add_forward(spec, "api")
    first = free_ports(world, 10)
    with pytest.raises(LimitReached, match="4096"):
        publish(guest, host_port=first, container_port=1, range=4097)
    assert guest.network.forwards() == []


async def test_a_thousand_in_two_seconds(world: World, attach: Attach) -> None:
    guest = await attach()
    before = open_fds()
    start = time.monotonic()
    for number in range(1000):
        publish(guest, container_port=1 + number)
        guest.daemon.changed(guest.network)
    assert time.monotonic() - start < 2
    assert [status.id for status in guest.network.forwards()] == list(range(1, 1001))
    for status in guest.network.forwards():
        guest.network.remove_forward(status.id)
    assert open_fds() == before


async def test_the_end_of_the_network_frees_its_ports(world: World, attach: Attach) -> None:
    guest = await attach()
    tcp, udp = publish(guest), publish(guest, "udp")
    await guest.daemon.detach(guest.network)
    with world.host.socket() as one, world.host.socket(socket.SOCK_DGRAM) as two:
        one.bind(("0.0.0.0", tcp))
        two.bind(("0.0.0.0", udp))


async def test_many_clients_at_once(world: World, attach: Attach) -> None:
    guest = await attach()
    port = publish(guest)
    clients = [world.outside.socket() for _ in range(400)]
    with guest.listener(port=80, backlog=4096) as listener:

        def serve() -> None:
            for _ in clients:
                sock, peer = listener.accept()
                with sock:
                    sock.sendall(f"{peer[0]} {peer[1]}".encode())

        def ask_all() -> None:
            for client in clients:
                client.connect((HOST, port))
            for client in clients:
                ip, own = client.getsockname()
                assert receive_all(client) == f"{ip} {own}".encode()
                client.close()

        await asyncio.gather(aside(serve), aside(ask_all))
    await until(lambda: guest.network.forwards()[0].connections == 0)


async def test_a_udp_client_that_is_never_answered_is_forgotten(world: World, attach: Attach) -> None:
    """Nothing but its own datagrams sets the network's timer."""
    guest = await attach()
    guest.run("sysctl", "-q", "-w", "net.ipv6.conf.tap0.disable_ipv6=1", check=False)
    port = publish(guest, "udp", 80)
    udp = guest.network._interface.udp
    with guest.datagrams(port=80) as server, world.outside.datagrams(OUTSIDE) as client:
        client.sendto(b"first", (HOST, port))
        assert await aside(server.recv, 100) == b"first"
        await until(lambda: guest.network.status().flows["udp"] == 1)
        udp._limits = dataclasses.replace(udp._limits, udp_idle=0.2)
        frames = guest.counters()["rx_frames"]
        with world.outside.datagrams(OUTSIDE) as silent:
            silent.sendto(b"second", (HOST, port))
            assert await aside(server.recv, 100) == b"second"
        assert guest.network.status().flows["udp"] == 2
        await until(lambda: guest.network.status().flows["udp"] == 1, seconds=5)
        assert guest.counters()["rx_frames"] == frames
        assert guest.network.forwards()[0].connections == 1
