"""The one door: every frame is counted, and every frame that is not taken has a named reason."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from wire import oracle
from wire.oracle import SYN

from .guest import Guest
from .world import ADDRESSING, DNS, GATEWAY, GATEWAY_MAC, GUEST, GUEST6, GUEST_MAC, ONLY4, WEB, WEB6, World, ip

ECHO = oracle.icmp(8, 0, b"\x00\x01\x00\x01", b"payload")


def drops(world: World) -> dict[str, int]:
    return {name: n for name, n in world.counters.as_dict().items() if n and name.startswith("drop_")}


@pytest.mark.parametrize("size", [0, 1, 13, 14, 33])
def test_short_frames(world: World, size: int) -> None:
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x0800, bytes(20))[:size])
    assert drops(world) == {"drop_short": 1}
    assert world.counters.rx_bytes == size


@pytest.mark.parametrize("ethertype", [0, 0x05DC, 0x0801, 0x0900, 0x86DC, 0x87DD, 0x8100, 0x88CC, 0xFFFF])
def test_other_protocols_on_the_link(world: World, ethertype: int) -> None:
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, ethertype, bytes(60)))
    assert drops(world) == {"drop_ethertype": 1}


def test_a_network_without_ipv6_does_not_speak_it() -> None:
    world = World(addressing=ONLY4)
    assert world.interface.ndp is None
    world.interface.start(world.now)
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x86DD, oracle.ip6(GUEST6, WEB6, 17, bytes(8))))
    assert drops(world) == {"drop_ethertype": 1}
    world.ends()


def test_a_network_without_ipv4_does_not_speak_it() -> None:
    only6 = replace(ADDRESSING, guest=b"", gateway=b"", dns=b"", network=0, mask=0)
    world = World(addressing=only6, family=6)
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x0800, oracle.ip4(ip("10.0.2.100"), WEB, 17, bytes(8))))
    assert world.counters.drop_ethertype == 1 and not world.sent
    assert not only6.ours(only6.gateway), "none is no address"


@pytest.mark.ipv4
@pytest.mark.parametrize("protocol", [0, 2, 41, 47, 50, 132, 255])
def test_other_protocols_over_ip(world: World, guest: Guest, protocol: int) -> None:
    guest.sends_ip(WEB, protocol, bytes(40))
    assert drops(world) == {"drop_protocol": 1}


@pytest.mark.parametrize("first", [0x00, 0x05, 0x44, 0x40, 0x55, 0x65, 0xF5, 0x4F])
def test_versions_and_header_lengths_that_cannot_be(world: World, first: int) -> None:
    packet = bytearray(oracle.ip4(GUEST, WEB, 1, bytes(20)))
    packet[0] = first
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x0800, bytes(packet)))
    assert drops(world) == {"drop_bad_header": 1}


@pytest.mark.ipv4
@pytest.mark.parametrize("length", [0, 19, 20 + len(ECHO) + 1, 65535])
def test_a_total_length_that_is_not_true(world: World, guest: Guest, length: int) -> None:
    guest.sends_ip(GATEWAY, 1, ECHO, length=length)
    assert drops(world) == {"drop_bad_header": 1}


def test_padding_behind_the_packet_is_cut(world: World, guest: Guest) -> None:
    echo = guest.icmp(GATEWAY, guest.echo_request, 0, b"\x00\x01\x00\x01", b"payload")
    length = len(echo) + (20 if guest.cast.family == 4 else 0)
    guest.sends_ip(GATEWAY, guest.cast.icmp, echo + b"pad", length=length)
    assert guest.sees_icmp(0, 0, GATEWAY) == (b"\x00\x01\x00\x01", b"payload")


@pytest.mark.parametrize("at", range(20))
def test_a_header_checksum_that_is_wrong(world: World, at: int) -> None:
    """RFC 1122 §3.2.1.2. Every byte is covered; what the length and version checks find first is dropped, too."""
    packet = bytearray(oracle.ip4(GUEST, GATEWAY, 1, ECHO))
    packet[at] ^= 0x01
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x0800, bytes(packet)), vouched=False)
    assert not world.sent
    assert sum(drops(world).values()) == 1


@pytest.mark.ipv4
@pytest.mark.parametrize("fragment", [0x2000, 0x0001, 0x2001, 0x1FFF, 0x3FFF])
def test_a_fragment_alone_comes_to_nothing(world: World, guest: Guest, fragment: int) -> None:
    guest.sends_ip(GATEWAY, 1, ECHO, fragment=fragment)
    world.passes(world.limits.reassembly)
    assert drops(world) == {"drop_fragment": 1}


@pytest.mark.ipv4
@pytest.mark.parametrize("fragment", [0x4000, 0x8000, 0xC000])
def test_other_flags_are_no_fragments(world: World, guest: Guest, fragment: int) -> None:
    guest.sends_ip(GATEWAY, 1, ECHO, fragment=fragment)
    guest.sees_icmp(0, 0, GATEWAY)


FOREIGN = ["10.0.3.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "8.8.8.8"]


@pytest.mark.ipv4
@pytest.mark.parametrize("protocol", [1, 6, 17])
@pytest.mark.parametrize("src", [*FOREIGN, "10.0.2.2", "10.0.2.3", "10.0.2.255"])
def test_sources_that_are_not_the_guests(world: World, guest: Guest, src: str, protocol: int) -> None:
    source = ip(src)
    payload = {
        1: ECHO,
        6: oracle.tcp(source, WEB, 1, 2, 3, 0, SYN, 100),
        17: oracle.udp(source, WEB, 1, 2, b"x"),
    }[protocol]
    guest.sends_ip(WEB, protocol, payload, src=source)
    assert drops(world) == {"drop_martian": 1}
    assert not world.host.streams and not world.host.sockets and not world.host.echoes
    assert len(world.interface.neighbors) == 0


def test_another_address_of_the_guests_own_subnet_is_welcome(world: World) -> None:
    """Bridges and secondary addresses: a namespace may hold many."""
    other = Guest(world, ip("10.0.2.200"), b"\x02\x00\x00\x00\x00\xc8")
    other.sends_udp(WEB, 1, b"x")
    world.host.sockets[0].gets(WEB, 1, b"y")
    other.sees_udp(WEB, 1, b"y")


def test_a_guest_alone_in_its_subnet_is_no_broadcast() -> None:
    """A /32: the only address is the last one, too."""
    alone = replace(ADDRESSING, network=int.from_bytes(GUEST, "big"), mask=0xFFFFFFFF)
    world = World(addressing=alone)
    Guest(world).sends_udp(WEB, 1, b"x")
    assert len(world.host.sockets) == 1
    world.ends()


def test_bytes_and_frames_are_counted(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 9, b"x" * 100)
    assert (world.counters.rx_frames, world.counters.rx_bytes) == (1, 142 if guest.cast.family == 4 else 162)
    world.host.sockets[0].gets(WEB, 9, b"y" * 50)
    guest.sees_udp(WEB, 9, b"y" * 50)
    assert (world.counters.tx_frames, world.counters.tx_bytes) == (1, 50)


def test_what_all_is_counted_has_one_name_each(world: World) -> None:
    names = world.counters.as_dict()
    source = Path(__file__).parents[2] / "netd" / "stack" / "counters.py"  # a compiled class has no annotations
    [body] = [node.body for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)][:1]
    assert list(names) == [node.target.id for node in body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]
    assert not any(names.values())


@pytest.mark.parametrize("address", [GATEWAY, DNS, WEB])
def test_flow_counts(world: World, guest: Guest, address: bytes) -> None:
    guest.connects(WEB, 80)
    guest.sends_udp(DNS, 53, b"q")
    guest.sends_echo(WEB, 1, 1)
    assert world.interface.flow_counts() == {"tcp": 1, "udp": 1, "icmp": 1}


def test_short_tcp_headers(world: World, guest: Guest) -> None:
    segment = oracle.tcp(GUEST, WEB, 1, 2, 3, 0, SYN, 100)
    for size in (0, 3, 4, 19):
        guest.sends_ip(WEB, 6, segment[:size])
    assert drops(world) == {"drop_short": 4}


@pytest.mark.parametrize("offset", [0, 4, 6, 15])
def test_a_data_offset_that_cannot_be(world: World, guest: Guest, offset: int) -> None:
    segment = bytearray(oracle.tcp(GUEST, WEB, 1, 2, 3, 0, SYN, 100))
    segment[12] = offset << 4
    guest.sends_ip(WEB, 6, bytes(segment))
    assert drops(world) == {"drop_bad_header": 1}
    assert not world.host.streams


def test_tcp_checksums_in_software(plain: Guest) -> None:
    segment = oracle.tcp(plain.address, plain.cast.real(WEB), 1, 2, 3, 0, SYN, 100)
    plain.sends_ip(WEB, 6, segment[:-1] + b"\x01")
    assert drops(plain.world) == {"drop_bad_checksum": 1}
    plain.sends_ip(WEB, 6, segment, **({"options": b"\x01" * 4} if plain.cast.family == 4 else {}))
    assert len(plain.world.host.streams) == 1


@pytest.mark.ipv4
def test_a_flow_behind_ip_options_is_the_same_flow(world: World, guest: Guest) -> None:
    tcp, stream = guest.connects(port=4000)
    segment = oracle.tcp(GUEST, WEB, 4000, 80, 101, (tcp.iss + 1) & 0xFFFFFFFF, 0x18, 100, b"hello")
    guest.sends_ip(WEB, 6, segment, options=b"\x01" * 12)
    tcp.sent_up_to = 106
    tcp.sees(0x10, ack=106)
    assert stream.taken == b"hello"
