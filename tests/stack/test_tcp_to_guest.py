"""The host sends: super-frames, the guest's window, the persist timer (RFC 9293 §3.8.6; RFC 7323 §2)."""

from __future__ import annotations

import pytest
from wire.oracle import ACK, FIN, PSH

from netd.stack.limits import Limits
from netd.stack.tcp.sender import CHUNK_COST

from .guest import Guest
from .world import World


def test_what_the_host_sends_is_one_super_frame(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    data = bytes(range(256)) * 100
    stream.gets(data)
    sent = world.sent[0]
    assert sent.gso_size == 1460
    tcp.sees(ACK | PSH, data, seq=1, ack=101)
    tcp.sees_nothing()
    assert world.interface.tcp.memory.used == len(data) + CHUNK_COST, "kept until acknowledged"
    tcp.sends(ACK)
    assert world.interface.tcp.memory.used == 0


def test_super_frames_are_multiples_of_the_mss_and_fit_an_ip_packet(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(wnd=65535, after=8192)
    stream.gets(b"x" * 300_000)
    sizes = [len(tcp.sees(ACK | PSH, None).payload) for _ in range(5)]
    assert sizes == [64240] * 4 + [300_000 - 4 * 64240]
    assert 64240 == 44 * 1460 and 64240 + 1460 + 40 > 65535
    tcp.sends(ACK)


def test_several_super_frames_from_one_read(world: World, guest: Guest) -> None:
    """Only the last one pushes; together they are one chunk, which is kept until the last byte is acknowledged."""
    tcp, stream = guest.connects(wnd=65535, after=8192)
    stream.frames = 3
    stream.gets(bytes(range(250)) * 800)
    seen = [tcp.sees(flags, None).payload for flags in (ACK, ACK, ACK | PSH, ACK | PSH)]
    assert [len(each) for each in seen] == [64240] * 3 + [200_000 - 3 * 64240]
    assert b"".join(seen) == bytes(range(250)) * 800
    assert world.interface.tcp.memory.used == 200_000 + 2 * CHUNK_COST
    tcp.sends(ACK, ack=1 + 3 * 64240 - 1)
    assert world.interface.tcp.memory.used == 200_000 + 2 * CHUNK_COST, "one byte keeps its chunk, and counts as that"
    tcp.sends(ACK, ack=1 + 3 * 64240)
    assert world.interface.tcp.memory.used == 200_000 - 3 * 64240 + CHUNK_COST
    tcp.sends(ACK)
    assert world.interface.tcp.memory.used == 0


def test_the_end_comes_with_the_last_of_several_super_frames(guest: Guest) -> None:
    tcp, stream = guest.connects(wnd=65535, after=8192)
    stream.frames = 3
    stream.waiting += b"x" * 150_000
    stream.ends()
    sizes = [len(tcp.sees(flags, None).payload) for flags in (ACK, ACK, ACK | PSH | FIN)]
    assert sizes == [64240, 64240, 150_000 - 2 * 64240]


def test_the_last_two_of_several_frames_are_lost(guest: Guest) -> None:
    """The chunk is the whole read; what comes again is one super-frame of it, from where the guest is."""
    tcp, stream = guest.connects(wnd=65535, after=8192)
    stream.frames = 3
    data = bytes(range(240)) * 803
    stream.gets(data)
    for flags in (ACK, ACK, ACK | PSH):
        tcp.sees(flags, None)
    tcp.sends(ACK, ack=64241)
    for _ in range(3):
        tcp.sends(ACK, ack=64241)
    tcp.sees(ACK | PSH, data[64240 : 2 * 64240], seq=64241)
    tcp.sends(ACK, ack=2 * 64240 + 1)
    tcp.sees(ACK | PSH, data[2 * 64240 :], seq=2 * 64240 + 1)
    tcp.sends(ACK)


def test_several_frames_without_offload_are_segments(plain: Guest) -> None:
    tcp, stream = plain.connects()
    stream.frames = 4
    data = bytes(range(250)) * 20
    stream.gets(data)
    seen = [tcp.sees(flags, None).payload for flags in (ACK, ACK, ACK, ACK | PSH)]
    assert [len(each) for each in seen] == [1460, 1460, 1460, 620] and b"".join(seen) == data
    tcp.sends(ACK)


def test_no_more_frames_than_the_window_takes(guest: Guest) -> None:
    tcp, stream = guest.connects(wnd=65535, after=1024)  # 131072
    stream.frames = 4
    stream.gets(b"x" * 300_000)
    sizes = [len(tcp.sees(flags, None).payload) for flags in (ACK, ACK | PSH, ACK | PSH)]
    assert sizes == [64240, 64240, 131072 - 2 * 64240]
    tcp.sees_nothing()
    stream.frames = 1
    tcp.sends(ACK)
    assert tcp.reads(300_000 - 131072)


def test_a_segment_of_one_mss_is_no_super_frame(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    stream.gets(b"x" * 1460)
    assert world.sent[0].gso_size == 0
    tcp.sees(ACK | PSH, b"x" * 1460)
    tcp.sends(ACK)


def test_the_window_is_never_exceeded_and_the_host_is_paused(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(wnd=5000, after=40)  # 40 * 128 = 5120
    stream.gets(b"x" * 20_000)
    tcp.sees(ACK | PSH, b"x" * 5120)
    assert stream.paused and len(stream.waiting) == 14_880
    tcp.sends(ACK, ack=2001, wnd=24)  # 3072: one segment is all that fits beyond what is in flight... not one
    tcp.sees_nothing()
    tcp.sends(ACK, ack=5121, wnd=40)
    assert tcp.reads(14_880)
    assert not stream.paused


def test_no_crumbs_while_something_is_in_flight(world: World, guest: Guest) -> None:
    """Silly window avoidance, RFC 9293 §3.8.6.2.1."""
    tcp, stream = guest.connects(wscale=0, wnd=10_000)
    stream.gets(b"x" * 20_000)
    tcp.sees(ACK | PSH, b"x" * 10_000)
    tcp.sends(ACK, ack=101, wnd=10_000)
    tcp.sees_nothing()  # 100 bytes of room
    tcp.sends(ACK, ack=1461, wnd=10_000)
    tcp.sees(ACK | PSH, b"x" * 1460)
    tcp.sends(ACK, ack=11_461, wnd=100)
    tcp.sees(ACK | PSH, b"x" * 100)  # nothing in flight: a crumb is better than silence
    tcp.sends(ACK, wnd=10_000)
    tcp.reads(20_000 - 11_560)


def test_the_persist_timer_of_one_who_has_nothing_to_say(world: World, guest: Guest) -> None:
    """What was read filled the window exactly: the host is paused, and then has nothing more."""
    tcp, stream = guest.connects(wscale=0, wnd=1000)
    stream.gets(b"x" * 1000)
    tcp.sees(ACK | PSH, b"x" * 1000)
    assert stream.paused
    tcp.sends(ACK, wnd=0)
    tcp.sends(ACK, wnd=1000)
    assert not stream.paused
    world.passes(100)
    tcp.sees_nothing()


def test_zero_window_and_its_opening(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(wscale=0, wnd=1000)
    stream.gets(b"x" * 1500)
    tcp.sees(ACK | PSH, b"x" * 1000)
    tcp.sends(ACK, wnd=0)
    tcp.sees_nothing()
    tcp.sends(ACK, wnd=4000)
    tcp.sees(ACK | PSH, b"x" * 500)
    tcp.sends(ACK)


def test_the_persist_timer_finds_a_window_whose_opening_was_lost(world: World, guest: Guest) -> None:
    """RFC 9293 §3.8.6.1: probe, back off, and never give up while the guest answers."""
    tcp, stream = guest.connects(wscale=0, wnd=1000)
    stream.gets(b"x" * 1500)
    tcp.sees(ACK | PSH, b"x" * 1000)
    tcp.sends(ACK, wnd=0)
    waits = []
    for _ in range(12):
        waits.append(world.jump())
        tcp.sees(ACK, seq=1000, ack=101)  # an old number: the guest must answer
        tcp.sends(ACK, wnd=0)
    assert all(a <= b for a, b in zip(waits, waits[1:], strict=False))
    assert waits[0] <= 1.0 and waits[-1] == world.limits.persist_max
    world.jump()
    tcp.sees(ACK, seq=1000)
    tcp.sends(ACK, wnd=1000)
    tcp.sees(ACK | PSH, b"x" * 500, seq=1001)
    tcp.sends(ACK)


def test_a_probe_without_answer_is_repeated(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(wscale=0, wnd=100)
    stream.gets(b"x" * 200)
    tcp.sees(ACK | PSH, b"x" * 100)
    tcp.sends(ACK, wnd=0)
    for _ in range(40):
        world.jump()
        tcp.sees(ACK, seq=100)
    tcp.sends(ACK, wnd=100)
    tcp.sees(ACK | PSH, b"x" * 100)
    tcp.sends(ACK)


def test_data_in_flight_into_a_window_that_shut(world: World, guest: Guest) -> None:
    """The guest took back its window: retransmission is the probe, and its answers keep the connection."""
    tcp, stream = guest.connects(wscale=0, wnd=1000)
    stream.gets(b"x" * 1000)
    tcp.sees(ACK | PSH, b"x" * 1000)
    tcp.sends(ACK, ack=1, wnd=0)
    for _ in range(20):
        world.jump()
        tcp.sees(ACK | PSH, b"x" * 1000, seq=1)
        tcp.sends(ACK, ack=1, wnd=0)
    assert not stream.closed
    tcp.sends(ACK, ack=1001, wnd=1000)


def test_window_updates_only_from_newer_segments(world: World, guest: Guest) -> None:
    """SND.WL1, RFC 9293 §3.10.7.4."""
    tcp, stream = guest.connects(wscale=0, wnd=1000)
    tcp.sends(ACK | PSH, b"a" * 10, seq=101)
    tcp.sees(ACK, ack=111)
    tcp.sends(ACK | PSH, b"b" * 4, seq=111)
    tcp.sees(ACK, ack=115)
    tcp.sends(ACK | PSH, b"a" * 10 + b"b" * 4 + b"c", seq=101, wnd=60_000)  # an older number, though it brings a byte
    tcp.sees(ACK, ack=116)
    stream.gets(b"x" * 3000)
    tcp.sees(ACK | PSH, b"x" * 1000)
    tcp.sends(ACK, seq=116, wnd=60_000)
    tcp.sees(ACK | PSH, b"x" * 2000)
    tcp.sends(ACK, seq=116)


def test_a_window_with_a_new_acknowledgment_is_new_whatever_its_number(world: World, guest: Guest) -> None:
    """A retransmitting guest repeats old numbers, but its acknowledgments are today's."""
    tcp, stream = guest.connects(wscale=0, wnd=30_000)
    with world.batch():
        tcp.sends(ACK | PSH, b"b" * 100, seq=201, ack=1)  # its first 100 bytes are lost
    tcp.sees(ACK, ack=101)
    tcp.sends(ACK, seq=301, ack=1)
    stream.gets(b"x" * 20_000)
    tcp.sees(ACK | PSH, None)
    tcp.sends(ACK | PSH, b"a" * 100, seq=101, ack=20_001, wnd=0)
    stream.gets(b"y")
    tcp.sees(ACK, ack=301)
    tcp.sees_nothing()
    tcp.sends(ACK, seq=301, ack=20_001, wnd=5)
    tcp.sees(ACK | PSH, b"y")
    tcp.sends(ACK, seq=301, ack=20_002)


def test_a_window_alone_is_not_a_duplicate_ack(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(wscale=0, wnd=10_000)
    stream.gets(b"x" * 1000)
    tcp.sees(ACK | PSH, None)
    for n in range(1, 6):
        tcp.sends(ACK, ack=1, wnd=10_000 + n)
    tcp.sees_nothing()
    tcp.sends(ACK, ack=1001)


def test_the_send_buffer_bounds_what_one_connection_keeps() -> None:
    world = World(limits=Limits(send_buffer=200_000))
    guest = Guest(world)
    tcp, stream = guest.connects(after=65535)
    stream.gets(b"x" * 500_000)
    seen = 0
    while world.sent:
        seen += len(tcp.sees(ACK | PSH, None).payload)
    assert 200_000 - 1460 - 5 * CHUNK_COST <= seen <= 200_000
    assert stream.paused
    tcp.sends(ACK)
    while world.sent:
        seen += len(tcp.sees(ACK | PSH, None).payload)
        tcp.sends(ACK)
    assert seen == 500_000
    world.ends()


def test_many_small_pieces_cost_more_than_their_bytes() -> None:
    """A host that sends byte by byte must not fill the memory with what carries the bytes."""
    world = World(limits=Limits(send_buffer=65_000))
    guest = Guest(world)
    tcp, stream = guest.connects(after=65535)
    stream.read_at_most = 1
    stream.gets(b"x" * 3000)
    assert stream.paused
    assert 65_000 - 1460 <= world.interface.tcp.memory.used == len(world.sent) * (CHUNK_COST + 1) <= 65_000
    while world.sent:
        tcp.sees(ACK | PSH, b"x")
        tcp.sends(ACK)
    assert tcp.ack == 3001
    assert world.interface.tcp.memory.used == 0
    world.ends()


def test_memory_used_up_leaves_each_connection_a_little() -> None:
    world = World(limits=Limits(memory=100_000, throttled=2000))
    guest = Guest(world)
    first, greedy = guest.connects(after=65535)
    greedy.gets(b"x" * 1_000_000)
    seen = 0
    while world.sent:
        seen += len(first.sees(ACK | PSH, None).payload)
    assert 100_000 - 65535 <= seen <= 100_000 + 65535
    second, stream = guest.connects(after=65535)
    stream.gets(b"y" * 10_000)
    second.sees(ACK | PSH, b"y" * 2000)
    second.sees_nothing()
    second.sends(ACK)
    second.sees(ACK | PSH, b"y" * 2000)
    first.sends(ACK)
    assert world.sent, "and goes on as memory is given back"
    world.sent.clear()
    world.ends()


def test_where_memory_used_up_leaves_nothing_the_host_waits_for_it() -> None:
    world = World(limits=Limits(memory=50_000, throttled=0))
    guest = Guest(world)
    first, greedy = guest.connects(after=65535)
    greedy.gets(b"x" * 60_000)
    first.sees(ACK | PSH, None)
    second, stream = guest.connects(after=65535)
    stream.gets(b"y" * 100)
    stream.capacity = 50
    assert stream.paused
    second.sends(ACK | PSH, b"z" * 100)
    second.sees(ACK, ack=151)
    second.sends(ACK | PSH, b"z" * 50, seq=151)
    second.sees(ACK, ack=151)
    first.sends(ACK)
    second.sees_nothing()
    world.jump()
    second.sees(ACK | PSH, b"y" * 100)
    stream.takes(None)
    second.sends(ACK | PSH, b"z" * 50, seq=151)
    world.passes(world.limits.ack_delay)
    second.sees(ACK, ack=201)
    assert stream.taken == b"z" * 100
    world.ends()


def test_partly_acknowledged_pieces(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    for piece in (b"abc", b"defgh", b"ij"):
        stream.gets(piece)
        tcp.sees(ACK | PSH, piece)
    for ack in (2, 3, 5, 10, 11):
        tcp.sends(ACK, ack=ack)
    assert world.interface.tcp.memory.used == 0


def test_data_still_flows_after_the_guests_fin(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | FIN)
    tcp.sees(ACK, ack=102)
    stream.gets(b"x" * 100_000)
    while world.sent:
        tcp.sees(ACK | PSH, None)
        tcp.sends(ACK)
    assert tcp.ack == 100_001


@pytest.mark.parametrize("mtu", [68, 576, 1500, 9000, 65520, 65535])
@pytest.mark.parametrize("size", [1, 2, 1459, 1461, 65001])
def test_every_size_at_every_mtu_both_ways(mtu: int, size: int) -> None:
    """Odd lengths, sizes round a segment, with and without offload: the oracle checks each sum."""
    for offload in (True, False):
        world = World(mtu=mtu, offload=offload)
        guest = Guest(world)
        tcp, stream = guest.connects(mss=mtu - 40)
        data = bytes(n * 7 & 255 for n in range(size))
        stream.gets(data)
        got = b""
        while world.sent:
            got += tcp.sees(ACK | PSH, None).payload
            tcp.sends(ACK)
        assert got == data
        tcp.sends(ACK | PSH, data[: mtu - 40])
        while world.sent:
            tcp.sees(ACK)
        assert stream.taken == data[: mtu - 40]
        world.passes(1)  # deferred ACKs
        world.sent.clear()
        world.ends()


def test_a_small_requests_ack_rides_on_the_answer(world: World, guest: Guest) -> None:
    """Where guest and host take turns; RFC 9293 §3.8.6.3."""
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"first")
    tcp.sees(ACK)
    stream.gets(b"answer")
    tcp.sees(ACK | PSH, b"answer")
    tcp.sends(ACK | PSH, b"second")
    tcp.sees_nothing()
    stream.gets(b"answer")
    tcp.sees(ACK | PSH, b"answer", ack=112)
    tcp.sends(ACK)
    world.passes(1)
    tcp.sees_nothing()
    tcp.sends(ACK | PSH, b"third")
    tcp.sees_nothing()
    assert world.jump() <= world.limits.ack_delay
    tcp.sees(ACK, ack=117)
    stream.gets(b"late")
    tcp.sees(ACK | PSH, b"late")
    tcp.sends(ACK | PSH, b"fourth")
    tcp.sees(ACK, ack=123)  # nothing rode: no more waiting for a while


def test_no_ack_is_deferred_for_bulk(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    for _ in range(2):
        tcp.sends(ACK | PSH, b"small")
        world.passes(0.1)
        world.sent.clear()
        stream.gets(b"answer")
        tcp.sees(ACK | PSH, b"answer")
        tcp.sends(ACK)
    tcp.sends(ACK | PSH, b"x" * 1460)
    tcp.sees(ACK)
    tcp.sends(ACK | PSH, b"x" * 10)
    tcp.sees(ACK)


def test_each_deferred_ack_has_its_own_time(world: World, guest: Guest) -> None:
    turns = [guest.connects() for _ in range(2)]
    for tcp, stream in turns:
        tcp.sends(ACK | PSH, b"first")
        tcp.sees(ACK)
        stream.gets(b"answer")
        tcp.sees(ACK | PSH, b"answer")
    for tcp, _ in turns:
        tcp.sends(ACK | PSH, b"second")
        world.passes(world.limits.ack_delay * 0.8)
    turns[0][0].sees(ACK, ack=112)
    guest.sees_nothing()
    world.passes(world.limits.ack_delay)
    turns[1][0].sees(ACK, ack=112)


def test_a_deferred_ack_dies_with_its_connection(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"first")
    tcp.sees(ACK)
    stream.gets(b"answer")
    tcp.sees(ACK | PSH, b"answer")
    tcp.sends(ACK | PSH, b"second")
    tcp.sends(4, seq=112)
    world.passes(1)
    tcp.sees_nothing()
