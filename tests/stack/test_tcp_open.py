"""Opening, both ways (RFC 9293 §3.5, §3.10.7.1-4; RFC 6298 §5; RFC 5961 §4)."""

from __future__ import annotations

import pytest
from wire.oracle import ACK, FIN, PSH, RST, SYN

from netd.stack import ports

from .guest import Guest
from .world import DNS, GATEWAY, WEB, World, ip


def test_the_syn_ack_waits_for_the_host(world: World, guest: Guest) -> None:
    tcp = guest.tcp(WEB, 80)
    tcp.sends(SYN, seq=100, options=tcp.syn_options(1460, 7))
    tcp.sees_nothing()
    assert world.host.stream.address == (WEB, 80)
    assert not world.host.stream.reading
    world.host.stream.connects()
    segment = tcp.sees(SYN | ACK, seq=0, ack=101)
    assert segment.options == {2: (1460).to_bytes(2, "big"), 3: b"\x07"}
    assert segment.wnd == 65535, "never scaled in a SYN, RFC 7323 §2.2"
    assert len(world.interface.tcp.half_open) == 1
    tcp.sends(ACK)
    assert world.host.stream.reading
    assert world.counters.tcp_opened == 1


@pytest.mark.parametrize(("mtu", "offered"), [(1500, 1460), (65520, 65480), (576, 536)])
def test_the_mss_offered_is_the_links(mtu: int, offered: int) -> None:
    world = World(mtu=mtu)
    tcp = Guest(world).tcp()
    tcp.sends(SYN, options=tcp.syn_options(65495, 7))
    world.host.stream.connects()
    assert tcp.sees(SYN | ACK).options[2] == offered.to_bytes(2, "big")
    world.ends()


@pytest.mark.parametrize(
    ("given", "mss"), [(1460, 1460), (536, 536), (9000, 1460), (-1, 536), (0, 536), (1, 64)], ids=str
)
@pytest.mark.parametrize("way", ["out", "in"])
def test_the_guests_mss_bounds_segments(world: World, guest: Guest, way: str, given: int, mss: int) -> None:
    """RFC 9293 §3.7.1: without the option 536 is assumed, whoever opened."""
    tcp, stream = guest.connects(mss=given) if way == "out" else guest.accepts(mss=given)
    stream.gets(b"x" * 4000)
    sent = guest.next()
    assert sent.gso_size == mss
    tcp.sends(ACK, ack=4001)


def test_without_window_scale_neither_side_scales(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(wscale=-1)
    stream.gets(b"x" * 100_000)
    tcp.sees(ACK | PSH, b"x" * (44 * 1460))
    tcp.sees_nothing()  # 1295 bytes of window are left: less than a segment
    tcp.sends(ACK)
    assert tcp.reads(100_000 - 44 * 1460)
    tcp.sends(ACK | PSH, b"y")
    tcp.sees(ACK, wnd=65535)


def test_window_scale_from_the_guest_is_at_most_14(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, options=tcp.syn_options(1460, 200))
    world.host.stream.connects()
    tcp.sees(SYN | ACK)
    tcp.wscale = 14
    tcp.sends(ACK, wnd=1)
    world.host.stream.gets(b"x" * 20000)
    tcp.reads(16384, acknowledge=False)
    tcp.sees_nothing()
    tcp.sends(ACK, wnd=1)
    tcp.reads(20000 - 16384)


@pytest.mark.parametrize("way", ["out", "in"])
def test_our_window_scale_is_taken_back_where_the_guest_has_none(world: World, guest: Guest, way: str) -> None:
    tcp, _ = guest.connects(wscale=-1) if way == "out" else guest.accepts(wscale=-1)
    tcp.sends(ACK | PSH, b"y")
    assert tcp.next().wnd == 65535


def test_refused_is_a_reset(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    world.host.stream.refuses()
    tcp.sees(RST | ACK, seq=0, ack=101)
    assert world.host.stream.closed
    assert world.counters.tcp_refused == 1
    assert world.interface.flow_counts()["tcp"] == 0


@pytest.mark.parametrize(
    "code", [ports.NET_UNREACHABLE, ports.HOST_UNREACHABLE, ports.PORT_UNREACHABLE, ports.ADMIN_PROHIBITED]
)
def test_unreachable_is_icmp_quoting_the_syn(world: World, guest: Guest, code: int) -> None:
    tcp = guest.tcp(WEB, 443, port=41000)
    tcp.sends(SYN, seq=0xFEDCBA98)
    world.host.stream.refuses(code)
    quoted = guest.sees_unreachable(code, GATEWAY, 6, WEB)
    assert quoted == (41000).to_bytes(2, "big") + (443).to_bytes(2, "big") + 0xFEDCBA98.to_bytes(4, "big")
    assert world.host.stream.closed
    assert world.interface.flow_counts()["tcp"] == 0


def test_a_resolver_is_asked_at_the_dns_address(world: World, guest: Guest) -> None:
    guest.connects(DNS, 53)
    assert world.host.stream.address is None


def test_loopback_where_it_is_allowed() -> None:
    world = World(loopback=True)
    Guest(world).connects(GATEWAY, 8080)
    assert world.host.stream.address == (ip("127.0.0.1"), 8080)
    world.ends()


@pytest.mark.parametrize(
    ("dst", "port", "code"), [(GATEWAY, 80, 0), (DNS, 80, 0), (ip("10.0.2.77"), 80, 1)], ids=["gateway", "dns", "link"]
)
def test_where_policy_refuses_the_guest_is_told_at_once(
    world: World, guest: Guest, dst: bytes, port: int, code: int
) -> None:
    tcp = guest.tcp(dst, port)
    tcp.sends(SYN)
    guest.sees_unreachable(code, GATEWAY, 6, dst)
    assert not world.host.streams
    assert world.counters.tcp_refused == 1


GROUPS = ["224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "10.0.2.255"]


@pytest.mark.ipv4
@pytest.mark.parametrize("dst", GROUPS)
@pytest.mark.parametrize("flags", [SYN, ACK, FIN | ACK, SYN | ACK], ids=["SYN", "ACK", "FIN", "SYNACK"])
def test_tcp_to_a_group_is_dropped_in_silence(world: World, guest: Guest, dst: str, flags: int) -> None:
    """RFC 9293 §3.9.2.3: a SYN to a broadcast or multicast address MUST be discarded; RFC 1122 §4.2.3.10."""
    guest.tcp(ip(dst)).sends(flags)
    guest.sees_nothing()
    assert world.counters.drop_martian == 1


def test_a_syn_again_while_the_host_connects_changes_nothing(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    tcp.sends(SYN, seq=100)
    assert len(world.host.streams) == 1
    world.host.stream.connects()
    tcp.sees(SYN | ACK, seq=0, ack=101)


def test_a_reset_while_the_host_connects_ends_it_quietly(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    tcp.sends(RST, seq=500)
    assert not world.host.stream.closed, "not this connection's number"
    tcp.sends(RST, seq=101)
    assert world.host.stream.aborted
    tcp.sees_nothing()


def test_data_and_fin_with_the_syn_wait_for_their_turn(world: World, guest: Guest) -> None:
    """Data on a SYN is not acknowledged (no TFO): the guest sends it again."""
    tcp = guest.tcp()
    tcp.sends(SYN, b"early", seq=100)
    world.host.stream.connects()
    tcp.sees(SYN | ACK, seq=0, ack=101)
    tcp.sends(ACK | PSH, b"early", seq=101)
    assert world.host.stream.taken == b"early"
    world.jump()
    tcp.sees(ACK, ack=106)


def test_a_first_request_is_acknowledged_by_its_answer(world: World, guest: Guest) -> None:
    """Most conversations begin by taking turns; where the answer does not come, the ACK goes alone."""
    world.patient = True
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"request")
    tcp.sees_nothing()
    stream.gets(b"answer")
    tcp.sees(ACK | PSH, b"answer", ack=108)
    tcp, stream = guest.connects()
    tcp.sends(ACK | PSH, b"request")
    assert world.jump() <= 1.5 * world.limits.ack_delay
    tcp.sees(ACK, ack=108)


def test_syn_with_fin_is_no_opening(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN | FIN, seq=100)
    tcp.sees(RST | ACK, seq=0, ack=102)
    assert not world.host.streams


def test_a_lost_syn_ack_comes_again_by_timer(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100, options=tcp.syn_options(1460, 7))
    world.host.stream.connects()
    first = tcp.sees(SYN | ACK, seq=0, ack=101)
    waits = []
    for _ in range(world.limits.syn_retries):
        waits.append(world.jump())
        assert tcp.sees(SYN | ACK, seq=0, ack=101).options == first.options
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert world.jump() == 32.0
    tcp.sees(RST | ACK, seq=1, ack=101)
    assert world.host.stream.aborted
    assert world.counters.tcp_timeouts == 1


def test_a_lost_syn_ack_comes_again_when_the_guest_asks(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100, options=tcp.syn_options(1460, 7))
    world.host.stream.connects()
    first = tcp.sees(SYN | ACK, seq=0, ack=101)
    world.passes(0.5)
    tcp.sends(SYN, seq=100, options=tcp.syn_options(1460, 7))
    again = tcp.sees(SYN | ACK, seq=0, ack=101)
    assert (again.options, again.wnd) == (first.options, first.wnd)
    tcp.wscale = 7
    tcp.sends(ACK, seq=101, wnd=512)
    assert world.host.stream.reading


def test_the_acks_loss_is_healed_by_data(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    world.host.stream.connects()
    tcp.sees(SYN | ACK)
    tcp.sends(ACK | PSH | FIN, b"hello", seq=101)
    assert world.host.stream.taken == b"hello"
    assert world.host.stream.finished
    tcp.sees(ACK, ack=107)


@pytest.mark.parametrize("ack", [0, 2, 0x7FFFFFFF, -1, -5], ids=["iss", "ahead", "far", "behind", "older"])
def test_a_wrong_ack_in_syn_received_is_reset(world: World, guest: Guest, ack: int) -> None:
    """RFC 9293 §3.10.7.4, SYN-RECEIVED: not SND.UNA < SEG.ACK =< SND.NXT: <SEQ=SEG.ACK><CTL=RST>."""
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    world.host.stream.connects()
    tcp.sees(SYN | ACK)
    tcp.sends(ACK, seq=101, ack=ack)
    assert tcp.sees(RST).seq == ack & 0xFFFFFFFF
    tcp.sends(ACK, seq=101, ack=1)
    assert world.host.stream.reading, "the connection itself is untouched"


def test_a_reset_in_syn_received(world: World, guest: Guest) -> None:
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    world.host.stream.connects()
    tcp.sees(SYN | ACK)
    tcp.sends(RST, seq=101)
    assert world.host.stream.aborted
    assert world.counters.tcp_resets_from_guest == 1


def test_another_syn_in_syn_received_is_challenged(world: World, guest: Guest) -> None:
    """The guest forgot and began again: the challenge makes it reset us (RFC 5961 §4)."""
    tcp = guest.tcp()
    tcp.sends(SYN, seq=100)
    world.host.stream.connects()
    tcp.sees(SYN | ACK)
    tcp.sends(SYN, seq=9000)
    tcp.sees(ACK, ack=101)
    tcp.sends(RST, seq=101)
    assert world.host.stream.aborted


# -- to the guest ----------------------------------------------------------------------------------------------------


def test_a_client_of_a_published_port(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called(WEB, 6000, 80)
    segment = tcp.sees(SYN, seq=0)
    assert segment.options == {2: (1460).to_bytes(2, "big"), 3: b"\x07", 4: b""}
    assert not stream.reading
    tcp.sends(SYN | ACK, seq=100, options=tcp.syn_options(1460, 7))
    tcp.sees(ACK, seq=1, ack=101)
    assert stream.reading
    assert world.counters.tcp_opened == 1
    stream.gets(b"GET /")
    tcp.sees(ACK | PSH, b"GET /", seq=1, ack=101)
    tcp.sends(ACK | PSH, b"200")
    tcp.sees(ACK, ack=104)
    assert stream.taken == b"200"


def test_what_the_client_sent_early_follows_the_handshake(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called()
    stream.gets(b"hello")
    stream.ends()
    tcp.sees(SYN)
    tcp.sees_nothing()
    tcp.sends(SYN | ACK)
    tcp.sees(ACK | PSH | FIN, b"hello", seq=1, ack=101)  # carries the handshake's last ACK


def test_nobody_listens_in_the_guest(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called()
    tcp.sees(SYN)
    tcp.sends(RST | ACK, seq=0)
    assert stream.aborted
    assert world.counters.tcp_resets_from_guest == 1
    assert world.interface.flow_counts()["tcp"] == 0


def test_a_lost_syn_to_the_guest(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called()
    first = tcp.sees(SYN, seq=0)
    waits = []
    for _ in range(world.limits.syn_retries):
        waits.append(world.jump())
        assert tcp.sees(SYN, seq=0).options == first.options
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    world.jump()
    tcp.sees(RST, seq=1)
    assert stream.aborted


@pytest.mark.parametrize("ack", [0, 2, 99])
def test_an_unacceptable_ack_in_syn_sent_is_reset(world: World, guest: Guest, ack: int) -> None:
    """RFC 9293 §3.10.7.3, first: the guest may hold an old connection of the same name."""
    tcp, stream = guest.is_called()
    tcp.sees(SYN)
    tcp.sends(ACK, seq=7000, ack=ack)
    assert tcp.sees(RST).seq == ack
    assert not stream.closed
    tcp.sends(RST | ACK, seq=7000, ack=ack)
    tcp.sees_nothing()
    assert not stream.closed, "a reset with an unacceptable ACK is dropped"
    world.jump()
    tcp.sees(SYN)


def test_after_an_old_incarnations_ack_the_syn_comes_again_at_once(world: World, guest: Guest) -> None:
    """The guest is in TIME-WAIT of the same name: our RST frees it, and no client should wait a second for that."""
    tcp, _ = guest.is_called()
    tcp.sees(SYN)
    tcp.sends(ACK, seq=7000, ack=5)
    tcp.sees(RST)
    assert world.jump() <= 0.01
    tcp.sees(SYN, seq=0)
    tcp.sends(ACK, seq=7000, ack=5)
    tcp.sees(RST)
    assert world.jump() >= 1, "but only once"
    tcp.sees(SYN, seq=0)


def test_segments_without_meaning_in_syn_sent_are_dropped(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called()
    tcp.sees(SYN)
    for flags in (0, RST, FIN, SYN, PSH):
        tcp.sends(flags, seq=100)
    tcp.sends(ACK, ack=1, seq=100)
    tcp.sees_nothing()
    assert not stream.closed
    tcp.seq = 100
    tcp.sends(SYN | ACK, ack=1)
    tcp.sees(ACK, seq=1, ack=101)


def test_the_host_resets_while_the_guest_is_asked(world: World, guest: Guest) -> None:
    tcp, stream = guest.is_called()
    tcp.sees(SYN)
    stream.resets()
    tcp.sees(RST, seq=1)
    assert stream.closed
    assert world.interface.flow_counts()["tcp"] == 0


def test_another_port_where_the_name_is_taken(world: World, guest: Guest) -> None:
    guest.accepts(WEB, 6000, 80)
    stream = world.host.new_stream(None)
    connection = world.interface.tcp.open_to_guest(guest.cast.real(WEB), 6000, guest.address, 80, stream, world.now)
    assert connection is not None
    stream.connection = connection
    sent = guest.next()
    assert int.from_bytes(sent.data[0:2], "big") == 61000
    assert int.from_bytes(sent.data[2:4], "big") == 80
