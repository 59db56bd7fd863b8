"""What goes to the guest besides the bulk of a flow: fragments, super-frames, errors, and answers to DHCP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import oracle
from wire.prop import quick

from netd.stack.ports import ADMIN_PROHIBITED, HOST_UNREACHABLE, NET_UNREACHABLE, PORT_UNREACHABLE

from .guest import Guest
from .test_interface import drops
from .world import DNS, GATEWAY, GATEWAY6, GUEST, GUEST6, GUEST_MAC, ROUTER6, WEB, World, ip, ip6

PORT = 4433
ROUTER = ip("198.51.100.1")


def payload(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# -- fragments ---------------------------------------------------------------------------------------------------------


@quick
@given(
    st.sampled_from([4, 6]),
    st.sampled_from([576, 1280, 1500, 9000, 65520]),
    st.integers(0, 65527) | st.integers(1200, 1600),
    st.integers(0, 255),
)
def test_every_size_arrives_whole(family: int, mtu: int, size: int, tos: int) -> None:
    world = World(family=family, mtu=mtu)
    guest = Guest(world)
    guest.sends_udp(WEB, PORT, b"x")
    data = payload(min(size, 65507) if family == 4 else size)
    world.host.sockets[0].gets(WEB, PORT, data, tos=tos)
    header = 20 if family == 4 else 40
    assert all(s.packet is not None and s.packet.tos == tos and s.packet.ttl == 64 for s in world.sent)
    if header + 8 + len(data) <= mtu:
        guest.sees_udp(WEB, PORT, data)
    else:
        idents = {s.packet.fragment[0] for s in world.sent if s.packet is not None and s.packet.fragment}
        assert len(idents) == 1 and len(world.sent) <= len(data) // (mtu - header - 16) + 1
        datagram = guest.sees_fragments()
        assert guest.sums(WEB, datagram, 17) and datagram[8:] == data
        assert int.from_bytes(datagram[4:6], "big") == len(datagram)
    guest.sees_nothing()
    world.ends()


def test_each_datagram_has_an_identification_of_its_own(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, PORT, b"x")
    idents = set()
    for _ in range(5):
        world.host.sockets[0].gets(WEB, PORT, payload(2000))
        fragments = [s.packet.fragment for s in world.sent if s.packet is not None]
        assert len(fragments) == 2
        idents |= {fragment[0] for fragment in fragments if fragment is not None}
        guest.sees_fragments()
    assert len(idents) == 5


@pytest.mark.parametrize("bits", [16, 32])
def test_identifications_turn_over(bits: int) -> None:
    world = World(family=4 if bits == 16 else 6)
    guest = Guest(world)
    guest.sends_udp(WEB, PORT, b"x")
    world.interface._output._identification = (1 << bits) - 1
    world.host.sockets[0].gets(WEB, PORT, payload(2000))
    guest.sees_fragments()
    world.ends()


def test_larger_than_ip(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, PORT, b"x")
    world.host.sockets[0].gets(WEB, PORT, bytes(65508 if guest.cast.family == 4 else 65528))
    guest.sees_nothing()
    assert drops(world) == {"drop_too_big": 1}


# -- super-frames ------------------------------------------------------------------------------------------------------


def world_with(family: int, **options: object) -> tuple[World, Guest]:
    world = World(family=family, **options)  # type: ignore[arg-type]
    guest = Guest(world)
    guest.sends_udp(WEB, PORT, b"x")
    return world, guest


@pytest.mark.parametrize("size", [2401, 3600, 1201, 60_000])
def test_a_super_frame_of_the_hosts_is_one_for_the_guest(family: int, size: int) -> None:
    world, guest = world_with(family, uso=True)
    world.host.sockets[0].gets(WEB, PORT, payload(size), segment=1200, tos=3)
    sent = guest.sees_udp(WEB, PORT, payload(size))
    assert sent.gso_size == 1200 and sent.packet is not None and sent.packet.tos == 3
    world.host.sockets[0].gets(WEB, PORT, b"alone")
    assert not guest.sees_udp(WEB, PORT, b"alone").gso_size
    world.ends()


@pytest.mark.parametrize("segment", [5, 6, 1000])
def test_one_datagram_is_no_super_frame(family: int, segment: int) -> None:
    world, guest = world_with(family, uso=True)
    world.host.sockets[0].gets(WEB, PORT, b"alone", segment=segment)
    assert not guest.sees_udp(WEB, PORT, b"alone").gso_size
    world.host.sockets[0].gets(WEB, PORT, b"", segment=segment)
    guest.sees_udp(WEB, PORT, b"")
    world.ends()


@pytest.mark.parametrize("options", [{"uso": False}, {"uso": True, "offload": False}, {"uso": True, "mtu": 1280}])
def test_where_the_device_does_not_cut_it_is_cut_here(family: int, options: dict[str, int]) -> None:
    """By hand, in fragments where a piece is larger than the link."""
    world, guest = world_with(family, **options)
    data = payload(1400 * 2 + 100)
    world.host.sockets[0].gets(WEB, PORT, data, segment=1400)
    for n in range(3):
        piece = data[1400 * n : 1400 * (n + 1)]
        if "mtu" in options and n < 2:
            assert guest.sees_fragments()[8:] == piece
        else:
            assert not guest.sees_udp(WEB, PORT, piece).gso_size
    guest.sees_nothing()
    world.ends()


def test_more_than_a_packet_holds_is_cut_here(family: int) -> None:
    world, guest = world_with(family, uso=True)
    world.host.sockets[0].gets(WEB, PORT, bytes(65535), segment=1400)
    assert sum(len(s.data) - 8 for s in world.sent) == 65535
    world.sent.clear()
    world.ends()


@pytest.mark.parametrize("size", [1, 1200, 1201, 12_000])
def test_a_super_frame_of_the_guests_is_one_for_the_host(world: World, guest: Guest, size: int) -> None:
    guest.sends_udp(WEB, PORT, payload(size), segment=1200, ttl=5, tos=1)
    (socket,) = world.host.sockets
    assert socket.sent == [(WEB, PORT, payload(size))]
    assert socket.segments == [1200] and socket.hops == [5 << 8 | 1]


@pytest.mark.parametrize("field", [0, 7, 1208, 65535])
def test_the_length_field_of_a_super_frame_does_not_count(world: World, guest: Guest, field: int) -> None:
    """Devices differ: of the first datagram, or of all."""
    datagram = bytearray(guest.datagram(WEB, PORT, payload(3000)))
    datagram[4:6] = field.to_bytes(2, "big")
    guest.sends_ip(WEB, 17, bytes(datagram), segment=1200)
    assert world.host.sockets[0].sent == [(WEB, PORT, payload(3000))]


def test_a_super_frame_of_queries_is_many(world: World, guest: Guest) -> None:
    guest.sends_udp(DNS, 53, b"aaabbbc", segment=3)
    assert [query for _, query in world.host.queries] == [b"aaa", b"bbb", b"c"]
    guest.sends_udp(DNS, 53, b"", segment=3)
    assert len(world.host.queries) == 3 + 1


def test_more_segments_than_any_kernel_makes(world: World, guest: Guest) -> None:
    """One frame may not become 60,000 datagrams: Linux' UDP_MAX_SEGMENTS is 128."""
    guest.sends_udp(WEB, PORT, payload(128 * 3), segment=3)
    assert len(world.host.sockets) == 1
    guest.sends_udp(DNS, 53, payload(128 * 3 + 1), segment=3)
    guest.sends_udp(WEB, PORT, payload(60_000), segment=1)
    assert drops(world) == {"drop_bad_header": 2}
    assert not world.host.queries and len(world.host.sockets[0].sent) == 1


# -- errors ------------------------------------------------------------------------------------------------------------

ERRORS = [(3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 13, 0), (3, 4, 1400), (11, 0, 0)]


@pytest.mark.parametrize(("type_", "code", "info"), ERRORS)
@pytest.mark.parametrize("offender", [b"", ROUTER, WEB], ids=["here", "router", "peer"])
def test_what_the_host_was_told_reaches_the_guest(
    world: World, guest: Guest, type_: int, code: int, info: int, offender: bytes
) -> None:
    """As from whoever said it: traceroute reads the source, Path MTU discovery the MTU (RFC 1191 §4, RFC 4443 §3.2)."""
    guest.sends_udp(WEB, PORT, b"x", sport=4000)
    error = world.host.error(type_, code, info, offender)
    udp = world.interface.udp
    udp.host_error(guest.address, 4000, guest.cast.real(WEB), PORT, error)
    rest, quote = guest.sees_icmp(type_, code, offender or GATEWAY)
    assert int.from_bytes(rest, "big") == info
    assert guest.quoted(quote, 17, WEB)[:4] == (4000).to_bytes(2, "big") + PORT.to_bytes(2, "big")
    guest.sends_echo(WEB, 0x1234, 9)
    world.host.echoes[0].flow.refused(error, 9)
    rest, quote = guest.sees_icmp(type_, code, offender or GATEWAY)
    assert int.from_bytes(rest, "big") == info
    quoted = guest.quoted(quote, 1, WEB)
    assert quoted[0] == guest.echo_request and quoted[4:] == b"\x12\x34\x00\x09"


@pytest.mark.parametrize("offender", ["127.0.0.1", "10.0.2.77", "10.0.2.100", "224.0.0.1", "0.0.0.0"])
def test_an_offender_that_the_guest_cannot_know(world: World, guest: Guest, offender: str) -> None:
    """The host's loopback, an address of its own link, nobody: the gateway speaks for them."""
    guest.sends_udp(WEB, PORT, b"x")
    error = world.host.error(3, 1, 0, ip(offender))
    world.interface.udp.host_error(guest.address, 5000, guest.cast.real(WEB), PORT, error)
    guest.sees_unreachable(1, GATEWAY, 17, WEB)


def test_an_offender_of_the_other_family(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, PORT, b"x")
    other = ip6("2001:db8::1") if guest.cast.family == 4 else ip("198.51.100.1")
    error = world.host.error(3, 1)
    error = type(error)(error.type, error.code, 0, other)
    world.interface.udp.host_error(guest.address, 5000, guest.cast.real(WEB), PORT, error)
    guest.sees_unreachable(1, GATEWAY, 17, WEB)


@pytest.mark.parametrize("info", [65536, 1 << 31, (1 << 32) - 1])
def test_an_mtu_larger_than_the_field(world: World, guest: Guest, info: int) -> None:
    guest.sends_udp(WEB, PORT, b"x")
    error = world.host.error(3, 4, info)
    world.interface.udp.host_error(guest.address, 5000, guest.cast.real(WEB), PORT, error)
    rest, _ = guest.sees_icmp(3, 4, GATEWAY)
    assert int.from_bytes(rest, "big") == (65535 if guest.cast.family == 4 else info)


@pytest.mark.parametrize("reason", [NET_UNREACHABLE, HOST_UNREACHABLE, PORT_UNREACHABLE, ADMIN_PROHIBITED])
def test_why_the_host_could_not_connect(world: World, guest: Guest, reason: int) -> None:
    tcp = guest.tcp(WEB, 443, port=41000)
    tcp.sends(oracle.SYN, options=tcp.syn_options(1460, 7))
    world.host.stream.refuses(reason)
    quoted = guest.sees_unreachable(reason, GATEWAY, 6, WEB)
    assert quoted[:4] == (41000).to_bytes(2, "big") + (443).to_bytes(2, "big")
    assert int.from_bytes(quoted[4:], "big") == 100


@pytest.mark.ipv6
def test_a_reason_without_a_code_of_its_own(world: World) -> None:
    world.interface._output.unreachable(GUEST6, 7, b"\x60" + bytes(47))
    packet = world.sent.popleft().packet
    assert packet is not None and oracle.read_icmp(packet)[:2] == (1, 0)


# -- what the host sends by --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, 1, 64, 255])
@pytest.mark.parametrize("tos", [0, 0xB8, 0xFF])
def test_hops_are_carried(world: World, guest: Guest, ttl: int, tos: int) -> None:
    guest.sends_udp(WEB, PORT, b"x", ttl=ttl, tos=tos)
    guest.sends_echo(WEB, 1, 1, ttl=ttl, tos=tos)
    assert world.host.sockets[0].hops == world.host.echoes[0].hops == [ttl << 8 | tos]


# -- DHCP --------------------------------------------------------------------------------------------------------------


class FakeServices:
    """Answers with what it was asked, backwards."""

    def __init__(self, to: bytes = GUEST) -> None:
        self.asked: list[bytes] = []
        self.to = to
        self.silent = False

    def dhcpv4(self, message: bytes, mac: bytes, now: float) -> tuple[bytes, bytes] | None:
        assert mac == GUEST_MAC
        self.asked.append(message)
        return None if self.silent else (message[::-1], self.to)

    def dhcpv6(self, message: bytes, now: float) -> bytes | None:
        self.asked.append(message)
        return None if self.silent else message[::-1]


def asks4(world: World, dst: bytes, message: bytes = b"discover", src: bytes = bytes(4)) -> None:
    Guest(world).sends_udp(dst, 67, message, sport=68, src=src)


@pytest.mark.parametrize("dst", ["10.0.2.2", "255.255.255.255", "10.0.2.255"])
@pytest.mark.parametrize("to", ["10.0.2.100", "255.255.255.255"])
def test_dhcpv4(dst: str, to: str) -> None:
    """RFC 2131 §4.1: before it has an address the guest sends from 0.0.0.0, and may hear a broadcast."""
    services = FakeServices(ip(to))
    world = World(services=services)
    asks4(world, ip(dst))
    assert services.asked == [b"discover"]
    sent = world.sent.popleft()
    assert sent.packet is not None
    assert (sent.packet.src, sent.packet.dst) == (GATEWAY, ip(to))
    assert sent.packet.dst_mac == (GUEST_MAC if to != "255.255.255.255" else b"\xff" * 6)
    assert oracle.read_udp(sent.packet, sent.data) == (67, 68, b"revocsid")
    assert world.counters.dhcp_answered == 1 and not drops(world)
    assert not world.host.sockets
    world.ends()


@pytest.mark.parametrize("to", ["10.0.2.2", "10.0.2.3", "8.8.8.8"])
def test_an_answer_teaches_no_foreign_address(to: str) -> None:
    """The address may be what the guest itself has written into its message."""
    world = World(services=FakeServices(ip(to)))
    asks4(world, GATEWAY)
    assert len(world.interface.neighbors) == 0
    world.sent.clear()
    world.ends()


def asks6(world: World, src: bytes, dst: bytes = ip6("ff02::1:2")) -> None:
    Guest(world).sends_udp(dst, 547, b"solicit", sport=546, src=src)


@pytest.mark.parametrize("src", [ip6("fe80::64"), GUEST6])
def test_dhcpv6(src: bytes) -> None:
    services = FakeServices()
    world = World(family=6, services=services)
    asks6(world, src)
    assert services.asked == [b"solicit"]
    sent = world.sent.popleft()
    assert sent.packet is not None
    assert (sent.packet.src, sent.packet.dst, sent.packet.dst_mac) == (ROUTER6, src, GUEST_MAC)
    assert oracle.read_udp(sent.packet, sent.data) == (547, 546, b"ticilos")
    assert world.counters.dhcp_answered == 1 and not drops(world)
    world.ends()


@pytest.mark.parametrize("src", [bytes(16), ROUTER6, GATEWAY6, ip6("2001:db8::1"), ip6("ff02::1"), ip6("::1")])
def test_dhcpv6_of_somebody_else(src: bytes) -> None:
    """RFC 8415 §18: clients have a link-local address first. No answer to a group, none to us."""
    services = FakeServices()
    world = World(family=6, services=services)
    asks6(world, src)
    assert not services.asked and not world.sent and drops(world) == {"drop_martian": 1}
    assert len(world.interface.neighbors) == 0
    world.ends()


def test_a_service_that_says_nothing(family: int) -> None:
    services = FakeServices()
    services.silent = True
    world = World(family=family, services=services)
    asks4(world, GATEWAY) if family == 4 else asks6(world, GUEST6)
    assert services.asked and not world.sent and world.counters.dhcp_answered == 0
    world.ends()


def test_without_services(family: int) -> None:
    world = World(family=family)
    asks4(world, GATEWAY) if family == 4 else asks6(world, GUEST6)
    assert drops(world) == {"drop_dhcp": 1} and not world.sent
    world.ends()


def test_a_dhcp_server_elsewhere_is_a_peer_like_others(family: int) -> None:
    world = World(family=family, services=FakeServices())
    Guest(world).sends_udp(WEB, 67 if family == 4 else 547, b"x")
    assert len(world.host.sockets) == 1
    world.ends()


@pytest.mark.parametrize("length", [0, 7, 17, 65535])
def test_a_dhcp_length_that_is_not_true(family: int, length: int) -> None:
    services = FakeServices()
    world = World(family=family, services=services)
    guest = Guest(world)
    port, dst = (67, GATEWAY) if family == 4 else (547, ip6("ff02::1:2"))
    datagram = bytearray(guest.datagram(dst, port, bytes(8)))
    datagram[4:6] = length.to_bytes(2, "big")
    guest.sends_ip(dst, 17, bytes(datagram))
    guest.sends_ip(dst, 17, bytes(datagram[:7]))
    assert drops(world) == {"drop_bad_header": 2} and not services.asked
    world.ends()
