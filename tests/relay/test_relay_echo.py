"""Ping sockets of both families."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from netd.pace import Pace, Turns
from netd.relay.echo import Echo
from netd.relay.host import HostNetwork
from netd.relay.sockaddr import packed
from netd.relay.source import Source
from netd.stack.ports import ADMIN_PROHIBITED, NET_UNREACHABLE, HostError
from tests.lab import HOST, NO_ROUTE, OUTSIDE, SILENT, UNREACHABLE, World, open_fds, until
from tests.relay.beyond import BEYOND, BEYOND6, HOST6, MTU, OUTSIDE6, UNREACHABLE6, Beyond
from tests.relay.guest_side import DEFAULT, Flow, Table
from tests.relay.test_relay_limits import out_of_descriptors


@pytest.fixture
def allowed(beyond: Beyond) -> Beyond:
    beyond.host.sysctl("ping_group_range", f"{os.getgid()} {os.getgid()}")
    return beyond


def echo_to(table: Table, ip: str, source: str = "") -> tuple[Flow, Echo]:
    flow = Flow(table, ip)
    return flow, Echo(asyncio.get_running_loop(), flow, Source(source, source))  # type: ignore[arg-type]


async def test_replies(allowed: Beyond, table: Table) -> None:
    before = open_fds()
    for ip in (OUTSIDE, HOST, "127.0.0.1", OUTSIDE6, HOST6, "::1", BEYOND, BEYOND6):
        flow, echo = echo_to(table, ip)
        sizes = (0, 56, 1000) if ip in (BEYOND, BEYOND6) else (0, 56, 1000, 20_000)
        for sequence, size in zip((1, 2, 0xFFFF, 3), sizes, strict=False):
            payload = os.urandom(size)
            echo.send(flow, sequence, payload, DEFAULT)  # type: ignore[arg-type]
            await until(lambda flow=flow: flow.replies, ip)  # type: ignore[misc]
            assert flow.replies.pop() == (sequence, payload)
        assert not flow.refusals
        echo.close()
    assert open_fds() == before


async def test_a_flood_in_one_turn_of_the_loop(allowed: Beyond, table: Table) -> None:
    flow, echo = echo_to(table, "::1")
    for sequence in range(100):
        echo.send(flow, sequence, b"x" * 10, DEFAULT)  # type: ignore[arg-type]
    await until(lambda: len(flow.replies) == 100)
    assert [sequence for sequence, _ in flow.replies] == list(range(100))
    echo.close()


async def test_every_hop_answers_for_itself(allowed: Beyond, table: Table) -> None:
    """What traceroute and mtr see; and each error is about the request it quotes."""
    for ip, router, exceeded in ((BEYOND, OUTSIDE, 11), (BEYOND6, OUTSIDE6, 3)):
        flow, echo = echo_to(table, ip)
        for sequence, hops in ((1, 1 << 8 | 0xB8), (2, 2 << 8 | 0xB8), (3, 1 << 8), (4, 255 << 8)):
            echo.send(flow, sequence, b"x" * 40, hops)  # type: ignore[arg-type]
            await until(lambda flow=flow: flow.replies or flow.refusals)  # type: ignore[misc]
            if hops >> 8 == 1:
                assert flow.refusals.pop() == (sequence, HostError(exceeded, 0, 0, packed(router)))
            else:
                assert flow.replies.pop()[0] == sequence
        echo.close()


async def test_unreachable_and_too_big(allowed: Beyond, table: Table) -> None:
    for ip, size, expected in (
        (UNREACHABLE, 8, HostError(3, 1, 0, packed(OUTSIDE))),
        (UNREACHABLE6, 8, HostError(1, 0, 0, packed(OUTSIDE6))),
        (BEYOND, 1400, HostError(3, 4, MTU, packed(OUTSIDE))),
        (BEYOND6, 1400, HostError(2, 0, MTU, packed(OUTSIDE6))),
    ):
        flow, echo = echo_to(table, ip)
        for sequence in (7, 8):
            echo.send(flow, sequence, bytes(size), DEFAULT)  # type: ignore[arg-type]
            await until(lambda flow=flow: flow.refusals or flow.replies, ip)  # type: ignore[misc]
            if size > 1000 and sequence == 8:
                assert flow.replies.pop() == (8, bytes(size))  # in fragments, now that the kernel knows
            else:
                assert flow.refusals.pop() == (sequence, expected)
        echo.close()


async def test_silence_is_silence(allowed: Beyond, table: Table) -> None:
    flow, echo = echo_to(table, SILENT)
    echo.send(flow, 1, b"", DEFAULT)  # type: ignore[arg-type]
    echo.send(flow, 2, b"", DEFAULT)  # type: ignore[arg-type]
    near, other = echo_to(table, OUTSIDE)
    other.send(near, 1, b"", DEFAULT)  # type: ignore[arg-type]
    await until(lambda: near.replies)
    assert not flow.replies and not flow.refusals
    echo.close()
    other.close()
    echo.send(flow, 3, b"", DEFAULT)  # type: ignore[arg-type]


async def test_why_there_is_none(world: World, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    host = HostNetwork(
        asyncio.get_running_loop(), lambda: 0.0, lambda: None, Turns(Pace(asyncio.get_running_loop(), lambda: 0.0))
    )
    for ip in (OUTSIDE, "2001:db8::2"):
        assert host.open_echo(Flow(table, ip)) == ADMIN_PROHIBITED  # type: ignore[arg-type]
    world.host.sysctl("ping_group_range", f"{os.getgid()} {os.getgid()}")
    for ip in (NO_ROUTE, "2001:db8::2"):
        assert host.open_echo(Flow(table, ip)) == NET_UNREACHABLE  # type: ignore[arg-type]
    with out_of_descriptors():
        assert isinstance(host.open_echo(Flow(table, OUTSIDE)), int)  # type: ignore[arg-type]

    def without(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no IPv6")

    with monkeypatch.context() as patch:
        patch.setattr("netd.relay.echo.socket.socket", without)
        assert host.open_echo(Flow(table, "2001:db8::2")) == NET_UNREACHABLE  # type: ignore[arg-type]
    assert open_fds() == before


async def test_a_source_of_its_own(allowed: Beyond, table: Table) -> None:
    for source, ip in (("127.0.0.9", "127.0.0.1"), (HOST6, OUTSIDE6)):
        flow, echo = echo_to(table, ip, source)
        assert echo._sock is not None and echo._sock.getsockname()[0] == source
        echo.send(flow, 1, b"", DEFAULT)  # type: ignore[arg-type]
        await until(lambda flow=flow: flow.replies)  # type: ignore[misc]
        echo.close()
    with pytest.raises(OSError, match="assign"):
        echo_to(table, OUTSIDE6, "2001:db8::77")
