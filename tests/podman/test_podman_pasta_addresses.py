"""Addresses, routes and interfaces as pasta's options have them, and what Podman reads back from them."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass

import pytest

from tests.machine.machine import HOST, WORLD, Machine, until
from tests.podman.podman import PASTA, Podman
from tests.podman.probes import HOST6, USR, WORLD6

pytestmark = [PASTA, pytest.mark.usefixtures("world")]

LOOK = ["sh", "-c", "for f in -4 -6; do ip -j $f addr; ip -j $f route show default; done; ip -j link"]


@dataclass
class Seen:
    """What a container sees of its network at the first instant."""

    global4: list[str]  # ADDRESS/LENGTH
    global6: list[str]
    gateway4: str | None
    gateway6: str | None
    links: dict[str, dict[str, object]]


def look(podman: Podman, *words: str) -> Seen:
    """Runs a container with these options and looks from inside."""
    said = podman.run(USR, *words, "--", *LOOK)
    addr4, route4, addr6, route6, links = (json.loads(line) for line in said.splitlines())

    def addresses(of: list[dict[str, list[dict[str, object]]]]) -> list[str]:
        found = [a for link in of for a in link.get("addr_info", []) if a["scope"] == "global"]
        assert not any(a.get("tentative") for a in found), "usable at once: no duplicate address detection"
        return [f"{a['local']}/{a['prefixlen']}" for a in found]

    def gateway(of: list[dict[str, str]]) -> str | None:
        return of[0]["gateway"] if of else None

    return Seen(addresses(addr4), addresses(addr6), gateway(route4), gateway(route6), {k["ifname"]: k for k in links})


def test_the_hosts_own_addresses_and_routes(podman: Podman) -> None:
    seen = look(podman)
    assert seen.global4 == [f"{HOST}/24"] and seen.gateway4 == WORLD
    assert seen.global6 == [f"{HOST6}/64"] and seen.gateway6 == WORLD6
    assert set(seen.links) == {"lo", "eth0"}, "named like the host's interface of the default route"
    assert seen.links["eth0"]["mtu"] == 65520
    assert "UP" in seen.links["lo"]["flags"] and "UP" in seen.links["eth0"]["flags"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-a,192.0.2.1", {"global4": ["192.0.2.1"], "global6": [HOST6]}),
        ("-a,2001:db8::1", {"global4": [HOST], "global6": ["2001:db8::1"]}),
        ("-a,192.0.2.1,-a,2001:db8::1", {"global4": ["192.0.2.1"], "global6": ["2001:db8::1"]}),
        ("-4", {"global4": [HOST], "global6": [], "gateway4": WORLD, "gateway6": None}),
        ("-6", {"global4": [], "global6": [HOST6], "gateway4": None, "gateway6": WORLD6}),
        ("-a,192.0.2.2,-g,192.0.2.1", {"global4": ["192.0.2.2"], "gateway4": "192.0.2.1", "gateway6": WORLD6}),
        ("-a,2001:db8::2,-g,2001:db8::1", {"global6": ["2001:db8::2"], "gateway6": "2001:db8::1", "gateway4": WORLD}),
    ],
)
def test_addresses_and_gateways_by_option(podman: Podman, options: str, expected: dict[str, object]) -> None:
    seen = look(podman, f"--network=pasta:{options}")
    bare = Seen(**{**vars(seen), "global4": strip(seen.global4), "global6": strip(seen.global6)})
    assert {key: getattr(bare, key) for key in expected} == expected


def strip(addresses: list[str]) -> list[str]:
    return [a.split("/")[0] for a in addresses]


def test_address_netmask_and_gateway_give_another_network(podman: Podman, machine: Machine) -> None:
    """505: "pasta/bridge and host.containers.internal". The world is reached all the same, as the host."""
    options = "--network=pasta:-a,192.168.0.2,-g,192.168.0.1,-n,24"
    seen = look(podman, options)
    assert seen.global4 == ["192.168.0.2/24"] and seen.gateway4 == "192.168.0.1"
    assert podman.run(options, "--", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
    assert podman.run(options, "--", "wget", "-qO-", f"http://[{WORLD6}]/").startswith(f"you are {HOST6} ")
    hosts = podman.run(options, "--", "cat", "/etc/hosts").splitlines()
    assert [line.split()[0] for line in hosts if "host.containers.internal" in line] == ["169.254.1.2"]


@pytest.mark.parametrize(("option", "mtu"), [("", 65520), (":-m,1280", 1280), (":--mtu,9000", 9000)])
def test_mtu(podman: Podman, option: str, mtu: int) -> None:
    assert look(podman, f"--network=pasta{option}").links["eth0"]["mtu"] == mtu
    fetch = ["sh", "-c", f"wget -qO- http://{WORLD}/bytes/300000 | wc -c"]
    assert podman.run(f"--network=pasta{option}", "--", *fetch).split() == ["300000"]


def test_interface_name_and_mac_address(podman: Podman) -> None:
    seen = look(podman, "--network=pasta:-I,inside,--ns-mac-addr,9a:dd:31:ea:92:98")
    assert set(seen.links) == {"lo", "inside"} and seen.links["inside"]["address"] == "9a:dd:31:ea:92:98"


def test_the_world_sees_the_host(podman: Podman) -> None:
    for url, host in ((f"http://{WORLD}/", HOST), (f"http://[{WORLD6}]/", HOST6)):
        assert podman.run("--", "wget", "-qO-", url).startswith(f"you are {host} ")
    assert "1 packets received" in podman.run("--cap-add=NET_RAW", "--", "ping", "-c1", "-w5", WORLD)
    assert "1 packets received" in podman.run("--cap-add=NET_RAW", "--", "ping", "-6", "-c1", "-w5", WORLD6)


def test_a_pods_hosts_entry_is_the_address(podman: Podman) -> None:
    podman("pod", "create", "--name", "pod1", "--network=pasta")
    for name in ("one", "two"):
        podman("run", "-d", "--pod=pod1", "--name", name, "localhost/netd-test", "sleep", "60")
        hosts = podman("exec", name, "cat", "/etc/hosts").splitlines()
        assert [line.split()[0] for line in hosts if "pod1" in line.split()[1:]] == [HOST], hosts
    podman("exec", "-d", "one", "httpd", "-h", "/etc", "-p", "127.0.0.1:7080")
    page = ["wget", "-qO-", "http://127.0.0.1:7080/passwd"]
    assert until(lambda: podman("exec", "two", *page, status=None), "page of its neighbour").startswith("root:")


def test_hosts_and_resolv_conf(podman: Podman) -> None:
    said = podman.run("--name", "me", "--hostname", "me", "--", "cat", "/etc/hosts", "/etc/resolv.conf").splitlines()
    entries = {name: line.split()[0] for line in said if not line.startswith("#") for name in line.split()[1:]}
    assert entries["host.containers.internal"] == entries["host.docker.internal"] == "169.254.1.2"
    assert entries["me"] == HOST
    servers = [line.split()[1] for line in said if line.startswith("nameserver")]
    assert servers[0] == "169.254.1.1"
    assert all(ipaddress.ip_address(s) for s in servers)
