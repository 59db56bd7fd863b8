"""Ends: FIN in every state, half-close both ways, TIME-WAIT (RFC 9293 §3.6, §3.10.4, figures 5, 12 and 13)."""

from __future__ import annotations

import pytest
from wire.oracle import ACK, FIN, PSH, RST, SYN

from netd.stack.limits import Limits
from netd.stack.tcp.states import STATES

from .guest import Conversation, Guest
from .host import FakeStream
from .world import World


def state(world: World) -> str:
    connections = list(world.interface.tcp.connections.values())
    return STATES[connections[0].state] if connections else "closed"


def test_the_guest_closes_first(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN)
    tcp.sees(ACK, seq=1, ack=102)
    assert stream.finished and not stream.closed
    assert state(world) == "close_wait"
    stream.gets(b"last words")
    tcp.sees(ACK | PSH, b"last words")
    tcp.sends(ACK)
    stream.ends()
    tcp.sees(FIN | ACK, seq=11, ack=102)
    assert state(world) == "last_ack"
    assert stream.closed and not stream.aborted  # nobody on the host waits for the guest's last acknowledgment
    tcp.sends(ACK, ack=12)
    assert state(world) == "closed"
    assert stream.closed and not stream.aborted
    world.passes(3600)
    tcp.sees_nothing()


def test_the_hosts_fin_acknowledges_the_guests(world: World, guest: Guest) -> None:
    """A frame less where the host's peer answers an end with its own, as most do."""
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN)
    tcp.sees_nothing()
    stream.ends()
    tcp.sees(FIN | ACK, seq=1, ack=102)
    tcp.sends(ACK, ack=2)
    assert state(world) == "closed" and stream.closed
    world.passes(3600)
    tcp.sees_nothing()


def test_what_the_host_has_not_taken_yet_keeps_its_side_open(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.takes(0)
    tcp.sends(ACK | PSH | FIN, b"x" * 100)
    stream.ends()
    tcp.sees(FIN | ACK, seq=1, ack=202)
    assert state(world) == "last_ack" and not stream.closed
    stream.capacity = 0
    tcp.sends(ACK, ack=2)
    assert state(world) == "closed" and not stream.closed
    stream.takes(None)
    assert stream.taken[-100:] == b"x" * 100 and stream.closed and not stream.aborted


@pytest.mark.parametrize("talk", [b"", b"bye"])
def test_who_goes_on_talking_has_its_fin_acknowledged_soon(world: World, guest: Guest, talk: bytes) -> None:
    tcp, _ = guest.connects()
    tcp.sends(ACK | PSH | FIN, talk)
    tcp.sees_nothing()
    assert world.jump() <= 1.5 * world.limits.ack_delay
    tcp.sees(ACK, seq=1, ack=102 + len(talk))
    world.passes(3600)
    tcp.sees_nothing()


def test_the_fin_of_a_large_answer_is_acknowledged_with_it(world: World, guest: Guest) -> None:
    tcp, _ = guest.connects()
    tcp.sends(ACK | PSH | FIN, bytes(1460))
    assert len(world.sent) == 1
    tcp.sees(ACK, seq=1, ack=102 + 1460)


def test_the_host_closes_first(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK, seq=1, ack=101)
    assert state(world) == "fin_wait_1"
    tcp.sends(ACK, ack=2)
    assert state(world) == "fin_wait_2"
    tcp.sends(ACK | PSH, b"still talking")
    tcp.sees(ACK)
    assert stream.taken == b"still talking"
    tcp.sends(ACK | FIN)
    tcp.sees(ACK, seq=2, ack=115)
    assert state(world) == "time_wait"
    assert stream.closed and not stream.aborted
    assert world.jump() == world.limits.time_wait
    assert state(world) == "closed"


def test_the_guests_fin_acknowledges_ours(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | FIN, ack=2)
    assert len(world.sent) == 1, "nothing of ours is to come that could carry it"
    tcp.sees(ACK, seq=2, ack=102)
    assert state(world) == "time_wait"
    assert stream.closed


def test_both_close_at_once(world: World, guest: Guest) -> None:
    """RFC 9293 figure 13."""
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK, seq=1)
    tcp.sends(ACK | FIN, ack=1)
    tcp.sees(ACK, seq=2, ack=102)
    assert state(world) == "closing"
    tcp.sends(ACK, ack=2)
    assert state(world) == "time_wait"
    assert stream.closed and not stream.aborted


def test_data_and_fin_in_one_segment(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH | FIN, b"bye")
    tcp.sees(ACK, ack=105)
    assert stream.taken == b"bye" and stream.finished


def last_words(guest: Guest) -> tuple[Conversation, FakeStream]:
    """The host's peer has said them and ended before they were read."""
    tcp, stream = guest.connects()
    stream.eof = True
    stream.gets(b"last words")
    tcp.sees(ACK | PSH | FIN, b"last words", seq=1)
    assert state(guest.world) == "fin_wait_1"
    return tcp, stream


def test_the_hosts_last_words_and_its_fin_in_one_segment(world: World, guest: Guest) -> None:
    tcp, stream = last_words(guest)
    tcp.sends(ACK, ack=12)
    assert state(world) == "fin_wait_2"
    tcp.sends(ACK | FIN)
    tcp.sees(ACK, seq=12, ack=102)
    assert state(world) == "time_wait" and stream.closed and not stream.aborted
    assert not world.interface.tcp.memory.used


def test_both_come_again(world: World, guest: Guest) -> None:
    """The words first, then what else was lost."""
    tcp, _ = last_words(guest)
    world.jump()
    tcp.sees(ACK | PSH, b"last words", seq=1)
    tcp.sends(ACK, ack=11)
    tcp.sees(FIN | ACK, seq=11)
    assert state(world) == "fin_wait_1"
    tcp.sends(ACK, ack=12)
    assert state(world) == "fin_wait_2"


def test_the_words_without_the_fin_are_acknowledged(world: World, guest: Guest) -> None:
    tcp, _ = last_words(guest)
    tcp.sends(ACK, ack=11)
    tcp.sees_nothing()
    world.jump()
    tcp.sees(FIN | ACK, seq=11)
    tcp.sends(ACK, ack=12)
    assert state(world) == "fin_wait_2"


def test_last_words_to_a_guest_that_has_closed(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN)
    tcp.sees(ACK, ack=102)
    stream.eof = True
    stream.gets(b"last words")
    tcp.sees(ACK | PSH | FIN, b"last words", seq=1, ack=102)
    assert state(world) == "last_ack"
    tcp.sends(ACK, ack=12)
    assert state(world) == "closed" and stream.closed and not stream.aborted


def test_the_fin_waits_for_what_the_host_has_not_taken(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 2
    tcp.sends(ACK | PSH | FIN, b"goodbye")
    tcp.sees(ACK, ack=109)
    assert stream.taken == b"go" and not stream.finished
    stream.takes(3)
    assert not stream.finished
    stream.takes(None)
    assert stream.taken == b"goodbye" and stream.finished
    tcp.sees_nothing()


def fins(tcp: Conversation) -> None:
    """The same FIN once more."""
    tcp.sends(ACK | FIN, seq=tcp.seq - 1)


@pytest.mark.parametrize("where", ["close_wait", "closing", "last_ack", "time_wait"])
def test_a_fin_again_is_acknowledged_again(world: World, guest: Guest, where: str) -> None:
    tcp, stream = guest.connects()
    if where in ("closing", "time_wait"):
        stream.ends()
        tcp.sees(FIN | ACK)
    tcp.sends(ACK | FIN, ack={"closing": 1, "time_wait": 2}.get(where))
    tcp.sees(ACK, ack=102)
    if where == "last_ack":
        stream.ends()
        tcp.sees(FIN | ACK)
    assert state(world) == where
    tcp.sends(ACK | FIN, seq=101, ack=1 if where in ("closing", "last_ack") else None)
    tcp.sees(ACK, ack=102)
    assert state(world) == where


def test_a_fin_again_restarts_time_wait(world: World, guest: Guest) -> None:
    """RFC 9293 §3.10.7.4, TIME-WAIT."""
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | FIN)
    tcp.sees(ACK)
    world.passes(0.6)
    fins(tcp)
    tcp.sees(ACK, ack=102)
    assert world.jump() == pytest.approx(world.limits.time_wait)
    assert state(world) == "closed"


@pytest.mark.parametrize("where", ["close_wait", "closing", "last_ack", "time_wait"])
def test_data_behind_the_fin_is_never_delivered(world: World, guest: Guest, where: str) -> None:
    tcp, stream = guest.connects()
    if where in ("closing", "time_wait"):
        stream.ends()
        tcp.sees(FIN | ACK)
    tcp.sends(ACK | FIN, ack={"closing": 1, "time_wait": 2}.get(where))
    tcp.sees(ACK, ack=102)
    if where == "last_ack":
        stream.ends()
        tcp.sees(FIN | ACK)
    tcp.sends(ACK | PSH | FIN, b"more", ack=1 if where in ("closing", "last_ack") else None)
    tcp.sees(ACK, ack=102)
    assert not stream.taken
    assert state(world) == where


def test_a_new_connection_takes_over_time_wait(world: World, guest: Guest) -> None:
    """RFC 9293 §3.6.1, RFC 1122 §4.2.2.13: a SYN beyond the old numbers opens it anew."""
    tcp, stream = guest.connects(port=41000)
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | FIN)
    tcp.sees(ACK)
    old = guest.tcp(port=41000)
    old.iss, old.ack, old.their_wscale = tcp.iss, tcp.ack, tcp.their_wscale
    old.sent_up_to = tcp.sent_up_to
    old.sends(SYN, seq=50)  # an old duplicate
    old.sees(ACK, ack=102)
    assert state(world) == "time_wait"
    new = guest.tcp(port=41000)
    new.seq = new.sent_up_to = 102
    new.sends(SYN)
    assert len(world.host.streams) == 2
    world.host.stream.connects()
    new.sees(SYN | ACK, seq=0, ack=103)
    new.sends(ACK)
    new.sends(ACK | PSH, b"anew")
    world.jump()
    new.sees(ACK)
    assert world.host.stream.taken == b"anew"
    world.passes(10)
    assert state(world) == "established", "the old timer is the old one's"


def test_a_published_ports_client_takes_over_time_wait(world: World, guest: Guest) -> None:
    tcp, stream = guest.accepts(cport=6000)
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | FIN)
    tcp.sees(ACK)
    again, _ = guest.is_called(cport=6000)
    assert again.sees(SYN).options
    assert state(world) == "syn_sent"


def test_half_closed_by_the_host_and_silent(world: World, guest: Guest) -> None:
    """FIN-WAIT-2: the guest may upload for hours, but it must be there."""
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK)
    for _ in range(30):
        assert world.jump() == world.limits.fin_wait
        tcp.sees(ACK, seq=1)
        tcp.sends(ACK)
    assert not stream.closed
    for _ in range(world.limits.retries + 1):
        world.jump()
        tcp.sees(ACK, seq=1)
    world.jump()
    tcp.sees(RST | ACK, seq=2)
    assert stream.aborted
    assert world.counters.tcp_timeouts == 1


def test_half_closed_by_the_host_and_full(world: World, guest: Guest) -> None:
    """The guest answers every probe with a shut window: it is alive, and the connection is kept."""
    tcp, stream = guest.connects()
    stream.gets(b"x" * 1000)
    stream.ends()
    tcp.sees(ACK | PSH, None)
    tcp.sees(FIN | ACK)
    tcp.sends(ACK, wnd=0)
    for _ in range(3 * world.limits.retries):
        world.jump()
        tcp.sees(ACK, seq=1001)
        tcp.sends(ACK, wnd=0)
    assert not stream.closed
    tcp.sends(ACK | FIN, wnd=0)
    tcp.sees(ACK)
    assert stream.closed and not stream.aborted


def test_half_closed_by_the_guest_for_long(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN)
    tcp.sees(ACK)
    world.passes(24 * 3600)
    stream.gets(b"after a day")
    tcp.sees(ACK | PSH, b"after a day")
    tcp.sends(ACK)
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK)
    assert state(world) == "closed"


def test_idle_for_a_day(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    world.passes(24 * 3600)
    stream.gets(b"hello")
    tcp.sees(ACK | PSH, b"hello")
    tcp.sends(ACK | PSH, b"hello")
    world.passes(1)
    tcp.sees(ACK)
    assert stream.taken == b"hello"


# -- what is handed over after the guest is done -----------------------------------------------------------------------


def drains(guest: Guest, size: int = 1000) -> tuple[Conversation, object]:
    """The guest is through with the connection, the host has not taken a byte of it yet."""
    tcp, stream = guest.connects()
    stream.capacity = 0
    tcp.sends(ACK | PSH | FIN, b"d" * size)
    tcp.sees(ACK, ack=102 + size)
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK)
    return tcp, stream


def test_what_the_guest_sent_is_delivered_after_its_end(world: World, guest: Guest) -> None:
    _, stream = drains(guest)
    assert state(world) == "closed"
    assert not stream.closed
    assert world.interface.tcp.memory.used == 1000
    stream.takes(400)
    stream.takes(None)
    assert stream.taken == b"d" * 1000
    assert stream.finished and stream.closed and not stream.aborted
    assert world.interface.tcp.memory.used == 0


def test_it_is_delivered_through_time_wait_and_beyond(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 10
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | PSH | FIN, b"d" * 1000)
    tcp.sees(ACK, ack=1102, wnd=None)
    tcp.sees_nothing()
    assert state(world) == "time_wait"
    stream.takes(10)
    world.jump()
    assert state(world) == "closed"
    stream.takes(None)
    assert stream.taken == b"d" * 1000 and stream.closed and not stream.aborted


def test_it_is_delivered_within_time_wait(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 0
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | PSH | FIN, b"d" * 10)
    tcp.sees(ACK)
    stream.takes(None)
    assert stream.closed and state(world) == "time_wait"
    world.jump()
    assert not world.interface.tcp.draining


@pytest.mark.parametrize("where", ["last_ack", "closing", "time_wait"])
def test_a_reset_after_the_guests_fin_does_not_cut_its_stream(world: World, guest: Guest, where: str) -> None:
    """A guest whose process is gone answers our FIN with RST. All it sent was acknowledged: the host must get it all,
    for a clean end behind a part of it would be a lie."""
    tcp, stream = guest.connects()
    stream.capacity = 0
    if where != "last_ack":
        stream.ends()
        tcp.sees(FIN | ACK)
    tcp.sends(ACK | PSH | FIN, b"d" * 1000, ack=2 if where == "time_wait" else 1)
    tcp.sees(ACK, ack=1102)
    if where == "last_ack":
        stream.ends()
        tcp.sees(FIN | ACK)
    assert state(world) == where
    tcp.sends(RST, seq=1102)
    assert state(world) == "closed"
    assert not stream.closed
    stream.takes(None)
    assert stream.taken == b"d" * 1000
    assert stream.finished and stream.closed and not stream.aborted


def test_the_host_fails_while_the_rest_is_handed_over(world: World, guest: Guest) -> None:
    _, stream = drains(guest)
    stream.failing = True
    stream.takes(10)
    assert stream.closed
    assert world.interface.tcp.memory.used == 0


def test_the_host_fails_in_time_wait_while_the_rest_is_handed_over(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 0
    stream.ends()
    tcp.sees(FIN | ACK)
    tcp.sends(ACK | PSH | FIN, b"d" * 10)
    tcp.sees(ACK)
    stream.failing = True
    stream.takes(10)
    assert stream.closed
    assert world.interface.tcp.memory.used == 0
    assert state(world) == "closed"
    tcp.sees(RST | ACK)


def test_the_host_resets_while_the_rest_is_handed_over(world: World, guest: Guest) -> None:
    _, stream = drains(guest)
    stream.resets()
    assert stream.closed
    assert world.interface.tcp.memory.used == 0


def test_the_networks_end_closes_what_is_still_handed_over(world: World, guest: Guest) -> None:
    _, stream = drains(guest)
    world.ends()
    assert stream.closed and stream.aborted, "cut off, and the host's peer is told so"


def test_the_networks_end_hands_over_what_it_can(world: World, guest: Guest) -> None:
    _, stream = drains(guest)
    stream.capacity = 5000
    world.ends()
    assert stream.taken == b"d" * 1000
    assert stream.closed and not stream.aborted


def test_what_is_still_handed_over_counts_as_a_flow() -> None:
    """A guest and its friend outside could otherwise pile up sockets without bound."""
    world = World(limits=Limits(tcp_flows=4))
    guest = Guest(world)
    for _ in range(10):
        drains(guest)
    assert len([s for s in world.host.streams if not s.closed]) == 4
    assert [s.aborted for s in world.host.streams] == [True] * 6 + [False] * 4
    assert world.counters.tcp_evicted == 6
    world.ends()


def test_a_connection_of_the_same_name_is_not_the_draining_one(world: World, guest: Guest) -> None:
    tcp, old = drains(guest)
    again, new = guest.connects(port=tcp.port)
    old.resets()
    assert state(world) == "established" and not new.closed
    again.sends(ACK | PSH, b"hello")
    again.sees(ACK)
    assert new.taken == b"hello"
