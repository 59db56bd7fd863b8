"""DNS at 10.0.2.3: the host's name servers over UDP and TCP, as /etc/resolv.conf names them now."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from netd.settings import Settings
from netd.wire import dns
from tests.lab import OUTSIDE, OUTSIDE_TOO, SILENT, Netns, World, aside, until
from tests.stage import Attach, Guest

DNS = ("10.0.2.3", 53)


def question(name: str, ident: int = 0) -> bytes:
    """A query for the A record of ``name``."""
    ident = ident or int.from_bytes(os.urandom(2), "big")
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return dns.HEADER.pack(ident, dns.RD, 1, 0, 0, 0) + labels + b"\0\0\x01\0\x01"


def answer(query: bytes, rcode: int, who: str) -> bytes:
    """A response that carries the address ``who``, in IPv6's clothes where an AAAA record was asked for."""
    ident, *_ = dns.HEADER.unpack_from(query)
    end = dns.question_end(query)
    kind, address = int.from_bytes(query[end - 4 : end - 2], "big"), socket.inet_aton(who)
    if kind == 28:  # RFC 3596 §2.1
        address = bytes(10) + b"\xff\xff" + address
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(address)) + address
    head = dns.HEADER.pack(ident, dns.QR | dns.RD | dns.RA | rcode, 1, 1 if not rcode else 0, 0, 0)
    return head + query[dns.SIZE : end] + (record if not rcode else b"")


class NameServer:
    """One on UDP and TCP that answers with its own address and counts."""

    def __init__(self, netns: Netns, ip: str, rcode: int = 0) -> None:
        self.ip, self.rcode, self.asked = ip, rcode, 0
        self._udp = netns.datagrams(ip, 53)
        self._tcp = netns.listener(ip, 53)
        self._udp.settimeout(None)
        self._tcp.settimeout(None)
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _serve_udp(self) -> None:
        while True:
            query, client = self._udp.recvfrom(65535)
            if not query:
                return
            self.asked += 1
            self._udp.sendto(answer(query, self.rcode, self.ip), client)

    def _serve_tcp(self) -> None:
        while True:
            sock, _ = self._tcp.accept()
            with sock:
                size = sock.recv(2, socket.MSG_WAITALL)
                if not size:
                    return
                query = sock.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
                self.asked += 1
                reply = answer(query, self.rcode, self.ip)
                sock.sendall(len(reply).to_bytes(2, "big") + reply)

    def close(self) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as wake:
            wake.sendto(b"", (self.ip, 53))
        with socket.create_connection((self.ip, 53)):
            pass
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()


@contextmanager
def name_servers(*servers: NameServer) -> Iterator[None]:
    try:
        yield
    finally:
        for server in servers:
            server.close()


def names(settings: Settings, *servers: str) -> None:
    """A new resolv.conf, put in place as editors and network managers do it."""
    new = settings.resolv_conf.with_suffix(".new")
    new.write_text("# who wrote this\nsearch example\n" + "".join(f"nameserver {ip}\n" for ip in servers))
    new.rename(settings.resolv_conf)


def over_udp(guest: Guest, name: str = "www.example") -> tuple[int, str]:
    """(rcode, address in the answer) of one query."""
    with guest.datagrams() as sock:
        query = question(name)
        sock.sendto(query, DNS)
        reply, server = sock.recvfrom(65535)
        assert server == DNS
        return check(query, reply)


def over_tcp(guest: Guest, name: str = "www.example") -> tuple[int, str]:
    with guest.socket() as sock:
        sock.connect(DNS)
        query = question(name)
        sock.sendall(len(query).to_bytes(2, "big") + query)
        size = sock.recv(2, socket.MSG_WAITALL)
        return check(query, sock.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))


def refused_over_tcp(guest: Guest) -> bool:
    with guest.socket() as sock:
        return sock.connect_ex(DNS) in (errno.ECONNREFUSED, errno.ENETUNREACH)


def check(query: bytes, reply: bytes) -> tuple[int, str]:
    ident, flags, questions, answers, _, _ = dns.HEADER.unpack_from(reply)
    assert (ident, questions) == (int.from_bytes(query[:2], "big"), 1)
    assert flags & dns.QR and reply[dns.SIZE : len(query)] == query[dns.SIZE :]
    return flags & dns.RCODE, socket.inet_ntoa(reply[-4:]) if answers else ""


async def test_over_udp_and_tcp(world: World, attach: Attach, settings: Settings) -> None:
    names(settings, OUTSIDE)
    guest = await attach()
    with name_servers(server := NameServer(world.outside, OUTSIDE)):
        for ask in (over_udp, over_tcp, over_udp):
            assert await aside(ask, guest) == (0, OUTSIDE)
        assert server.asked == 3
    assert guest.counters()["dns_queries"] == 2 and guest.counters()["dns_failed"] == 0


async def test_the_next_server_where_one_refuses_or_fails(world: World, attach: Attach, settings: Settings) -> None:
    names(settings, OUTSIDE, OUTSIDE_TOO)  # nothing listens on the first
    guest = await attach()
    with name_servers(NameServer(world.outside, OUTSIDE_TOO)):
        for ask in (over_udp, over_tcp):
            start = time.monotonic()
            assert await aside(ask, guest) == (0, OUTSIDE_TOO)
            assert time.monotonic() - start < 1
        with name_servers(failing := NameServer(world.outside, OUTSIDE, rcode=dns.SERVFAIL)):
            assert await aside(over_udp, guest) == (0, OUTSIDE_TOO)
            assert failing.asked == 1


@pytest.mark.parametrize("ask", [over_udp, over_tcp])
async def test_the_next_server_where_one_is_silent(
    world: World, attach: Attach, settings: Settings, ask: Callable[[Guest], tuple[int, str]]
) -> None:
    names(settings, SILENT, OUTSIDE)
    guest = await attach()
    with name_servers(NameServer(world.outside, OUTSIDE)):
        start = time.monotonic()
        assert await aside(ask, guest) == (0, OUTSIDE)
        assert time.monotonic() - start < 4


async def test_servfail_when_no_server_answers(world: World, attach: Attach, settings: Settings) -> None:
    guest = await attach()
    start = time.monotonic()
    assert await aside(over_udp, guest) == (dns.SERVFAIL, "")  # none is named
    assert await aside(refused_over_tcp, guest)
    names(settings, OUTSIDE, OUTSIDE_TOO)
    await asyncio.sleep(1.01)  # the file is looked at once a second
    assert await aside(over_udp, guest) == (dns.SERVFAIL, "")  # none listens
    assert await aside(refused_over_tcp, guest)
    assert time.monotonic() - start < 2
    assert guest.counters()["dns_failed"] == 2
    # A server's own failure is handed on as it is.
    with name_servers(NameServer(world.outside, OUTSIDE, 3), NameServer(world.outside, OUTSIDE_TOO)):
        assert await aside(over_udp, guest) == (3, "")  # NXDOMAIN is an answer


async def test_a_changed_file_is_followed(world: World, attach: Attach, settings: Settings) -> None:
    names(settings, OUTSIDE)
    guest = await attach()
    with name_servers(NameServer(world.outside, OUTSIDE), NameServer(world.outside, OUTSIDE_TOO)):
        assert await aside(over_udp, guest) == (0, OUTSIDE)
        names(settings, OUTSIDE_TOO)
        changed = time.monotonic()
        while (await aside(over_udp, guest))[1] != OUTSIDE_TOO:
            assert time.monotonic() - changed < 1.5
            await asyncio.sleep(0.05)
        assert await aside(over_tcp, guest) == (0, OUTSIDE_TOO)


async def test_a_stub_on_the_hosts_loopback_is_reached(world: World, attach: Attach, settings: Settings) -> None:
    """systemd-resolved's 127.0.0.53, though the guest may not reach the host's loopback."""
    names(settings, "127.0.0.53")
    guest = await attach()
    assert not guest.network.spec.allow_host_loopback
    with name_servers(NameServer(world.host, "127.0.0.53")):
        for ask in (over_udp, over_tcp):
            assert await aside(ask, guest) == (0, "127.0.0.53")


async def test_many_queries_from_one_socket(world: World, attach: Attach, settings: Settings) -> None:
    names(settings, OUTSIDE)
    guest = await attach()
    with name_servers(NameServer(world.outside, OUTSIDE)), guest.datagrams() as sock:

        def burst() -> None:
            for _ in range(10):
                waiting = {}
                for number in range(30):
                    query = question(f"host{number}.example", number + 1)
                    waiting[query[:2]] = query
                    sock.sendto(query, DNS)
                while waiting:
                    reply = sock.recv(65535)
                    assert check(waiting.pop(reply[:2]), reply) == (0, OUTSIDE)

        await aside(burst)


async def test_what_is_no_query_is_dropped_and_more_than_the_bound_too(
    world: World, attach: Attach, settings: Settings
) -> None:
    names(settings, SILENT)
    guest = await attach()
    with guest.datagrams() as sock:
        for junk in (b"", b"x", bytes(12), answer(question("a.b"), 0, OUTSIDE), question("a.b")[:-3], b"\xff" * 600):
            sock.sendto(junk, DNS)
        await until(lambda: guest.counters()["dns_dropped"] == 6)
        for number in range(600):
            sock.sendto(question("a.b", number + 1), DNS)
            if number % 50 == 49:
                await asyncio.sleep(0)
        await until(lambda: guest.counters()["dns_queries"] == 512)
        await until(lambda: guest.counters()["dns_dropped"] == 6 + 88)
        assert guest.counters()["dns_failed"] == 0
        await guest.daemon.detach(guest.network)  # with all of them under way


async def test_no_name_server_reaches_the_guest_from_outside_of_its_flow(
    world: World, attach: Attach, settings: Settings
) -> None:
    """A stranger's datagram to the query's socket is no answer."""
    names(settings, OUTSIDE)
    guest = await attach()
    with guest.datagrams() as sock, world.outside.datagrams(OUTSIDE, 53) as server:
        query = question("www.example")
        sock.sendto(query, DNS)
        asked, client = await aside(server.recvfrom, 65535)
        assert asked[2:] == query[2:]
        with world.outside.datagrams(OUTSIDE_TOO, 53) as stranger:
            stranger.sendto(answer(asked, 0, OUTSIDE_TOO), client)
        wrong = bytes([asked[0] ^ 1]) + asked[1:]
        server.sendto(answer(wrong, 0, OUTSIDE_TOO), client)
        server.sendto(answer(question("other.example", int.from_bytes(asked[:2], "big")), 0, OUTSIDE_TOO), client)
        server.sendto(b"short", client)
        server.sendto(answer(asked, 0, OUTSIDE), client)
        assert check(query, await aside(sock.recv, 65535)) == (0, OUTSIDE)
