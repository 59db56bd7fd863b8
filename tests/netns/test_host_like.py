"""Any addresses and routes on the TAP, as a guest with its host's has them, read back with iproute2."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import pytest

from netd.errors import TapUnavailable
from netd.netns.plan import OpenTap, TapPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, Run
from .test_ipv6 import LINK_LOCAL, MAC, disable, ipv6, talks
from .test_open_tap import once

PLAN = TapPlan(
    "tap0",
    65520,
    mac=MAC,
    address="10.9.9.9/24",  # does not count
    gateway="10.9.9.1",
    address6="fd09::9/64",
    gateway6="fe80::9",
    addresses=("192.0.2.2/24", "198.51.100.7/25", "2001:db8::2/64", "2001:db8:1::2/64"),
    routes=(
        "0.0.0.0/0 via 192.0.2.1 metric 100",
        "203.0.113.0/24 via 198.51.100.1",
        "10.0.0.0/8",
        "192.0.2.0/24",
        "::/0 via fe80::1 metric 1024",
        "2001:db8:9::/48 via 2001:db8::1",
    ),
)

pytestmark = pytest.mark.usefixtures("tun")


def routes(namespace: Namespace, family: int = 4, device: str = "tap0") -> list[str]:
    """All that iproute2 shows but the kernel's own."""
    found = []
    for r in namespace.ip(f"-{family}", "route", "show", "dev", device):
        if r.get("protocol") != "kernel":
            via = f" via {r['gateway']}" if "gateway" in r else ""
            flags = "".join(f" {flag}" for flag in r.get("flags", ()) if flag == "onlink")
            metric = f" metric {r['metric']}" if r.get("metric", 0) not in (0, 1024) else ""
            found.append(f"{r['dst']}{via}{metric}{flags}")
    return found


def state(namespace: Namespace) -> tuple[Any, ...]:
    return (
        namespace.addresses("tap0"),
        list(ipv6(namespace)),
        sorted(str(r) for f in "46" for r in namespace.ip(f"-{f}", "route", "show", "dev", "tap0")),
    )


def check(namespace: Namespace, tap: OpenTap) -> None:
    assert namespace.addresses("tap0") == ["192.0.2.2/24", "198.51.100.7/25"]
    # Podman takes the first for the container's entry in /etc/hosts: the order is the plan's.
    assert list(ipv6(namespace)) == ["2001:db8::2/64", "2001:db8:1::2/64", f"{LINK_LOCAL}/64"]
    for address in ipv6(namespace).values():
        assert not {"tentative", "optimistic", "dadfailed"} & set(address)
    assert routes(namespace) == [
        "default via 192.0.2.1 metric 100",
        "10.0.0.0/8",
        "203.0.113.0/24 via 198.51.100.1",
    ]
    assert sorted(routes(namespace, 6)) == ["2001:db8:9::/48 via 2001:db8::1", "default via fe80::1"]
    own = [r["dst"] for r in namespace.ip("-4", "route", "show", "dev", "tap0") if r["protocol"] == "kernel"]
    assert own == ["192.0.2.0/24", "198.51.100.0/25"]
    assert (tap.address6, tap.no_ipv6) == ("2001:db8::2/64", "")


def test_addresses_and_routes_of_both_families(run: Run, namespace: Namespace) -> None:
    async def ask() -> OpenTap:
        agent = Agent()
        await agent.start()
        tap = await agent.open_tap(namespace.fd, PLAN)
        talks(namespace, "2001:db8::2", "2001:db8:1::2", f"{LINK_LOCAL}%tap0", "::1")  # first of all
        await agent.stop()
        return tap

    tap = run(ask())
    check(namespace, tap)
    assert {"UP", "LOWER_UP"} <= set(namespace.link("tap0")["flags"]) and "UP" in namespace.link("lo")["flags"]
    [way] = namespace.ip("route", "get", "8.8.8.8")
    assert (way["gateway"], way["prefsrc"]) == ("192.0.2.1", "192.0.2.2")
    [way] = namespace.ip("route", "get", "203.0.113.5")
    assert (way["gateway"], way["prefsrc"]) == ("198.51.100.1", "198.51.100.7")
    os.close(tap.fd)


def test_second_run_leaves_the_same_state(run: Run, namespace: Namespace) -> None:
    """As Podman's rootless-netns on a re-run: a bridge with its networks, and a default route of another's."""
    for line in (
        "link set lo up",
        "link add podman0 type bridge",
        "address add 10.88.0.1/16 dev podman0",
        "address add fd10:88::1/64 dev podman0 nodad",
        "link set podman0 up",
        "route add default via 10.88.0.9 dev podman0 metric 100",
    ):
        namespace.run("ip", *line.split())
    plan = replace(PLAN, routes=(*PLAN.routes, "10.88.0.0/16"))  # the host has a podman0, too

    async def ask() -> None:
        agent = Agent()
        await agent.start()
        states = []
        for _ in range(3):
            tap = await agent.open_tap(namespace.fd, plan)
            check(namespace, tap)
            states.append(state(namespace))
            os.close(tap.fd)
        assert states[0] == states[1] == states[2]
        await agent.stop()

    run(ask())
    assert namespace.addresses("podman0") == ["10.88.0.1/16"] and "fd10:88::1/64" in ipv6(namespace, "podman0")
    [way] = namespace.ip("-4", "route", "show", "10.88.0.0/16")
    assert (way["dev"], way["protocol"]) == ("podman0", "kernel")


def test_persistent_tap_of_an_earlier_plan(run: Run, namespace: Namespace) -> None:
    for line in (
        "tuntap add tap0 mode tap",
        "link set tap0 address 02:aa:aa:aa:aa:aa up",
        "address add 192.0.2.9/24 dev tap0",  # a stale primary, whose removal takes
        "address add 192.0.2.2/24 dev tap0",  # ours, which is secondary to it,
        "address add 192.0.2.8/24 dev tap0",  # and another stale one with it
        "address add 172.16.0.1/24 dev tap0",
        "-6 address add 2001:db8::99/64 dev tap0",
        "-6 address add 2001:db8::2/48 dev tap0",
        "-6 address add fd11::1/64 dev tap0 nodad",
        "route add 172.17.0.0/16 via 172.16.0.9",
        "route add default via 172.16.0.9 proto static",
        "route add 203.0.113.0/24 via 172.16.0.9 proto static",
        "route add 172.18.0.0/16 nexthop via 172.16.0.9 dev tap0 nexthop via 172.16.0.8 dev tap0",
        "-6 route add default via fe80::99 dev tap0",
        "-6 route add fd12::/64 via fe80::99 dev tap0",
        "-6 route add fd13::/64 nexthop via fe80::99 dev tap0 nexthop via fe80::98 dev tap0",
    ):
        namespace.run("ip", *line.split())
    states = []
    for _ in range(2):
        tap = once(run, namespace, PLAN)
        check(namespace, tap)
        talks(namespace, "2001:db8::2")
        states.append(state(namespace))
        os.close(tap.fd)
    assert states[0] == states[1]
    # The host has moved to another network meanwhile, where it has no IPv6.
    plan = replace(PLAN, addresses=("203.0.113.2/24",), routes=("default via 203.0.113.1",))
    tap = once(run, namespace, plan)
    assert namespace.addresses("tap0") == ["203.0.113.2/24"]
    assert routes(namespace) == ["default via 203.0.113.1"]
    assert list(ipv6(namespace)) == [f"{LINK_LOCAL}/64"] and routes(namespace, 6) == []
    os.close(tap.fd)


def test_gateways_that_are_on_no_subnet(run: Run, namespace: Namespace) -> None:
    """A /32 as some clouds have it, with and without the host's own route to its gateway."""
    cases: list[tuple[str, tuple[str, ...], list[str]]] = [
        ("203.0.113.5/32", ("default via 172.31.1.1",), ["default via 172.31.1.1 onlink"]),
        (
            "203.0.113.5/32",
            ("default via 172.31.1.1", "172.31.1.1"),
            ["default via 172.31.1.1", "172.31.1.1"],
        ),
        ("10.0.2.100/24", ("default via 192.0.2.1 metric 5",), ["default via 192.0.2.1 metric 5 onlink"]),
        ("169.254.2.1/16", ("0.0.0.0/0 via 169.254.2.2",), ["default via 169.254.2.2"]),
        ("10.0.2.100/24", ("default",), ["default"]),  # as of a tunnel
    ]
    for address, planned, shown in cases:
        tap = once(run, namespace, replace(PLAN, addresses=(address,), routes=planned))
        assert namespace.addresses("tap0") == [address]
        assert routes(namespace) == shown
        [way] = namespace.ip("route", "get", "8.8.8.8")
        assert (way["dev"], way["prefsrc"]) == ("tap0", address.split("/")[0])
        os.close(tap.fd)
    for planned, shown in (
        (("default via 2001:db8:ffff::1",), ["default via 2001:db8:ffff::1 onlink"]),
        (("::/0", "2001:db8:ffff::/64 via fc00::1"), ["2001:db8:ffff::/64 via fc00::1", "default"]),
        (("default6",), ["default"]),
    ):
        tap = once(run, namespace, replace(PLAN, addresses=("fc00:1::3/64",), routes=planned))
        assert sorted(routes(namespace, 6)) == shown
        os.close(tap.fd)


@pytest.mark.parametrize("addresses", [("169.254.2.1/16",), ("fe80::5/64",), (f"{LINK_LOCAL}/64",)])
def test_ipv6_with_no_address_but_the_link_local(run: Run, namespace: Namespace, addresses: tuple[str, ...]) -> None:
    """pasta on a host without IPv6."""

    async def ask() -> OpenTap:
        agent = Agent()
        await agent.start()
        plan = replace(PLAN, addresses=addresses, routes=("::/0 via fe80::1",))
        tap = await agent.open_tap(namespace.fd, plan)
        talks(namespace, f"{LINK_LOCAL}%tap0", *(f"{a.split('/')[0]}%tap0" for a in addresses if ":" in a))
        await agent.stop()
        return tap

    tap = run(ask())
    assert set(ipv6(namespace)) == {f"{LINK_LOCAL}/64", *(a for a in addresses if ":" in a)}
    assert routes(namespace, 6) == ["default via fe80::1"]
    assert (tap.address6, tap.no_ipv6) == ("", "")
    os.close(tap.fd)


def test_the_macs_address_in_a_planned_network(run: Run, namespace: Namespace) -> None:
    tap = once(run, namespace, replace(PLAN, addresses=("fd00::/64", "fd00::/64"), routes=(), gateway=""))
    assert list(ipv6(namespace)) == ["fd00::11:22ff:fe33:4455/64", f"{LINK_LOCAL}/64"]
    assert tap.address6 == "fd00::11:22ff:fe33:4455/64" and routes(namespace, 6) == ["default via fe80::9"]
    os.close(tap.fd)


def test_a_host_without_ipv6(run: Run, namespace: Namespace) -> None:
    """What the plan says nothing of stays as it is."""
    disable(namespace)
    tap = once(run, namespace, replace(PLAN, addresses=PLAN.addresses[:2], routes=PLAN.routes[:4]))
    assert ipv6(namespace) == {} and (tap.address6, tap.no_ipv6) == ("", "")
    assert namespace.run("cat", "/proc/sys/net/ipv6/conf/tap0/disable_ipv6") == "1\n"
    assert len(routes(namespace)) == 3
    os.close(tap.fd)


def test_disabled_ipv6_is_enabled_where_it_is_needed(run: Run, namespace: Namespace) -> None:
    disable(namespace)
    tap = once(run, namespace, PLAN)
    check(namespace, tap)
    talks(namespace, "2001:db8::2")
    os.close(tap.fd)


def test_no_ipv6_to_be_had(run: Run, namespace: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "netd"):
        tap = once(run, namespace, replace(PLAN, mtu=1279))
    assert tap.no_ipv6 == "MTU 1279 is less than IPv6's minimum of 1280" and tap.no_ipv6 in caplog.text
    assert tap.address6 == "" and ipv6(namespace) == {} and routes(namespace, 6) == []
    assert len(routes(namespace)) == 3
    os.close(tap.fd)


def test_the_lowest_metric_is_used(run: Run, namespace: Namespace) -> None:
    ways = ("default via 192.0.2.7 metric 300", "default via 192.0.2.8 metric 100", "default via 192.0.2.9 metric 200")
    ways6 = ("default via fe80::7 metric 300", "default via fe80::8 metric 100")
    tap = once(run, namespace, replace(PLAN, routes=ways + ways6))
    assert routes(namespace) == [ways[1], ways[2], ways[0]]
    assert routes(namespace, 6) == [ways6[1], ways6[0]]
    assert namespace.ip("route", "get", "8.8.8.8")[0]["gateway"] == "192.0.2.8"
    assert namespace.ip("-6", "route", "get", "2001:4860::1")[0]["gateway"] == "fe80::8"
    os.close(tap.fd)


def test_a_refused_route_is_left_out(run: Run, namespace: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    plan = replace(
        PLAN,
        routes=(
            "default via 192.0.2.1",
            "default via 192.0.2.9",  # the same metric: the first stands
            "10.1.0.0/16 via 192.0.2.5",
            "10.1.0.0/16 via 192.0.2.6",
            "10.2.0.1/16 via 192.0.2.5",  # no network
            "224.0.0.0/4 via 239.0.0.1",  # no gateway
            "default via fe80::1",
            "default via fe80::2 metric 0",
            "fd44::/64 via ff02::1",
        ),
    )
    with caplog.at_level(logging.WARNING, "netd"):
        tap = once(run, namespace, plan)
    assert routes(namespace) == ["default via 192.0.2.1", "10.1.0.0/16 via 192.0.2.5"]
    assert routes(namespace, 6) == ["default via fe80::1"]
    assert [record.getMessage() for record in caplog.records] == [
        f"a namespace goes without a route: tap0: {why}"
        for why in (
            "default route via 192.0.2.9: File exists",
            "route 10.1.0.0/16 via 192.0.2.6: File exists",
            "route 10.2.0.1/16 via 192.0.2.5: Invalid argument",
            "route 224.0.0.0/4 via 239.0.0.1: Network is unreachable",
            "default route via fe80::2 metric 0: File exists",
            "route fd44::/64 via ff02::1: Invalid argument",
        )
    ]
    os.close(tap.fd)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"routes": ("default via 224.0.0.1",)}, "default route via 224.0.0.1: "),
        ({"routes": ("default via 192.0.2.1", "default via ff02::1")}, "default route via ff02::1: "),
        ({"routes": ("",)}, "'' is not a route"),
        ({"routes": ("10.0.0.0/8 via",)}, "is not a route"),
        ({"routes": ("10.0.0.0/8 dev eth0",)}, "is not a route"),
        ({"routes": ("10.0.0.0/8 via 192.0.2.1 via 192.0.2.3",)}, "is not a route"),
        ({"routes": ("10.0.0.0/8 metric -1",)}, "'-1' is not a metric"),
        ({"routes": ("10.0.0.0/8 metric 4294967296",)}, "is not a metric"),
        ({"routes": (f"10.0.0.0/8 metric {'9' * 5000}",)}, "is not a metric"),
        ({"routes": ("10.0.0.0/33",)}, "prefix length"),
        ({"routes": ("ten/8",)}, "'ten' is not an IPv4 address"),
        ({"routes": ("::/0 via 192.0.2.1",)}, "'192.0.2.1' is not an IPv6 address"),
        ({"routes": ("0.0.0.0/0 via fe80::1",)}, "'fe80::1' is not an IPv4 address"),
        ({"addresses": ("192.0.2.2",)}, "prefix length"),
        ({"addresses": ("192.0.2.2/24", "fd00::/48")}, "prefix length is not 64"),
        ({"addresses": ("192.0.2.2/24", "fd00::5\0/64")}, "not an IPv6 address"),
        ({"addresses": ("",)}, "not an IPv4 address"),
        ({"addresses": ("ff02::1/64",), "routes": ()}, "address ff02::1/64: "),
    ],
)
def test_wrong_values(run: Run, namespace: Namespace, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(TapUnavailable, match=says):
        once(run, namespace, replace(PLAN, **wrong))
    assert namespace.names() == {"lo"}


def test_a_plan_larger_than_a_message(run: Run, namespace: Namespace) -> None:
    many = tuple(f"10.{n // 256}.{n % 256}.0/24 via 192.0.2.1 metric 1000000" for n in range(2000))
    assert sum(map(len, many)) > 65536
    tap = once(run, namespace, replace(PLAN, routes=("default via 192.0.2.1", *many)))
    assert routes(namespace) == ["default via 192.0.2.1", *many]
    os.close(tap.fd)


def test_lo_without_configure(run: Run, namespace: Namespace) -> None:
    """A guest that configures itself, by DHCP or by hand."""
    tap = once(run, namespace, replace(PLAN, configure=False, lo=True))
    link = namespace.link("tap0")
    assert "UP" in namespace.link("lo")["flags"] and "UP" not in link["flags"]
    assert (link["mtu"], link["address"], tap.mac) == (1500, MAC, MAC)
    assert namespace.addresses("tap0") == [] and ipv6(namespace) == {} and routes(namespace) == []
    os.close(tap.fd)
    tap = once(run, namespace, replace(PLAN, configure=False, lo=True, mac=""))
    assert namespace.link("tap0")["address"] == tap.mac != MAC
    os.close(tap.fd)
    with pytest.raises(TapUnavailable, match="not a MAC"):
        once(run, namespace, replace(PLAN, configure=False, lo=True, mac="me"))
    assert namespace.names() == {"lo"}
