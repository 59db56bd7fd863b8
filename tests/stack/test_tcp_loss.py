"""What gets lost comes again (RFC 6298, RFC 5681 §3.2, RFC 6582)."""

from __future__ import annotations

import pytest
from wire.oracle import ACK, FIN, PSH, RST

from netd.stack.limits import Limits

from .guest import Conversation, Guest
from .world import World

MSS = 1460


def pieces(tcp: Conversation, stream, count: int, size: int = MSS) -> None:  # type: ignore[no-untyped-def]
    """The host sends ``count`` segments; the guest has seen them, acknowledged none."""
    for n in range(count):
        stream.gets(bytes([n]) * size)
        tcp.sees(ACK | PSH, bytes([n]) * size)


def test_a_lost_segment_comes_again_and_the_timer_backs_off(world: World, guest: Guest) -> None:
    """RFC 6298 §5.4-5.6; the first RTO is known from the handshake's round trip."""
    tcp, stream = guest.connects()
    stream.gets(b"hello")
    tcp.sees(ACK | PSH, b"hello", seq=1)
    waits = []
    for _ in range(world.limits.retries):
        waits.append(world.jump())
        tcp.sees(ACK | PSH, b"hello", seq=1, ack=101)
    assert waits[0] == pytest.approx(world.limits.rto_min)
    limits = world.limits
    assert waits == pytest.approx([min(limits.rto_min * 2**n, limits.rto_max) for n in range(limits.retries)])
    world.jump()
    tcp.sees(RST | ACK, seq=6, ack=101)
    assert stream.aborted
    assert world.counters.tcp_timeouts == 1
    assert world.counters.tcp_retransmits == world.limits.retries
    assert world.interface.tcp.memory.used == 0


def test_the_back_off_is_bounded() -> None:
    world = World(limits=Limits(rto_max=3.0, retries=12))
    tcp, stream = Guest(world).connects()
    stream.gets(b"hello")
    waits = [world.jump() for _ in range(12)]
    assert max(waits) == 3.0
    world.sent.clear()
    world.ends()


def test_the_timer_follows_the_round_trip_time(world: World, guest: Guest) -> None:
    """RFC 6298 §2.2: SRTT + 4 RTTVAR, from the SYN's round trip: 1.5 s, then ever steadier."""
    tcp = guest.tcp()
    tcp.sends(2)
    world.host.stream.connects()
    tcp.sees(18)
    world.passes(0.5)
    tcp.sends(ACK)
    stream = world.host.stream
    stream.gets(b"a")
    tcp.sees(ACK | PSH, b"a")
    assert world.jump() == pytest.approx(1.5)
    tcp.sees(ACK | PSH, b"a")
    tcp.sends(ACK)
    for _ in range(30):
        stream.gets(b"b")
        tcp.sees(ACK | PSH, b"b")
        world.passes(0.5)
        tcp.sends(ACK)
    stream.gets(b"c")
    tcp.sees(ACK | PSH, b"c")
    assert 0.5 < world.jump() < 0.55
    tcp.sees(ACK | PSH, b"c")
    tcp.sends(ACK)


def test_karn_no_round_trip_is_taken_from_a_retransmission(world: World, guest: Guest) -> None:
    """RFC 6298 §3."""
    tcp, stream = guest.connects()
    stream.gets(b"a")
    tcp.sees(ACK | PSH, b"a")
    first = world.jump()
    tcp.sees(ACK | PSH, b"a")
    world.passes(first * 1.9)
    tcp.sends(ACK)  # of which of the two?
    stream.gets(b"b")
    tcp.sees(ACK | PSH, b"b")
    assert world.jump() == pytest.approx(first)
    tcp.sees(ACK | PSH, b"b")
    tcp.sends(ACK)


def test_karn_for_a_syn_ack_the_guest_asked_for_again(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(2)
    world.host.stream.connects()
    tcp.sees(18)
    world.passes(0.9)
    tcp.sends(2, seq=100)
    tcp.sees(18)
    tcp.sends(ACK, seq=101)
    world.host.stream.gets(b"x")
    tcp.sees(ACK | PSH, b"x")
    assert world.jump() == pytest.approx(world.limits.rto_initial)
    tcp.sees(ACK | PSH, b"x")
    tcp.sends(ACK)


def test_an_acknowledgment_restarts_the_timer(world: World, guest: Guest) -> None:
    """RFC 6298 §5.3, and §5.2: all acknowledged, no timer."""
    tcp, stream = guest.connects()
    pieces(tcp, stream, 2)
    world.passes(0.75 * world.limits.rto_min)
    tcp.sends(ACK, ack=1 + MSS)
    assert world.jump() >= world.limits.rto_min
    tcp.sees(ACK | PSH, None, seq=1 + MSS)
    tcp.sends(ACK)
    world.passes(3600)
    tcp.sees_nothing()


def test_more_data_does_not_put_off_the_timer(world: World, guest: Guest) -> None:
    """RFC 6298 §5.1: it is started when it is not running. A host that trickles must not keep a loss waiting."""
    tcp, stream = guest.connects()
    stream.gets(b"lost")
    tcp.sees(ACK | PSH, b"lost")
    for _ in range(3):
        world.passes(0.3 * world.limits.rto_min)
        stream.gets(b"t")
        tcp.sees(ACK | PSH, b"t")
    world.passes(0.3 * world.limits.rto_min)
    tcp.sees(ACK | PSH, b"lostttt", seq=1)
    tcp.sends(ACK)


def test_a_lost_retransmission_is_not_left_to_the_time_out(world: World, guest: Guest) -> None:
    """Duplicate ACKs have shown the hole; nothing but memory is in the way, so it is filled again within milliseconds."""
    tcp, stream = guest.connects()
    pieces(tcp, stream, 5)
    for _ in range(3):
        tcp.sends(ACK, ack=1)
    tcp.sees(ACK | PSH, None, seq=1)
    limits = world.limits
    for n in range(limits.rescues):
        assert world.jump() == pytest.approx(limits.rescue * 2**n)
        tcp.sees(ACK | PSH, None, seq=1)
    assert world.jump() > limits.rescue * 2**limits.rescues * 0.99  # from here on the time-out and its back-off
    tcp.sees(ACK | PSH, None, seq=1)
    tcp.sends(ACK)


def test_a_fin_into_a_shut_window(world: World, guest: Guest) -> None:
    """The guest reads nothing for hours but says so: the FIN is repeated, the connection kept."""
    tcp, stream = guest.connects(wscale=0, wnd=100)
    stream.gets(b"x" * 50)
    stream.ends()
    tcp.sees(ACK | PSH, None)
    tcp.sees(FIN | ACK, seq=51)
    tcp.sends(ACK, ack=51, wnd=0)
    for _ in range(3 * world.limits.retries):
        world.jump()
        tcp.sees(FIN | ACK, seq=51)
        tcp.sends(ACK, ack=51, wnd=0)
    tcp.sends(ACK, ack=52, wnd=100)
    assert not stream.closed


def test_three_duplicate_acks_are_a_loss(world: World, guest: Guest) -> None:
    """RFC 5681 §3.2: fast retransmit, without the timer."""
    tcp, stream = guest.connects()
    pieces(tcp, stream, 5)
    for _ in range(2):
        tcp.sends(ACK, ack=1)
    tcp.sees_nothing()
    tcp.sends(ACK, ack=1)
    tcp.sees(ACK | PSH, b"\x00" * MSS, seq=1)
    for _ in range(5):
        tcp.sends(ACK, ack=1)
    tcp.sees_nothing()
    tcp.sends(ACK)
    assert world.counters.tcp_retransmits == 1


def test_a_partial_ack_shows_the_next_hole(world: World, guest: Guest) -> None:
    """RFC 6582 §3.2 step 3: segments 0, 2 and 4 of six are lost."""
    tcp, stream = guest.connects()
    pieces(tcp, stream, 6)
    for _ in range(3):
        tcp.sends(ACK, ack=1)
    tcp.sees(ACK | PSH, b"\x00" * MSS, seq=1)
    tcp.sends(ACK, ack=1 + 2 * MSS)
    tcp.sees(ACK | PSH, b"\x02" * MSS, seq=1 + 2 * MSS)
    tcp.sends(ACK, ack=1 + 4 * MSS)
    tcp.sees(ACK | PSH, b"\x04" * MSS, seq=1 + 4 * MSS)
    tcp.sends(ACK)
    tcp.sees_nothing()
    pieces(tcp, stream, 4)
    for _ in range(3):
        tcp.sends(ACK, ack=1 + 6 * MSS)
    tcp.sees(ACK | PSH, None, seq=1 + 6 * MSS)  # recovery is over: a new loss is found again
    tcp.sends(ACK)


def test_after_a_timeout_partial_acks_go_on_without_another(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    pieces(tcp, stream, 8)
    world.jump()
    for n in range(8):
        tcp.sees(ACK | PSH, bytes([n]) * MSS, seq=1 + n * MSS)
        before = world.now
        tcp.sends(ACK, ack=1 + (n + 1) * MSS)
        assert world.now == before
    tcp.sees_nothing()


def test_a_lost_super_frame_comes_again_whole(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.gets(b"x" * 60_000)
    tcp.sees(ACK | PSH, b"x" * 60_000)
    world.jump()
    assert world.sent[0].gso_size == MSS
    tcp.sees(ACK | PSH, b"x" * 60_000, seq=1)
    tcp.sends(ACK, ack=1 + MSS)
    tcp.sees(ACK | PSH, b"x" * (60_000 - MSS), seq=1 + MSS)
    tcp.sends(ACK)


def test_without_offload_a_segment_at_a_time(plain: Guest) -> None:
    tcp, stream = plain.connects()
    stream.gets(b"x" * 5 * MSS)
    for n in range(5):
        tcp.sees(ACK | PSH, b"x" * MSS, seq=1 + n * MSS)
    plain.world.jump()
    for n in range(5):
        tcp.sees(ACK | PSH, b"x" * MSS, seq=1 + n * MSS)
        tcp.sends(ACK, ack=1 + (n + 1) * MSS)


@pytest.mark.parametrize("size", [1, 100, MSS - 1, 1000])
def test_small_pieces_come_again_as_one_segment(world: World, guest: Guest, size: int) -> None:
    tcp, stream = guest.connects()
    count = 40
    data = b""
    for n in range(count):
        stream.gets(bytes([n]) * size)
        data += tcp.sees(ACK | PSH, bytes([n]) * size).payload
    tcp.sends(ACK, ack=1 + size // 2)
    world.jump()
    got = data[: size // 2]
    while len(got) < len(data):
        again = tcp.sees(ACK | PSH, None, seq=1 + len(got)).payload
        assert len(again) == min(MSS, len(data) - len(got))
        got += again
        tcp.sends(ACK, ack=1 + len(got))
    assert got == data


def test_a_lost_fin(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.gets(b"bye")
    stream.ends()
    tcp.sees(ACK | PSH, b"bye")
    tcp.sees(FIN | ACK, seq=4)
    tcp.sends(ACK, ack=4)
    world.jump()
    tcp.sees(FIN | ACK, seq=4)
    tcp.sends(ACK, ack=5)
    tcp.sends(ACK | FIN)
    tcp.sees(ACK, ack=102)


def test_data_and_fin_lost_together(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.gets(b"bye")
    stream.ends()
    tcp.sees(ACK | PSH, b"bye")
    tcp.sees(FIN | ACK, seq=4)
    world.jump()
    tcp.sees(ACK | PSH, b"bye", seq=1)
    tcp.sends(ACK, ack=4)
    tcp.sees(FIN | ACK, seq=4)
    tcp.sends(ACK, ack=5)


def test_a_fin_that_nobody_acknowledges(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.ends()
    tcp.sees(FIN | ACK)
    for _ in range(world.limits.retries):
        world.jump()
        tcp.sees(FIN | ACK, seq=1)
    world.jump()
    tcp.sees(RST | ACK, seq=2)
    assert stream.aborted


def test_a_device_that_takes_nothing(world: World, guest: Guest) -> None:
    """The TAP's queue is full: as lost as on any wire."""
    tcp, stream = guest.connects()
    world.deaf = True
    stream.gets(b"hello")
    world.deaf = False
    tcp.sees_nothing()
    world.jump()
    tcp.ack = 1
    tcp.sees(ACK | PSH, b"hello", seq=1)
    tcp.sends(ACK)


def test_retransmission_works_around_the_wrap(guest: Guest) -> None:
    """Numbers pass 2**32 in the middle of recovery."""
    for ahead in (1, MSS, 2 * MSS + 7, 5 * MSS):
        world = World()
        probe, _ = Guest(world).connects()
        world.sent.clear()
        late = (((-ahead - probe.iss) & 0xFFFFFFFF) + 0.5) / 250_000  # the clock of RFC 6528 brings ISS there
        world = World(start=1000.0 + late)
        tcp, stream = Guest(world).connects()
        assert tcp.iss == -ahead & 0xFFFFFFFF
        pieces(tcp, stream, 6)
        for _ in range(3):
            tcp.sends(ACK, ack=1)
        for n in (0, 2, 4):
            tcp.sees(ACK | PSH, bytes([n]) * MSS, seq=1 + n * MSS)
            tcp.sends(ACK, ack=1 + (n + 2) * MSS)
        stream.gets(b"x")
        tcp.sees(ACK | PSH, b"x", seq=1 + 6 * MSS)
        world.jump()
        tcp.sees(ACK | PSH, b"x", seq=1 + 6 * MSS)
        tcp.sends(ACK)
        assert not world.sent
        world.ends()
