"""A host-like link at the level of frames: we are everybody but the guest. And what is not served is not answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netd.stack.neighbor import Neighbors
from netd.wire.tcp import SYN

from .guest import Guest
from .test_policy import CLOSED
from .world import GATEWAY_MAC, GUEST_MAC, WEB, World, ip, ip6

GUEST = CLOSED.guest
NEIGHBOUR, GATEWAY = ip("192.0.2.9"), CLOSED.gateway


@pytest.fixture
def host_like() -> World:
    return World(addressing=replace(CLOSED, gateway_mac=GATEWAY_MAC, dns_mac=GATEWAY_MAC))


@pytest.mark.parametrize("address", [NEIGHBOUR, GATEWAY, WEB, ip("169.254.1.1"), ip("169.254.1.2")])
def test_arp_for_everybody_is_answered_with_our_mac(host_like: World, address: bytes) -> None:
    guest = Guest(host_like)
    guest.sends_arp(1, GUEST, address)
    assert guest.sees_arp() == (2, GATEWAY_MAC, address, GUEST_MAC, GUEST)


@pytest.mark.parametrize(
    ("sender", "target"),
    [(GUEST, GUEST), (bytes(4), GUEST), (bytes(4), NEIGHBOUR), (NEIGHBOUR, NEIGHBOUR), (GUEST, bytes(4))],
    ids=["announcement", "probe for its own", "probe for another", "announcement of another", "nobody"],
)
def test_arp_that_only_asks_whether_an_address_is_free_is_not(host_like: World, sender: bytes, target: bytes) -> None:
    """RFC 5227: the guest may take another address of the subnet."""
    guest = Guest(host_like)
    guest.sends_arp(1, sender, target)
    guest.sees_nothing()


def test_the_gateways_address_is_not_the_guests_to_claim(host_like: World) -> None:
    guest = Guest(host_like)
    for address in (GATEWAY, ip("169.254.1.1")):
        guest.sends_arp(1, address, NEIGHBOUR)
        guest.sees_nothing()
    assert len(host_like.interface.neighbors) == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_what_is_not_served_is_not_answered(protocol: str) -> None:
    world = World(without=frozenset((protocol,)))
    guest = Guest(world)
    if protocol == "tcp":
        guest.tcp(WEB, 80).sends(SYN, seq=0)
    elif protocol == "udp":
        guest.sends_udp(WEB, 9, b"x")
    else:
        guest.sends_echo(WEB, 1, 1)
    guest.sees_nothing()
    assert world.counters.drop_not_served == 1
    assert not (world.host.sockets or world.host.streams or world.host.echoes)


def test_a_guest_that_configures_itself_is_where_it_speaks_from() -> None:
    planned, slaac, local = ip6("2001:db8::7"), ip6("2001:db8::a1"), ip6("fe80::a1")
    neighbors = Neighbors(b"\xff" * 6, 8)
    assert neighbors.address_of_guest(planned) == planned
    neighbors.learn(local, GUEST_MAC)
    neighbors.learn(GUEST, GUEST_MAC)
    assert neighbors.address_of_guest(planned) == planned, "others of that family are not enough"
    neighbors.learn(slaac, GUEST_MAC)
    assert neighbors.address_of_guest(planned) == slaac
    neighbors.learn(planned, GUEST_MAC)
    assert neighbors.address_of_guest(planned) == planned


@pytest.mark.parametrize(("network", "prefixes"), [("2001:db8::", 1), ("fe80::", 0)])
def test_a_link_local_network_is_not_advertised(network: str, prefixes: int) -> None:
    """A host without IPv6: the guest has its link-local address and a router, and makes no other address."""
    world = World(addressing=replace(CLOSED, network6=int.from_bytes(ip6(network), "big")))
    world.interface.start(0.0)
    [advertisement] = [s.frame for s in world.sent if len(s.frame) > 54 and s.frame[54] == 134]
    assert advertisement[70:].count(b"\x03\x04") == prefixes, "RFC 4861 §4.6.2"
