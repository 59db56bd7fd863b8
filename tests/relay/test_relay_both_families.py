"""The relay behind the whole stack and a real guest: IPv6, clients of the other family, what traceroute sees."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest

from netd.specs import ForwardSpec
from tests.lab import HOST, OUTSIDE, aside, both_ways
from tests.relay.beyond import BEYOND, BEYOND6, HOST6, MTU, OUTSIDE6, Beyond
from tests.stage import Attach, Guest

V4, V6 = socket.AF_INET, socket.AF_INET6
GATEWAY, GATEWAY6 = "10.0.2.2", "fd00::2"
SIX = {"cidr6": "fd00::/64", "guest_ip6": "fd00::100", "gateway_ip6": GATEWAY6, "dns_ip6": "fd00::3"}
DGRAM = socket.SOCK_DGRAM


def bound(netns: Any, family: int, address: tuple[str, int], kind: int = DGRAM) -> socket.socket:
    sock: socket.socket = netns.socket(kind, family=family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    if family == V6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


@pytest.mark.parametrize("offload", [True, False])
async def test_datagrams_of_an_ipv6_guest(beyond: Beyond, attach: Attach, offload: bool) -> None:
    guest = await attach(**SIX, mtu=65520 if offload else 1500)
    with (
        bound(guest, V6, ("::", 0)) as client,
        bound(beyond.outside, V6, (OUTSIDE6, 0)) as server,
        bound(beyond.outside, V6, (OUTSIDE6, 0)) as stranger,
    ):
        for size in (1, 0, 1200, 1232, 1452, 60_000):
            payload = os.urandom(size)
            client.sendto(payload, server.getsockname())
            got, seen = await aside(server.recvfrom, 65535)
            assert got == payload and seen[0] == HOST6
            server.sendto(payload[::-1], seen)
            assert await aside(client.recvfrom, 65535) == (payload[::-1], server.getsockname())
        stranger.sendto(b"hello", seen)
        assert await aside(client.recvfrom, 100) == (b"hello", stranger.getsockname())


@pytest.mark.parametrize("family", [4, 6])
async def test_a_burst_arrives_whole_and_in_order_both_ways(beyond: Beyond, attach: Attach, family: int) -> None:
    """Enough of them for segments on the way out, and for runs on the way in."""
    guest = await attach(**SIX, mtu=1500)
    kind, ip = (V4, OUTSIDE) if family == 4 else (V6, OUTSIDE6)
    with bound(guest, kind, ("", 0)) as client, bound(beyond.outside, kind, (ip, 0)) as server:
        client.sendto(b"first", server.getsockname())
        _, seen = await aside(server.recvfrom, 100)
        for turn in range(20):
            burst = [struct.pack("=I", turn * 1000 + number) + os.urandom(1196) for number in range(40)]
            for payload in burst:
                client.sendto(payload, server.getsockname())
            assert [await aside(server.recv, 2000) for _ in burst] == burst
            server.sendmsg([b"".join(burst)], [(17, 103, struct.pack("=H", 1200))], 0, seen)
            assert [await aside(client.recv, 2000) for _ in burst] == burst


@pytest.mark.parametrize("family", [4, 6])
async def test_every_hop_and_a_narrow_path(beyond: Beyond, attach: Attach, family: int) -> None:
    guest = await attach(**SIX, mtu=1500)
    kind, ip, router = (V4, BEYOND, OUTSIDE) if family == 4 else (V6, BEYOND6, OUTSIDE6)
    level, recverr, ttl, mtu_name = (socket.IPPROTO_IP, 11, 2, 14) if family == 4 else (socket.IPPROTO_IPV6, 25, 16, 24)

    def error_of(hops: int, size: int) -> tuple[int, int, int, str]:
        """(type, code, MTU, offender) that a datagram brings back."""
        with guest.socket(DGRAM, family=kind) as sock:
            sock.setsockopt(level, recverr, 1)
            sock.setsockopt(level, ttl, hops)
            sock.connect((ip, 33434))
            sock.send(bytes(size))
            with pytest.raises(OSError):
                sock.recv(100)
            _, ancillary, _, _ = sock.recvmsg(2000, 512, socket.MSG_ERRQUEUE)
            data = ancillary[0][2]
            offender = data[20:24] if family == 4 else data[24:40]
            _, _, type_, code, _, info, _ = struct.unpack_from("=IBBBBII", data)
            return type_, code, info, socket.inet_ntop(kind, offender)

    exceeded, refused = ((11, 0), (3, 3)) if family == 4 else ((3, 0), (1, 4))
    assert await aside(error_of, 1, 32) == (*exceeded, 0, router)
    assert await aside(error_of, 2, 32) == (*refused, 0, ip)
    too_big = (3, 4) if family == 4 else (2, 0)
    assert await aside(error_of, 64, 1400) == (*too_big, MTU, router)
    # The guest's kernel has learned it: datagrams of that size go in fragments of its own.
    with bound(beyond.far, kind, (ip, 0)) as server, guest.socket(DGRAM, family=kind) as client:
        client.connect(server.getsockname())
        assert client.getsockopt(level, mtu_name) == MTU
        client.send(bytes(1400))
        assert len(await aside(server.recv, 2000)) == 1400


async def seen_by(guest: Guest, family: int, protocol: str, client: socket.socket, to: tuple[str, int]) -> str:
    """The client's address as a server in the guest sees it, answers included."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else DGRAM
    with bound(guest, family, ("", 80), kind) as server:
        if protocol == "tcp":
            await aside(client.connect, to)
            accepted, peer = await aside(server.accept)
            with accepted:
                accepted.settimeout(10)
                await both_ways(client, accepted, 50_000)
        else:
            for text in (b"one", b"two"):
                client.sendto(text, to)
                got, peer = await aside(server.recvfrom, 100)
                server.sendto(got.upper(), peer)
                answer, frm = await aside(client.recvfrom, 100)
                assert (answer, frm[:2]) == (text.upper(), to)
        assert peer[1] == client.getsockname()[1]
        return str(peer[0])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("has_six", "host_ip", "container_ip", "clients"),
    [
        (False, "", "", [(V4, HOST, V4, OUTSIDE), (V6, HOST6, V4, GATEWAY)]),
        (True, "", "", [(V4, HOST, V4, OUTSIDE), (V6, HOST6, V6, OUTSIDE6)]),
        (True, "", "fd00::100", [(V4, HOST, V6, GATEWAY6), (V6, HOST6, V6, OUTSIDE6)]),
        (True, HOST6, "10.0.2.100", [(V6, HOST6, V4, GATEWAY)]),
        (True, "0.0.0.0", "", [(V4, HOST, V4, OUTSIDE)]),
    ],
)
async def test_who_a_published_port_sees(
    beyond: Beyond, attach: Attach, protocol: str, has_six: bool, host_ip: str, container_ip: str, clients: list[Any]
) -> None:
    guest = await attach(**(SIX if has_six else {}))
    spec = ForwardSpec(protocol, 8080, 80, host_ip, container_ip=container_ip)
    guest.network.add_forward(spec, "api")
    for family, address, inside, expected in clients:
        with beyond.outside.socket(socket.SOCK_STREAM if protocol == "tcp" else DGRAM, family=family) as client:
            client.bind((OUTSIDE if family == V4 else OUTSIDE6, 0))
            assert await seen_by(guest, inside, protocol, client, (address, 8080)) == expected
    for family, loopback, address in ((V4, "127.0.0.1", GATEWAY), (V6, "::1", GATEWAY6)):
        if has_six and not host_ip and not container_ip:
            with beyond.host.socket(socket.SOCK_STREAM if protocol == "tcp" else DGRAM, family=family) as client:
                client.bind((loopback, 0))
                assert await seen_by(guest, family, protocol, client, (loopback, 8080)) == address


async def test_no_ipv6_on_the_host_is_told_at_once(beyond: Beyond, attach: Attach) -> None:
    guest = await attach(**SIX)
    beyond.host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
    refusals = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EACCES)
    for kind in (socket.SOCK_STREAM, DGRAM):
        with guest.socket(kind, family=V6) as client:
            client.settimeout(5)
            client.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR: "no route" is a soft error without (icmpv6.c)

            def attempt(client: socket.socket = client) -> int:
                try:
                    client.connect((OUTSIDE6, 80))
                    client.send(b"x")
                    client.recv(1)
                except TimeoutError:
                    return -1
                except OSError as e:
                    return e.errno or -1
                return 0

            assert await aside(attempt) in refusals, kind
