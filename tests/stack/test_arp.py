"""ARP (RFC 826), and what the interface learns of its neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wire import oracle

from netd.stack.limits import Limits
from netd.stack.neighbor import Neighbors

from .guest import Guest
from .world import ADDRESSING, DNS, DNS_MAC, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, WEB, World, ip, mac

BROADCAST = b"\xff" * 6
OTHER_MAC = mac("02:00:00:00:00:99")


@pytest.mark.parametrize(("address", "theirs"), [(GATEWAY, GATEWAY_MAC), (DNS, DNS_MAC)], ids=["gateway", "dns"])
def test_our_own_addresses_are_told(world: World, guest: Guest, address: bytes, theirs: bytes) -> None:
    guest.sends_arp(1, GUEST, address)
    assert world.sent[0].frame[:14] == GUEST_MAC + theirs + b"\x08\x06"
    assert guest.sees_arp() == (2, theirs, address, GUEST_MAC, GUEST)


@pytest.mark.parametrize("address", ["10.0.2.50", "10.0.2.100", "93.184.216.34", "0.0.0.0"])
def test_nobody_else_is(world: World, guest: Guest, address: str) -> None:
    guest.sends_arp(1, GUEST, ip(address))
    guest.sees_nothing()
    assert world.counters.drop_arp == 1


def test_a_probe_is_answered_and_teaches_nothing(world: World, guest: Guest) -> None:
    """RFC 5227: the sender has no address yet; ours are in use."""
    guest.sends_arp(1, bytes(4), GATEWAY)
    assert guest.sees_arp() == (2, GATEWAY_MAC, GATEWAY, GUEST_MAC, bytes(4))
    assert len(world.interface.neighbors) == 0


@pytest.mark.parametrize("address", [GATEWAY, DNS])
@pytest.mark.parametrize("oper", [1, 2])
def test_our_addresses_are_not_the_guests_to_claim(world: World, guest: Guest, address: bytes, oper: int) -> None:
    guest.sends_arp(oper, address, GATEWAY)
    guest.sees_nothing()
    assert len(world.interface.neighbors) == 0


@pytest.mark.parametrize("address", ["8.8.8.8", "127.0.0.1", "10.0.2.255", "255.255.255.255", "224.0.0.1"])
def test_addresses_of_another_link_teach_nothing(world: World, guest: Guest, address: str) -> None:
    """Nor do they push the guest's own out of the table."""
    guest.sends_arp(1, ip(address), GATEWAY)
    guest.sees_arp()
    assert len(world.interface.neighbors) == 0


def test_without_a_dns_address() -> None:
    world = World(addressing=replace(ADDRESSING, dns=b""))
    guest = Guest(world)
    guest.sends_arp(1, GUEST, DNS)
    guest.sees_nothing()
    guest.sends_arp(1, GUEST, GATEWAY)
    guest.sees_arp()
    guest.sends_udp(DNS, 53, b"nobody is there")
    guest.sees_unreachable(1, GATEWAY, 17, DNS)
    world.ends()


@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_other_kinds_of_arp_are_dropped(world: World, guest: Guest, at: int) -> None:
    packet = bytearray(oracle.arp(1, GUEST_MAC, GUEST, bytes(6), GATEWAY))
    packet[at] ^= 0x11
    world.receive(oracle.eth(BROADCAST, GUEST_MAC, 0x0806, bytes(packet)))
    guest.sees_nothing()
    assert world.counters.drop_arp == 1


def test_padding_does_not_matter_and_shortness_does(world: World, guest: Guest) -> None:
    packet = oracle.arp(1, GUEST_MAC, GUEST, bytes(6), GATEWAY)
    world.receive(oracle.eth(BROADCAST, GUEST_MAC, 0x0806, packet + bytes(18)))
    guest.sees_arp()
    world.receive(oracle.eth(BROADCAST, GUEST_MAC, 0x0806, packet[:-1]))
    guest.sees_nothing()
    assert sum(v for k, v in world.counters.as_dict().items() if k.startswith("drop_")) == 1


@pytest.mark.ipv4
def test_a_guest_that_changed_its_mac_is_answered_there(world: World, guest: Guest) -> None:
    guest.sends_udp(WEB, 9, b"a")
    guest.mac = OTHER_MAC
    guest.sends_arp(2, GUEST, GUEST)  # gratuitous
    world.host.sockets[0].gets(WEB, 9, b"b")
    guest.sees_udp(WEB, 9, b"b")


def test_a_new_flow_teaches_the_mac(world: World, guest: Guest) -> None:
    other = Guest(world, ip("10.0.2.101"), OTHER_MAC)
    other.sends_udp(WEB, 9, b"a")
    world.host.sockets[0].gets(WEB, 9, b"b")
    other.sees_udp(WEB, 9, b"b")
    tcp, _ = other.connects()
    assert tcp.guest is other


def test_before_the_guest_has_spoken_frames_are_broadcast() -> None:
    world = World(addressing=replace(ADDRESSING, guest_mac=BROADCAST))
    stream = world.host.new_stream(None)
    connection = world.interface.tcp.open_to_guest(WEB, 1, GUEST, 80, stream, world.now)
    assert connection is not None
    assert world.sent.popleft().frame[:6] == BROADCAST
    stream.connection = connection
    guest = Guest(world)
    guest.sends_arp(1, GUEST, GATEWAY)
    guest.sees_arp()
    guest.is_called(cport=2)
    assert world.sent.popleft().frame[:6] == GUEST_MAC
    assert world.interface.neighbors.mac_of(ip("10.0.2.200")) == GUEST_MAC, "the default is known now"
    world.ends()


def test_the_table_is_bounded_and_the_oldest_goes() -> None:
    world = World(limits=Limits(neighbors=4))
    guest = Guest(world)
    for n in range(20):
        sha = bytes((2, 0, 0, 0, 1, n))
        guest.sends_arp(1, bytes((10, 0, 2, 150 + n)), GATEWAY, sha=sha)
        world.sent.clear()
    neighbors = world.interface.neighbors
    assert len(neighbors) == 4
    assert neighbors.mac_of(ip("10.0.2.169")) == bytes((2, 0, 0, 0, 1, 19))
    assert neighbors.mac_of(ip("10.0.2.165")) == GUEST_MAC
    world.ends()


def test_an_entry_that_changes_needs_no_room() -> None:
    neighbors = Neighbors(GUEST_MAC, 2)
    neighbors.learn(b"aaaa", b"\x00\x00\x00\x00\x00\x01")
    neighbors.learn(b"bbbb", b"\x00\x00\x00\x00\x00\x02")
    neighbors.learn(b"aaaa", b"\x00\x00\x00\x00\x00\x03")
    assert neighbors.mac_of(b"aaaa")[-1] == 3 and neighbors.mac_of(b"bbbb")[-1] == 2


def test_who_is_forgotten_for_want_of_room_has_moved() -> None:
    """To where the unknown are: headers that were made for it are out of date."""
    neighbors = Neighbors(GUEST_MAC, 2)
    neighbors.learn(b"aaaa", b"\x00\x00\x00\x00\x00\x01")
    neighbors.learn(b"bbbb", GUEST_MAC)
    moves = neighbors.moves
    neighbors.learn(b"cccc", GUEST_MAC)
    assert neighbors.mac_of(b"aaaa") == GUEST_MAC and neighbors.moves == moves + 1
    neighbors.learn(b"dddd", GUEST_MAC)
    assert neighbors.moves == moves + 1, "bbbb is where it was"


def test_a_group_is_nobodys_mac(world: World, guest: Guest) -> None:
    guest.sends_arp(1, GUEST, GATEWAY, sha=BROADCAST)
    world.sent.clear()
    assert len(world.interface.neighbors) == 0
