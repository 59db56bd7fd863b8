"""One host socket for one guest endpoint: both families, errors, TTL, what is gathered and what comes in one piece."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from netd.relay import udp_socket
from netd.relay.datagram import BUSY, Datagrams
from netd.relay.outbox import BYTES_MAX, SEGMENTS_MAX, SIZE_MAX, outbox
from netd.relay.sockaddr import packed
from netd.relay.source import Source
from netd.relay.udp_listener import UdpListener
from netd.relay.udp_socket import SOL_UDP, UDP_GRO, UDP_SEGMENT
from netd.stack.ports import HostError
from tests.lab import FORBIDDEN, HOST, NO_ROUTE, OUTSIDE, PROHIBITED, UNREACHABLE, World, open_fds, until
from tests.relay.beyond import (
    BEYOND,
    BEYOND6,
    HOST6,
    MTU,
    NO_ROUTE6,
    OUTSIDE6,
    PROHIBITED6,
    ROUTER,
    UNREACHABLE6,
    Beyond,
)
from tests.relay.guest_side import DEFAULT, GUEST, Flow, Table

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
both_families = pytest.mark.parametrize("family", [4, 6])


def endpoint(table: Table, family: int, source: str = "", closed: list[bytes] | None = None) -> Datagrams:
    on_close: Callable[[bytes], None] = (closed if closed is not None else []).append
    loop = asyncio.get_running_loop()
    return Datagrams(loop, time.monotonic, lambda: None, table, GUEST[family], 5000, Source(source, source), on_close)  # type: ignore[arg-type]


@contextmanager
def peer_at(ip: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE if hasattr(socket, "SO_RCVBUFFORCE") else 33, 8 << 20)
        sock.bind((ip, port))
        sock.settimeout(5)
        yield sock


def flow_to(table: Table, host: Datagrams, sock: socket.socket) -> Flow:
    flow = Flow(table, *sock.getsockname()[:2])
    flow.host = host
    host.adopt(flow)  # type: ignore[arg-type]
    return flow


class Noted(socket.socket):
    """A socket that notes (size, segment) of what it sends, and each option it is told."""

    calls: list[tuple[int, int]]
    told: list[tuple[int, Any]]
    fails: int = 0  # an errno for segments of more than 1000 bytes

    def sendto(self, payload: Any, peer: Any) -> int:  # type: ignore[override]
        self.calls.append((len(payload), 0))
        return super().sendto(payload, peer)

    def sendmsg(self, payloads: Any, control: Any = (), flags: int = 0, peer: Any = None) -> int:  # type: ignore[override]
        segment = next((struct.unpack("=H", data)[0] for _, kind, data in control if kind == UDP_SEGMENT), 0)
        if self.fails and segment > 1000:
            raise OSError(self.fails, os.strerror(self.fails))
        self.calls.append((len(payloads[0]), segment))
        return super().sendmsg(payloads, control, flags, peer)

    def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
        self.told.append((name, value))
        super().setsockopt(level, name, value)


def noted(host: Datagrams) -> Noted:
    assert host._sock is not None
    sock = host._sock = Noted(fileno=host._sock.detach())
    sock.calls, sock.told = [], []
    return sock


# -- out --------------------------------------------------------------------------------------------------------------


@both_families
async def test_there_and_back(table: Table, family: int) -> None:
    host = endpoint(table, family)
    with peer_at(LOOPBACK[family]) as peer, peer_at(LOOPBACK[family]) as stranger:
        flow = flow_to(table, host, peer)
        for size in (0, 1, 1400, SIZE_MAX, SIZE_MAX + 1, 65507):
            payload = os.urandom(size)
            host.send(flow, payload, DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            got, seen = peer.recvfrom(65535)
            assert got == payload
            peer.sendto(payload[::-1], seen)
            await until(lambda: flow.got)
            assert flow.got.pop() == payload[::-1]
        stranger.sendto(b"hello", seen)
        await until(lambda: table.flows)
        assert table.flows[0].got == [b"hello"] and table.flows[0].target == packed(LOOPBACK[family])
        host.send(table.flows[0], b"you too", DEFAULT, 0)  # type: ignore[arg-type]
        outbox.flush()
        assert stranger.recvfrom(100) == (b"you too", seen)
    host.close()


async def test_neighbours_of_one_size_go_with_one_call(table: Table) -> None:
    host = endpoint(table, 4)
    calls = noted(host).calls
    with peer_at("127.0.0.1") as peer, peer_at("127.0.0.1") as other:
        flow, second = flow_to(table, host, peer), flow_to(table, host, other)
        for case, expected in (
            ([100], [(100, 0)]),
            ([100] * 5, [(500, 100)]),
            ([100, 100, 40], [(240, 100)]),  # a shorter one may be the last
            ([100, 40, 40, 100], [(140, 100), (40, 0), (100, 0)]),
            ([40, 100, 100], [(40, 0), (200, 100)]),
            ([100, 0, 100], [(100, 0), (0, 0), (100, 0)]),
            ([10] * 150, [(640, 10), (640, 10), (220, 10)]),
            ([1400] * 50, [(1400 * 46, 1400), (1400 * 4, 1400)]),
            ([SIZE_MAX, SIZE_MAX, 1], [(BYTES_MAX, SIZE_MAX)]),
            ([SIZE_MAX, SIZE_MAX, 2], [(2 * SIZE_MAX, SIZE_MAX), (2, 0)]),
            ([SIZE_MAX + 1] * 2, [(SIZE_MAX + 1, 0)] * 2),
        ):
            payloads = [os.urandom(size) for size in case]
            for payload in payloads:
                scratch = bytearray(payload)
                host.send(flow, memoryview(scratch), DEFAULT, 0)  # type: ignore[arg-type]
                scratch[:] = bytes(len(scratch))  # no view outlives its call
            outbox.flush()
            assert calls == expected, case
            assert [peer.recv(65535) for _ in case] == payloads
            calls.clear()
        # Another flow, other hops: what came before goes before.
        for to, hops in ((flow, DEFAULT), (second, DEFAULT), (second, 7 << 8), (second, 7 << 8), (flow, 7 << 8)):
            host.send(to, b"x", hops, 0)  # type: ignore[arg-type]
        outbox.flush()
        assert calls == [(1, 0), (1, 0), (2, 1), (1, 0)]
    assert BYTES_MAX == 65507 and SEGMENTS_MAX == 64
    host.close()


@both_families
async def test_a_super_frame_of_the_guests(table: Table, family: int) -> None:
    host = endpoint(table, family)
    calls = noted(host).calls
    with peer_at(LOOPBACK[family]) as peer:
        flow = flow_to(table, host, peer)
        payload = os.urandom(1200 * 20 + 7)
        host.send(flow, b"first", DEFAULT, 0)  # type: ignore[arg-type]
        host.send(flow, payload, DEFAULT, 1200)  # type: ignore[arg-type]
        assert calls == [(5, 0), (len(payload), 1200)]
        assert peer.recv(100) == b"first"
        assert b"".join(peer.recv(65535) for _ in range(21)) == payload
    host.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP])
async def test_without_segments_one_by_one_for_a_while(table: Table, number: int) -> None:
    host = endpoint(table, 4)
    sock = noted(host)
    sock.fails = number
    calls = sock.calls
    with peer_at("127.0.0.1") as peer:
        flow = flow_to(table, host, peer)

        def send(size: int, count: int) -> list[tuple[int, int]]:
            for turn in range(count):
                host.send(flow, bytes([turn & 255]) * size, DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            assert [peer.recv(65535)[0] for _ in range(count)] == [turn & 255 for turn in range(count)]
            done = calls[:]
            calls.clear()
            return done

        assert send(1400, 3) == [(1400, 0)] * 3
        assert send(1400, 3) == [(1400, 0)] * 3
        assert send(1000, 3) == [(3000, 1000)]  # smaller ones still go together
        host.send(flow, bytes(3000), DEFAULT, 1500)  # type: ignore[arg-type]
        assert [len(peer.recv(65535)) for _ in range(2)] == [1500, 1500]
        calls.clear()
        sock.fails = 0
        for _ in range(udp_socket._PAUSE - 8):  # the 8 above count, too
            assert send(1400, 1) == [(1400, 0)]
        assert send(1400, 3) == [(4200, 1400)]
    assert table.counters.drop_udp_host == 0
    host.close()


@both_families
async def test_segments_larger_than_the_path_takes(beyond: Beyond, table: Table, family: int) -> None:
    """The kernel refuses them; fragments arrive."""
    ip = OUTSIDE if family == 4 else OUTSIDE6
    host = endpoint(table, family)
    with beyond.outside.socket(socket.SOCK_DGRAM, family=socket.AF_INET if family == 4 else socket.AF_INET6) as peer:
        peer.bind((ip, 0))
        flow = flow_to(table, host, peer)
        for size in (2000, 1400, 20000):
            payloads = [os.urandom(size) for _ in range(3)]
            for payload in payloads:
                host.send(flow, payload, DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            assert [peer.recv(65535) for _ in payloads] == payloads
        payload = os.urandom(60_000)
        host.send(flow, payload, DEFAULT, 0)  # type: ignore[arg-type]
        assert peer.recv(65535) == payload
    assert not flow.errors
    host.close()


@both_families
async def test_ttl_and_tos_are_the_guests(table: Table, family: int) -> None:
    host = endpoint(table, family)
    level, names = (socket.IPPROTO_IP, (12, 13)) if family == 4 else (socket.IPPROTO_IPV6, (51, 66))
    with peer_at(LOOPBACK[family]) as peer:
        for name in names:
            peer.setsockopt(level, name, 1)
        flow = flow_to(table, host, peer)
        told = noted(host).told
        for ttl, tos in ((64, 0), (64, 0), (1, 0), (1, 0xB8), (255, 0x02), (0, 0)):
            host.send(flow, b"x", ttl << 8 | tos, 0)  # type: ignore[arg-type]
            outbox.flush()
            _, control, _, _ = peer.recvmsg(100, 200)
            # A TTL comes as an int, a TOS as a byte or an int.
            values = {name: int.from_bytes(data, "little") for _, name, data in control}
            ttl_name, tos_name = (2, 1) if family == 4 else (52, 67)
            assert (values[ttl_name], values[tos_name]) == (ttl or 1, tos)
    assert len(told) == 2 + 0 + 1 + 1 + 2 + 2
    host.close()


# -- errors -----------------------------------------------------------------------------------------------------------


async def errors_of(
    table: Table, ip: str, port: int = 9, hops: int = DEFAULT, size: int = 8
) -> tuple[HostError, Datagrams, Flow]:
    host = endpoint(table, 6 if ":" in ip else 4)
    flow = Flow(table, ip, port)
    flow.host = host
    host.adopt(flow)  # type: ignore[arg-type]
    host.send(flow, bytes(size), hops, 0)  # type: ignore[arg-type]
    outbox.flush()
    await until(lambda: flow.errors, ip)
    return flow.errors[0], host, flow


async def test_errors_as_the_routers_say_them(beyond: Beyond, table: Table) -> None:
    for ip, hops, expected in (
        (OUTSIDE, DEFAULT, HostError(3, 3, 0, packed(OUTSIDE))),
        (UNREACHABLE, DEFAULT, HostError(3, 1, 0, packed(OUTSIDE))),
        (FORBIDDEN, DEFAULT, HostError(3, 13, 0, packed(OUTSIDE))),
        (NO_ROUTE, DEFAULT, HostError(3, 0)),
        (PROHIBITED, DEFAULT, HostError(3, 13)),
        (BEYOND, 1 << 8, HostError(11, 0, 0, packed(OUTSIDE))),
        (BEYOND, 2 << 8, HostError(3, 3, 0, packed(BEYOND))),
        (OUTSIDE6, DEFAULT, HostError(1, 4, 0, packed(OUTSIDE6))),
        (UNREACHABLE6, DEFAULT, HostError(1, 0, 0, packed(OUTSIDE6))),
        (NO_ROUTE6, DEFAULT, HostError(1, 0)),
        (PROHIBITED6, DEFAULT, HostError(1, 1)),
        (BEYOND6, 1 << 8, HostError(3, 0, 0, packed(OUTSIDE6))),
        (BEYOND6, 2 << 8, HostError(1, 4, 0, packed(BEYOND6))),
        ("127.0.0.1", DEFAULT, HostError(3, 3)),  # loopback is nobody to the guest
        ("::1", DEFAULT, HostError(1, 4)),
    ):
        error, host, _ = await errors_of(table, ip, hops=hops)
        assert error == expected, ip
        host.close()


@both_families
async def test_a_path_that_takes_less(beyond: Beyond, table: Table, family: int) -> None:
    """The guest is told of the router's word; later datagrams go in fragments of the kernel's."""
    ip = BEYOND if family == 4 else BEYOND6
    kind = HostError(3, 4, MTU, packed(ROUTER[family])) if family == 4 else HostError(2, 0, MTU, packed(OUTSIDE6))
    with beyond.far.socket(socket.SOCK_DGRAM, family=socket.AF_INET if family == 4 else socket.AF_INET6) as peer:
        peer.bind((ip, 0))
        port = peer.getsockname()[1]
        error, host, flow = await errors_of(table, ip, port, size=1400)
        assert error == kind
        for _ in range(2):
            payloads = [os.urandom(1400) for _ in range(4)]  # gathered, refused by the kernel, sent one by one
            for payload in payloads:
                host.send(flow, payload, DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            assert [peer.recv(65535) for _ in payloads] == payloads
        assert len(flow.errors) == 1
        host.close()


async def test_a_refusal_costs_no_other_peer_a_datagram(table: Table) -> None:
    for family in (4, 6):
        host = endpoint(table, family)
        dead = Flow(table, LOOPBACK[family], 9)
        host.adopt(dead)  # type: ignore[arg-type]
        with peer_at(LOOPBACK[family]) as peer:
            flow = flow_to(table, host, peer)
            for number in range(200):
                host.send(dead, b"x", DEFAULT, 0)  # type: ignore[arg-type]
                for _ in range(3):
                    host.send(flow, b"%03d" % number, DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            assert [peer.recv(100) for _ in range(600)] == [b"%03d" % number for number in range(200) for _ in range(3)]
            await until(lambda dead=dead: len(dead.errors) == 200)  # type: ignore[misc]
            assert not flow.errors
            # The loop still hears of the socket: libuv had stopped to watch it.
            assert host._sock is not None
            peer.sendto(b"still there?", (LOOPBACK[family], host._sock.getsockname()[1]))
            await until(lambda flow=flow: flow.got)  # type: ignore[misc]
        host.close()
    assert table.counters.drop_udp_host == 0


async def test_no_ipv6_is_a_prompt_refusal(world: World, table: Table) -> None:
    world.host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
    for ip in ("2001:db8::9", "::1"):
        error, host, _ = await errors_of(table, ip)
        assert error == HostError(1, 0)
        host.close()


async def test_a_source_of_its_own(world: World, table: Table) -> None:
    before = open_fds()
    for family, source in ((4, "127.0.0.5"), (6, "::1")):
        host = endpoint(table, family, source)
        with peer_at(LOOPBACK[family]) as peer:
            host.send(flow_to(table, host, peer), b"x", DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            assert peer.recvfrom(10)[1][0] == source
        host.close()
    for family, source in ((4, "192.0.2.77"), (6, "2001:db8::77")):
        with pytest.raises(OSError, match="assign"):
            endpoint(table, family, source)
    assert open_fds() == before


# -- in ---------------------------------------------------------------------------------------------------------------


@both_families
async def test_a_busy_socket_takes_runs_whole(table: Table, family: int) -> None:
    host = endpoint(table, family)
    with peer_at(LOOPBACK[family]) as peer:
        flow = flow_to(table, host, peer)
        host.send(flow, b"x", DEFAULT, 0)  # type: ignore[arg-type]
        outbox.flush()
        _, seen = peer.recvfrom(10)
        payload = os.urandom(1400 * 40 + 99)

        async def burst() -> list[tuple[int, int]]:
            flow.got.clear()
            flow.marks.clear()
            peer.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1400))], 0, seen)
            await until(lambda: sum(map(len, flow.got)) == len(payload))
            assert b"".join(flow.got) == payload and len(flow.got) == 41
            return flow.marks

        assert await burst() == [(0, 0)] * 41
        assert BUSY < 41 and host._busy
        peer.setsockopt(*((socket.IPPROTO_IP, 1) if family == 4 else (socket.IPPROTO_IPV6, 67)), 0x28)
        assert await burst() == [(1400, 0x28)]
        peer.sendto(b"alone", seen)
        await until(lambda: flow.got[-1] == b"alone")
        assert flow.marks[-1] == (0, 0x28)
    host.close()


async def test_an_endpoint_ends_with_its_last_flow_and_what_it_had_is_sent(table: Table) -> None:
    before = open_fds()
    closed: list[bytes] = []
    host = endpoint(table, 4, closed=closed)
    with peer_at("127.0.0.1") as one, peer_at("127.0.0.1") as two:
        flows = [flow_to(table, host, one), flow_to(table, host, two)]
        host.release(flows[0])  # type: ignore[arg-type]
        assert not closed
        host.send(flows[1], b"last words", DEFAULT, 0)  # type: ignore[arg-type]
        host.release(flows[1])  # type: ignore[arg-type]
        assert two.recv(100) == b"last words" and closed == [GUEST[4] + b"\x13\x88"]
        host.send(flows[1], b"too late", DEFAULT, 0)  # type: ignore[arg-type]
        outbox.flush()
        host.close()
        assert len(closed) == 1
    assert open_fds() == before


# -- a published port -------------------------------------------------------------------------------------------------


@both_families
async def test_a_listener_answers_from_the_address_that_was_asked(beyond: Beyond, table: Table, family: int) -> None:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    addresses = (HOST, "198.51.100.11") if family == 4 else (HOST6, "2001:db8::11")
    if family == 6:
        beyond.host.ip("address add 2001:db8::11/64 dev out0 nodad")
    sock = socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", 5353))
    listener = UdpListener(
        asyncio.get_running_loop(), time.monotonic, lambda: None, table, sock, lambda client: GUEST[4], 53
    )  # type: ignore[arg-type]
    with (
        beyond.outside.socket(socket.SOCK_DGRAM, family=kind) as client,
        beyond.outside.socket(socket.SOCK_DGRAM, family=kind) as other,
    ):
        for address in (*addresses, addresses[0]):
            client.sendto(b"question", (address, 5353))
            await until(lambda: table.flows and table.flows[0].got)
            flow = table.flows[0]
            assert flow.got.pop() == b"question"
            for _ in range(3):
                listener.send(flow, b"answer", DEFAULT, 0)  # type: ignore[arg-type]
            outbox.flush()
            for _ in range(3):
                payload, peer = client.recvfrom(100)
                assert (payload, peer[:2]) == (b"answer", (address, 5353))
        assert len(table.flows) == len(listener) == 1
        # A run in one piece.
        client.sendmsg([bytes(3000)], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1000))], 0, (addresses[0], 5353))
        await until(lambda: len(flow.got) == 3)
        assert flow.marks[-1] in ((1000, 0), (0, 0))
        # A client that is gone: its flow is told, no other one.
        other.sendto(b"question", (addresses[0], 5353))
        await until(lambda: len(table.flows) == 2)
    for turn in range(2):
        listener.send(table.flows[1], b"answer", DEFAULT, 0)  # type: ignore[arg-type]
        outbox.flush()
        await until(lambda turn=turn: len(table.flows[1].errors) > turn)  # type: ignore[misc]
    assert {(e.type, e.code) for e in table.flows[1].errors} == {(3, 3) if family == 4 else (1, 4)}
    assert not flow.errors
    listener.close()
    assert len(listener) == 0 and sock.fileno() < 0


def test_the_numbers_are_the_kernels() -> None:
    assert (SOL_UDP, UDP_SEGMENT, UDP_GRO) == (17, 103, 104)
