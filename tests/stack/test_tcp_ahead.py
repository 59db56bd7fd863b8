"""What comes before its turn: kept, handed on when the hole is filled, told in SACK blocks, bounded, given back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from netd.stack.ports import Buffer
from netd.stack.tcp.ahead import MASK, SEGMENTS_MAX, Ahead
from netd.wire.tcp import ACK, FIN, PSH, RST, SYN, syn_options

from .guest import Guest
from .world import World


@given(
    pieces=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), max_size=40),
    start=st.sampled_from((0, 5, MASK - 100, MASK)),
    advance=st.integers(0, 80),
)
@settings(max_examples=300)
def test_any_segments_in_any_order_give_the_stream(pieces: list[tuple[int, int]], start: int, advance: int) -> None:
    """Against the simplest thing that is right: one byte at a time."""
    stream = bytes(range(256)) + bytes(range(255, -1, -1))
    ahead = Ahead()
    there: dict[int, int] = {}
    for at, size in pieces:
        # In its turn it would not be put here.
        if at > advance and ahead.put((start + at) & MASK, memoryview(stream)[at : at + size]):
            there |= dict(enumerate(stream[at : at + size], at))
    got, nxt = b"", advance
    while piece := ahead.take((start + nxt) & MASK):
        got += piece
        nxt += len(piece)
    expected = b""
    while advance + len(expected) in there:
        expected += bytes((there[advance + len(expected)],))
    assert got == expected
    blocks = [((left - start) & MASK, (right - start) & MASK) for left, right in ahead._blocks]
    told = {n for left, right in blocks for n in range(left, right)}
    assert told == {n for n in there if n >= nxt} and len(blocks) == len({*blocks})
    assert ahead.held == sum(len(data) for data in ahead._segments.values())
    assert all((seq - start) & MASK >= nxt for seq in ahead._segments)


def test_no_more_segments_than_the_bound() -> None:
    ahead = Ahead()
    for n in range(SEGMENTS_MAX):
        assert ahead.put(10 + 2 * n, memoryview(b"x")) == 1
    assert ahead.put(5, memoryview(b"x")) == 0
    assert ahead.held == SEGMENTS_MAX


def test_blocks_are_told_the_latest_first(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called(b"\xc6\x33\x64\x07", 6000, 80)
    tcp.sees(SYN)
    tcp.sends(SYN | ACK, seq=100, options=syn_options(1460, 7, sack=True))
    tcp.sees(ACK)
    edges = []
    for at in (201, 401, 301):
        tcp.sends(ACK | PSH, b"x" * 50, seq=at)
        edges.append(tcp.sees(ACK, ack=101).options[5])
    assert [len(edge) // 8 for edge in edges] == [1, 2, 3]
    iss = int.from_bytes(edges[0][:4], "big") - 201
    told = [int.from_bytes(edges[2][n : n + 4], "big") - iss for n in range(0, 24, 4)]
    assert told == [301, 351, 401, 451, 201, 251]
    tcp.sends(ACK | PSH, b"y" * 100, seq=101)
    tcp.sees(ACK, ack=251)
    assert stream.taken == b"y" * 100 + b"x" * 50


def test_a_guest_without_sack_is_told_nothing(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"late", seq=105)
    assert tcp.sees(ACK, ack=101).options == {}
    tcp.sends(ACK | PSH, b"soon", seq=101)
    tcp.sees(ACK, ack=109)
    assert stream.taken == b"soonlate"


def test_a_fin_behind_a_hole_is_kept_with_its_data(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH | FIN, b"end", seq=105)
    tcp.sees(ACK, ack=101)
    assert not stream.finished
    tcp.sends(ACK | PSH, b"the ", seq=101)
    tcp.sees(ACK, ack=109)
    assert stream.taken == b"the end" and stream.finished


def test_nothing_beyond_the_window_that_was_offered(world: World, guest: Guest) -> None:
    tcp, _ = guest.connects()
    window = world.interface.tcp.receive_window
    tcp.sends(ACK | PSH, b"x" * 10, seq=101 + window - 5)
    tcp.sees(ACK, ack=101)
    assert world.interface.tcp.memory.used == 0 and world.counters.drop_tcp_out_of_order == 1


def test_a_fin_behind_a_hole_is_acknowledged_at_once(world: World, guest: Guest) -> None:
    """RFC 5681 §4.2: what fills a hole is, and the FIN that was behind it with it."""
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH | FIN, b"b" * 10, seq=111)
    tcp.sees(ACK, ack=101)
    tcp.sends(ACK | PSH, b"a" * 10, seq=101)
    assert len(world.sent) == 1
    tcp.sees(ACK, ack=122)
    assert bytes(stream.taken) == b"a" * 10 + b"b" * 10 and stream.finished


def test_the_memory_is_given_back(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"x" * 1000, seq=501)
    tcp.sees(ACK, ack=101)
    assert world.interface.tcp.memory.used == 1000
    tcp.sends(RST, seq=101)
    assert world.interface.tcp.memory.used == 0 and stream.aborted


def test_a_host_that_takes_only_part_of_what_was_held(world: World, guest: Guest) -> None:
    """The rest comes again; nothing stays behind in the accounts."""
    tcp, stream = guest.connects()
    stream.capacity = 0
    tcp.sends(ACK | PSH, b"b" * 8000, seq=111)
    tcp.sees(ACK, ack=101)
    memory = world.interface.tcp.memory
    limit, memory.limit = memory.limit, 0
    tcp.sends(ACK | PSH, b"a" * 10, seq=101)
    taken = world.limits.throttled
    tcp.sees(ACK, ack=101 + taken)
    assert memory.used == taken and world.counters.drop_tcp_memory == 1
    memory.limit = limit
    stream.takes(None)
    tcp.sends(ACK | PSH, b"b" * (8010 - taken), seq=101 + taken)
    tcp.sees(ACK, ack=8111)
    assert bytes(stream.taken) == b"a" * 10 + b"b" * 8000 and memory.used == 0


def test_a_host_that_fails_while_what_was_held_is_handed_on(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"b" * 100, seq=111)
    tcp.sees(ACK, ack=101)
    write = stream.write

    def write_once(view: Buffer) -> int:
        stream.failing = True
        return len(view)

    def write_and_fail(view: Buffer) -> int:
        return write(view) if stream.failing else write_once(view)

    stream.write = write_and_fail  # type: ignore[method-assign]
    tcp.sends(ACK | PSH, b"a" * 10, seq=101)
    tcp.sees(RST | ACK, seq=1)
    assert stream.closed and world.interface.tcp.memory.used == 0
