"""Who a segment goes to, and in whose name."""

from __future__ import annotations

from dataclasses import replace

from wire import oracle
from wire.oracle import ACK, PSH

from .guest import Guest
from .world import ADDRESSING, GUEST, World


def test_nobody_speaks_in_the_guests_own_name(family: int) -> None:
    """Nobody else has that address: a SYN to it is refused by the gateway, and a stray segment is a martian."""
    world = World(family=family)
    guest = Guest(world)
    guest.sends_ip(GUEST, 6, oracle.tcp(guest.address, guest.address, 1, 2, 3, 4, ACK, 100))
    guest.sees_nothing()


def test_a_connection_follows_a_guest_that_changed_its_mac(family: int) -> None:
    world = World(family=family)
    guest = Guest(world)
    tcp, stream = guest.connects()
    guest.mac = b"\x02\x00\x00\x00\x00\xc8"
    guest.sends_udp(guest.address, 9, b"teaches the MAC")
    guest.sees_unreachable(1, bytes((10, 0, 2, 2)), 17, GUEST)
    stream.gets(b"data")
    tcp.sees(ACK | PSH, b"data")


def test_a_syn_again_goes_to_the_guest_once_it_has_spoken(family: int) -> None:
    world = World(family=family, addressing=replace(ADDRESSING, guest_mac=b"\xff" * 6))
    guest = Guest(world)
    tcp, _ = guest.is_called()
    assert world.sent.popleft().frame[:6] == b"\xff" * 6
    guest.sends_udp(guest.address, 9, b"teaches the MAC")
    guest.sees_unreachable(1, bytes((10, 0, 2, 2)), 17, GUEST)
    world.jump()
    tcp.sees(oracle.SYN)
