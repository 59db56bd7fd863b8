"""UDP flows (RFC 768; RFC 4787 for the behaviour of the mapping)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wire import oracle

from netd.stack.limits import Limits
from netd.stack.ports import ADMIN_PROHIBITED, HOST_UNREACHABLE, PORT_UNREACHABLE

from .guest import Guest
from .host import FakeListener
from .world import ADDRESSING, DNS, DNS_MAC, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, WEB, World, ip

LOOPBACK = ip("127.0.0.1")
OTHER = ip("198.51.100.7")


def test_out_and_back(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 4433, b"ping")
    (socket,) = world.host.sockets
    assert socket.sent == [(WEB, 4433, b"ping")]
    socket.gets(WEB, 4433, b"pong")
    guest.sees_udp(WEB, 4433, b"pong")
    assert world.counters.udp_opened == 1


@pytest.mark.parametrize("payload", [b"", b"x", b"xy", b"\xff" * 1471, b"x" * 1472], ids=len)
@pytest.mark.parametrize("offload", [True, False])
def test_every_length_with_and_without_offload(payload: bytes, offload: bool) -> None:
    world = World(offload=offload)
    guest = Guest(world)
    guest.sends_udp(WEB, 9, payload)
    (socket,) = world.host.sockets
    assert socket.sent == [(WEB, 9, payload)]
    socket.gets(WEB, 9, payload)
    sent = guest.sees_udp(WEB, 9, payload)
    assert sent.data[6:8] != b"\x00\x00", "a checksum is there (RFC 1122 §4.1.3.4)"
    world.ends()


def test_a_sum_of_zero_is_sent_as_all_ones(plain: Guest) -> None:
    """RFC 768: an all zero checksum means that there is none."""
    plain.sends_udp(WEB, 9, b"")
    (socket,) = plain.world.host.sockets
    base = oracle.udp(plain.cast.real(WEB), plain.address, 9, 5000, b"\x00\x00")
    missing = int.from_bytes(base[6:8], "big")
    socket.gets(WEB, 9, missing.to_bytes(2, "big"))
    sent = plain.sees_udp(WEB, 9, missing.to_bytes(2, "big"))
    assert sent.data[6:8] == b"\xff\xff"


def test_a_flow_follows_a_guest_that_changed_its_mac(world: World, guest: Guest) -> None:
    """A flow outlives the device it came by: what is sent later goes to the new one."""
    guest.sends_udp(WEB, 1, b"a")
    (socket,) = world.host.sockets
    socket.gets(WEB, 1, b"b")
    guest.sees_udp(WEB, 1, b"b")
    guest.mac = b"\x02\x00\x00\x00\x00\xc8"
    guest.sends_udp(WEB, 2, b"c")  # a new flow: its frame teaches the MAC
    socket.gets(WEB, 1, b"d")
    guest.sees_udp(WEB, 1, b"d")


def test_a_client_heard_before_the_guest_has_spoken(family: int) -> None:
    """Its frames are broadcast until there is somebody to send them to."""
    world = World(family=family, addressing=replace(ADDRESSING, guest_mac=b"\xff" * 6))
    guest = Guest(world)
    listener = FakeListener(world, GUEST, 5000)
    listener.gets(WEB, 999, b"hello")
    assert world.sent.popleft().frame[:6] == b"\xff" * 6
    guest.sends_udp(WEB, 1, b"x")
    listener.gets(WEB, 999, b"again")
    guest.sees_udp(WEB, 999, b"again")
    world.ends()


def test_one_host_port_for_all_peers_of_an_endpoint(world: World, guest: Guest) -> None:
    """RFC 4787 REQ-1: endpoint-independent mapping."""
    guest.sends_udp(WEB, 1, b"a")
    guest.sends_udp(OTHER, 2, b"b")
    guest.sends_udp(WEB, 1, b"c", sport=5001)
    first, second = world.host.sockets
    assert first.sent == [(WEB, 1, b"a"), (OTHER, 2, b"b")]
    assert second.sent == [(WEB, 1, b"c")]
    assert world.interface.flow_counts()["udp"] == 3


def test_whoever_answers_reaches_the_guest(world: World, guest: Guest) -> None:
    """RFC 4787 REQ-8: endpoint-independent filtering; and the answer to a stranger goes by the same port."""
    guest.sends_udp(WEB, 1, b"a")
    (socket,) = world.host.sockets
    socket.gets(OTHER, 777, b"hole punched")
    guest.sees_udp(OTHER, 777, b"hole punched")
    guest.sends_udp(OTHER, 777, b"answer")
    assert socket.sent[-1] == (OTHER, 777, b"answer")
    assert len(world.host.sockets) == 1
    assert world.interface.flow_counts()["udp"] == 2


def test_loopback_is_the_gateway_where_it_is_allowed() -> None:
    world = World(loopback=True)
    guest = Guest(world)
    guest.sends_udp(GATEWAY, 111, b"rpc")
    (socket,) = world.host.sockets
    assert socket.sent == [(LOOPBACK, 111, b"rpc")]
    socket.gets(LOOPBACK, 111, b"answer")
    guest.sees_udp(GATEWAY, 111, b"answer")
    socket.learns(LOOPBACK, 111, PORT_UNREACHABLE)
    guest.sees_unreachable(PORT_UNREACHABLE, GATEWAY, 17, GATEWAY)
    world.ends()


def test_loopback_where_it_is_not(world: World, guest: Guest) -> None:
    guest.sends_udp(GATEWAY, 111, b"rpc")
    guest.sees_unreachable(0, GATEWAY, 17, GATEWAY)
    assert not world.host.sockets
    guest.sends_udp(WEB, 1, b"a")
    world.host.sockets[0].gets(LOOPBACK, 111, b"a process of the host's")
    world.host.sockets[0].learns(LOOPBACK, 111, PORT_UNREACHABLE)
    guest.sees_nothing()
    assert world.counters.drop_udp_host == 1


def test_a_peer_with_an_address_of_the_guests_link_is_the_gateway(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 1, b"a")
    (socket,) = world.host.sockets
    socket.gets(ip("10.0.2.77"), 9, b"lan")
    guest.sees_udp(GATEWAY, 9, b"lan")


@pytest.mark.parametrize(
    ("dst", "port", "code"), [(GATEWAY, 53, 0), (DNS, 54, 0), (ip("10.0.2.9"), 9, 1)], ids=["gateway", "dns", "link"]
)
def test_where_policy_refuses_the_guest_is_told(world: World, guest: Guest, dst: bytes, port: int, code: int) -> None:
    guest.sends_udp(dst, port, b"hello", sport=4000)
    quoted = guest.sees_unreachable(code, GATEWAY, 17, dst)
    assert quoted[:4] == (4000).to_bytes(2, "big") + port.to_bytes(2, "big")
    assert not world.host.sockets


@pytest.mark.ipv4
@pytest.mark.parametrize(
    ("dst", "counter"),
    [
        ("224.0.0.251", "drop_group"),
        ("239.255.255.250", "drop_group"),
        ("255.255.255.255", "drop_group"),
        ("10.0.2.255", "drop_martian"),
        ("127.0.0.1", "drop_martian"),
        ("0.0.0.0", "drop_martian"),
    ],
)
def test_groups_and_martians_are_dropped_in_silence(world: World, guest: Guest, dst: str, counter: str) -> None:
    """RFC 1122 §3.2.2: no ICMP error for a broadcast."""
    guest.sends_udp(ip(dst), 5353, b"hello")
    guest.sees_nothing()
    assert getattr(world.counters, counter) == 1


def test_dns_is_the_resolvers(world: World, guest: Guest) -> None:
    guest.sends_udp(DNS, 53, b"query")
    ((flow, query),) = world.host.queries
    assert query == b"query"
    flow.to_guest(b"answer")
    guest.sees_udp(DNS, 53, b"answer")
    assert not world.host.sockets
    world.passes(world.limits.udp_idle_dns)
    assert world.interface.flow_counts()["udp"] == 0
    flow.to_guest(b"too late, and harmless")
    guest.sees_udp(DNS, 53, b"too late, and harmless")


# -- time --------------------------------------------------------------------------------------------------------------


def test_an_idle_flow_ends(world: World, guest: Guest) -> None:
    """RFC 4787 REQ-5: not before two minutes."""
    guest.sends_udp(WEB, 1, b"a")
    (socket,) = world.host.sockets
    assert world.limits.udp_idle >= 120
    world.passes(world.limits.udp_idle - 1)
    assert not socket.closed
    world.passes(1)
    assert socket.closed
    guest.sends_udp(WEB, 1, b"b")
    assert len(world.host.sockets) == 2


@pytest.mark.parametrize("way", ["out", "in"])
def test_traffic_of_either_way_keeps_it(world: World, guest: Guest, way: str) -> None:
    """RFC 4787 REQ-6 asks for outbound refresh; inbound may."""
    guest.sends_udp(WEB, 1, b"a")
    (socket,) = world.host.sockets
    for _ in range(20):
        world.passes(world.limits.udp_idle - 1)
        if way == "out":
            guest.sends_udp(WEB, 1, b"a")
        else:
            socket.gets(WEB, 1, b"a")
            guest.sees_udp(WEB, 1, b"a")
    assert not socket.closed
    assert len(world.interface.timers) == 1
    world.passes(world.limits.udp_idle)
    assert socket.closed


def test_a_flow_to_port_53_is_short(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 53, b"a")
    world.passes(world.limits.udp_idle_dns)
    assert world.host.sockets[0].closed


def test_the_socket_lives_as_long_as_one_of_its_flows(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 1, b"a")
    guest.sends_udp(WEB, 53, b"b")
    (socket,) = world.host.sockets
    world.passes(world.limits.udp_idle_dns)
    assert not socket.closed and len(socket.flows) == 1
    world.passes(world.limits.udp_idle)
    assert socket.closed


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_the_oldest_flow_makes_room() -> None:
    world = World(limits=Limits(udp_flows=3))
    guest = Guest(world)
    for n in range(5):
        guest.sends_udp(WEB, 1, b"a", sport=1000 + n)
    assert [s.closed for s in world.host.sockets] == [True, True, False, False, False]
    assert world.counters.udp_evicted == 2
    world.ends()


def test_an_endpoint_at_the_bound_keeps_its_socket() -> None:
    """Its own oldest flow makes room: its port, and what works by it, stays (RFC 4787 REQ-1)."""
    world = World(limits=Limits(udp_flows=1))
    guest = Guest(world)
    guest.sends_udp(WEB, 1, b"a")
    (socket,) = world.host.sockets
    guest.sends_udp(OTHER, 2, b"b")
    assert world.host.sockets == [socket] and not socket.closed
    socket.gets(ip("203.0.113.9"), 3, b"stranger")
    guest.sees_udp(ip("203.0.113.9"), 3, b"stranger")
    guest.sends_udp(ip("203.0.113.9"), 3, b"answer")
    assert socket.sent[-1] == (ip("203.0.113.9"), 3, b"answer")
    assert world.counters.udp_evicted == 2
    world.ends()


def test_a_flood_of_flows_leaves_nothing_behind() -> None:
    """Evicted flows must not wait in the timers until they would have expired."""
    world = World(limits=Limits(udp_flows=64))
    guest = Guest(world)
    for n in range(4000):
        guest.sends_udp(WEB, 1 + n, b"a", sport=1000)
    assert world.interface.flow_counts()["udp"] == 64
    assert len(world.interface.timers) <= 1100
    world.ends()


def test_a_socket_that_cannot_be_opened(world: World, guest: Guest) -> None:
    world.host.no_datagrams = True
    guest.sends_udp(WEB, 1, b"a")
    guest.sees_unreachable(ADMIN_PROHIBITED, GATEWAY, 17, WEB)
    assert world.counters.drop_udp_host == 1
    assert world.interface.flow_counts()["udp"] == 0


def test_too_big_for_the_link_comes_in_fragments(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 1, b"a")
    payload = bytes(range(256)) * 234
    world.host.sockets[0].gets(WEB, 1, payload)
    datagram = guest.sees_fragments()
    assert datagram[4:6] == (len(payload) + 8).to_bytes(2, "big") and datagram[8:] == payload
    assert guest.sums(WEB, datagram, 17)


def test_too_big_for_ip(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 1, b"a")
    world.host.sockets[0].gets(WEB, 1, b"x" * 65528)
    guest.sees_nothing()
    assert world.counters.drop_too_big == 1


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_host_error_reaches_the_flow_it_is_about(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 7, b"a", sport=1234)
    guest.sends_udp(OTHER, 8, b"b", sport=1234)
    (socket,) = world.host.sockets
    socket.learns(OTHER, 8, HOST_UNREACHABLE)
    quoted = guest.sees_unreachable(HOST_UNREACHABLE, GATEWAY, 17, OTHER)
    assert quoted[:4] == (1234).to_bytes(2, "big") + (8).to_bytes(2, "big")
    socket.learns(OTHER, 9, HOST_UNREACHABLE)
    guest.sees_nothing()


def test_a_refusal_on_sending(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 7, b"a", sport=1234)
    (flow,) = world.interface.udp.flows.values()
    flow.refused(world.host.error(3, PORT_UNREACHABLE))
    guest.sees_unreachable(PORT_UNREACHABLE, GATEWAY, 17, WEB)


@pytest.mark.parametrize("length", [0, 7, 13, 65535])
def test_a_length_that_is_not_true(world: World, guest: Guest, length: int) -> None:
    datagram = bytearray(oracle.udp(GUEST, WEB, 1, 2, b"hell"))
    datagram[4:6] = length.to_bytes(2, "big")
    guest.sends_ip(WEB, 17, bytes(datagram))
    guest.sees_nothing()
    assert world.counters.drop_bad_header == 1
    assert not world.host.sockets


def test_a_length_shorter_than_the_packet_is_what_counts(world: World, guest: Guest) -> None:
    guest.sends_ip(WEB, 17, oracle.udp(GUEST, WEB, 1, 2, b"hello") + b"trailer")
    assert world.host.sockets[0].sent == [(WEB, 2, b"hello")]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7])
def test_less_than_a_header(world: World, guest: Guest, size: int) -> None:
    guest.sends_ip(WEB, 17, bytes(size))
    assert world.counters.drop_short == 1


def test_checksums_in_software(plain: Guest) -> None:
    world = plain.world
    good = plain.datagram(WEB, 2, b"hello", 1)
    bad = good[:-1] + b"\x00"
    plain.sends_ip(WEB, 17, bad)
    assert world.counters.drop_bad_checksum == 1 and not world.host.sockets
    plain.sends_ip(WEB, 17, plain.datagram(WEB, 2, b"hello", 1, summed=False))
    plain.sends_ip(WEB, 17, good)
    both = plain.cast.family == 4  # RFC 8200 §8.1: in IPv6 it is not optional
    assert world.host.sockets[0].sent == [(WEB, 2, b"hello")] * (2 if both else 1)
    assert world.counters.drop_bad_checksum == (1 if both else 2)


def test_a_vouched_checksum_is_not_looked_at(world: World, guest: Guest) -> None:
    datagram = oracle.udp(GUEST, WEB, 1, 2, b"hello")
    guest.sends_ip(WEB, 17, datagram[:6] + b"\x12\x34" + datagram[8:])
    assert world.host.sockets[0].sent == [(WEB, 2, b"hello")]


@pytest.mark.ipv4
def test_ip_options_are_stepped_over(world: World, guest: Guest) -> None:
    guest.sends_ip(WEB, 17, oracle.udp(GUEST, WEB, 5000, 2, b"hello"), options=b"\x01" * 40)
    world.host.sockets[0].gets(WEB, 2, b"answer")
    guest.sees_udp(WEB, 2, b"answer")


# -- published ports ---------------------------------------------------------------------------------------------------


def test_a_client_of_a_published_port(world: World, guest: Guest) -> None:
    listener = FakeListener(world, GUEST, 5000)
    listener.gets(WEB, 999, b"hello")
    guest.sees_udp(WEB, 999, b"hello")
    guest.sends_udp(WEB, 999, b"answer")
    assert listener.sent == [(WEB, 999, b"answer")]
    assert not world.host.sockets


@pytest.mark.parametrize("client", [LOOPBACK, ip("10.0.2.99")])
def test_a_client_that_could_not_be_answered_appears_as_the_gateway(world: World, guest: Guest, client: bytes) -> None:
    """Publishing is the owner's word: it does not need host loopback to be allowed."""
    listener = FakeListener(world, GUEST, 5000)
    listener.gets(client, 999, b"hello")
    guest.sees_udp(GATEWAY, 999, b"hello")
    guest.sends_udp(GATEWAY, 999, b"answer")
    assert listener.sent == [(client, 999, b"answer")]


@pytest.mark.ipv4
def test_two_clients_that_look_alike_get_names_of_their_own(world: World, guest: Guest) -> None:
    listener = FakeListener(world, GUEST, 5000)
    first = listener.gets(LOOPBACK, 999, b"one")
    guest.sees_udp(GATEWAY, 999, b"one")
    second = listener.gets(ip("127.0.0.2"), 999, b"two")
    guest.sees_udp(GATEWAY, 61000, b"two")
    assert listener.gets(LOOPBACK, 999, b"one") is first
    guest.sees_udp(GATEWAY, 999, b"one")
    guest.sends_udp(GATEWAY, 61000, b"answer")
    assert listener.sent == [(ip("127.0.0.2"), 999, b"answer")]
    assert second.target == ip("127.0.0.2")


def test_a_flow_of_the_guests_own_is_not_taken_over_by_a_client(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 999, b"mine")
    listener = FakeListener(world, GUEST, 5000)
    listener.gets(WEB, 999, b"published")
    guest.sees_udp(WEB, 61000, b"published")
    world.host.sockets[0].gets(WEB, 999, b"mine")
    guest.sees_udp(WEB, 999, b"mine")


def test_when_every_name_is_taken_one_changes_hands() -> None:
    """Nobody's answers may reach another client."""
    world = World(limits=Limits(udp_flows=10_000))
    listener = FakeListener(world, GUEST, 5000)
    for n in range(1 + 65535 - 61000):
        world.interface.udp.from_forward(GUEST, 5000, bytes((127, 1, n >> 8, n & 255)), 61000 + n, listener, world.now)
    world.interface.udp.from_forward(GUEST, 5000, ip("127.0.0.1"), 999, listener, world.now)
    before = len(listener.flows)
    flow = world.interface.udp.from_forward(GUEST, 5000, ip("127.0.0.2"), 999, listener, world.now)
    assert (flow.target, flow.target_port) == (ip("127.0.0.2"), 999)
    assert len(listener.flows) == before
    world.ends()


def test_the_end_of_a_flow_comes_once(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 1, b"a")
    guest.sends_echo(WEB, 1, 1)
    (flow,) = world.interface.udp.flows.values()
    (echo,) = world.interface.icmp.flows.values()
    for owner in (flow, flow, echo, echo):
        owner.on_deadline(world.now)
    assert world.host.sockets[0].closed and world.host.echoes[0].closed
    assert world.interface.flow_counts() == {"tcp": 0, "udp": 0, "icmp": 0}


def test_a_clients_flow_expires(world: World, guest: Guest) -> None:
    listener = FakeListener(world, GUEST, 5000)
    listener.gets(WEB, 999, b"hello")
    guest.sees_udp(WEB, 999, b"hello")
    world.passes(world.limits.udp_idle)
    assert not listener.flows
    assert world.interface.flow_counts()["udp"] == 0


def test_frames_carry_the_macs_of_who_speaks(world: World, guest: Guest) -> None:
    guest.sends_udp(DNS, 53, b"q")
    world.host.queries[0][0].to_guest(b"a")
    assert world.sent[0].frame[:12] == GUEST_MAC + DNS_MAC
    guest.sees_udp(DNS, 53, b"a")
    guest.sends_udp(WEB, 9, b"q")
    world.host.sockets[0].gets(WEB, 9, b"a")
    assert world.sent[0].frame[:12] == GUEST_MAC + GATEWAY_MAC
    guest.sees_udp(WEB, 9, b"a")
