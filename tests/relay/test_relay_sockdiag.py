"""What is listened on in a namespace, asked of the real kernel."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.relay import sockdiag
from netd.relay.sockaddr import packed
from netd.relay.sockdiag import Diag, Listening, open_diag
from tests.lab import Netns, World

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ANY4, ANY6 = bytes(4), bytes(16)


@contextmanager
def diag_in(netns: Netns) -> Iterator[Diag]:
    """Made in there, asked from here."""
    diag = Diag(netns.socket(socket.SOCK_RAW, sockdiag.NETLINK_SOCK_DIAG, socket.AF_NETLINK))
    try:
        yield diag
    finally:
        diag.close()


def bound(
    netns: Netns, kind: int, ip: str, port: int, *, v6only: bool = True, interface: str = "", listens: bool = True
) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = netns.socket(kind, family=family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if interface:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    sock.bind((ip, port))
    if kind == TCP and listens:
        sock.listen(5)
    return sock


def test_all_kinds(world: World) -> None:
    guest = world.guest()
    guest.ip("link set lo up")
    with diag_in(guest) as diag, ExitStack() as stack:
        assert diag.dump() == set()

        def there(*args: object, **kwargs: object) -> socket.socket:
            return stack.enter_context(bound(guest, *args, **kwargs))  # type: ignore[arg-type]

        there(TCP, "0.0.0.0", 1)
        there(TCP, "127.0.0.1", 8002)
        there(TCP, "::", 8003, v6only=False)
        there(TCP, "::", 8004)
        there(TCP, "::1", 65535)
        there(TCP, "0.0.0.0", 8005, interface="lo")
        there(TCP, "0.0.0.0", 8006, listens=False)
        there(UDP, "0.0.0.0", 9001)
        there(UDP, "127.0.0.5", 9002)
        there(UDP, "::", 9003, v6only=False)
        there(UDP, "::1", 9004)
        there(UDP, "127.0.0.1", 9005).connect(("127.0.0.1", 9001))
        with bound(guest, TCP, "127.0.0.1", 8002) as twice:
            expected = {
                Listening("tcp", 4, ANY4, 1),
                Listening("tcp", 4, packed("127.0.0.1"), 8002),
                Listening("tcp", 6, ANY6, 8003),
                Listening("tcp", 6, ANY6, 8004, v6only=True),
                Listening("tcp", 6, packed("::1"), 65535, v6only=True),
                Listening("tcp", 4, ANY4, 8005, interface=1),
                Listening("udp", 4, ANY4, 9001),
                Listening("udp", 4, packed("127.0.0.5"), 9002),
                Listening("udp", 6, ANY6, 9003),
                Listening("udp", 6, packed("::1"), 9004, v6only=True),
            }
            first = diag.dump()
            assert first == expected
            assert diag.dump() is first  # nothing has changed
        assert diag.dump() is first  # one of two on the same port
        assert twice.fileno() < 0
    assert (diag.forged, diag.malformed, diag.abandoned) == (0, 0, 0)


def test_it_tells_of_its_own_namespace(world: World) -> None:
    guest = world.guest()
    with diag_in(guest) as inside, bound(world.host, TCP, "0.0.0.0", 8080):
        outside = open_diag()
        try:
            assert outside.dump() == {Listening("tcp", 4, ANY4, 8080)}
            assert inside.dump() == set()
            with bound(guest, UDP, "0.0.0.0", 5353):
                assert inside.dump() == {Listening("udp", 4, ANY4, 5353)}
                assert outside.dump() == {Listening("tcp", 4, ANY4, 8080)}
            assert inside.dump() == set()
        finally:
            outside.close()


def test_thousands(world: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    guest = world.guest()
    try:
        with diag_in(guest) as diag, ExitStack() as stack:
            for port in range(10_000, 13_000):
                stack.enter_context(bound(guest, (TCP, UDP)[port % 2], ("0.0.0.0", "::")[port // 2 % 2], port))
            found = diag.dump()
            assert found is not None and {listening.port for listening in found} == set(range(10_000, 13_000))
            assert diag.dump() is found
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_than_it_looks_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's half-told answer is no obstacle afterwards."""
    monkeypatch.setattr(sockdiag, "SOCKETS_MAX", 200)
    guest = world.guest()
    with diag_in(guest) as diag, bound(guest, TCP, "0.0.0.0", 22):
        before = diag.dump()
        with ExitStack() as stack:
            for port in range(10_000, 10_900):
                stack.enter_context(bound(guest, TCP, "0.0.0.0", port))
            assert diag.dump() is None and diag.dump() is None
            assert diag.abandoned == 2
        assert diag.dump() == before == {Listening("tcp", 4, ANY4, 22)}


def forgery(kind: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, number, 0) + body


def test_whoever_writes_to_our_socket_is_not_the_kernel(world: World) -> None:
    guest = world.guest()
    with diag_in(guest) as diag, bound(guest, TCP, "0.0.0.0", 22):
        forger = guest.socket(socket.SOCK_RAW, sockdiag.NETLINK_SOCK_DIAG, socket.AF_NETLINK)
        with forger:
            assert diag.dump() == {Listening("tcp", 4, ANY4, 22)}
            address = diag._sock.getsockname()
            listener = struct.pack("=BBBB2s2s", 2, 10, 0, 0, b"\x1f\x90", b"\0\0") + bytes(64)
            forger.sendto(forgery(20, 1, listener), address)
            forger.sendto(forgery(3, 1, bytes(4)), address)
            forger.sendto(forgery(2, 1, struct.pack("=i", -2)), address)
            assert diag.dump() == {Listening("tcp", 4, ANY4, 22)}
            assert diag.forged == 3
            forger.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:  # until our queue is full
                    forger.sendto(forgery(3, 1, bytes(30_000)), address)
            for _ in range(3):
                diag.dump()
            assert diag.dump() == {Listening("tcp", 4, ANY4, 22)}


def test_a_kernel_that_lists_no_sockets(world: World) -> None:
    """NETLINK_ROUTE stands for it: it has never heard of the question, either."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        diag = Diag(sock)
        for _ in range(2):
            with pytest.raises(OSError, match="the kernel does not list sockets: "):
                diag.dump()


class Altered(Diag):
    """The kernel's answers with something done to them."""

    alter = staticmethod(lambda data: data)

    def _receive(self) -> bytes | None:
        data = super()._receive()
        return data and self.alter(data)


def test_interrupted_and_malformed(world: World) -> None:
    guest = world.guest()
    with guest.socket(socket.SOCK_RAW, sockdiag.NETLINK_SOCK_DIAG, socket.AF_NETLINK) as sock:
        diag = Altered(sock)
        with bound(guest, TCP, "0.0.0.0", 22):
            found = diag.dump()
            assert found == {Listening("tcp", 4, ANY4, 22)}
            diag.alter = lambda data: data[:6] + bytes([data[6] | 0x10]) + data[7:]  # NLM_F_DUMP_INTR
            assert diag.dump() is None and diag.abandoned == 1
            diag.alter = lambda data: data[:10]  # neither whole nor ended
            assert diag.dump() is None and diag.malformed
            diag.alter = lambda data: data
            assert diag.dump() == found


@given(data=st.binary(max_size=400), number=st.sampled_from((0, 1, 0x01000000)))
def test_any_bytes(data: bytes, number: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        diag = Diag(sock)
        diag._read(data, number, "tcp")
        for kind in (2, 3, 20):
            message = diag._read(forgery(kind, number, data) + data, number, "udp")
            assert message.last == (kind != 20) or not message.last
            assert len(message.listening) <= len(data)


@given(attributes=st.binary(max_size=60))
def test_any_attributes(attributes: bytes) -> None:
    body = struct.pack("=BBBB2s2s", 10, 10, 0, 0, b"\x1f\x90", b"\0\0") + bytes(64)
    with socket.socket(socket.AF_UNIX) as sock:
        (found,) = Diag(sock)._read(forgery(20, 1, body + attributes), 1, "tcp").listening
    assert found[:5] == ("tcp", 6, ANY6, 8080, 0)
