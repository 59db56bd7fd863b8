"""Neighbor discovery (RFC 4861, RFC 4862 §5.4, RFC 8106), read by code of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import oracle
from wire.prop import quick

from netd.stack.limits import Limits

from .guest import Guest
from .test_interface import drops
from .world import (
    ADDRESSING,
    DNS6,
    DNS_MAC,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST6,
    GUEST_MAC,
    ROUTER6,
    WEB,
    WEB6,
    World,
    ip6,
    mac,
)

pytestmark = pytest.mark.ipv6

RS, RA, NS, NA, REDIRECT = 133, 134, 135, 136, 137
ALL_NODES, ALL_ROUTERS, UNSPECIFIED = ip6("ff02::1"), ip6("ff02::2"), bytes(16)
LINK_LOCAL = ip6("fe80::64")
OTHER_MAC = mac("02:00:00:00:00:c8")
OURS = [(GATEWAY6, GATEWAY_MAC), (DNS6, DNS_MAC), (ROUTER6, GATEWAY_MAC)]
IDS = ["gateway", "dns", "router"]


def solicited(target: bytes) -> bytes:
    """RFC 4291 §2.7.1."""
    return ip6("ff02::1:ff00:0")[:13] + target[13:]


def option(kind: int, value: bytes) -> bytes:
    assert (len(value) + 2) % 8 == 0
    return bytes((kind, (len(value) + 2) // 8)) + value


@dataclass(frozen=True)
class Heard:
    """A message of the stack's."""

    src_mac: bytes
    dst_mac: bytes
    src: bytes
    dst: bytes
    rest: bytes
    body: bytes
    options: dict[int, bytes]


def hears(world: World, type_: int) -> Heard:
    assert world.sent, "nothing was sent"
    packet = world.sent.popleft().packet
    assert packet is not None and packet.protocol == 58 and packet.ttl == 255 and packet.fragment is None
    found, code, rest, payload = oracle.read_icmp(packet)
    assert (found, code) == (type_, 0)
    size = {RS: 0, RA: 8, NS: 16, NA: 16}[type_]
    body, data, options = payload[:size], payload[size:], {}
    while data:
        length = data[1] * 8
        assert 8 <= length <= len(data) and data[0] not in options
        options[data[0]] = data[2:length]
        data = data[length:]
    return Heard(packet.src_mac, packet.dst_mac, packet.src, packet.dst, rest, body, options)


def sends(
    world: World,
    type_: int,
    body: bytes = b"",
    *,
    src: bytes = GUEST6,
    dst: bytes = GATEWAY6,
    hops: int = 255,
    code: int = 0,
    rest: bytes = bytes(4),
    source_mac: bytes = GUEST_MAC,
    extensions: bytes = b"",
) -> None:
    message = oracle.icmp6(src, dst, type_, code, rest, body)
    packet = oracle.ip6(src, dst, 60 if extensions else 58, message, ttl=hops, extensions=extensions)
    world.receive(oracle.eth(GATEWAY_MAC, source_mac, 0x86DD, packet))


def reaches(world: World, guest: bytes = GUEST6) -> bytes:
    """The MAC that frames to ``guest`` go to."""
    return world.interface.neighbors.mac_of(guest)


# -- who answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "target_mac"), OURS, ids=IDS)
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("src", [GUEST6, LINK_LOCAL], ids=["global", "link-local"])
def test_our_addresses_answer(world: World, target: bytes, target_mac: bytes, group: bool, src: bytes) -> None:
    """RFC 4861 §7.2.4; with a unicast destination it is a probe (§7.2.5)."""
    dst = solicited(target) if group else target
    sends(world, NS, target + option(1, OTHER_MAC), src=src, dst=dst)
    heard = hears(world, NA)
    assert (heard.src, heard.dst, heard.src_mac, heard.dst_mac) == (target, src, target_mac, OTHER_MAC)
    assert heard.rest == bytes((0xE0, 0, 0, 0)), "router, solicited, override"
    assert heard.body == target and heard.options == {2: target_mac}
    assert reaches(world, src) == OTHER_MAC
    assert not drops(world)


@pytest.mark.parametrize(("target", "target_mac"), OURS, ids=IDS)
def test_our_addresses_are_taken(world: World, target: bytes, target_mac: bytes) -> None:
    """RFC 4862 §5.4.4: duplicate address detection is answered to all nodes."""
    sends(world, NS, target, src=UNSPECIFIED, dst=solicited(target))
    heard = hears(world, NA)
    assert (heard.src, heard.dst, heard.dst_mac) == (target, ALL_NODES, mac("33:33:00:00:00:01"))
    assert heard.rest == bytes((0xA0, 0, 0, 0)), "router, override, not solicited"
    assert heard.body == target and heard.options == {2: target_mac}
    assert len(world.interface.neighbors) == 0


@pytest.mark.parametrize("target", [GUEST6, LINK_LOCAL, ip6("fd00::77")])
def test_the_guests_own_addresses_are_free(world: World, target: bytes) -> None:
    sends(world, NS, target, src=UNSPECIFIED, dst=solicited(target), source_mac=OTHER_MAC)
    assert not world.sent
    assert reaches(world, target) == OTHER_MAC, "about to be the guest's"


@pytest.mark.parametrize("target", [WEB6, ip6("::1"), UNSPECIFIED])
def test_addresses_of_another_link_are_nobodys(world: World, target: bytes) -> None:
    sends(world, NS, target, src=UNSPECIFIED, dst=solicited(target))
    assert drops(world) == {"drop_ndp": 1}
    assert len(world.interface.neighbors) == 0 and not world.sent


@pytest.mark.parametrize("target", [ip6("fd00::77"), WEB6, GUEST6, UNSPECIFIED])
def test_for_nobody_else_is_answered(world: World, target: bytes) -> None:
    sends(world, NS, target + option(1, GUEST_MAC), dst=solicited(target))
    assert not world.sent
    assert drops(world) == {"drop_ndp": 1}


def test_the_mac_of_the_frame_where_the_message_names_none(world: World) -> None:
    """RFC 4861 §4.3: a unicast solicitation may leave it out."""
    sends(world, NS, GATEWAY6, source_mac=OTHER_MAC)
    assert hears(world, NA).dst_mac == OTHER_MAC


def test_a_guest_that_changed_its_mac(world: World, guest: Guest) -> None:
    sends(world, NS, GATEWAY6 + option(1, GUEST_MAC))
    hears(world, NA)
    sends(world, NA, GUEST6 + option(2, OTHER_MAC), dst=ALL_NODES, rest=b"\x20\0\0\0")
    assert reaches(world) == OTHER_MAC
    guest.mac = OTHER_MAC
    guest.sends_udp(WEB, 1, b"x")
    world.host.sockets[0].gets(WEB, 1, b"y")
    guest.sees_udp(WEB, 1, b"y")


def test_an_advertisement_without_a_mac_teaches_nothing(world: World) -> None:
    sends(world, NA, GUEST6, dst=ALL_NODES)
    assert drops(world) == {"drop_ndp": 1}
    assert len(world.interface.neighbors) == 0 and not world.sent


@pytest.mark.parametrize("bad", ["ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "01:00:5e:00:00:01"])
def test_a_groups_mac_is_nobodys(world: World, bad: str) -> None:
    sends(world, NA, GUEST6 + option(2, mac(bad)), dst=ALL_NODES)
    sends(world, NS, GATEWAY6 + option(1, mac(bad)))
    assert hears(world, NA).dst_mac == GUEST_MAC


# -- spoofing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [GATEWAY6, DNS6, ROUTER6, WEB6, ip6("::1"), UNSPECIFIED, ALL_NODES])
def test_what_is_not_the_guests_cannot_be_claimed(world: World, claimed: bytes) -> None:
    sends(world, NA, claimed + option(2, OTHER_MAC), dst=ALL_NODES, rest=b"\x20\0\0\0")
    assert drops(world) == {"drop_ndp": 1}
    assert len(world.interface.neighbors) == 0 and not world.sent


@pytest.mark.parametrize("src", [GATEWAY6, DNS6, ROUTER6, WEB6, ip6("::1"), ip6("fd01::1"), ALL_NODES])
def test_solicitations_from_what_is_not_the_guests(world: World, src: bytes) -> None:
    sends(world, NS, GATEWAY6 + option(1, OTHER_MAC), src=src)
    sends(world, RS, option(1, OTHER_MAC), src=src, dst=ALL_ROUTERS)
    assert drops(world) == {"drop_martian": 2}
    assert len(world.interface.neighbors) == 0 and not world.sent


def test_the_table_is_bounded() -> None:
    world = World(family=6, limits=Limits(neighbors=4))
    for n in range(100):
        address = ip6("fd00::1000")[:15] + bytes((n,))
        address = address[:14] + b"\x10" + address[15:]
        sends(world, NA, address + option(2, OTHER_MAC), dst=ALL_NODES)
    assert len(world.interface.neighbors) == 4
    world.ends()


# -- what is not well formed -------------------------------------------------------------------------------------------

SOURCE = option(1, GUEST_MAC)


@pytest.mark.parametrize("type_", [RS, NS, NA])
@pytest.mark.parametrize("hops", [0, 1, 64, 254])
def test_what_came_through_a_router(world: World, type_: int, hops: int) -> None:
    """RFC 4861 §6.1.1, §7.1.1, §7.1.2: hop limit 255."""
    sends(world, type_, GATEWAY6 if type_ != RS else b"", hops=hops)
    assert drops(world) == {"drop_ndp": 1} and not world.sent


@pytest.mark.parametrize("type_", [RS, NS, NA])
def test_a_code(world: World, type_: int) -> None:
    sends(world, type_, GATEWAY6 if type_ != RS else b"", code=1)
    assert drops(world) == {"drop_ndp": 1} and not world.sent


@pytest.mark.parametrize("type_", [NS, NA])
@pytest.mark.parametrize("size", [0, 1, 8, 15])
def test_a_target_cut_off(world: World, type_: int, size: int) -> None:
    sends(world, type_, GATEWAY6[:size])
    assert drops(world) == {"drop_ndp": 1} and not world.sent


@pytest.mark.parametrize("type_", [RS, NS, NA])
@pytest.mark.parametrize(
    "options",
    [
        b"\x01",
        b"\x01\x00",
        b"\x01\x00" + bytes(6),
        b"\x01\x02" + bytes(6),
        SOURCE + b"\xff",
        SOURCE + b"\x0e\x00",
        SOURCE[:7],
    ],
    ids=bytes.hex,
)
def test_options_that_cannot_be(world: World, type_: int, options: bytes) -> None:
    """RFC 4861 §4.6: no option of length 0, none beyond the end."""
    sends(world, type_, (b"" if type_ == RS else GATEWAY6) + options)
    assert drops(world) == {"drop_ndp": 1} and not world.sent
    assert len(world.interface.neighbors) == 0


def test_unknown_options_are_skipped_and_the_first_of_a_kind_counts(world: World) -> None:
    """A nonce (RFC 3971 §5.3.2), and what nobody knows."""
    sends(world, NS, GATEWAY6 + option(14, b"nonce!") + option(200, bytes(22)) + option(1, OTHER_MAC) + SOURCE)
    assert hears(world, NA).dst_mac == OTHER_MAC


def test_a_group_as_target(world: World) -> None:
    """RFC 4861 §7.1.1."""
    sends(world, NS, ALL_NODES + SOURCE)
    assert drops(world) == {"drop_ndp": 1}


@pytest.mark.parametrize(("dst", "options"), [(GATEWAY6, b""), (solicited(GATEWAY6), SOURCE)], ids=["dst", "mac"])
def test_duplicate_address_detection_that_cannot_be(world: World, dst: bytes, options: bytes) -> None:
    """RFC 4861 §7.1.1: from :: to a solicited-node group only, and with no MAC."""
    sends(world, NS, GATEWAY6 + options, src=UNSPECIFIED, dst=dst)
    assert drops(world) == {"drop_ndp": 1} and not world.sent


@pytest.mark.parametrize("type_", [RA, REDIRECT])
def test_a_guest_is_no_router(world: World, type_: int) -> None:
    sends(world, type_, bytes(48), src=LINK_LOCAL, dst=ALL_NODES)
    assert drops(world) == {"drop_ndp": 1} and not world.sent


def test_a_wrong_checksum(world: World) -> None:
    message = oracle.icmp6(GUEST6, GATEWAY6, NS, 0, bytes(4), GATEWAY6)
    packet = oracle.ip6(GUEST6, GATEWAY6, 58, message[:-1] + b"\x77", ttl=255)
    world.receive(oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x86DD, packet))
    assert drops(world) == {"drop_bad_checksum": 1}


def test_a_fragment_discovers_nobody(world: World) -> None:
    """RFC 6980 §5: neighbor discovery in fragments is ignored."""
    message = oracle.icmp6(GUEST6, GATEWAY6, NS, 0, bytes(4), GATEWAY6)
    fragment = bytes((58, 0, 0, 0)) + bytes(4)
    world.receive(
        oracle.eth(GATEWAY_MAC, GUEST_MAC, 0x86DD, oracle.ip6(GUEST6, GATEWAY6, 44, fragment + message, ttl=255))
    )
    assert drops(world) == {"drop_ndp": 1} and not world.sent


# -- the router --------------------------------------------------------------------------------------------------------


def advertised(heard: Heard, mtu: int = 1520, dns: bytes = DNS6) -> None:
    """RFC 4861 §4.2 and §4.6, RFC 8106 §5.1, byte by byte."""
    assert heard.src == ROUTER6 and heard.src_mac == GATEWAY_MAC
    hop_limit, flags, lifetime = heard.rest[0], heard.rest[1], int.from_bytes(heard.rest[2:4], "big")
    assert (hop_limit, flags, lifetime) == (64, 0x40, 1800), "not managed, other configuration"
    assert heard.body == bytes(8), "reachable and retransmission time unspecified"
    assert set(heard.options) == {1, 3, 5, 25} if dns else {1, 3, 5}
    assert heard.options[1] == GATEWAY_MAC
    assert heard.options[5] == bytes(2) + mtu.to_bytes(4, "big")
    prefix = heard.options[3]
    assert len(prefix) == 30 and prefix[0] == 64 and prefix[1] == 0xC0, "/64, on-link, autonomous"
    assert prefix[2:6] == prefix[6:10] == b"\xff" * 4, "valid and preferred for ever"
    assert prefix[10:14] == bytes(4) and prefix[14:] == ip6("fd00::")
    if dns:
        assert heard.options[25] == bytes(2) + (1800).to_bytes(4, "big") + dns


@pytest.mark.parametrize("src", [GUEST6, LINK_LOCAL], ids=["global", "link-local"])
def test_a_solicited_advertisement(world: World, src: bytes) -> None:
    sends(world, RS, option(1, OTHER_MAC), src=src, dst=ALL_ROUTERS)
    heard = hears(world, RA)
    assert (heard.dst, heard.dst_mac) == (src, OTHER_MAC)
    advertised(heard)


def test_a_solicitation_before_there_is_an_address(world: World) -> None:
    """RFC 4861 §6.2.6."""
    sends(world, RS, src=UNSPECIFIED, dst=ALL_ROUTERS)
    heard = hears(world, RA)
    assert (heard.dst, heard.dst_mac) == (ALL_NODES, mac("33:33:00:00:00:01"))
    advertised(heard)
    assert len(world.interface.neighbors) == 0


def test_nobody_without_an_address_has_a_mac(world: World) -> None:
    """RFC 4861 §6.1.1."""
    sends(world, RS, SOURCE, src=UNSPECIFIED, dst=ALL_ROUTERS)
    assert drops(world) == {"drop_ndp": 1} and not world.sent


def test_the_link_comes_up(world: World) -> None:
    """The router says who it is, and asks for the guest."""
    world.interface.start(world.now)
    heard = hears(world, RA)
    assert heard.dst == ALL_NODES
    advertised(heard)
    asked = hears(world, NS)
    assert (asked.src, asked.dst, asked.body) == (ROUTER6, solicited(GUEST6), GUEST6)
    assert asked.dst_mac == b"\x33\x33" + solicited(GUEST6)[12:] and asked.options == {1: GATEWAY_MAC}
    sends(world, NA, GUEST6 + option(2, OTHER_MAC), dst=ROUTER6, rest=b"\x60\0\0\0")
    assert reaches(world) == OTHER_MAC


def test_a_link_whose_guest_is_not_known() -> None:
    world = World(family=6, addressing=replace(ADDRESSING, guest6=b""))
    world.interface.start(world.now)
    hears(world, RA)
    assert not world.sent
    world.ends()


def test_it_says_so_again_and_again(world: World) -> None:
    """RFC 4861 §6.2.1: at most 30 minutes, and well before the router's lifetime is over."""
    world.interface.start(world.now)
    world.sent.clear()
    for _ in range(100):
        assert world.jump() == world.limits.advertise <= 1800 / 3
        heard = hears(world, RA)
        assert heard.dst == ALL_NODES and not world.sent
        advertised(heard)
    assert len(world.interface.timers) == 1


@pytest.mark.parametrize(("mtu", "said"), [(1280, 1280), (1500, 1500), (65520, 65520)])
def test_the_mtu(mtu: int, said: int) -> None:
    world = World(family=6, mtu=mtu)
    sends(world, RS, src=UNSPECIFIED, dst=ALL_ROUTERS)
    advertised(hears(world, RA), mtu=said)
    world.ends()


def test_without_a_name_server() -> None:
    world = World(family=6, addressing=replace(ADDRESSING, dns6=b""))
    sends(world, RS, src=UNSPECIFIED, dst=ALL_ROUTERS)
    advertised(hears(world, RA), dns=b"")
    sends(world, NS, DNS6 + SOURCE)
    assert not world.sent
    world.ends()


# -- any bytes ---------------------------------------------------------------------------------------------------------


@quick
@given(
    st.sampled_from([RS, RA, NS, NA, REDIRECT]),
    st.sampled_from([GUEST6, LINK_LOCAL, UNSPECIFIED, GATEWAY6, WEB6]),
    st.sampled_from([GATEWAY6, ALL_NODES, ALL_ROUTERS, solicited(GATEWAY6)]),
    st.sampled_from([b"", GATEWAY6, GUEST6]),
    st.binary(max_size=80),
)
def test_every_message_has_one_outcome(type_: int, src: bytes, dst: bytes, target: bytes, noise: bytes) -> None:
    """Dropped under one name, or answered once, or learned from."""
    world = World(family=6)
    sends(world, type_, target + noise, src=src, dst=dst)
    outcomes = sum(drops(world).values()) + len(world.sent)
    assert outcomes == 1 or (outcomes == 0 and len(world.interface.neighbors) == 1)
    for sent in world.sent:
        assert sent.packet is not None and sent.packet.dst in (GUEST6, LINK_LOCAL, ALL_NODES)
    world.sent.clear()
    world.ends()


@pytest.mark.parametrize("without", ["ndp", "ra"])
def test_what_is_not_served_is_not_said_either(without: str) -> None:
    """pasta(1), --no-ndp and --no-ra: no advertisement, no answer to a solicitation, and it is counted."""
    world = World(without=frozenset({without}), family=6)
    guest = Guest(world)
    world.sent.clear()
    world.interface.start(world.now)
    said = [sent.packet.payload[0] for sent in world.sent if sent.packet is not None]
    assert RA not in said and (NS in said) == (without == "ra")
    world.sent.clear()
    before = world.counters.drop_not_served
    message = oracle.icmp6(LINK_LOCAL, ALL_ROUTERS, RS, 0, bytes(4), b"")
    guest.sends_ip(ALL_ROUTERS, 58, message, src=LINK_LOCAL, ttl=255)
    assert world.counters.drop_not_served == before + 1
    assert not world.sent
