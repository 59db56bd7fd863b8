"""Every bound of TCP reached, and the order in which room is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wire.oracle import ACK, FIN, PSH, RST, SYN

from netd.stack.limits import Limits

from .guest import Guest
from .world import WEB, World, ip

SMALL = Limits(tcp_flows=5, tcp_half_open=3)


@pytest.fixture
def small() -> Guest:
    return Guest(World(limits=SMALL))


def test_half_open_the_oldest_makes_room(small: Guest) -> None:
    world = small.world
    tries = []
    for _ in range(5):
        tcp = small.tcp()
        tcp.sends(SYN)
        tries.append(tcp)
        if len(tries) > 3:
            tries[len(tries) - 4].sees(RST | ACK, seq=0, ack=101)
    assert [s.aborted for s in world.host.streams] == [True, True, False, False, False]
    assert world.counters.tcp_evicted == 2
    world.host.streams[2].connects()
    tries[2].sees(SYN | ACK)
    tries[2].sends(ACK)
    small.connects()
    small.sees_nothing()  # an established one is not in the way
    world.ends()


def test_half_open_counts_both_ways_and_all_that_wait(small: Guest) -> None:
    world = small.world
    called, stream = small.is_called()
    called.sees(SYN)
    held = small.tcp()
    held.sends(SYN)
    answered = small.tcp()
    answered.sends(SYN)
    world.host.stream.connects()
    answered.sees(SYN | ACK)
    small.tcp().sends(SYN)
    called.sees(RST, seq=1)
    assert stream.aborted
    small.tcp().sends(SYN)
    held.sees(RST | ACK, ack=101)
    small.tcp().sends(SYN)
    answered.sees(RST | ACK, seq=1, ack=101)
    world.ends()


def test_a_syn_flood_stays_bounded() -> None:
    world = World()
    guest = Guest(world)
    limit = world.limits.tcp_half_open
    frames = [guest.tcp(WEB, 80, port=1024 + n).sends(SYN, frame_only=True) for n in range(3000)]
    with world.batch():
        for frame in frames:
            world.receive(frame)
    assert len(world.interface.tcp.connections) == limit
    assert world.counters.tcp_evicted == 3000 - limit == len(world.sent)
    assert sum(not s.closed for s in world.host.streams) == limit
    world.sent.clear()
    world.ends()


def test_a_full_table_refuses(small: Guest) -> None:
    """Established connections are nobody's to take."""
    world = small.world
    for _ in range(5):
        small.connects()
    tcp = small.tcp()
    tcp.sends(SYN)
    tcp.sees(RST | ACK, seq=0, ack=101)
    assert world.counters.tcp_refused_limit == 1
    assert len(world.host.streams) == 5
    stream = world.host.new_stream(None)
    assert world.interface.tcp.open_to_guest(WEB, 7, small.address, 80, stream, world.now) is None
    assert world.counters.tcp_refused_limit == 2
    stream.abort()
    world.ends()


def test_a_full_table_takes_from_those_that_end(small: Guest) -> None:
    """The oldest of FIN-WAIT-2 and TIME-WAIT; the first gets a reset, the other needs none."""
    world = small.world
    waiting, first = small.connects()
    first.ends()
    waiting.sees(FIN | ACK)
    waiting.sends(ACK)
    over, second = small.connects()
    second.ends()
    over.sees(FIN | ACK)
    over.sends(ACK | FIN)
    over.sees(ACK)
    for _ in range(3):
        small.connects()
    tcp = small.tcp()
    tcp.sends(SYN)
    waiting.sees(RST | ACK, seq=2, ack=101)
    assert first.aborted
    small.tcp().sends(SYN)
    small.sees_nothing()
    assert second.closed and not second.aborted
    assert world.counters.tcp_evicted == 2
    world.ends()


def test_time_wait_that_still_drains_is_evicted_whole() -> None:
    world = World(limits=replace(SMALL, tcp_flows=1))
    guest = Guest(world)
    tcp, stream = guest.connects()
    stream.capacity = 0
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | PSH | FIN, b"held")
    tcp.sees(ACK)
    guest.connects()
    assert stream.aborted
    assert world.interface.tcp.memory.used == 0
    world.ends()


def test_what_drains_is_evicted_and_its_name_is_another_connections_by_now() -> None:
    world = World(limits=replace(SMALL, tcp_flows=2))
    guest = Guest(world)
    tcp, old = guest.connects()
    old.capacity = 0
    tcp.sends(ACK | PSH | FIN, b"held")
    tcp.sees(ACK)
    old.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK)
    again = guest.tcp(port=tcp.port)
    again.sends(SYN)
    new = world.host.stream
    guest.tcp().sends(SYN)
    assert old.aborted and not new.closed
    new.connects()
    again.sees(SYN | ACK)
    again.sends(ACK)
    assert new.reading
    world.ends()


def test_no_port_is_left_to_name_a_client() -> None:
    world = World(limits=Limits(tcp_half_open=10_000))
    tcp = world.interface.tcp
    for port in (6000, *range(61000, 65535)):
        stream = world.host.new_stream(None)
        assert tcp.open_to_guest(WEB, port, ip("10.0.2.100"), 80, stream, world.now)
    for expected in (b"\xff\xff", None):
        stream = world.host.new_stream(None)
        connection = tcp.open_to_guest(WEB, 6000, ip("10.0.2.100"), 80, stream, world.now)
        if expected:
            assert world.sent[-1].data[:2] == expected
        else:
            assert connection is None
            stream.abort()
    world.sent.clear()
    world.ends()


def test_short_connections_leave_nothing_behind() -> None:
    """Each arms timers for later than it lives: the heap must let go of them."""
    world = World()
    guest = Guest(world)
    for n in range(3000):
        tcp, stream = guest.connects(port=1024 + n)
        stream.ends()
        tcp.sees(FIN | ACK)
        tcp.sends(ACK)
        tcp.sends(ACK | FIN)
        tcp.sees(ACK)
        world.passes(0.1)
        world.host.streams.clear()
    assert len(world.interface.tcp.connections) <= 11
    assert len(world.interface.timers) <= 1100
    world.passes(2)
    assert world.interface.flow_counts()["tcp"] == 0
    world.ends()


def test_the_guests_host_is_asked_before_any_bound_is_touched(small: Guest) -> None:
    """What policy refuses costs no room."""
    world = small.world
    for _ in range(3):
        small.tcp().sends(SYN)
    for _ in range(10):
        small.tcp(ip("10.0.2.50")).sends(SYN)
    assert world.counters.tcp_evicted == 0
    world.sent.clear()
    world.ends()


def test_the_networks_end_in_every_state() -> None:
    """What the guest finished is delivered, what it did not is cut off, and the host's peer is told which."""
    world = World()
    guest = Guest(world)
    guest.tcp().sends(SYN)
    opening = world.host.stream
    called, asked = guest.is_called()
    called.sees(SYN)
    _, up = guest.connects()
    tcp, half = guest.connects()
    tcp.sends(ACK | FIN)
    tcp.sees(ACK)
    tcp, takes = guest.connects()
    takes.capacity = 0
    tcp.sends(ACK | PSH | FIN, b"held")
    tcp.sees(ACK)
    takes.capacity = 100
    tcp, stuck = guest.connects()
    stuck.capacity = 0
    tcp.sends(ACK | PSH | FIN, b"held")
    tcp.sees(ACK)
    tcp, fails = guest.connects()
    fails.capacity = 0
    tcp.sends(ACK | PSH | FIN, b"held")
    tcp.sees(ACK)
    fails.failing = True
    world.ends()
    assert [s.aborted for s in (opening, asked, up, half, takes, stuck)] == [True, True, True, False, False, True]
    assert half.finished
    assert takes.taken == b"held"
    assert fails.closed
