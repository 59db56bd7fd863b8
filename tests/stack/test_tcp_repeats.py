"""Where frames get lost the last ACK before a silence comes once more."""

from __future__ import annotations

from netd.stack.tcp.repeats import WATCHED
from netd.wire.tcp import ACK, FIN, PSH, RST, SYN, syn_options

from .guest import Guest
from .world import World


def test_an_ack_that_nothing_follows_comes_once_more(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"late", seq=105)
    tcp.sees(ACK, ack=101)
    assert abs(world.jump() - world.limits.ack_repeat) < 1e-6
    tcp.sees(ACK, ack=101)
    assert world.counters.tcp_acks_repeated == 1
    tcp.sends(ACK | PSH, b"soon", seq=101)
    tcp.sees(ACK, ack=109)
    world.passes(world.limits.ack_repeat)
    tcp.sees(ACK, ack=109)
    world.passes(1.0)
    tcp.sees_nothing()
    assert stream.taken == b"soonlate"


def test_it_tells_what_is_held(world: World, guest: Guest) -> None:
    tcp, _ = guest.is_called()
    tcp.sees(SYN)
    tcp.sends(SYN | ACK, seq=100, options=syn_options(1460, 7, sack=True))
    tcp.sees(ACK)
    tcp.sends(ACK | PSH, b"late", seq=105)
    told = tcp.sees(ACK, ack=101).options
    world.passes(world.limits.ack_repeat)
    assert tcp.sees(ACK, ack=101).options == told and 5 in told


def test_no_ack_is_repeated_where_nothing_was_lost(world: World, guest: Guest) -> None:
    tcp, _ = guest.connects()
    for n in range(20):
        tcp.sends(ACK | PSH, b"x" * 10, seq=101 + 10 * n)
        tcp.sees(ACK)
    world.passes(1.0)
    tcp.sees_nothing()
    assert not len(world.interface.tcp.repeats)


def test_what_follows_in_time_counts(world: World, guest: Guest) -> None:
    """One silence, one repetition: of the last ACK."""
    tcp, _ = guest.connects()
    tcp.sends(ACK | PSH, b"late", seq=105)
    tcp.sees(ACK, ack=101)
    world.passes(world.limits.ack_repeat * 0.75)
    tcp.sends(ACK | PSH, b"later", seq=109)
    tcp.sees(ACK, ack=101)
    world.passes(world.limits.ack_repeat * 0.75)
    tcp.sees_nothing()
    world.passes(world.limits.ack_repeat * 0.5)
    tcp.sees(ACK, ack=101)
    world.passes(1.0)
    tcp.sees_nothing()


def test_each_connection_has_its_own_time(world: World, guest: Guest) -> None:
    one, _ = guest.connects(rport=80)
    two, _ = guest.connects(rport=81)
    one.sends(ACK | PSH, b"late", seq=105)
    one.sees(ACK, ack=101)
    world.passes(world.limits.ack_repeat / 2)
    two.sends(ACK | PSH, b"late", seq=105)
    two.sees(ACK, ack=101)
    world.passes(world.limits.ack_repeat * 0.6)
    one.sees(ACK, ack=101)
    two.sees_nothing()
    world.passes(world.limits.ack_repeat * 0.6)
    two.sees(ACK, ack=101)


def test_the_losses_are_forgotten(world: World, guest: Guest) -> None:
    tcp, _ = guest.connects()
    tcp.sends(ACK | PSH, b"late", seq=105)
    tcp.sees(ACK, ack=101)
    tcp.sends(ACK | PSH, b"soon", seq=101)
    tcp.sees(ACK, ack=109)
    world.passes(world.limits.ack_repeat)
    tcp.sees(ACK, ack=109)
    for n in range(WATCHED):
        tcp.sends(ACK | PSH, b"x", seq=109 + n)
        tcp.sees(ACK)
    world.passes(1.0)
    before = world.counters.tcp_acks_repeated
    world.sent.clear()
    tcp.sends(ACK | PSH, b"x", seq=109 + WATCHED)
    tcp.sees(ACK)
    world.passes(1.0)
    tcp.sees_nothing()
    assert world.counters.tcp_acks_repeated == before


def test_a_connection_that_has_ended_says_nothing(world: World, guest: Guest) -> None:
    tcp, _ = guest.connects()
    tcp.sends(ACK | PSH, b"late", seq=105)
    tcp.sees(ACK, ack=101)
    tcp.sends(RST, seq=101)
    world.passes(world.limits.ack_repeat)
    tcp.sees_nothing()


def test_nor_does_one_that_has_received_all(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH | FIN, b"late", seq=105)
    tcp.sees(ACK, ack=101)
    tcp.sends(ACK | PSH, b"soon", seq=101)
    tcp.sees(ACK, ack=110)
    world.passes(world.limits.ack_repeat)
    tcp.sees_nothing()
    assert stream.taken == b"soonlate"
