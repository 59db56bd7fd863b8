"""A restart of a network like the host's: its addresses, the table of its ports, and what follows who listens."""

from __future__ import annotations

import os

from netd.dialects.pasta.portspec import parse_ports
from netd.rules import AUTO
from netd.specs import Lifeline, NetworkSpec
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, connected, until

from .restarts import Start, works
from .service_manager import ServiceManager

SPEC = NetworkSpec(
    name="like",
    origin="pasta",
    ifname="out0",
    cidr="198.51.100.0/24",
    guest_ip=HOST,
    gateway_ip="198.51.100.254",
    dns_ip="169.254.1.1",
    host_like=True,
    host_ips=("169.254.1.2",),
    addresses=(f"{HOST}/24",),
    routes=("default via 198.51.100.254",),
    dialect={"control": "/run/user/1000/pasta.sock"},
)


async def test_it_comes_back_with_its_rules(world: World, manager: ServiceManager, start: Start) -> None:
    guest = world.guest()
    daemon = await start()
    network = await daemon.attach(SPEC, os.dup(guest.fd), Lifeline("explicit"))
    rules = [
        ("in", *parse_ports("0.0.0.0/20080:8000", "t", range(0)).rules),
        ("in", *parse_ports("21000-21100,auto", "t", range(0)).rules),
        ("out", *parse_ports("22000:22001", "T", range(0)).rules),
    ]
    for table, rule in rules:
        await network.rules.add(table, rule, "pasta")
    daemon.changed(network)
    with guest.listener(port=21007) as following:
        await until(lambda: any(f.spec.host_port == 21007 for f in network.forwards()), "the port on the host")
        for _ in range(3):
            assert not any(".port-2" in name for name in manager.names()), "what follows who listens is not stored"
            network = daemon.network("like")
            assert network.spec == SPEC
            assert [("in", rule) for rule in network.rules.table("in")] == rules[:2]
            assert [("out", rule) for rule in network.rules.table("out")] == rules[2:]
            assert {(f.spec.host_port, f.origin) for f in network.forwards()} == {(20080, "pasta"), (21007, AUTO)}
            await works(world, guest)
            with world.outside.socket() as client:
                (await connected(client, (HOST, 21007), following)).close()
            with guest.listener(port=8000) as listener, world.outside.socket() as client:
                with await connected(client, (HOST, 20080), listener) as server:
                    assert server.getpeername()[0] == OUTSIDE
            with world.host.listener("127.0.0.1", 22001) as listener, guest.socket() as client:
                with await connected(client, ("127.0.0.1", 22000), listener) as server:
                    await both_ways(client, server, 100_000)
            daemon = await start()
    network = daemon.network("like")
    await until(lambda: all(f.spec.host_port != 21007 for f in network.forwards()), "the port's end")
    for table, rule in rules:
        await network.rules.remove(table, rule)
    assert network.forwards() == [] and network.rules.table("in") == network.rules.table("out") == ()
    with guest.socket() as client:
        client.settimeout(2)
        assert await aside(client.connect_ex, ("127.0.0.1", 22000)) == 111
