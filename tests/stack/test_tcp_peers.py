"""What connections between the same two addresses have in common: kept, bounded, and never out of date."""

from __future__ import annotations

import dataclasses

from wire.oracle import ACK

from netd.stack import policy
from netd.stack.limits import Limits

from .guest import Guest
from .world import World


def test_one_for_all_connections_of_two_addresses(world: World, guest: Guest) -> None:
    peers = world.interface.tcp.peers
    first, _ = guest.connects()
    (key,) = world.interface.tcp.connections
    peer = peers.of(key)
    second, _ = guest.connects()
    assert len(peers) == 1 and peers.of(key) is peer
    for tcp, word in ((first, b"one"), (second, b"two")):  # each has a header of its own
        stream = world.host.streams[0 if tcp is first else 1]
        stream.gets(word)
        tcp.sees(ACK | 8, word)


def test_a_guest_with_another_mac_is_met_again(world: World, guest: Guest) -> None:
    tcp, _ = guest.connects()
    (key,) = world.interface.tcp.connections
    peer = world.interface.tcp.peers.of(key)
    guest.mac = b"\x02\x00\x00\x00\x00\x77"
    guest.connects()  # sees that its frames go to the new one
    assert world.interface.tcp.peers.of(key) is not peer


def test_no_more_than_the_bound(guest: Guest) -> None:
    world = World(limits=dataclasses.replace(Limits(), peers=2))
    tcp = world.interface.tcp
    pairs = [bytes((10, 0, 2, 100, 203, 0, 113, n, 1, 2, 3, 4)) for n in range(3)]
    first = tcp.peers.of(pairs[0])
    for pair in pairs:
        tcp.peers.of(pair)
    assert len(tcp.peers) == 2
    assert tcp.peers.of(pairs[0]) is not first


def test_where_to_is_kept_where_the_port_does_not_matter(world: World) -> None:
    peers, addressing = world.interface.tcp.peers, world.interface.addressing
    remote = b"\xcb\x00\x71\x02"
    for ip in (remote, addressing.gateway, addressing.dns, addressing.broadcast, b"\xe0\x00\x00\x01"):
        target = peers.of(addressing.guest + ip + bytes(4)).target
        asked = policy.decide(addressing, ip, 80)
        assert target == (asked if asked.kind == policy.DIRECT else None)
        assert (target is not None) == (ip == remote)
