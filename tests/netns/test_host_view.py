"""What the agent says of its own namespace, where the test has made it."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from netd.errors import AgentUnavailable, TapUnavailable
from netd.netns import view as seen
from netd.netns.plan import HostInterface, HostRoute, HostView, TapPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, Run, open_fds

ASK = """
import asyncio, json, os, sys, time
from dataclasses import asdict
from netd.netns.spawn import Agent
from netd.netns.view import Host
async def main():
    agent = Agent()
    await agent.start()
    host = Host(agent.host_view)
    fds, times = len(os.listdir("/proc/self/fd")), []
    for _ in range(int(sys.argv[1])):
        started = time.perf_counter()
        view = await host.view()
        times.append(time.perf_counter() - started)
    host.close()
    assert len(os.listdir("/proc/self/fd")) == fds
    print(json.dumps([asdict(view), times]))
    await agent.stop()
asyncio.run(main())
"""
LINKS = """
link set lo up
link add eth0 address 02:00:00:00:00:01 mtu 9000 type veth peer name peer0
link add wlan0 mtu 1400 type veth peer name peer1
link add off0 type bridge
link set peer0 up
link set peer1 up
link set eth0 up
link set wlan0 up
address add 192.0.2.2/24 dev eth0
address add 192.0.2.3/24 dev eth0
address add 198.51.100.2/25 dev eth0
address add 192.0.2.77/24 dev wlan0
address add 10.1.2.3 peer 10.1.2.4/32 dev wlan0
address add 10.9.9.9/24 dev eth0 preferred_lft 0
"""


class Host(Namespace):
    """A namespace to be looked at."""

    def batch(self, lines: str, family: str = "-4") -> None:
        self.run("sh", "-c", 'printf "%s" "$2" | ip $1 -batch -', "sh", family, lines)

    def ask(self, times: int = 1) -> tuple[HostView, list[float]]:
        view, took = json.loads(self.run(sys.executable, "-c", ASK, str(times)))
        interfaces = tuple(HostInterface(**{**i, "addresses": tuple(i["addresses"])}) for i in view["interfaces"])
        return HostView(interfaces, tuple(HostRoute(**r) for r in view["routes"])), took

    def view(self) -> HostView:
        return self.ask()[0]


@pytest.fixture
def host(no_fd_is_lost: None) -> Any:
    made = Host()
    made.run("sh", "-c", "cd /proc/sys/net/ipv6/conf && for d in *; do echo 0 > $d/accept_dad; done")
    yield made
    made.close()


def named(view: HostView, name: str) -> HostInterface:
    [found] = [i for i in view.interfaces if i.name == name]
    return found


def index(view: HostView, name: str) -> int:
    return named(view, name).index


def defaults(view: HostView, destination: str = "0.0.0.0/0") -> list[tuple[str, int]]:
    return [(route.gateway, route.metric) for route in view.routes if route.destination == destination]


def test_interfaces_and_addresses(host: Host) -> None:
    host.batch(LINKS)
    view = host.view()
    eth0, wlan0, lo, off0 = (named(view, name) for name in ("eth0", "wlan0", "lo", "off0"))
    assert (eth0.mtu, eth0.mac, eth0.up, eth0.loopback) == (9000, "02:00:00:00:00:01", True, False)
    assert (wlan0.mtu, wlan0.up, off0.up, off0.addresses) == (1400, True, False, ())
    assert (lo.mac, lo.up, lo.loopback, lo.addresses) == ("00:00:00:00:00:00", True, True, ("127.0.0.1/8", "::1/128"))
    assert [a for a in eth0.addresses if ":" not in a] == ["192.0.2.2/24", "198.51.100.2/25", "192.0.2.3/24"]
    assert [a for a in wlan0.addresses if ":" not in a] == ["192.0.2.77/24", "10.1.2.3/32"]
    assert {i.index for i in view.interfaces} == {link["ifindex"] for link in host.ip("link", "show")}


def test_ipv6_addresses(host: Host) -> None:
    """In the kernel's order, which is that of `ip address`; the link-local last."""
    host.batch(LINKS)
    for line in (
        "address add 2001:db8::2/64 dev eth0 nodad",
        "address add 2001:db8::3/64 dev eth0 nodad",
        "address add 2001:db8::dead/64 dev eth0 nodad preferred_lft 0",
        "address add 2001:db8::7 peer 2001:db8::8/128 dev eth0 nodad",
        "link add eth1 type veth peer name eth2",  # no carrier: what is added stays tentative
        "link set eth1 up",
    ):
        host.run("ip", "-6", *line.split())
    host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth1/accept_dad")
    host.run("ip", "-6", "address", "add", "2001:db8:1::2/64", "dev", "eth1")
    view = host.view()
    shown = [a for a in host.ip("-6", "address", "show", "dev", "eth0")[0]["addr_info"] if not a.get("deprecated")]
    found = [a for a in named(view, "eth0").addresses if ":" in a]
    link_local = {f"{a['local']}/64" for a in shown if a["scope"] == "link" and not a.get("tentative")}
    assert found[:3] == ["2001:db8::7/128", "2001:db8::3/64", "2001:db8::2/64"]
    assert set(found[3:]) == link_local
    assert named(view, "eth1").addresses == ()


def test_two_default_routes_and_their_order(host: Host) -> None:
    """The first of a family is the one that the kernel uses."""
    host.batch(LINKS)
    for line in (
        "-4 route add default via 192.0.2.1 dev eth0 metric 600",
        "-4 route add default via 192.0.2.99 dev wlan0 metric 100 onlink",
        "-4 route add default via 192.0.2.3 dev eth0 metric 700 tos 0x10",
        "-6 route add default via fe80::1 dev eth0 metric 600",
        "-6 route add default via fe80::2 dev wlan0 metric 100",
        "-6 route add default via fe80::3 dev wlan0",
    ):
        host.run("ip", *line.split())
    view = host.view()
    assert defaults(view) == [("192.0.2.99", 100), ("192.0.2.1", 600)]
    assert defaults(view, "::/0") == [("fe80::2", 100), ("fe80::1", 600), ("fe80::3", 1024)]
    assert [r.interface for r in view.routes if r.destination == "0.0.0.0/0"] == [index(view, "wlan0"), index(view, "eth0")]  # fmt: skip
    for family, address, destination in (("-4", "8.8.8.8", "0.0.0.0/0"), ("-6", "2001:4860::1", "::/0")):
        [way] = host.ip(family, "route", "get", address)
        assert (way["gateway"], way["dev"]) == (defaults(view, destination)[0][0], "wlan0")


def test_routes_of_all_sorts(host: Host) -> None:
    host.batch(LINKS)
    for line in (
        "-4 route add 203.0.113.0/24 via 192.0.2.9",
        "-4 route add 172.16.0.0/12 dev wlan0 metric 5",
        "-4 route add 10.2.0.0/16 nexthop via 192.0.2.1 dev eth0 weight 2 nexthop via 192.0.2.3 dev eth0",
        "-4 route add unreachable 10.3.0.0/16",
        "-4 route add blackhole 10.4.0.0/16",
        "-4 route add default via 192.0.2.1 table 100",
        "-4 route add 10.5.0.0/16 via inet6 fe80::1 dev eth0",
        "-6 route add 2001:db8:2::/48 nexthop via fe80::5 dev wlan0 nexthop via fe80::6 dev eth0",
        "-6 route add unreachable default metric 4096",
        "-6 route add 2001:db8:3::1 via fe80::7 dev eth0",
    ):
        host.run("ip", *line.split())
    view = host.view()
    eth0, wlan0 = index(view, "eth0"), index(view, "wlan0")
    four = [r for r in view.routes if ":" not in r.destination]
    assert four == [
        HostRoute("10.1.2.4/32", wlan0),
        HostRoute("10.2.0.0/16", eth0, "192.0.2.1"),
        HostRoute("10.5.0.0/16", eth0),
        HostRoute("10.9.9.0/24", eth0),
        HostRoute("172.16.0.0/12", wlan0, "", 5),
        HostRoute("192.0.2.0/24", eth0),
        HostRoute("192.0.2.0/24", wlan0),
        HostRoute("198.51.100.0/25", eth0),
        HostRoute("203.0.113.0/24", eth0, "192.0.2.9"),
    ]
    six = {r for r in view.routes if ":" in r.destination and r.destination != "fe80::/64"}
    assert six == {
        HostRoute("2001:db8:2::/48", wlan0, "fe80::5", 1024),
        HostRoute("2001:db8:3::1/128", eth0, "fe80::7", 1024),
    }


def test_nothing_at_all(host: Host) -> None:
    """lo is down, and no route has ever been there."""
    view = host.view()
    assert [(i.name, i.up, i.loopback, i.addresses) for i in view.interfaces] == [("lo", False, True, ())]
    assert view.routes == ()


def test_without_ipv6(host: Host) -> None:
    host.run("sh", "-c", "cd /proc/sys/net/ipv6/conf && for d in *; do echo 1 > $d/disable_ipv6; done")
    host.batch(LINKS + "route add default via 192.0.2.1\n")
    view = host.view()
    assert named(view, "lo").addresses == ("127.0.0.1/8",)
    assert named(view, "eth0").addresses == ("192.0.2.2/24", "198.51.100.2/25", "192.0.2.3/24")
    assert defaults(view) == [("192.0.2.1", 0)] and not [r for r in view.routes if ":" in r.destination]


def test_hundreds_of_routes_and_interfaces(host: Host) -> None:
    """More than one message of the kernel's, and than one of ours, holds. 4 ms for 300 routes is what it may take."""
    host.batch(LINKS + "route add default via 192.0.2.1\n")
    host.batch("route add default via fe80::1 dev eth0\n", "-6")
    host.batch("".join(f"route add 10.{n // 256}.{n % 256}.0/24 via 192.0.2.9 metric 77\n" for n in range(300)))
    view, took = host.ask(30)
    assert len([r for r in view.routes if r.metric == 77]) == 300
    assert statistics.median(took) < 0.02  # 1 to 2 ms; the bound allows for a busy machine
    host.batch("".join(f"link add d{n} type bridge\naddress add 10.200.{n}.1/24 dev d{n}\n" for n in range(200)))
    host.batch("".join(f"route add 2001:db8:{n:x}::/48 via fe80::9 dev eth0\n" for n in range(1500)), "-6")
    view = host.view()
    assert [named(view, f"d{n}").addresses for n in range(200)] == [(f"10.200.{n}.1/24",) for n in range(200)]
    assert len([r for r in view.routes if r.gateway == "fe80::9"]) == 1500
    assert len([r for r in view.routes if r.metric == 77]) == 300
    assert (defaults(view), defaults(view, "::/0")) == ([("192.0.2.1", 0)], [("fe80::1", 1024)])
    assert len(json.dumps(asdict(view))) > 65536


def test_too_many_to_look_at(host: Host) -> None:
    """A dump is bounded; the next one on the same socket starts afresh."""
    host.batch(LINKS + "route add default via 192.0.2.1\n")
    host.batch("".join(f"route add 10.{n // 256}.{n % 256}.0/24 via 192.0.2.9\n" for n in range(900)))
    script = (
        "import json\nfrom netd.netns import rtnetlink, view\nrtnetlink.DUMP_MAX = 150\n"
        "print(json.dumps(view.read()))\n"
    )
    seen = json.loads(host.run(sys.executable, "-c", script))
    four = [route for route in seen["routes"] if ":" not in route[0]]
    assert len(four) == 150 and four[0][2] == "192.0.2.1" and seen["cut_short"]
    assert [route for route in seen["routes"] if route[0] == "fe80::/64"]  # asked for after that


def test_a_message_larger_than_usual() -> None:
    """A part of a dump is read whole, whatever its size."""
    script = (
        "import socket, struct\n"
        "from netd.netns import rtnetlink\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "rtnl = rtnetlink.Rtnetlink(); rtnl._socket.close(); rtnl._socket = ours; rtnl._sequence = 7\n"
        "theirs.send(struct.pack('=IHHII', 150000, 24, 2, 7, 0) + bytes(150000 - 16)\n"
        "    + struct.pack('=IHHII', 20, 3, 2, 6, 0) + bytes(4) + struct.pack('=IHHIIi', 20, 3, 2, 7, 0, 0))\n"
        "[body], steady = rtnl._parts()\n"
        "print(len(body), steady)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{150000 - 16} True\n"


def test_as_the_test_itself_sees_it(run: Run, make_namespace: Callable[..., Namespace]) -> None:
    """The agent is where the daemon is, also after its children were elsewhere."""
    other = make_namespace()
    other.run("ip", "link", "add", "elsewhere0", "type", "bridge")

    async def main() -> HostView:
        agent = Agent()
        await agent.start()
        with pytest.raises(TapUnavailable, match="not an interface name"):
            await agent.open_tap(other.fd, TapPlan("a/b", 1500))
        before = open_fds()
        view = await agent.host_view()
        assert open_fds() == before
        await agent.stop()
        with pytest.raises(AgentUnavailable, match="stopped"):
            await agent.host_view()
        return view

    view = run(main())
    assert [(i.index, i.name) for i in view.interfaces] == socket.if_nameindex()


CHANGES = """
import asyncio, json, subprocess, sys
from netd.netns.spawn import Agent
from netd.netns.view import Host
async def main():
    agent = Agent()
    await agent.start()
    host = Host(agent.host_view)
    seen = [await host.view()]
    for line in sys.argv[1].splitlines():
        subprocess.run(line, shell=True, check=True)
        seen.append(await host.view())
        assert await host.view() is seen[-1]
    await agent.stop()
    for one in seen:
        addresses = [a for i in one.interfaces for a in i.addresses if i.name != "lo"]
        print(json.dumps([[(i.name, i.mtu, i.up) for i in one.interfaces], addresses, [r.destination for r in one.routes]]))
asyncio.run(main())
"""


def test_every_change_is_seen_at_once(host: Host) -> None:
    """It is read again only after the kernel has told of a change; here before each question, of every kind."""
    host.batch("link set lo up\nlink add eth0 type veth peer name peer0\nlink set peer0 up\nlink set eth0 up\n")
    host.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")
    flood = "for i in $(seq 9000); do echo link set eth0 mtu $((1400 + i % 50)); done | ip -batch -"
    lines = [
        "true",
        "ip address add 192.0.2.2/24 dev eth0",
        "ip -6 address add 2001:db8::2/64 dev eth0 nodad",
        "ip route add default via 192.0.2.1",
        "ip -6 route add default via 2001:db8::1",
        "ip link set eth0 mtu 1400",
        "ip link add more0 type bridge",
        "ip route del default",
        "ip address del 192.0.2.2/24 dev eth0",
        f"{flood}; ip link set eth0 mtu 1300",  # more than the queue holds
        "ip link set eth0 down",
    ]
    said = host.run(sys.executable, "-c", CHANGES, "\n".join(lines))
    seen = [json.loads(line) for line in said.splitlines()]
    assert len(seen) == len(lines) + 1
    links, addresses, routes = zip(*seen, strict=True)
    assert seen[0] == seen[1]
    assert "192.0.2.2/24" in addresses[2] and "2001:db8::2/64" in addresses[3]
    assert "0.0.0.0/0" in routes[4] and "::/0" in routes[5]
    assert ["eth0", 1400, True] in links[6] and ["more0", 1500, False] in links[7]
    assert "0.0.0.0/0" not in routes[8] and "192.0.2.2/24" not in addresses[9]
    assert ["eth0", 1300, True] in links[10] and ["eth0", 1300, False] in links[11]


async def test_it_is_asked_for_only_after_a_change() -> None:
    answers: list[asyncio.Future[HostView]] = []

    def ask() -> asyncio.Future[HostView]:
        answers.append(asyncio.get_running_loop().create_future())
        return answers[-1]

    async def asked() -> asyncio.Task[HostView]:
        before = len(answers)
        task = asyncio.create_task(host.view())
        await asyncio.sleep(0)
        assert len(answers) == before + 1
        return task

    host = seen.Host(ask)
    first, second = await asked(), await asked()
    answers[1].set_result(HostView((), (HostRoute("192.0.2.0/24", 2),)))
    answers[0].set_result(HostView((), ()))
    assert await first != await second == await host.view(), "the first may be older than the change"
    host.close()
    third = await asked()  # it did not hear what came meanwhile
    answers[2].set_exception(AgentUnavailable("no"))
    with pytest.raises(AgentUnavailable):
        await third
    await asked()
    host.close()
    host.close()
