"""IPv6 (RFC 8200): headers that cannot be, extension headers, destinations that nobody may reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import oracle
from wire.oracle import ACK, FIN, SYN
from wire.prop import quick

from .guest import Guest
from .test_interface import drops
from .world import DNS6, GATEWAY, GATEWAY6, GATEWAY_MAC, GUEST6, GUEST_MAC, ROUTER6, WEB, WEB6, World, ip, ip6

pytestmark = pytest.mark.ipv6

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, NONE = 0, 43, 44, 60, 59


def extension(following: int, size: int = 8) -> bytes:
    """One extension header of ``size`` bytes, filled with Pad1; as a routing header it has no segments left."""
    return bytes((following, size // 8 - 1)) + bytes(size - 2)


def chain(kinds: list[int], last: int, size: int = 8) -> tuple[int, bytes]:
    """(the first next header, the headers) of a chain before ``last``."""
    following = [*kinds, last]
    return following[0], b"".join(extension(after, size) for after in following[1:])


def receive(world: World, packet: bytes) -> None:
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x86DD, packet))


# -- the header --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 14, 34, 53])
def test_less_than_a_header(world: World, size: int) -> None:
    receive_ = oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x86DD, oracle.ip6(GUEST6, WEB6, NONE, b""))[:size]
    world.receive(receive_)
    assert drops(world) == {"drop_short": 1}


@pytest.mark.parametrize("version", [0, 4, 5, 7, 15])
def test_other_versions(world: World, version: int) -> None:
    packet = bytearray(oracle.ip6(GUEST6, WEB6, 17, oracle.udp(GUEST6, WEB6, 1, 2, b"x")))
    packet[0] = version << 4
    receive(world, bytes(packet))
    assert drops(world) == {"drop_bad_header": 1}


def test_a_length_beyond_the_frame(world: World, guest: Guest) -> None:
    guest.sends_ip(WEB, 17, guest.datagram(WEB, 2, b"x"), length=10)
    assert drops(world) == {"drop_bad_header": 1}


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 7])
def test_layer_4_cut_short_is_not_found_in_what_lies_behind(
    world: World, guest: Guest, protocol: int, size: int
) -> None:
    """The ports may not be read from beyond the packet's end."""
    guest.sends_ip(WEB, protocol, guest.datagram(WEB, 2, b"x" * 20), length=size)
    assert drops(world) == {"drop_short": 1}
    assert not world.host.sockets and not world.host.streams


@quick
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, (1 << 20) - 1), st.binary(max_size=50))
def test_the_traffic_class_and_the_hop_limit_are_carried(hops: int, tos: int, label: int, payload: bytes) -> None:
    world = World(family=6)
    guest = Guest(world)
    packet = bytearray(guest.frame(WEB, 17, guest.datagram(WEB, 2, payload), ttl=hops, tos=tos))
    packet[15] |= label >> 16
    packet[16:18] = (label & 0xFFFF).to_bytes(2, "big")
    world.receive(bytes(packet))
    (socket,) = world.host.sockets
    assert socket.sent == [(WEB, 2, payload)] and socket.hops == [hops << 8 | tos]
    world.ends()


# -- extension headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("size", [8, 16, 264])
def test_extension_headers_are_walked(world: World, guest: Guest, count: int, size: int) -> None:
    kinds = [HOP_BY_HOP, DESTINATION, ROUTING, DESTINATION, DESTINATION, DESTINATION, DESTINATION, DESTINATION]
    first, headers = chain(kinds[:count], 17, size)
    guest.sends_ip(WEB, first, guest.datagram(WEB, 2, b"hello"), extensions=headers)
    assert world.host.sockets[0].sent == [(WEB, 2, b"hello")]
    assert not drops(world)


def test_a_connection_behind_extension_headers_is_the_same_one(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(port=4000)
    segment = oracle.tcp(GUEST6, WEB6, 4000, 80, 101, (tcp.iss + 1) & 0xFFFFFFFF, 0x18, 100, b"hello")
    first, headers = chain([DESTINATION], 6)
    guest.sends_ip(WEB, first, segment, extensions=headers)
    tcp.sent_up_to = 106
    tcp.sees(0x10, ack=106)
    assert stream.taken == b"hello"


@pytest.mark.parametrize("count", [9, 10, 200])
def test_no_more_than_so_many(world: World, guest: Guest, count: int) -> None:
    first, headers = chain([DESTINATION] * count, 17)
    guest.sends_ip(WEB, first, guest.datagram(WEB, 2, b"hello"), extensions=headers)
    assert drops(world) == {"drop_bad_header": 1}


@pytest.mark.parametrize("size", range(8))
def test_an_extension_header_cut_off(world: World, guest: Guest, size: int) -> None:
    guest.sends_ip(WEB, DESTINATION, extension(17)[:size])
    assert drops(world) == {"drop_bad_header": 1}


def test_an_extension_header_longer_than_the_packet(world: World, guest: Guest) -> None:
    guest.sends_ip(WEB, DESTINATION, extension(17, 64)[:63])
    assert drops(world) == {"drop_bad_header": 1}


def test_no_next_header(world: World, guest: Guest) -> None:
    """RFC 8200 §4.7: nothing follows, and nothing is said."""
    guest.sends_ip(WEB, NONE, b"whatever")
    assert drops(world) == {"drop_protocol": 1}


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("protocol", [1, 2, 41, 47, 50, 51, 132, 135, 255])
def test_an_unrecognized_next_header(world: World, guest: Guest, protocol: int, count: int) -> None:
    """RFC 8200 §4, RFC 4443 §3.4: the pointer is of the field that names it."""
    first, headers = chain([DESTINATION] * count, protocol)
    guest.sends_ip(WEB, first, b"x" * 30, extensions=headers)
    sent = guest.next()
    assert sent.packet is not None and (sent.packet.src, sent.packet.dst) == (GATEWAY6, GUEST6)
    type_, code, rest, quote = oracle.read_icmp(sent.packet)
    assert (type_, code) == (4, 1)
    pointer = int.from_bytes(rest, "big")
    assert quote[pointer] == protocol and pointer == (6 if not count else 40 + 8 * (count - 1))
    assert quote == oracle.ip6(GUEST6, WEB6, first, b"x" * 30, extensions=headers)
    assert drops(world) == {"drop_protocol": 1}


@pytest.mark.parametrize("kind", [0, 2, 4, 255])
@pytest.mark.parametrize("count", [0, 1])
def test_a_routing_header_with_segments_left(world: World, guest: Guest, kind: int, count: int) -> None:
    """RFC 8200 §4.4, RFC 5095: nobody routes for the guest; the pointer is of the routing type."""
    first, headers = chain([HOP_BY_HOP] * count + [ROUTING], 17)
    routing = bytes((17, 2, kind, 1)) + bytes(4) + WEB6
    headers = headers[:-8] + routing
    guest.sends_ip(WEB, first, guest.datagram(WEB, 2, b"x"), extensions=headers)
    sent = guest.next()
    assert sent.packet is not None
    type_, code, rest, _ = oracle.read_icmp(sent.packet)
    assert (type_, code, int.from_bytes(rest, "big")) == (4, 0, 40 + 8 * count + 2)
    assert drops(world) == {"drop_protocol": 1}
    assert not world.host.sockets


def test_an_error_is_no_larger_than_the_smallest_mtu(world: World, guest: Guest) -> None:
    """RFC 4443 §2.4 (c)."""
    guest.sends_ip(WEB, 132, bytes(1400))
    sent = guest.next()
    assert sent.packet is not None and sent.packet.fragment is None
    assert len(sent.packet.payload) + 40 == 1280


@pytest.mark.parametrize("src", ["::", "2001:db8::1", "ff02::1", "fd00::2", "::1"])
def test_an_unrecognized_header_of_somebody_else_has_one_reason(world: World, guest: Guest, src: str) -> None:
    guest.sends_ip(WEB, 132, bytes(20), src=ip6(src))
    assert len(drops(world)) == 1 and sum(drops(world).values()) == 1
    guest.sees_nothing()


def test_no_error_for_a_group(world: World, guest: Guest) -> None:
    """RFC 4443 §2.4 (e.3)."""
    guest.sends_ip(ip6("ff02::1"), 132, bytes(20))
    guest.sees_nothing()
    assert drops(world) == {"drop_protocol": 1}


# -- destinations ------------------------------------------------------------------------------------------------------

NOWHERE = ["::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0.0.0.0", "::2", "::ffff:ffff"]


def address(text: str) -> bytes:
    if "." not in text:
        return ip6(text)
    head, _, tail = text.rpartition(":")
    return ip6(head + ":0:0" if head != ":" else "::0:0")[:12] + ip(tail)


@pytest.mark.parametrize("loopback", [False, True])
@pytest.mark.parametrize("dst", NOWHERE)
def test_ipv4_in_ipv6s_clothes_and_loopback_never_reach_the_host(dst: str, loopback: bool) -> None:
    """A host's socket would take ::ffff:127.0.0.1 for its own loopback."""
    world = World(family=6, loopback=loopback)
    guest = Guest(world)
    target = address(dst)
    assert len(target) == 16
    guest.sends_udp(target, 80, b"x")
    for flags in (SYN, ACK, FIN):
        guest.sends_ip(target, 6, oracle.tcp(GUEST6, target, 1, 80, 1, 0, flags, 100))
    guest.sends_echo(target, 1, 1)
    assert drops(world) == {"drop_martian": 5}
    assert not world.host.sockets and not world.host.streams and not world.host.echoes
    guest.sees_nothing()
    world.ends()


@pytest.mark.parametrize("dst", ["ff02::1", "ff02::fb", "ff05::2", "ff0e::1234", "ff02::1:2", "ff02::1:ff00:2"])
def test_groups_are_dropped_in_silence(world: World, guest: Guest, dst: str) -> None:
    target = ip6(dst)
    guest.sends_udp(target, 5353, b"x")
    assert drops(world) == {"drop_group": 1}
    for flags in (SYN, ACK, FIN):
        guest.sends_ip(target, 6, oracle.tcp(GUEST6, target, 1, 80, 1, 0, flags, 100))
    assert drops(world) == {"drop_group": 1, "drop_martian": 3}
    guest.sees_nothing()


@pytest.mark.parametrize("dst", ["fe80::1", "febf::1", "fd00::77", "fd00::ffff:ffff:ffff:ffff"])
def test_nobody_else_is_on_the_link(world: World, guest: Guest, dst: str) -> None:
    target = ip6(dst)
    guest.sends_udp(target, 80, b"x", sport=4000)
    assert guest.sees_unreachable(1, GATEWAY, 17, target)[:4] == (4000).to_bytes(2, "big") + b"\x00\x50"
    guest.sends_ip(target, 6, oracle.tcp(GUEST6, target, 1, 80, 1, 0, SYN, 100))
    guest.sees_unreachable(1, GATEWAY, 6, target)
    guest.sends_echo(target, 1, 1)
    guest.sees_unreachable(1, GATEWAY, 1, target)
    assert not world.host.sockets and not world.host.streams and not world.host.echoes


def test_loopback_is_the_gateway_where_it_is_allowed() -> None:
    world = World(family=6, loopback=True)
    guest = Guest(world)
    guest.sends_udp(GATEWAY, 80, b"x")
    assert world.host.sockets[0].sent == [(ip("127.0.0.1"), 80, b"x")]
    world.host.sockets[0].gets(ip("127.0.0.1"), 80, b"y")
    guest.sees_udp(GATEWAY, 80, b"y")
    world.ends()


@pytest.mark.parametrize("dst", [GATEWAY6, DNS6, ROUTER6], ids=["gateway", "dns", "router"])
def test_our_own_addresses_answer_echo(world: World, guest: Guest, dst: bytes) -> None:
    guest.sends_echo(dst, 7, 9, b"payload")
    assert guest.sees_icmp(0, 0, dst) == (b"\x00\x07\x00\x09", b"payload")


def test_all_nodes_answer_from_the_router(world: World, guest: Guest) -> None:
    """RFC 4443 §4.2: a unicast address of the interface."""
    guest.sends_echo(ip6("ff02::1"), 7, 9, b"payload")
    assert guest.sees_icmp(0, 0, ROUTER6) == (b"\x00\x07\x00\x09", b"payload")


@pytest.mark.parametrize("src", ["::", "::1", "2001:db8::1", "fd01::1", "ff02::1", "fd00::2", "fd00::3", "fe80::2"])
@pytest.mark.parametrize("protocol", [6, 17, 58])
def test_sources_that_are_not_the_guests(world: World, guest: Guest, src: str, protocol: int) -> None:
    source = ip6(src)
    payload = {
        6: oracle.tcp(source, WEB6, 1, 2, 3, 0, SYN, 100),
        17: oracle.udp(source, WEB6, 1, 2, b"x"),
        58: oracle.icmp6(source, WEB6, 128, 0, bytes(4), b"x"),
    }[protocol]
    guest.sends_ip(WEB, protocol, payload, src=source)
    assert drops(world) == {"drop_martian": 1}
    assert not world.host.streams and not world.host.sockets and not world.host.echoes
    assert len(world.interface.neighbors) == 0


def test_a_link_local_source_is_the_guests(world: World) -> None:
    other = Guest(world, ip6("fe80::64"), b"\x02\x00\x00\x00\x00\xc8")
    other.sends_udp(WEB, 1, b"x")
    world.host.sockets[0].gets(WEB, 1, b"y")
    other.sees_udp(WEB, 1, b"y")


# -- ICMPv6 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("type_", "code"), [(129, 0), (1, 4), (2, 0), (3, 1), (4, 1), (128, 1), (143, 0), (255, 9)])
def test_other_messages_are_counted(world: World, guest: Guest, type_: int, code: int) -> None:
    guest.sends_ip(GATEWAY, 58, guest.icmp(GATEWAY, type_, code, bytes(4), bytes(48)))
    guest.sees_nothing()
    assert drops(world) == {"drop_icmp": 1}


def test_a_multicast_listener_report_is_heard_in_silence(world: World, guest: Guest) -> None:
    """RFC 3810: behind a hop-by-hop header with a router alert."""
    group = ip6("ff02::16")
    alert = bytes((58, 0, 5, 2, 0, 0, 1, 0))
    guest.sends_ip(group, HOP_BY_HOP, guest.icmp(group, 143, 0, bytes(4), bytes(20)), extensions=alert, ttl=1)
    guest.sees_nothing()
    assert drops(world) == {"drop_icmp": 1}
