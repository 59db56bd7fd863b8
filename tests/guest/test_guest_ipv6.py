"""TCP and UDP over IPv6 with the guest's kernel: sizes, offload, published ports, and hosts or guests of one family."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

import pytest

from netd.settings import Settings
from netd.specs import ForwardSpec
from tests.guest.programs import GATEWAY6, GUEST6, SIX
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, connected, refusal
from tests.relay.beyond import BEYOND6, HOST6, MTU, NO_ROUTE6, OUTSIDE6, PROHIBITED6, UNREACHABLE6, Beyond
from tests.stage import Attach

V4, V6, STREAM, DGRAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
SIZE = 12 << 20
PROMPT = 2.0  # seconds
UNREACHABLES = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.ECONNREFUSED)


@pytest.fixture
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    callspec = getattr(request.node, "callspec", None)
    offload = callspec.params.get("offload", True) if callspec else True
    return settings.model_copy(update={"offload": offload})


with_and_without = pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])


def listener(place: Any, ip: str, port: int = 0, only6: bool = True) -> socket.socket:
    sock: socket.socket = place.socket(STREAM, family=V6 if ":" in ip else V4)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in ip:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only6))
    sock.bind((ip, port))
    sock.listen()
    return sock


def bound(place: Any, ip: str, port: int = 0) -> socket.socket:
    sock: socket.socket = place.socket(DGRAM, family=V6 if ":" in ip else V4)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.bind((ip, port))
    return sock


@with_and_without
@pytest.mark.parametrize("mtu", [65520, 1500, 1280])
async def test_tcp_out(beyond: Beyond, attach: Attach, mtu: int, offload: bool) -> None:
    guest = await attach(**SIX, mtu=mtu)
    assert guest.network.status().offload is offload
    with listener(beyond.outside, OUTSIDE6) as server, guest.socket(family=V6) as client:
        with await connected(client, server.getsockname()[:2], server) as accepted:
            assert accepted.getpeername()[0] == HOST6
            await both_ways(client, accepted, SIZE)


@with_and_without
@pytest.mark.parametrize("mtu", [65520, 1500, 1280])
async def test_tcp_in(beyond: Beyond, attach: Attach, mtu: int, offload: bool) -> None:
    guest = await attach(**SIX, mtu=mtu)
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80, "::"), "api").spec.host_port
    with listener(guest, "::", 80) as server, beyond.outside.socket(family=V6) as client:
        with await connected(client, (HOST6, port), server) as accepted:
            assert accepted.getpeername() == client.getsockname()
            assert accepted.getsockname()[0] == GUEST6
            await both_ways(client, accepted, SIZE)


@with_and_without
@pytest.mark.parametrize("mtu", [65520, 1500, 1280])
async def test_udp_there_and_back_at_every_size(beyond: Beyond, attach: Attach, mtu: int, offload: bool) -> None:
    """Up to the largest there is: in fragments where the link takes less."""
    guest = await attach(**SIX, mtu=mtu)
    port = guest.network.add_forward(ForwardSpec("udp", 0, 53, "::"), "api").spec.host_port
    with bound(guest, "::") as inside, bound(beyond.outside, OUTSIDE6) as outside:
        for size in (1, 0, 2, 1232, 1233, mtu - 48, mtu - 47, 60_000):
            payload = os.urandom(size)
            inside.sendto(payload, outside.getsockname())
            got, seen = await aside(outside.recvfrom, 65535)
            assert (got, seen[0]) == (payload, HOST6), size
            outside.sendto(payload[::-1], seen)
            assert await aside(inside.recvfrom, 65535) == (payload[::-1], outside.getsockname()), size
    with bound(guest, "::", 53) as server, bound(beyond.outside, OUTSIDE6) as client:
        for size in (1, 0, mtu - 48, mtu - 47, 60_000):
            payload = os.urandom(size)
            client.sendto(payload, (HOST6, port))
            assert await aside(server.recvfrom, 65535) == (payload, client.getsockname()), size
            server.sendto(payload[::-1], client.getsockname())
            assert await aside(client.recvfrom, 65535) == (payload[::-1], (HOST6, port, 0, 0)), size
    assert guest.counters()["drop_fragment"] == guest.counters()["drop_too_big"] == 0


@with_and_without
async def test_segmentation_offload_of_udp(beyond: Beyond, attach: Attach, offload: bool) -> None:
    """What a QUIC server does: one call, many datagrams (UDP_SEGMENT), each whole and in order."""
    guest = await attach(**SIX, mtu=1500)
    for ip in (OUTSIDE6, OUTSIDE):
        with bound(guest, "::" if ":" in ip else "0.0.0.0") as inside, bound(beyond.outside, ip) as outside:
            inside.sendto(b"hello", outside.getsockname())
            seen = (await aside(outside.recvfrom, 100))[1]
            for frm, to, address in ((inside, outside, outside.getsockname()), (outside, inside, seen)):
                frm.setsockopt(socket.IPPROTO_UDP, 103, 1200)  # UDP_SEGMENT, udp(7)
                for _ in range(20):
                    datagrams = [os.urandom(1200) for _ in range(40)] + [os.urandom(7)]
                    frm.sendto(b"".join(datagrams), address)
                    assert [await aside(to.recv, 65535) for _ in datagrams] == datagrams


async def test_one_forward_serves_both_families(beyond: Beyond, attach: Attach) -> None:
    """Each client is seen as it is by a server that listens on both."""
    guest = await attach(**SIX)
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    with listener(guest, "::", 80, only6=False) as server:
        for place, address, seen in (
            (beyond.outside, HOST, f"::ffff:{OUTSIDE}"),
            (beyond.outside, HOST6, OUTSIDE6),
            (beyond.host, "127.0.0.1", "::ffff:10.0.2.2"),
            (beyond.host, "::1", GATEWAY6),
        ):
            with place.socket(family=V6 if ":" in address else V4) as client:
                with await connected(client, (address, port), server) as accepted:
                    assert accepted.getpeername()[:2] == (seen, client.getsockname()[1])
                    await both_ways(client, accepted, 100_000)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_an_ipv6_client_of_a_guest_without(beyond: Beyond, attach: Attach, kind: str) -> None:
    """It is the gateway to the guest, which has IPv4 alone."""
    guest = await attach()
    port = guest.network.add_forward(ForwardSpec(kind, 0, 80), "api").spec.host_port
    for place, address in ((beyond.outside, HOST6), (beyond.host, "::1")):
        if kind == "tcp":
            with listener(guest, "0.0.0.0", 80) as server, place.socket(family=V6) as client:
                with await connected(client, (address, port), server) as accepted:
                    assert accepted.getpeername()[0] == "10.0.2.2"
                    await both_ways(client, accepted, 1 << 20)
        else:
            with bound(guest, "0.0.0.0", 80) as server, place.socket(DGRAM, family=V6) as client:
                for size in (5, 1400, 60_000):
                    payload = os.urandom(size)
                    client.sendto(payload, (address, port))
                    got, peer = await aside(server.recvfrom, 65535)
                    assert (got, peer[0]) == (payload, "10.0.2.2")
                    server.sendto(payload[::-1], peer)
                    assert (await aside(client.recvfrom, 65535))[0] == payload[::-1]


async def test_an_ipv6_client_of_a_program_that_listens_on_ipv4_alone(beyond: Beyond, attach: Attach) -> None:
    """``localhost`` may be ::1. Where nobody listens on the guest's IPv6 address its IPv4 address is tried."""
    guest = await attach(**SIX)
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    for place, address in ((beyond.outside, HOST6), (beyond.host, "::1")):
        with listener(guest, "0.0.0.0", 80) as server, place.socket(family=V6) as client:
            with await connected(client, (address, port), server) as accepted:
                assert accepted.getpeername()[0] == "10.0.2.2"
                await both_ways(client, accepted, 1 << 20)
        with place.socket(family=V6) as client:
            client.settimeout(5)
            client.connect((address, port))
            with pytest.raises(ConnectionResetError):
                await aside(client.recv, 1)  # nobody at all


async def test_a_guest_of_one_family(beyond: Beyond, attach: Attach) -> None:
    """One that has only IPv4 says so itself; one that has only IPv6 reaches the outside by it."""
    guest = await attach()
    with guest.socket(family=V6) as client:
        assert await aside(refusal, client, (OUTSIDE6, 80)) == (errno.ENETUNREACH, pytest.approx(0, abs=PROMPT))
    guest = await attach(**SIX)
    guest.ip("address flush dev tap0 to 0.0.0.0/0\n")
    assert "default" not in guest.run("ip", "-4", "route")
    with listener(beyond.outside, OUTSIDE6) as server, guest.socket(family=V6) as client:
        with await connected(client, server.getsockname()[:2], server) as accepted:
            await both_ways(client, accepted, 1 << 20)


def said_of(sock: socket.socket, address: tuple[str, int]) -> tuple[int, float]:
    """(errno that an attempt brings back, seconds it took)."""
    start = time.monotonic()
    sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR: without, "no route" is a soft error (net/ipv6/icmp.c)
    try:
        sock.connect(address)
        sock.send(b"anybody?")
        sock.recv(100)
    except OSError as e:
        return e.errno or -1, time.monotonic() - start
    return 0, time.monotonic() - start


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
async def test_errors_come_back_promptly(beyond: Beyond, attach: Attach, kind: int) -> None:
    guest = await attach(**SIX)
    guest.ip("neighbor add fd00::77 lladdr 52:55:0a:00:02:02 dev tap0")
    for address, expected in (
        ((OUTSIDE6, 9), errno.ECONNREFUSED),
        ((UNREACHABLE6, 9), errno.ENETUNREACH),
        ((NO_ROUTE6, 9), errno.ENETUNREACH),
        ((PROHIBITED6, 9), errno.EACCES),
        ((GATEWAY6, 9), errno.ENETUNREACH),  # the host's loopback, which is not allowed
        (("fd00::77", 9), errno.EHOSTUNREACH),  # nobody on the link
    ):
        with guest.socket(kind, family=V6) as client:
            number, seconds = await aside(said_of, client, address)
            assert errno.errorcode.get(number) == errno.errorcode[expected], address
            assert seconds < PROMPT


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
async def test_a_host_without_ipv6(world: World, attach: Attach, kind: int) -> None:
    """The guest is told at once, and a program that asks both families goes on with IPv4."""
    guest = await attach(**SIX)
    world.host.sysctl("conf/all/disable_ipv6", "1", "ipv6")
    with guest.socket(kind, family=V6) as client:
        number, seconds = await aside(said_of, client, (OUTSIDE6, 80))
        assert number in UNREACHABLES and seconds < PROMPT
    if kind == STREAM:
        with guest.socket(family=V6) as client:  # as programs do it, without IPV6_RECVERR
            number, seconds = await aside(refusal, client, (OUTSIDE6, 80))
            assert number in UNREACHABLES and seconds < PROMPT
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    with listener(guest, "0.0.0.0", 80) as server, world.outside.socket() as client:
        with await connected(client, (HOST, port), server) as accepted:
            await both_ways(client, accepted, 100_000)


async def test_a_narrow_path_tells_the_guest_and_both_protocols_pass(beyond: Beyond, attach: Attach) -> None:
    """RFC 8201: the first datagram is lost, the ones after it go in fragments; TCP does not notice."""
    guest = await attach(**SIX, mtu=1500)
    with listener(beyond.far, BEYOND6) as server, guest.socket(family=V6) as client:
        with await connected(client, server.getsockname()[:2], server) as accepted:
            await both_ways(client, accepted, 4 << 20)
    with bound(beyond.far, BEYOND6) as server, guest.socket(DGRAM, family=V6) as client:
        client.setsockopt(socket.IPPROTO_IPV6, 25, 1)
        client.connect(server.getsockname()[:2])
        client.send(bytes(1400))
        with pytest.raises(OSError) as told:
            await aside(client.recv, 100)
        assert told.value.errno == errno.EMSGSIZE
        assert client.getsockopt(socket.IPPROTO_IPV6, 24) == MTU  # IPV6_MTU
        for _ in range(2):
            client.send(bytes(1400))
            assert len(await aside(server.recv, 2000)) == 1400
