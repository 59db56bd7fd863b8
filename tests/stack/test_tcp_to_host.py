"""The guest sends: payload, windows, acknowledgments (RFC 9293 §3.10.7.4, §3.8.6; RFC 5681 §3.2)."""

from __future__ import annotations

import pytest
from wire.oracle import ACK, FIN, PSH

from netd.stack.limits import Limits

from .guest import Guest
from .world import World

WINDOW = Limits().receive_window


def test_payload_reaches_the_host_and_is_acknowledged(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"hello", seq=101)
    tcp.sees(ACK, seq=1, ack=106, wnd=WINDOW)
    assert stream.taken == b"hello"


def test_one_ack_for_a_batch(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    other, _ = guest.connects()
    with world.batch():
        for _ in range(10):
            tcp.sends(ACK | PSH, b"x" * 1000)
        other.sends(ACK | PSH, b"y")
    tcp.sees(ACK, ack=101 + 10_000)
    other.sees(ACK, ack=102)
    assert len(stream.taken) == 10_000


def test_no_bare_ack_where_data_carried_it(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    with world.batch():
        tcp.sends(ACK | PSH, b"ping")
        stream.gets(b"pong")
    tcp.sees(ACK | PSH, b"pong", ack=105)
    tcp.sends(ACK)
    tcp.sees_nothing()


@pytest.mark.parametrize("size", [1, 1461, 65160])
def test_a_super_frame_of_the_guest(world: World, guest: Guest, size: int) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, bytes(range(256)) * (size // 256) + b"z" * (size % 256))
    tcp.sees(ACK, ack=101 + size)
    assert len(stream.taken) == size


def test_what_the_host_does_not_take_is_held_and_narrows_the_window(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.capacity = 300
    tcp.sends(ACK | PSH, b"a" * 1000)
    tcp.sees(ACK, ack=1101, wnd=(WINDOW - 700) >> 7 << 7)
    assert stream.wanted
    assert world.interface.tcp.memory.used == 700
    tcp.sends(ACK | PSH, b"b" * 100)
    tcp.sees(ACK, ack=1201, wnd=(WINDOW - 800) >> 7 << 7)
    assert len(stream.taken) == 300, "nothing overtakes what is held"
    stream.takes(500)
    assert stream.wanted
    stream.takes(None)
    assert stream.taken == b"a" * 1000 + b"b" * 100
    assert not stream.wanted
    assert world.interface.tcp.memory.used == 0
    tcp.sees_nothing()


def fill(tcp, stream) -> None:
    """Until the window is shut."""
    stream.capacity = 0
    sent = 0
    while sent < WINDOW:
        size = min(60_000, WINDOW - sent)
        tcp.sends(ACK | PSH, b"f" * size)
        sent += size
        tcp.sees(ACK, ack=101 + sent, wnd=(WINDOW - sent) >> 7 << 7)


def test_the_window_shuts_and_opens(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    fill(tcp, stream)
    shut = 101 + WINDOW
    tcp.sends(ACK | PSH, b"!", seq=shut)
    tcp.sees(ACK, ack=shut, wnd=0)
    assert world.counters.drop_tcp_memory == 1
    stream.takes(WINDOW // 2 - 1)
    tcp.sees_nothing()
    stream.takes(1)
    tcp.sees(ACK, ack=shut, wnd=WINDOW // 2)
    stream.takes(None)
    tcp.sees_nothing()
    tcp.sends(ACK | PSH, b"!", seq=shut)
    tcp.sees(ACK, ack=shut + 1, wnd=WINDOW)
    assert len(stream.taken) == WINDOW + 1


def test_a_probe_of_the_guests_is_answered(world: World, guest: Guest) -> None:
    """RFC 9293 §3.8.6.1: a zero-window probe carries an old number (Linux) or the next byte."""
    tcp, stream = guest.connects()
    fill(tcp, stream)
    shut = 101 + WINDOW
    tcp.sends(ACK, seq=shut - 1)
    tcp.sees(ACK, ack=shut, wnd=0)
    tcp.sends(ACK, b"p", seq=shut)
    tcp.sees(ACK, ack=shut, wnd=0)
    stream.takes(None)
    tcp.sees(ACK, ack=shut, wnd=WINDOW)


def test_acknowledgments_count_while_our_window_is_shut(world: World, guest: Guest) -> None:
    """RFC 9293 §3.10.7.4: with RCV.WND 0 valid ACKs are still taken."""
    tcp, stream = guest.connects()
    fill(tcp, stream)
    stream.gets(b"down")
    tcp.sees(ACK | PSH, b"down")
    tcp.sends(ACK)
    assert world.interface.tcp.memory.used == WINDOW
    stream.takes(None)
    tcp.sees(ACK)


def test_data_beyond_what_can_be_held_is_cut(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    fill(tcp, stream)
    stream.takes(1000)
    tcp.sends(ACK | PSH | FIN, b"x" * 1400, seq=101 + WINDOW)
    segment = tcp.sees(ACK, ack=101 + WINDOW + 1000, wnd=0)
    assert segment.ack == tcp.sent_up_to - 401
    stream.takes(None)
    tcp.sees(ACK)
    tcp.sends(ACK | PSH | FIN, b"x" * 400, seq=101 + WINDOW + 1000)
    tcp.sees(ACK, ack=101 + WINDOW + 1401)
    assert stream.finished
    assert len(stream.taken) == WINDOW + 1400


def test_a_retransmission_is_acknowledged_and_not_delivered(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"hello", seq=101)
    tcp.sees(ACK, ack=106)
    tcp.sends(ACK | PSH, b"hello", seq=101)
    tcp.sees(ACK, ack=106)
    tcp.sends(ACK | PSH, b"el", seq=102)
    tcp.sees(ACK, ack=106)
    assert stream.taken == b"hello"


def test_an_overlap_gives_only_its_new_part(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"hello", seq=101)
    tcp.sees(ACK, ack=106)
    tcp.sends(ACK | PSH, b"lo, world", seq=104)
    tcp.sees(ACK, ack=113)
    assert stream.taken == b"hello, world"


def test_old_data_with_a_new_fin(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"hello", seq=101)
    tcp.sees(ACK, ack=106)
    tcp.sends(ACK | PSH | FIN, b"hello", seq=101)
    tcp.sees(ACK, ack=107)
    assert stream.finished and stream.taken == b"hello"


def test_each_segment_out_of_order_is_answered_by_a_duplicate_ack(world: World, guest: Guest) -> None:
    """RFC 5681 §3.2: at once and one for each, or the guest's fast retransmit does not fire."""
    tcp, stream = guest.connects()
    with world.batch():
        for n in range(1, 6):
            tcp.sends(ACK | PSH, b"x" * 100, seq=101 + n * 100)
    for _ in range(5):
        tcp.sees(ACK, ack=101, wnd=WINDOW)
    assert world.counters.tcp_held == 5 and world.counters.drop_tcp_out_of_order == 0
    assert not stream.taken
    tcp.sends(ACK | PSH, b"x" * 100, seq=101)
    tcp.sees(ACK, ack=701)
    assert stream.taken == b"x" * 600


def test_a_fin_out_of_order_is_not_taken(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN, seq=150)
    tcp.sees(ACK, ack=101)
    assert not stream.finished
    assert world.counters.drop_tcp_out_of_order == 1


def test_an_ack_is_heard_though_the_segment_is_out_of_order(world: World, guest: Guest) -> None:
    """RFC 9293 §3.10.7.4: a segment in the window is acceptable; what the stack does not keep of it is its text.

    A guest whose own data was lost numbers all its ACKs behind the hole.
    """
    tcp, stream = guest.connects()
    stream.gets(b"x" * 1000)
    tcp.sees(ACK | PSH, b"x" * 1000)
    assert world.interface.tcp.memory.used
    tcp.sends(ACK, seq=501, ack=1001)
    assert not world.interface.tcp.memory.used
    tcp.sees_nothing()
    stream.gets(b"y" * 1000)
    tcp.sees(ACK | PSH, b"y" * 1000)
    tcp.sends(ACK | PSH, b"u" * 9, seq=501, ack=2001)
    tcp.sees(ACK, ack=101)
    assert world.interface.tcp.memory.used == 9  # what was sent is acknowledged, what came is held
    assert not stream.taken


def test_an_empty_segment_out_of_order_is_not_answered(world: World, guest: Guest) -> None:
    """Nothing of it is missing; two stacks that answered such ACKs would do so for ever."""
    tcp, _ = guest.connects()
    tcp.sends(ACK, seq=601)
    tcp.sees_nothing()


def test_segments_outside_the_window_are_answered_and_dropped(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"far", seq=101 + WINDOW + 1)
    tcp.sees(ACK, ack=101)
    tcp.sends(ACK | PSH, b"far", seq=101 + 0x7FFFFFFF)
    tcp.sees(ACK, ack=101)
    assert world.counters.drop_tcp_out_of_window == 2
    tcp.sends(ACK | PSH, b"old", seq=101 - 0x7FFFFFFF)
    tcp.sees(ACK, ack=101)
    assert not stream.taken


def test_a_segment_without_ack_is_dropped(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(PSH, b"hello")
    tcp.sees_nothing()
    assert not stream.taken


def test_an_ack_of_what_was_never_sent_is_answered_and_dropped(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"hello", seq=101, ack=2)
    tcp.sees(ACK, ack=101)
    assert not stream.taken


def test_an_old_ack_still_carries_data(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.gets(b"x" * 100)
    tcp.sees(ACK | PSH, None)
    tcp.sends(ACK)
    tcp.sends(ACK | PSH, b"hello", ack=50)
    tcp.sees(ACK, ack=106)
    assert stream.taken == b"hello"


def test_a_keep_alive_is_answered(world: World, guest: Guest) -> None:
    """RFC 9293 §3.8.4: with and without the byte of garbage."""
    tcp, stream = guest.connects()
    tcp.sends(ACK, seq=100)
    tcp.sees(ACK, seq=1, ack=101)
    tcp.sends(ACK, b"\x00", seq=100)
    tcp.sees(ACK, seq=1, ack=101)
    assert not stream.taken
    world.passes(8 * 3600)
    tcp.sends(ACK, seq=100)
    tcp.sees(ACK, seq=1, ack=101)
    tcp.sends(ACK | PSH, b"still here")
    tcp.sees(ACK)
    assert stream.taken == b"still here"


def test_urgent_data_is_delivered_in_line(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH | 32, b"!")
    tcp.sees(ACK, ack=102)
    assert stream.taken == b"!"


def test_ecn_bits_do_not_matter(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(2 | 0xC0)
    world.host.stream.connects()
    tcp.sees(2 | 16)


def test_memory_used_up_leaves_each_connection_a_little() -> None:
    limits = Limits(memory=10_000, throttled=1000)
    world = World(limits=limits)
    guest = Guest(world)
    first, greedy = guest.connects()
    greedy.capacity = 0
    first.sends(ACK | PSH, b"x" * 20_000)
    first.sees(ACK, ack=20_101)  # the last that fitted may pass the bound
    second, stream = guest.connects()
    stream.capacity = 0
    second.sends(ACK | PSH, b"y" * 1400)
    second.sees(ACK, ack=1101)
    assert world.counters.drop_tcp_memory == 1
    second.sends(ACK | PSH, b"y" * 400, seq=1101)
    second.sees(ACK, ack=1101)
    stream.takes(600)
    second.sends(ACK | PSH, b"y" * 400, seq=1101)
    second.sees(ACK, ack=1501)
    greedy.takes(None)
    stream.takes(None)
    assert world.interface.tcp.memory.used == 0
    assert len(stream.taken) == 1400
    assert not world.sent
    world.ends()
