"""Fragments from the guest (RFC 791 §3.2, RFC 815, RFC 8200 §4.5, RFC 5722, RFC 6946), both families, every bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import oracle
from wire.prop import quick

from netd.stack.limits import Limits

from .guest import Guest
from .test_interface import drops
from .world import GATEWAY, WEB, World, ip

PORT = 4433


@dataclass(frozen=True)
class Fragment:
    offset: int
    more: bool
    data: bytes


def cut(datagram: bytes, step: int) -> list[Fragment]:
    size = len(datagram)
    return [Fragment(n, n + step < size, datagram[n : n + step]) for n in range(0, size, step)]


def sends(
    guest: Guest,
    piece: Fragment,
    *,
    ident: int = 7,
    protocol: int = 17,
    dst: bytes = WEB,
    reserved: int = 0,
    src: bytes | None = None,
    extensions: tuple[int, bytes] = (44, b""),
    **fields: int,
) -> None:
    if guest.cast.family == 4:
        field = piece.offset >> 3 | (0x2000 if piece.more else 0)
        guest.sends_ip(dst, protocol, piece.data, src=src, ident=ident, fragment=field, **fields)
    else:
        head = bytes((protocol, reserved)) + (piece.offset | piece.more).to_bytes(2, "big") + ident.to_bytes(4, "big")
        first, before = extensions
        guest.sends_ip(dst, first, piece.data, src=src, extensions=before + head, **fields)


def problem(guest: Guest, pointer: int) -> None:
    """RFC 8200 §4.5: a parameter problem, code 0."""
    packet = guest.next().packet
    assert packet is not None
    type_, code, rest, quote = oracle.read_icmp(packet)
    assert (type_, code, int.from_bytes(rest, "big")) == (4, 0, pointer)
    assert quote[6] == 44 and quote[8:24] == guest.address


def payload(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# -- whole again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
@pytest.mark.parametrize("size", [32, 25])
def test_in_any_order(world: World, guest: Guest, order: tuple[int, ...], size: int) -> None:
    pieces = cut(guest.datagram(WEB, PORT, payload(size - 8)), 8)
    for n in order:
        assert not world.host.sockets
        sends(guest, pieces[n])
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(size - 8))]
    assert world.counters.reassembled == 1 and not drops(world)
    assert not world.interface.reassembly.partials and not world.interface.reassembly.held


@pytest.mark.parametrize("step", [1280, 1480, 8192])
def test_as_large_as_can_be(world: World, guest: Guest, step: int) -> None:
    size = 65507 if guest.cast.family == 4 else 65527
    for piece in cut(guest.datagram(WEB, PORT, payload(size)), step):
        sends(guest, piece)
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(size))]


def test_the_sum_is_of_the_whole_and_is_looked_at(world: World, guest: Guest) -> None:
    """The device vouches for frames, not for datagrams."""
    datagram = bytearray(guest.datagram(WEB, PORT, payload(100)))
    datagram[50] ^= 1
    for piece in cut(bytes(datagram), 64):
        sends(guest, piece)
    assert drops(world) == {"drop_bad_checksum": 1}


def test_a_ping_in_fragments(world: World, guest: Guest) -> None:
    message = guest.icmp(GATEWAY, guest.echo_request, 0, b"\0\1\0\2", payload(3000))
    for piece in cut(message, 1448):
        sends(guest, piece, protocol=guest.cast.icmp, dst=GATEWAY)
    answer = guest.sees_fragments()
    assert answer[4:8] == b"\0\1\0\2" and answer[8:] == payload(3000)


def test_tcp_in_fragments(world: World, guest: Guest) -> None:
    segment = oracle.tcp(guest.address, guest.cast.real(WEB), 1, 2, 3, 0, oracle.SYN, 100, b"", b"\x02\x04\x05\xb4")
    for piece in cut(segment, 16):
        sends(guest, piece, protocol=6)
    assert len(world.host.streams) == 1


def test_ttl_and_tos_are_carried(world: World, guest: Guest) -> None:
    for piece in cut(guest.datagram(WEB, PORT, payload(40)), 24):
        sends(guest, piece, ttl=9, tos=0xB8)
    assert world.host.sockets[0].hops == [9 << 8 | 0xB8]


def test_identifications_destinations_and_protocols_are_kept_apart(world: World, guest: Guest) -> None:
    other = ip("198.51.100.7")
    one, two, three = (guest.datagram(dst, PORT, bytes((n,)) * 20) for n, dst in enumerate((WEB, WEB, other)))
    for n in range(0, 28, 8):
        last = n == 24
        for datagram, ident, dst in ((one, 1, WEB), (two, 2, WEB), (three, 1, other)):
            sends(guest, Fragment(n, not last, datagram[n : n + 8]), ident=ident, dst=dst)
    sent = world.host.sockets[0].sent
    assert sent == [(WEB, PORT, b"\0" * 20), (WEB, PORT, b"\1" * 20), (other, PORT, b"\2" * 20)]


@pytest.mark.ipv6
def test_the_first_fragment_says_what_it_is(world: World, guest: Guest) -> None:
    """RFC 8200 §4.5: the next header of the others may differ."""
    pieces = cut(guest.datagram(WEB, PORT, payload(24)), 8)
    for n in (0, 3, 1, 2):
        sends(guest, pieces[n], protocol=17 if not n else 6)
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(24))]


@pytest.mark.ipv6
def test_behind_other_headers(world: World, guest: Guest) -> None:
    for piece in cut(guest.datagram(WEB, PORT, payload(24)), 8):
        sends(guest, piece, extensions=(0, bytes((44, 0)) + bytes(6)))
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(24))]


@pytest.mark.ipv6
def test_headers_inside(world: World, guest: Guest) -> None:
    """The fragmentable part may begin with destination options."""
    for piece in cut(bytes((17, 0)) + bytes(6) + guest.datagram(WEB, PORT, payload(24)), 8):
        sends(guest, piece, protocol=60)
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(24))]


# -- atomic ------------------------------------------------------------------------------------------------------------


@pytest.mark.ipv6
def test_an_atomic_fragment_is_by_itself(world: World, guest: Guest) -> None:
    """RFC 6946 §4: whatever others of that identification are under way, and they stay."""
    pieces = cut(guest.datagram(WEB, PORT, payload(24)), 8)
    sends(guest, pieces[0])
    sends(guest, Fragment(0, False, guest.datagram(WEB, PORT, b"atomic")))
    assert world.host.sockets[0].sent == [(WEB, PORT, b"atomic")]
    for piece in pieces[1:]:
        sends(guest, piece)
    assert world.host.sockets[0].sent[1:] == [(WEB, PORT, payload(24))]


@pytest.mark.ipv6
def test_an_empty_atomic_fragment(world: World, guest: Guest) -> None:
    sends(guest, Fragment(0, False, b""))
    assert drops(world) == {"drop_fragment": 1}


@pytest.mark.ipv6
@pytest.mark.parametrize("size", range(8))
def test_a_fragment_header_cut_off(world: World, guest: Guest, size: int) -> None:
    guest.sends_ip(WEB, 44, bytes(size))
    assert drops(world) == {"drop_fragment": 1}


@pytest.mark.ipv6
@pytest.mark.parametrize("depth", [2, 3, 100])
def test_a_fragment_in_a_fragment(world: World, guest: Guest, depth: int) -> None:
    """They would nest without end."""
    inner = (bytes((44, 0, 0, 0)) + bytes(4)) * (depth - 1) + bytes((17, 0, 0, 0)) + bytes(4)
    guest.sends_ip(WEB, 44, guest.datagram(WEB, PORT, b"x"), extensions=inner)
    assert drops(world) == {"drop_fragment": 1}
    assert not world.host.sockets


@pytest.mark.ipv6
def test_a_fragment_in_a_fragmented_datagram(world: World, guest: Guest) -> None:
    inside = bytes((17, 0, 0, 0)) + bytes(4) + guest.datagram(WEB, PORT, payload(24))
    for piece in cut(inside, 8):
        sends(guest, piece, protocol=44)
    assert drops(world) == {"drop_fragment": 1}
    assert not world.host.sockets


# -- what no honest sender sends ---------------------------------------------------------------------------------------


def test_a_repeated_fragment_is_ignored(world: World, guest: Guest) -> None:
    """RFC 8200 §4.5 allows it; RFC 791 demands it. The first one counts."""
    pieces = cut(guest.datagram(WEB, PORT, payload(24)), 8)
    for piece in pieces[:3]:
        sends(guest, piece)
        sends(guest, replace(piece, data=b"\xee" * 8))
    sends(guest, pieces[3])
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(24))]
    assert drops(world) == {"drop_fragment": 3}


@pytest.mark.parametrize(
    ("offset", "size", "more"),
    [(0, 16, True), (16, 16, True), (8, 8, True), (0, 40, True), (16, 9, False), (8, 20, False)],
)
def test_an_overlap_discards_the_datagram(world: World, guest: Guest, offset: int, size: int, more: bool) -> None:
    """RFC 5722 §4."""
    sends(guest, Fragment(8, True, bytes(16)))
    sends(guest, Fragment(offset, more, bytes(size)))
    assert drops(world) == {"drop_fragment": 1}
    assert not world.interface.reassembly.partials


@pytest.mark.parametrize(
    ("pieces"),
    [
        [Fragment(32, False, b"x"), Fragment(40, True, bytes(8))],
        [Fragment(32, False, b"x"), Fragment(40, False, b"x")],
        [Fragment(40, False, b"x"), Fragment(32, False, b"x")],
        [Fragment(40, True, bytes(8)), Fragment(32, False, b"x")],
        [Fragment(32, False, bytes(8)), Fragment(24, False, bytes(8))],
    ],
)
def test_two_ends(world: World, guest: Guest, pieces: list[Fragment]) -> None:
    for piece in pieces:
        sends(guest, piece)
    assert drops(world) == {"drop_fragment": 1}
    assert not world.interface.reassembly.partials


@pytest.mark.parametrize("size", [0, 1, 7, 9, 1001])
def test_a_middle_that_is_no_multiple_of_eight(world: World, guest: Guest, size: int) -> None:
    sends(guest, Fragment(0, True, payload(size)))
    if size and guest.cast.family == 6:
        problem(guest, 4)
    assert drops(world) == {"drop_fragment": 1}
    assert not world.interface.reassembly.partials


@pytest.mark.parametrize("more", [True, False])
def test_beyond_the_largest_packet(world: World, guest: Guest, more: bool) -> None:
    """The ping of death."""
    sends(guest, Fragment(65528, more, bytes(8)))
    if guest.cast.family == 6:
        problem(guest, 42)
    assert drops(world) == {"drop_fragment": 1}


@pytest.mark.ipv4
def test_larger_than_ip_with_its_header(world: World, guest: Guest) -> None:
    """65,535 bytes are with the header (RFC 791 §3.1)."""
    for piece in cut(bytes(65520), 8192):
        sends(guest, piece)
    assert drops(world) == {"drop_fragment": 1}


@pytest.mark.parametrize("src", ["8.8.8.8", "10.0.2.2", "10.0.2.3", "127.0.0.1", "0.0.0.0"])
def test_fragments_of_somebody_else(world: World, guest: Guest, src: str) -> None:
    sends(guest, Fragment(0, True, bytes(8)), src=ip(src))
    assert drops(world) == {"drop_martian": 1}
    assert not world.interface.reassembly.partials


@pytest.mark.parametrize("dst", ["224.0.0.251", "239.255.255.250"])
def test_fragments_to_a_group_are_not_kept(world: World, guest: Guest, dst: str) -> None:
    """Nor is anything said of them later (RFC 1122 §3.2.2, RFC 4443 §2.4)."""
    sends(guest, Fragment(0, True, bytes(8)), dst=ip(dst))
    assert drops(world) == {"drop_group": 1}
    assert not world.interface.reassembly.partials
    world.passes(100)
    guest.sees_nothing()


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_exceeded_quotes_the_first_fragment(world: World, guest: Guest) -> None:
    """RFC 792, RFC 4443 §3.3: code 1."""
    pieces = cut(guest.datagram(WEB, PORT, payload(24), sport=4000), 8)
    sends(guest, pieces[1])
    sends(guest, pieces[0])
    assert world.jump() == world.limits.reassembly
    rest, quote = guest.sees_icmp(11, 1, GATEWAY)
    assert rest == bytes(4)
    if guest.cast.family == 4:
        assert guest.quoted(quote, 17, WEB) == pieces[0].data
    else:
        assert quote[6] == 44 and quote[48:] == pieces[0].data
    assert drops(world) == {"drop_fragment": 1}
    assert not world.interface.reassembly.partials and not world.interface.reassembly.expired


def test_without_the_first_fragment_nothing_is_said(world: World, guest: Guest) -> None:
    sends(guest, Fragment(8, True, bytes(8)))
    world.jump()
    guest.sees_nothing()
    assert drops(world) == {"drop_fragment": 1}


def test_the_time_is_of_the_datagram(world: World, guest: Guest) -> None:
    """RFC 8200 §4.5: from the first-arriving fragment on."""
    for n in range(1, 10):
        sends(guest, Fragment(8 * n, True, bytes(8)))
        world.passes(world.limits.reassembly / 10)
    assert len(world.interface.reassembly.partials) == 1
    world.passes(world.limits.reassembly / 10)
    assert not world.interface.reassembly.partials


# -- bounds ------------------------------------------------------------------------------------------------------------

TIGHT = Limits(fragmented=4, fragments_each=6, fragment_bytes=10_000)


@pytest.fixture
def tight(family: int) -> World:
    return World(family=family, limits=TIGHT)


def test_no_more_datagrams_than_so_many(tight: World) -> None:
    """The oldest makes room."""
    guest = Guest(tight)
    for ident in range(6):
        sends(guest, Fragment(8, False, b"end"), ident=ident)
    assert drops(tight) == {"drop_fragment": 2}
    datagram = guest.datagram(WEB, PORT, b"x")
    for ident in (2, 5):
        sends(guest, Fragment(0, True, datagram[:8]), ident=ident)
    assert tight.counters.reassembled == 2
    tight.ends()


def test_no_more_fragments_of_one_than_so_many(tight: World) -> None:
    guest = Guest(tight)
    for n in range(6):
        sends(guest, Fragment(8 + 16 * n, True, bytes(8)))
    assert not drops(tight)
    sends(guest, Fragment(8 + 16 * 6, True, bytes(8)))
    assert drops(tight) == {"drop_fragment": 1} and not tight.interface.reassembly.partials
    tight.ends()


def test_no_more_bytes_than_so_many(tight: World) -> None:
    """The oldest makes room, be it the one that grows."""
    guest = Guest(tight)
    for ident in range(3):
        sends(guest, Fragment(8, True, bytes(4000)), ident=ident)
    assert tight.interface.reassembly.held == 8000
    sends(guest, Fragment(8, True, bytes(16000)), ident=9)
    assert not tight.interface.reassembly.partials and not tight.interface.reassembly.held
    assert drops(tight) == {"drop_fragment": 4}
    tight.ends()


def test_a_flood_leaves_nothing_behind(tight: World) -> None:
    guest = Guest(tight)
    for n in range(5000):
        sends(guest, Fragment(8, True, bytes(8)), ident=n)
    assert len(tight.interface.timers) <= 1100
    assert len(tight.interface.reassembly.partials) == 4
    tight.passes(100)
    assert not tight.interface.reassembly.partials and not len(tight.interface.timers)
    tight.ends()


# -- properties --------------------------------------------------------------------------------------------------------


@quick
@given(st.sampled_from([4, 6]), st.integers(0, 300), st.integers(1, 12), st.data())
def test_any_order_any_repeats_the_same_or_nothing(family: int, size: int, eights: int, data: st.DataObject) -> None:
    """With all fragments there, once at least, in any order: the datagram, once. With one missing: nothing."""
    world = World(family=family)
    guest = Guest(world)
    pieces = cut(guest.datagram(WEB, PORT, payload(size)), 8 * eights)[:40]
    if len(pieces) < 2 or pieces[-1].more:
        return
    extra = data.draw(st.lists(st.sampled_from(pieces), max_size=6))
    missing = data.draw(st.none() | st.sampled_from(pieces))
    order = data.draw(st.permutations(pieces + extra))
    for piece in order:
        if piece != missing:
            sends(guest, piece)
    sent = world.host.sockets[0].sent if world.host.sockets else []
    if missing is None:
        assert sent == [(WEB, PORT, payload(size))] * world.counters.reassembled and sent
    else:
        assert not sent
    world.sent.clear()
    world.ends()


@quick
@given(
    st.sampled_from([4, 6]),
    st.lists(
        st.builds(
            Fragment,
            st.integers(0, 12).map(lambda n: 8 * n) | st.sampled_from([65528, 65520, 1024]),
            st.booleans(),
            st.sampled_from([8, 16, 24, 5, 0]).map(bytes),
        ),
        max_size=30,
    ),
)
def test_any_fragments_stay_within_the_bounds(family: int, pieces: list[Fragment]) -> None:
    world = World(family=family, limits=TIGHT)
    guest = Guest(world)
    for n, piece in enumerate(pieces):
        sends(guest, piece, ident=n % 3)
    world.passes(TIGHT.reassembly)
    assert not world.interface.reassembly.partials and not world.interface.reassembly.held
    world.sent.clear()
    world.ends()
