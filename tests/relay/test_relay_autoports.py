"""Ports that come and go with who listens: the kernel's own word on two real namespaces."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from netd.errors import NoSuchPort, PortInUse
from netd.relay import autoports
from netd.relay.autoports import (
    AutoPort,
    AutoPorts,
    AutoRule,
    Direction,
    reachable_anywhere,
    reachable_in_guest,
    reachable_on_host,
)
from netd.relay.sockaddr import packed
from netd.relay.sockdiag import NETLINK_SOCK_DIAG, Diag, Listening
from tests.lab import Netns, World, until
from tests.relay.test_relay_sockdiag import TCP, UDP, bound

LOW = [AutoRule(protocol, 1, 32767, 1) for protocol in ("tcp", "udp")]  # as the grammar makes them of "auto"
HIGH = [AutoRule(protocol, 61000, 65535, 61000) for protocol in ("tcp", "udp")]


class Side:
    """A namespace whose sockets lead to ports of another one, which are really bound there."""

    def __init__(self, source: Netns, other: Netns, rules: list[AutoRule], reachable: Any, address: str = "") -> None:
        self.source, self.other, self.address = source, other, address
        self.diag = Diag(source.socket(socket.SOCK_RAW, NETLINK_SOCK_DIAG, socket.AF_NETLINK))
        self.opened: dict[int, tuple[AutoPort, socket.socket]] = {}
        self.number = 0
        self.adds = 0
        self.static: set[tuple[str, int]] = set()
        self.direction = Direction("web", self.diag.dump, rules, reachable, self.ours, self.add, self.remove)

    def ours(self, protocol: str) -> set[int]:
        return {port for kind, port in self.static if kind == protocol}

    def add(self, port: AutoPort) -> int:
        self.adds += 1
        kind = TCP if port.protocol == "tcp" else UDP
        sock = self.other.socket(kind)
        try:
            sock.bind((self.address or port.rule.address or "0.0.0.0", port.port))
            if kind == TCP:
                sock.listen(1)
        except OSError as e:
            sock.close()
            raise PortInUse(f"cannot publish {port.port}/{port.protocol}: {e.strerror}") from None
        self.number += 1
        self.opened[self.number] = (port, sock)
        return self.number

    def remove(self, number: int) -> None:
        if number not in self.opened:
            raise NoSuchPort(f"no port forward {number}")
        self.opened.pop(number)[1].close()

    def published(self) -> set[tuple[str, int]]:
        return {(port.protocol, port.port) for port, _ in self.opened.values()}

    def close(self) -> None:
        for _, sock in self.opened.values():
            sock.close()
        self.diag.close()


@pytest.fixture
def sides(world: World) -> Iterator[Any]:
    guest = world.guest()
    guest.ip(
        "link set lo up\nlink add eth0 type veth peer name eth1\naddress add 10.0.2.100/24 dev eth0\nlink set eth0 up"
    )
    opened: list[Side] = []

    def sides(rules: list[AutoRule] = LOW, reachable: Any = reachable_in_guest) -> tuple[Netns, Side]:
        opened.append(Side(guest, world.host, rules, reachable))
        return guest, opened[-1]

    yield sides
    for side in opened:
        side.close()


def test_they_come_and_go(sides: Any) -> None:
    guest, side = sides()
    side.direction.scan()
    assert side.published() == set()
    with bound(guest, TCP, "0.0.0.0", 8001), bound(guest, TCP, "::", 8003, v6only=False):
        with bound(guest, UDP, "10.0.2.100", 9001):
            side.direction.scan()
            assert side.published() == {
                *(("tcp", port) for port in (8001, 8003)),
                *(("udp", port) for port in (8001, 8003, 9001)),
            }
            assert len(side.direction) == 5 and side.direction.ports("udp") == {8001, 8003, 9001}
        side.direction.scan()
        assert ("udp", 9001) not in side.published() and len(side.direction) == 4
        adds = side.adds
        for _ in range(3):
            side.direction.scan()
        assert side.adds == adds
    side.direction.scan()
    assert side.published() == set()


def test_what_is_not_published(sides: Any) -> None:
    guest, side = sides([*LOW, *HIGH])
    with ExitStack() as stack:
        for kind in (TCP, UDP):
            stack.enter_context(bound(guest, kind, "127.0.0.1", 8002 + kind))  # on its loopback alone
            stack.enter_context(bound(guest, kind, "::1", 8012 + kind))
            stack.enter_context(bound(guest, kind, "::ffff:127.0.0.5", 8022 + kind, v6only=False))
            stack.enter_context(bound(guest, kind, "0.0.0.0", 8032 + kind, interface="lo"))
            stack.enter_context(bound(guest, kind, "0.0.0.0", 40000 + kind))  # ephemeral
            stack.enter_context(bound(guest, kind, "0.0.0.0", 61000 + kind))
        stack.enter_context(bound(guest, TCP, "0.0.0.0", 8005, listens=False))
        stack.enter_context(bound(guest, UDP, "127.0.0.1", 9005)).connect(("127.0.0.1", 9))
        stack.enter_context(guest.datagrams()).sendto(b"", ("127.0.0.1", 9))  # a client
        side.direction.scan()
        assert side.published() == {("tcp", 61001), ("udp", 61001), ("udp", 61002)}


def test_the_loopback_where_it_is_led_to(sides: Any) -> None:
    guest, side = sides(LOW, reachable_anywhere)
    with bound(guest, TCP, "127.0.0.1", 8002), bound(guest, UDP, "::1", 9002):
        side.direction.scan()
        assert side.published() == {("tcp", 8002), ("udp", 8002), ("udp", 9002)}


def test_ranges_and_translation(sides: Any) -> None:
    """The ports that are listened on are the rule's second ones. UDP follows TCP only where they are the same."""
    rules = [
        AutoRule("tcp", 7001, 7003, 8001),
        AutoRule("udp", 7001, 7003, 8001),
        AutoRule("udp", 8003, 8010, 8003),
        AutoRule("udp", 40000, 40010, 40000),
        AutoRule("tcp", 8001, 8001, 8001, "127.0.0.1"),
    ]
    guest, side = sides(rules)
    with ExitStack() as stack:
        for port in (7001, 8000, 8001, 8003, 8004):
            stack.enter_context(bound(guest, TCP, "0.0.0.0", port))
        for port in (8002, 40001, 40011):
            stack.enter_context(bound(guest, UDP, "0.0.0.0", port))
        side.direction.scan()
        assert sorted((port.protocol, port.port, port.to_port) for port, _ in side.opened.values()) == [
            ("tcp", 7001, 8001),
            ("tcp", 7003, 8003),
            ("tcp", 8001, 8001),
            ("udp", 7002, 8002),
            ("udp", 8003, 8003),
            ("udp", 8004, 8004),
            ("udp", 40001, 40001),
        ]


def test_of_the_host(world: World) -> None:
    """Outwards: what 127.0.0.1 and ::1 reach."""
    guest = world.guest()
    guest.ip("link set lo up")
    side = Side(world.host, guest, LOW, reachable_on_host, "127.0.0.1")
    with ExitStack() as stack:
        for number, (ip, interface) in enumerate(
            (("0.0.0.0", ""), ("127.0.0.1", ""), ("::1", ""), ("::", ""), ("0.0.0.0", "lo"))
        ):
            stack.enter_context(bound(world.host, TCP, ip, 8000 + number, interface=interface))
        for number, (ip, interface) in enumerate((("198.51.100.1", ""), ("127.0.0.53", ""), ("0.0.0.0", "out0"))):
            stack.enter_context(bound(world.host, TCP, ip, 9000 + number, interface=interface))
        side.direction.scan()
        assert side.direction.ports("tcp") == {8000, 8001, 8002, 8003, 8004}
    side.close()


async def test_no_loops(world: World) -> None:
    """Both directions at once, and ports that are published by other means."""
    guest = world.guest()
    guest.ip("link set lo up")
    inwards = Side(guest, world.host, LOW, reachable_anywhere)
    outwards = Side(world.host, guest, LOW, reachable_on_host, "127.0.0.1")
    ports = AutoPorts(asyncio.get_running_loop())
    with bound(guest, TCP, "0.0.0.0", 8001), bound(world.host, TCP, "127.0.0.1", 8002):
        with bound(world.host, TCP, "0.0.0.0", 8003):
            outwards.static = {("tcp", 8003), ("udp", 8003)}  # a forward of ours
            ports.start([inwards.direction, outwards.direction])
            for _ in range(4):
                ports.scan()
            assert inwards.published() == {("tcp", 8001), ("udp", 8001)}
            assert outwards.published() == {("tcp", 8002), ("udp", 8002)}
    for _ in range(2):
        ports.scan()
    assert inwards.published() == outwards.published() == set()
    ports.close()
    inwards.close()
    outwards.close()


def test_ours_of_one_protocol(sides: Any) -> None:
    """A TCP port of somebody's whose number is ours in UDP."""
    guest, side = sides()
    side.static = {("udp", 8001), ("tcp", 8002)}
    with bound(guest, TCP, "0.0.0.0", 8001), bound(guest, UDP, "0.0.0.0", 8001):
        with bound(guest, TCP, "0.0.0.0", 8002), bound(guest, UDP, "0.0.0.0", 8003):
            side.direction.scan()
            assert side.published() == {("tcp", 8001), ("udp", 8003)}


def test_a_port_that_is_taken(sides: Any, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Told once, tried every time, and had when it is free."""
    guest, side = sides()
    with bound(guest, TCP, "0.0.0.0", 8001):
        taken = world.host.listener("0.0.0.0", 8001)
        with taken, caplog.at_level(logging.INFO):
            for scan in range(1, 4):
                side.direction.scan()
                assert side.published() == {("udp", 8001)} and side.adds == scan + 1
            assert [record.getMessage() for record in caplog.records] == [
                "web: cannot publish 8001/tcp: Address already in use"
            ]
        side.direction.scan()
        assert side.published() == {("tcp", 8001), ("udp", 8001)}
        adds = side.adds
        side.direction.scan()
        assert side.adds == adds


def test_one_that_fails_later(sides: Any, caplog: pytest.LogCaptureFixture) -> None:
    guest, side = sides([LOW[0]])
    with bound(guest, TCP, "0.0.0.0", 8001):
        side.direction.scan()
        (number,) = side.opened
        side.opened.pop(number)[1].close()
        side.direction.failed(number, "the agent is gone")
        side.direction.failed(number, "the agent is gone")
        assert len(side.direction) == 0 and caplog.messages == ["web: the agent is gone"]
        side.direction.scan()
        assert side.published() == {("tcp", 8001)}


def test_one_that_is_removed_by_hand_stays_away_until_it_ends(sides: Any) -> None:
    guest, side = sides([LOW[0]])
    with bound(guest, TCP, "0.0.0.0", 8001):
        side.direction.scan()
        side.remove(next(iter(side.opened)))
        with bound(guest, TCP, "0.0.0.0", 8002):
            side.direction.scan()
            assert side.published() == {("tcp", 8002)}
    side.direction.scan()
    with bound(guest, TCP, "0.0.0.0", 8001):
        side.direction.scan()
        assert side.published() == {("tcp", 8001)}


def test_another_life(sides: Any) -> None:
    """What was published before is known again, and given up if nobody listens any more."""
    guest, side = sides([LOW[0]])
    before = [AutoPort("tcp", port, port, LOW[0]) for port in (8001, 8002)]
    for port in before:
        side.direction.adopt(port, side.add(port))
    with bound(guest, TCP, "0.0.0.0", 8001):
        side.direction.scan()
        assert side.published() == {("tcp", 8001)} and side.adds == 2


def test_thousands_take_turns(sides: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Ports of which many cannot be had: bounded attempts, and none is left out for ever."""
    monkeypatch.setattr(autoports, "ATTEMPTS", 100)
    guest, side = sides([LOW[0]])
    tries: list[int] = []
    genuine = side.add

    def add(port: AutoPort) -> int:
        tries.append(port.port)
        if port.port % 2:
            raise PortInUse(f"cannot publish {port.port}")
        return int(genuine(port))

    side.direction._add = add
    with ExitStack() as stack:
        for port in range(10_000, 10_400):
            stack.enter_context(bound(guest, TCP, "0.0.0.0", port))
        for scan in range(1, 5):
            side.direction.scan()
            assert len(tries) == scan * 100
        assert len(set(tries)) == 400 and len(side.published()) == 200
        del tries[:]
        for _ in range(2):
            side.direction.scan()
        assert sorted(tries) == list(range(10_001, 10_400, 2))
    assert len(caplog.records) == autoports.TOLD_MAX


def test_a_kernel_without(world: World, caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    def dump() -> frozenset[Listening] | None:
        nonlocal asked
        asked += 1
        raise OSError(2, "the kernel does not list sockets: No such file or directory")

    direction = Direction("web", dump, LOW, reachable_anywhere, lambda _: set(), lambda _: 1, lambda _: None)
    for _ in range(3):
        direction.scan()
    assert asked == 1 and len(caplog.records) == 1


def test_a_dump_that_is_not_to_be_had_changes_nothing(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, side = sides([LOW[0]])
    with bound(guest, TCP, "0.0.0.0", 8001):
        side.direction.scan()
    side.direction._dump = lambda: None
    side.direction.scan()
    assert side.published() == {("tcp", 8001)}


async def test_the_timer(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoports, "PERIOD", 0.02)
    guest, side = sides([LOW[0]])
    ports = AutoPorts(asyncio.get_running_loop())
    ports.start([])
    assert ports._timer is None
    ports.start([side.direction])
    with bound(guest, TCP, "0.0.0.0", 8001):
        await until(side.published)
    await until(lambda: not side.published())
    ports.close()
    with bound(guest, TCP, "0.0.0.0", 8001):
        await asyncio.sleep(0.1)
        assert not side.published() and ports._timer is None


@pytest.mark.parametrize(
    ("listening", "guest", "host"),
    [
        (Listening("tcp", 4, bytes(4), 1), True, True),
        (Listening("tcp", 6, bytes(16), 1), True, True),
        (Listening("tcp", 4, packed("127.0.0.1"), 1), False, True),
        (Listening("tcp", 4, packed("127.0.0.53"), 1), False, False),
        (Listening("tcp", 6, packed("::1"), 1), False, True),
        (Listening("tcp", 6, bytes(10) + b"\xff\xff\x7f\0\0\1", 1), False, True),
        (Listening("tcp", 6, bytes(10) + b"\xff\xff\n\0\0\1", 1), True, False),
        (Listening("tcp", 4, packed("10.0.2.100"), 1), True, False),
        (Listening("tcp", 4, bytes(4), 1, interface=1), False, True),
        (Listening("tcp", 4, bytes(4), 1, interface=2), True, False),
    ],
)
def test_what_can_be_reached(listening: Listening, guest: bool, host: bool) -> None:
    assert reachable_in_guest(listening) is guest
    assert reachable_on_host(listening) is host
