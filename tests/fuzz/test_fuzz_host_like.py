"""A host-like link under shaped bytes: the guest may have almost any address, and everybody else is ours to be."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from stack.cast import LOOPBACK, LOOPBACK6
from stack.test_policy import CLOSED, HOST_LIKE
from stack.world import GATEWAY_MAC, World

from .frames import shaped
from .hunt import hunt
from .test_fuzz_interface import TIGHT, FakeServices, outcomes

frames_in = st.tuples(shaped(), st.booleans(), st.sampled_from([0, 0, 0, 1, 3, 1200, 65535]))
without = st.sets(st.sampled_from(["tcp", "udp", "icmp", "ndp", "ra"]))


@hunt(st.lists(frames_in, max_size=8), st.booleans(), without)
def test_host_like_frames(frames: list[tuple[bytes, bool, int]], mapped: bool, without: set[str]) -> None:
    """Invariant: no exception; every frame counted, and something becomes of each; the host's loopback is reached by
    the address that stands for it alone; nobody takes an address of ours; bounds hold; and the end leaves nothing."""
    services = FakeServices()
    addressing = replace(HOST_LIKE if mapped else CLOSED, gateway_mac=GATEWAY_MAC, dns_mac=GATEWAY_MAC)
    world = World(addressing=addressing, limits=TIGHT, uso=True, services=services, without=frozenset(without))
    for n, (frame, vouched, segment) in enumerate(frames, 1):
        before, learned = outcomes(world, services.asked), dict(world.interface.neighbors._macs)
        connections = len(world.interface.tcp.connections)
        world.receive(frame, vouched, segment)
        assert world.counters.rx_frames == n
        if not connections and not learned:
            assert outcomes(world, services.asked) > before or world.interface.neighbors._macs, "nothing became of it"
    for socket in world.host.sockets:
        for target, _, _ in socket.sent:
            assert mapped or target not in (LOOPBACK, LOOPBACK6)
    for stream in world.host.streams:
        assert stream.address is None or mapped or stream.address[0] not in (LOOPBACK, LOOPBACK6)
    for ip_, mac in world.interface.neighbors._macs.items():
        assert addressing.may_be_guest(ip_) and not addressing.ours(ip_) and not mac[0] & 1
    world.sent.clear()
    world.ends()
