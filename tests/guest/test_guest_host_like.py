"""A guest with the host's own address: everybody else is where the host would find them."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netd.daemon import Daemon
from netd.dialects.pasta.template import Wish, family, network_of
from netd.specs import ForwardSpec
from tests.guest.programs import needs
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, connected, refusal, until
from tests.relay.beyond import HOST6, Beyond
from tests.stage import Attach, Guest

from .test_guest_self_configured import addresses, apart, ready
from .test_guest_udp import ask

MAPPED = "169.254.1.2"
V6 = socket.AF_INET6


@pytest_asyncio.fixture
async def guest(world: World, daemon: Daemon, attach: Attach) -> AsyncIterator[Guest]:
    yield await attach(**await like_the_host(world, daemon))


async def like_the_host(world: World, daemon: Daemon, **more: Any) -> dict[str, Any]:
    """The fields of a NetworkSpec as Podman has pasta choose them (--no-map-gw)."""
    four = family(await daemon.host_view(), 4, Wish())
    fields = {
        "host_like": True,
        "ifname": "out0",
        "cidr": network_of(four),
        "guest_ip": four.address,
        "gateway_ip": four.gateway,
        "dns_ip": "",
        "host_ips": (MAPPED,),
        "addresses": four.addresses,
        "routes": four.routes,
    }
    return fields | more


async def test_it_has_the_hosts_address_and_reaches_the_hosts_neighbour(world: World, guest: Guest) -> None:
    assert HOST in guest.run("ip", "-4", "-o", "addr", "show", "out0")
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener) as server:
            assert client.getsockname()[0] == HOST == server.getpeername()[0]
            await both_ways(client, server, 1 << 20)


async def test_the_gateway_is_the_hosts_loopback_where_it_is_mapped(
    world: World, daemon: Daemon, attach: Attach, guest: Guest
) -> None:
    mapped = await attach(**await like_the_host(world, daemon, host_loopback_ip=OUTSIDE))
    with world.host.listener("127.0.0.1") as listener:
        address = (OUTSIDE, listener.getsockname()[1])
        with mapped.socket() as client:
            (await connected(client, address, listener)).close()
        with guest.socket() as client:  # here it is the gateway
            assert (await aside(refusal, client, address))[0] == errno.ECONNREFUSED


async def test_the_mapped_address_is_the_host_itself_but_not_its_loopback(world: World, guest: Guest) -> None:
    with world.host.listener(HOST) as listener, guest.socket() as client:
        (await connected(client, (MAPPED, listener.getsockname()[1]), listener)).close()
    with world.host.listener("127.0.0.1") as listener, guest.socket() as client:
        assert (await aside(refusal, client, (MAPPED, listener.getsockname()[1])))[0] == errno.ECONNREFUSED
    with guest.listener(HOST) as listener, guest.socket() as client:  # its own address is its own
        (await connected(client, listener.getsockname(), listener)).close()


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_a_published_port_shows_the_client_unless_it_is_the_host(world: World, guest: Guest, kind: str) -> None:
    port = guest.network.add_forward(ForwardSpec(kind, 0, 8000), "pasta").spec.host_port
    for client_in, to, seen in (
        (world.outside, HOST, OUTSIDE),
        (world.host, "127.0.0.1", guest.network.spec.gateway_ip),
        (world.host, HOST, MAPPED),
    ):
        if kind == "tcp":
            with guest.listener(port=8000) as listener, client_in.socket() as client:
                with await connected(client, (to, port), listener) as server:
                    assert server.getpeername()[0] == seen
                    await both_ways(client, server, 100_000)
        else:
            with guest.datagrams(port=8000) as server, client_in.datagrams() as client:
                assert (await aside(ask, client, b"hello", (to, port), server))[0] == seen


async def test_an_empty_datagram_arrives(world: World, guest: Guest) -> None:
    """505-networking-pasta.bats closes with one (socat's null-eof)."""
    port = guest.network.add_forward(ForwardSpec("udp", 0, 8000), "pasta").spec.host_port
    with guest.datagrams(port=8000) as server, world.outside.datagrams() as client:
        client.sendto(b"", (HOST, port))
        data, peer = await aside(server.recvfrom, 10)
        server.sendto(b"", peer)
        assert (data, (await aside(client.recvfrom, 10))[0]) == (b"", b"")


async def test_without_a_protocol_nothing_of_it_is_answered(world: World, daemon: Daemon, attach: Attach) -> None:
    guest = await attach(**await like_the_host(world, daemon, without=("tcp",)))
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            await aside(client.connect, listener.getsockname())
    with world.outside.datagrams(OUTSIDE) as server, guest.datagrams() as client:
        await aside(ask, client, b"hello", server.getsockname(), server)
    assert guest.counters()["drop_not_served"] > 0


@needs("busybox")
async def test_one_that_configures_itself_has_the_hosts_addresses(
    beyond: Beyond, daemon: Daemon, attach: Attach, tmp_path: Path
) -> None:
    """IPv4 by DHCP, IPv6 by router advertisement: an address of its own on the host's prefix, and led to there."""
    if not Path("/etc/udhcpc/default.script").exists():
        pytest.skip("udhcpc's script is not installed (Debian: udhcpc)")
    view = await daemon.host_view()
    four, six = family(view, 4, Wish()), family(view, 6, Wish(interface="out0"))
    guest = await attach(
        host_like=True,
        configure=False,
        ifname="tap0",
        cidr=network_of(four),
        guest_ip=four.address,
        gateway_ip=four.gateway,
        dns_ip="",
        cidr6=network_of(six),
        guest_ip6=six.address,
        gateway_ip6=six.gateway,
        router_ip6="fe80::1",
        dhcp_dns=("198.51.100.53",),
        dhcp_search=("lab.example",),
        hostname="box",
    )
    assert "LOOPBACK,UP" in guest.run("ip", "link", "show", "lo"), "as pasta leaves it"
    guest.ip("link set tap0 up")
    await until(lambda: ready(guest), "IPv6 by router advertisement")
    said = await apart(guest, tmp_path, UDHCPC)
    assert f"inet {HOST}/24" in said and f"via {OUTSIDE}" in said
    assert "nameserver 198.51.100.53" in said and "domain lab.example" in said
    [address] = [info["local"] for info in addresses(guest, 6)]
    assert address.startswith("2001:db8:") and address != HOST6
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 8000), "pasta").spec.host_port
    with guest.socket(family=V6) as listener, beyond.outside.socket(family=V6) as client:
        listener.bind((address, 8000))  # not ::, where the planned address would be looked for
        listener.listen()
        with await connected(client, (HOST6, port), listener) as server:
            await both_ways(client, server, 1000)


UDHCPC = """
busybox udhcpc -i tap0 -n -q -f -O search || exit 1
ip -4 -o addr show tap0; ip -4 route; cat /etc/resolv.conf
"""
