"""Echo, own and outside (RFC 792), and what is not answered."""

from __future__ import annotations

import pytest
from wire import oracle

from netd.stack.limits import Limits
from netd.stack.ports import ADMIN_PROHIBITED, HOST_UNREACHABLE

from .guest import Guest
from .world import DNS, GATEWAY, WEB, World, ip


@pytest.mark.parametrize("address", [GATEWAY, DNS], ids=["gateway", "dns"])
@pytest.mark.parametrize("payload", [b"", b"x", b"abcdefgh" * 7, b"\x00" * 1472], ids=len)
def test_our_own_addresses_answer(world: World, guest: Guest, address: bytes, payload: bytes) -> None:
    guest.sends_echo(address, 0x1234, 7, payload)
    assert guest.sees_icmp(0, 0, address) == (b"\x12\x34\x00\x07", payload)
    assert not world.host.echoes


def test_outside_by_a_ping_socket(world: World, guest: Guest) -> None:
    guest.sends_echo(WEB, 0x1234, 7, b"data")
    guest.sees_nothing()
    (echo,) = world.host.echoes
    assert echo.sent == [(7, b"data")]
    assert (echo.flow.remote, echo.flow.guest) == (guest.cast.real(WEB), guest.address)
    echo.flow.to_guest(7, b"data")
    assert guest.sees_icmp(0, 0, WEB) == (b"\x12\x34\x00\x07", b"data")


def test_one_socket_for_each_identifier_and_address(world: World, guest: Guest) -> None:
    for ident in (1, 2):
        for sequence in (1, 2, 3):
            guest.sends_echo(WEB, ident, sequence)
    guest.sends_echo(ip("198.51.100.1"), 1, 1)
    assert [len(echo.sent) for echo in world.host.echoes] == [3, 3, 1]


def test_an_idle_echo_flow_ends(world: World, guest: Guest) -> None:
    guest.sends_echo(WEB, 1, 1)
    world.passes(world.limits.echo_idle - 1)
    guest.sends_echo(WEB, 1, 2)
    world.passes(world.limits.echo_idle - 1)
    assert not world.host.echoes[0].closed
    world.passes(1)
    assert world.host.echoes[0].closed
    assert world.interface.flow_counts()["icmp"] == 0


def test_the_bound_on_echo_flows() -> None:
    world = World(limits=Limits(echo_flows=3))
    guest = Guest(world)
    for ident in range(5):
        guest.sends_echo(WEB, ident, 1)
    assert len(world.host.echoes) == 3
    assert world.counters.drop_echo_limit == 2
    guest.sees_nothing()
    world.ends()


@pytest.mark.parametrize("code", [ADMIN_PROHIBITED, HOST_UNREACHABLE])
def test_no_ping_socket_is_said(world: World, guest: Guest, code: int) -> None:
    world.host.no_echo = code
    guest.sends_echo(WEB, 0x1234, 9, b"payload")
    quoted = guest.sees_unreachable(code, GATEWAY, 1, WEB)
    assert quoted[0] == guest.echo_request and quoted[4:] == b"\x12\x34\x00\x09"
    assert world.counters.drop_echo_refused == 1
    assert world.interface.flow_counts()["icmp"] == 0


def test_unreachable_said_by_the_host(world: World, guest: Guest) -> None:
    guest.sends_echo(WEB, 0x1234, 9)
    world.host.echoes[0].flow.refused(world.host.error(3, HOST_UNREACHABLE), 9)
    quoted = guest.sees_unreachable(HOST_UNREACHABLE, GATEWAY, 1, WEB)
    assert quoted[0] == guest.echo_request and quoted[4:] == b"\x12\x34\x00\x09"


def test_nobody_else_is_on_the_link(world: World, guest: Guest) -> None:
    guest.sends_echo(ip("10.0.2.77"), 1, 1)
    guest.sees_unreachable(1, GATEWAY, 1, ip("10.0.2.77"))


@pytest.mark.ipv4
@pytest.mark.parametrize("dst", ["224.0.0.1", "255.255.255.255", "10.0.2.255", "127.0.0.1", "0.1.2.3"])
def test_groups_and_martians_are_dropped_in_silence(world: World, guest: Guest, dst: str) -> None:
    guest.sends_echo(ip(dst), 1, 1)
    guest.sees_nothing()
    assert world.counters.drop_martian == 1


@pytest.mark.ipv4
@pytest.mark.parametrize(("type_", "code"), [(0, 0), (3, 3), (11, 0), (5, 1), (13, 0), (8, 1), (255, 255)])
def test_other_messages_are_counted(world: World, guest: Guest, type_: int, code: int) -> None:
    guest.sends_ip(GATEWAY, 1, oracle.icmp(type_, code, bytes(4), bytes(28)))
    guest.sees_nothing()
    assert world.counters.drop_icmp == 1


def test_a_wrong_checksum(world: World, guest: Guest) -> None:
    """Nobody vouches for ICMP: devices do not sum it."""
    message = guest.icmp(GATEWAY, 8, 0, bytes(4), b"data")
    guest.sends_ip(GATEWAY, guest.cast.icmp, message[:-1] + b"x")
    assert world.counters.drop_bad_checksum == 1


@pytest.mark.parametrize("size", [0, 1, 4, 7])
def test_less_than_a_header(world: World, guest: Guest, size: int) -> None:
    guest.sends_ip(GATEWAY, guest.cast.icmp, bytes(size))
    assert world.counters.drop_short == 1


def test_an_answer_larger_than_the_link_comes_in_fragments(world: World, guest: Guest) -> None:
    guest.sends_echo(WEB, 1, 1)
    world.host.echoes[0].flow.to_guest(1, b"x" * 4000)
    message = guest.sees_fragments()
    assert guest.sums(WEB, message) and message[8:] == b"x" * 4000
    guest.sees_nothing()


def test_an_answer_larger_than_ip(world: World, guest: Guest) -> None:
    guest.sends_echo(WEB, 1, 1)
    world.host.echoes[0].flow.to_guest(1, b"x" * (65508 if guest.cast.family == 4 else 65528))
    guest.sees_nothing()
    assert world.counters.drop_too_big == 1


@pytest.mark.ipv4
def test_the_quote_keeps_ip_options(world: World, guest: Guest) -> None:
    """RFC 792: the internet header, options and all, and 64 bits."""
    guest.sends_ip(ip("10.0.2.77"), 1, oracle.icmp(8, 0, b"\x00\x01\x00\x02"), options=b"\x01" * 8)
    guest.sees_unreachable(1, GATEWAY, 1, ip("10.0.2.77"))
