"""Every operation of the API, against the stand-in daemon."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netd import __version__
from netd.api.app import ApiServer
from netd.errors import LimitReached, NetdError, PortPrivileged, ShuttingDown, TapUnavailable
from tests.api.client import Answer, call, open_fds
from tests.standin import Daemon, Network

PROBLEM = "application/problem+json"


@pytest_asyncio.fixture
async def socket_path(runtime_dir: Path, api: ApiServer) -> Path:
    path = runtime_dir / "api.sock"
    await call(path, "GET", "/_ping")  # uvloop opens one descriptor of its own with the first connection
    return path


async def attached(path: Path, pid: int, **more: Any) -> dict[str, Any]:
    answer = await call(path, "POST", "/v1/networks", {"pid": pid, **more})
    assert answer.status == 201, answer.body
    found: dict[str, Any] = answer.json
    return found


def is_problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"].startswith(PROBLEM)
    document: dict[str, Any] = answer.json
    assert document["status"] == status
    assert document["code"] == code
    assert set(document) >= {"type", "title", "detail", "instance"}
    assert b"Traceback" not in answer.body
    return document


async def test_probes(socket_path: Path) -> None:
    assert (await call(socket_path, "GET", "/_ping")).body == b"OK"
    assert (await call(socket_path, "HEAD", "/_ping")).status == 200
    assert (await call(socket_path, "GET", "/healthz")).status == 200
    version = await call(socket_path, "GET", "/v1/version")
    assert version.json == {"version": __version__, "api_version": "1", "min_api_version": "1"}
    assert version.headers["netd-api-version"] == "1"
    assert "aiohttp" not in version.headers["server"]


async def test_info_counts(socket_path: Path, netns_pid: int, runtime_dir: Path) -> None:
    await attached(socket_path, netns_pid, ports=[{"container_port": 80}])
    info = (await call(socket_path, "GET", "/v1/info")).json
    assert info["pid"] == os.getpid()
    assert info["networks"] == 1
    assert info["ports"] == 1
    assert info["flows"] == {"tcp": 2, "udp": 1, "icmp": 0}
    assert info["runtime_dir"] == str(runtime_dir)
    assert info["memory_bytes"] > 1 << 20
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", info["started_at"])


async def test_attach_by_pid(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    answer = await call(
        socket_path,
        "POST",
        "/v1/networks",
        {
            "pid": netns_pid,
            "name": "web",
            "mtu": 1500,
            "ifname": "eth0",
            "cidr": "10.9.0.0/24",
            "allow_host_loopback": True,
            "ports": [{"container_port": 80, "host_ip": "127.0.0.1"}],
        },
    )
    assert answer.status == 201
    network = answer.json
    assert answer.headers["location"] == f"/v1/networks/{network['id']}"
    assert network["name"] == "web"
    assert (network["guest_ip"], network["gateway_ip"], network["dns_ip"]) == ("10.9.0.100", "10.9.0.2", "10.9.0.3")
    assert (network["mtu"], network["ifname"], network["allow_host_loopback"]) == (1500, "eth0", True)
    assert network["lifeline"] == "pidfd"
    assert network["netns_inode"] == os.stat(f"/proc/{netns_pid}/ns/net").st_ino
    port = network["ports"][0]
    assert (port["origin"], port["host_ip"], port["container_port"], port["range"]) == ("run", "127.0.0.1", 80, 1)
    assert port["host_port"] > 0
    kept: Network = daemon.network("web")
    assert os.readlink(f"/proc/self/fd/{kept.lifeline.fd}") == "anon_inode:[pidfd]"


KEYS_OF_IPV6 = ("cidr6", "guest_ip6", "gateway_ip6", "dns_ip6", "router_ip6", "outbound_ip6")


async def test_attach_with_ipv6(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    network = await attached(socket_path, netns_pid, name="web", cidr6="FD12:3456:789a:1::/64")
    assert {key: network[key] for key in KEYS_OF_IPV6} == {
        "cidr6": "fd12:3456:789a:1::/64",
        "guest_ip6": "fd12:3456:789a:1:0:ff:fe00:1",  # SLAAC's of the stand-in's MAC, 02:00:00:00:00:01
        "gateway_ip6": "fd12:3456:789a:1::2",
        "dns_ip6": "fd12:3456:789a:1::3",
        "router_ip6": "fe80::2",
        "outbound_ip6": "",
    }
    spec = daemon.network("web").spec
    assert (spec.cidr6, spec.guest_ip6, spec.gateway_ip6) == ("fd12:3456:789a:1::/64", "", "fd12:3456:789a:1::2")
    assert (spec.dns_ip6, spec.router_ip6, spec.outbound_ip6) == ("fd12:3456:789a:1::3", "fe80::2", "")
    assert (await call(socket_path, "GET", "/v1/networks/web")).json == network


async def test_ipv6_is_on_by_default_in_a_network_of_ones_own(socket_path: Path, netns_pid: int) -> None:
    found = [await attached(socket_path, netns_pid, **more) for more in ({}, {"ipv6": True}, {"mtu": 1280})]
    assert len({network["cidr6"] for network in found}) == 3
    for network in found:
        cidr6 = ipaddress.IPv6Network(network["cidr6"])
        assert cidr6.prefixlen == 64 and cidr6.subnet_of(ipaddress.IPv6Network("fd00::/8"))
        assert int(cidr6.network_address) >> 64 & 0xFFFF == 0, "subnet 0 of a /48"
        assert cidr6 != ipaddress.IPv6Network("fd00::/64")
        assert network["gateway_ip6"] == f"{cidr6.network_address}2"
        assert network["dns_ip6"] == f"{cidr6.network_address}3"
        assert ipaddress.IPv6Address(network["guest_ip6"]) in cidr6


@pytest.mark.parametrize("more", [{"ipv6": False}, {"mtu": 1279}, {"ipv6": False, "mtu": 68}])
async def test_ipv4_alone(socket_path: Path, daemon: Daemon, netns_pid: int, more: dict[str, Any]) -> None:
    network = await attached(socket_path, netns_pid, name="four", **more)
    assert {network[key] for key in KEYS_OF_IPV6} == {""}
    assert network["guest_ip"] == "10.0.2.100"
    assert daemon.network("four").spec.cidr6 == ""


async def test_guest_ip6_of_other_doors(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    """What a dialect has set is shown; without a network the rest does not count."""
    await attached(socket_path, netns_pid, name="web")
    network = daemon.network("web")
    network.spec = replace(network.spec, cidr6="fd00::/64", guest_ip6="fd00::5", outbound_ip6="2001:db8::1")
    shown = (await call(socket_path, "GET", "/v1/networks/web")).json
    assert (shown["guest_ip6"], shown["outbound_ip6"]) == ("fd00::5", "2001:db8::1")
    network.spec = replace(network.spec, cidr6="")
    shown = (await call(socket_path, "GET", "/v1/networks/web")).json
    assert {shown[key] for key in KEYS_OF_IPV6} == {""}


async def test_attach_by_path(socket_path: Path, netns_pid: int) -> None:
    path = f"/proc/{netns_pid}/ns/net"
    assert (await call(socket_path, "POST", "/v1/networks", {"netns": path})).json["lifeline"] == "pidfd"
    explicit = await call(socket_path, "POST", "/v1/networks", {"netns": path, "lifeline": "explicit"})
    assert explicit.json["lifeline"] == "explicit"
    assert explicit.json["name"] == explicit.json["id"]
    tasked = {"netns": f"/proc/{netns_pid}/task/{netns_pid}/ns/net"}
    assert (
        "never unlinked"
        in is_problem(await call(socket_path, "POST", "/v1/networks", tasked), 422, "invalid_spec")["detail"]
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "exactly one of pid and netns"),
        ({"pid": 1, "netns": "/x"}, "exactly one of pid and netns"),
        ({"netns": "relative"}, "absolute"),
        ({"pid": "12"}, "pid"),
        ({"pid": True}, "pid"),
        ({"pid": 0}, "pid"),
        ({"pid": 1, "colour": "red"}, "unknown key 'colour'"),
        ({"pid": 1, "mtu": 67}, "mtu"),
        ({"pid": 1, "mtu": 65522}, "mtu"),
        ({"pid": 1, "ifname": "sixteen-letters-"}, "ifname"),
        ({"pid": 1, "ifname": "a/b"}, "ifname"),
        ({"pid": 1, "ifname": "lo"}, "ifname"),
        ({"pid": 1, "cidr": "10.0.2.1/24"}, "cidr"),
        ({"pid": 1, "cidr": "10.0.2.0/26"}, "prefix length"),
        ({"pid": 1, "cidr": "fd00::/64"}, "cidr"),
        ({"pid": 1, "cidr": "127.0.0.0/24"}, "cidr"),
        ({"pid": 1, "name": "a b"}, "name"),
        ({"pid": 1, "name": "-x"}, "name"),
        ({"pid": 1, "lifeline": "prayer"}, "lifeline"),
        ({"pid": 1, "ports": [{}]}, "ports.0.container_port is required"),
        ({"pid": 1, "cidr6": "fd00::1/64"}, "has host bits set"),
        ({"pid": 1, "cidr6": "fd00::/48"}, "the prefix length is 64"),
        ({"pid": 1, "cidr6": "fd00::/65"}, "the prefix length is 64"),
        ({"pid": 1, "cidr6": "10.0.2.0/24"}, "no IPv6 network"),
        ({"pid": 1, "cidr6": "fd00::%lo/64"}, "cidr6"),
        ({"pid": 1, "cidr6": "ff02::/64"}, "not a range for hosts"),
        ({"pid": 1, "cidr6": "fe80::/64"}, "not a range for hosts"),
        ({"pid": 1, "cidr6": "::/64"}, "not a range for hosts"),
        ({"pid": 1, "cidr6": None}, "cidr6"),
        ({"pid": 1, "ipv6": "false"}, "ipv6"),
        ({"pid": 1, "ipv6": False, "cidr6": "fd00::/64"}, "do not go together"),
        ({"pid": 1, "ipv6": True, "mtu": 1279}, "1280"),
        ({"pid": 1, "cidr6": "fd00::/64", "mtu": 576}, "1280"),
        ({"pid": 1, "ports": [{"container_port": 80, "host_ip": "[::1]"}]}, "without brackets"),
        (
            {"pid": 1, "ipv6": False, "ports": [{"container_port": 80, "container_ip": "fd00::1"}]},
            "the network has none",
        ),
        ({"pid": 1, "mtu": 1000, "ports": [{"container_port": 80, "container_ip": "fd00::1"}]}, "the network has none"),
        ({"pid": 1, "ports": [{"container_port": 80, "hostport": 1}]}, "unknown key 'ports.0.hostport'"),
        ([], "object"),
        (None, ""),
    ],
)
async def test_attach_refuses(socket_path: Path, body: Any, says: str) -> None:
    before = await open_fds()
    raw = None if body is not None else b"null"
    document = is_problem(await call(socket_path, "POST", "/v1/networks", body, raw), 422, "invalid_spec")
    assert says in document["detail"]
    assert document["errors"][0]["detail"] == document["detail"]
    assert await open_fds() == before


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"pid": 4194304}, "namespace_unavailable", "no process 4194304"),
        ({"netns": "/nonexistent"}, "namespace_unavailable", "No such file"),
        ({"netns": "/etc"}, "namespace_unavailable", "not a network namespace"),
        ({"netns": "/dev/null"}, "namespace_unavailable", "not a network namespace"),
        ({"netns": "/etc/passwd"}, "namespace_unavailable", "not a network namespace"),
        ({"netns": "/proc/self/ns/mnt"}, "invalid_spec", "never unlinked"),
        ({"netns": "/proc/self/ns/mnt", "lifeline": "explicit"}, "namespace_unavailable", "not a network namespace"),
        ({"netns": "/proc/self/ns/net", "lifeline": "explicit"}, "invalid_spec", "host's own"),
        ({"pid": os.getpid()}, "invalid_spec", "host's own"),
        ({"pid": os.getpid(), "lifeline": "path"}, "invalid_spec", "pidfd or explicit"),
        ({"netns": "/etc/passwd", "lifeline": "pidfd"}, "invalid_spec", "path or explicit"),
    ],
)
async def test_attach_refuses_namespaces(socket_path: Path, body: Any, code: str, says: str) -> None:
    before = await open_fds()
    assert says in is_problem(await call(socket_path, "POST", "/v1/networks", body), 422, code)["detail"]
    assert await open_fds() == before


async def test_attach_refuses_a_fifo_without_waiting(socket_path: Path, runtime_dir: Path) -> None:
    os.mkfifo(runtime_dir / "fifo")
    answer = await call(socket_path, "POST", "/v1/networks", {"netns": str(runtime_dir / "fifo")})
    is_problem(answer, 422, "namespace_unavailable")


async def test_attach_with_a_busy_port_leaves_nothing(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    before = await open_fds()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = [{"container_port": 81}, {"container_port": 80, "host_port": taken.getsockname()[1]}]
        answer = await call(socket_path, "POST", "/v1/networks", {"pid": netns_pid, "ports": ports})
        assert "holder" not in is_problem(answer, 409, "port_in_use")
    assert not daemon.networks
    assert await open_fds() == before


async def test_taken_name(socket_path: Path, netns_pid: int) -> None:
    await attached(socket_path, netns_pid, name="web")
    answer = await call(socket_path, "POST", "/v1/networks", {"pid": netns_pid, "name": "web"})
    is_problem(answer, 409, "network_exists")


async def test_references(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    web = await attached(socket_path, netns_pid, name="web")
    await attached(socket_path, netns_pid)
    for ref in (web["id"], "web", web["id"][:11]):
        assert (await call(socket_path, "GET", f"/v1/networks/{ref}")).json == web
    is_problem(await call(socket_path, "GET", "/v1/networks/nosuch"), 404, "no_such_network")
    one, two = list(daemon.networks.values())
    daemon.networks.clear()
    one.id, two.id = "aaa000000000", "aab000000000"
    daemon.networks.update({one.id: one, two.id: two})
    is_problem(await call(socket_path, "GET", "/v1/networks/aa"), 409, "ambiguous_network")


async def test_list_filters_and_pages(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    names = ["web", "webapp", "db"]
    for number, name in enumerate(names):
        await attached(socket_path, netns_pid, name=name, ports=[{"container_port": 80}] if name == "db" else [])
        daemon.network(name).created = 1000.0 + number

    async def listed(query: str) -> list[str]:
        answer = await call(socket_path, "GET", f"/v1/networks?{query}")
        assert answer.status == 200, answer.body
        return [network["name"] for network in answer.json]

    assert await listed("") == names
    assert await listed("filters=%7B%22name%22%3A%5B%22web%22%5D%7D") == ["web", "webapp"]
    assert (
        await listed("filters=%7B%22name%22%3A%5B%22app%22%2C%22db%22%5D%2C%22origin%22%3A%5B%22api%22%5D%7D")
        == names[1:]
    )
    port = daemon.network("db").forwards()[0].spec.host_port
    assert await listed(f"filters=%7B%22port%22%3A%5B%22{port}%2Ftcp%22%5D%7D") == ["db"]
    assert await listed(f"filters=%7B%22port%22%3A%5B%22{port}%2Fudp%22%5D%7D") == []
    assert await listed(f"filters=%7B%22id%22%3A%5B%22{daemon.network('web').id}%22%5D%7D") == ["web"]

    target, seen = "/v1/networks?limit=2", []
    while target:
        answer = await call(socket_path, "GET", target)
        seen += [network["name"] for network in answer.json]
        link = answer.headers.get("link", "")
        target = link[1 : link.index(">")] if link else ""
    assert seen == names


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("filters=%7B", 400, "bad_query"),
        ("filters=%5B%5D", 400, "bad_query"),
        ("filters=%7B%22name%22%3A%22web%22%7D", 400, "bad_query"),
        ("filters=%7B%22color%22%3A%5B%5D%7D", 422, "invalid_spec"),
        ("limit=0", 400, "bad_query"),
        ("limit=-1", 400, "bad_query"),
        ("limit=9999999999", 400, "bad_query"),
        ("cursor=x", 400, "bad_query"),
        ("colour=red", 400, "bad_query"),
    ],
)
async def test_bad_queries(socket_path: Path, query: str, status: int, code: str) -> None:
    is_problem(await call(socket_path, "GET", f"/v1/networks?{query}"), status, code)


async def test_detach(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    before = await open_fds()
    await attached(socket_path, netns_pid, name="web", ports=[{"container_port": 80}])
    answer = await call(socket_path, "DELETE", "/v1/networks/web")
    assert (answer.status, answer.body) == (204, b"")
    assert not daemon.networks
    assert await open_fds() == before
    is_problem(await call(socket_path, "DELETE", "/v1/networks/web"), 404, "no_such_network")
    assert (await call(socket_path, "DELETE", "/v1/networks/web?ignore=true")).status == 204
    is_problem(await call(socket_path, "DELETE", "/v1/networks/web?ignore=perhaps"), 400, "bad_query")


async def test_ports(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    network = await attached(socket_path, netns_pid, name="web")
    base = "/v1/networks/web/ports"
    answer = await call(socket_path, "POST", base, {"container_port": 80})
    assert answer.status == 201
    port = answer.json
    assert answer.headers["location"] == f"/v1/networks/{network['id']}/ports/{port['id']}"
    assert {k: port[k] for k in ("id", "host_ip", "container_port", "protocol", "range", "origin", "state")} == {
        "id": 1,
        "host_ip": "",
        "container_port": 80,
        "protocol": "tcp",
        "range": 1,
        "origin": "api",
        "state": "listening",
    }
    with socket.create_connection(("127.0.0.1", port["host_port"])):
        pass
    assert (await call(socket_path, "GET", f"{base}/1")).json == port
    assert (await call(socket_path, "GET", base)).json == [port]
    busy = await call(socket_path, "POST", base, {"container_port": 81, "host_port": port["host_port"]})
    assert is_problem(busy, 409, "port_in_use")["holder"] == {"network": "web"}
    udp = await call(
        socket_path, "POST", base, {"container_port": 81, "host_port": port["host_port"], "protocol": "udp"}
    )
    assert udp.json["id"] == 2
    assert (await call(socket_path, "DELETE", f"{base}/1")).status == 204
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port["host_port"]))
    assert daemon.network("web").closed_connections == []
    assert (await call(socket_path, "DELETE", f"{base}/2?close=true")).status == 204
    assert daemon.network("web").closed_connections == [2]
    assert daemon.changes == ["web"] * 5, "the network, each add and each remove is persisted"
    is_problem(await call(socket_path, "DELETE", f"{base}/2"), 404, "no_such_port")
    is_problem(await call(socket_path, "GET", f"{base}/seven"), 404, "no_such_port")
    assert (await call(socket_path, "DELETE", f"{base}/2?ignore=true")).status == 204
    assert (await call(socket_path, "DELETE", "/v1/networks/gone/ports/2?ignore=1")).status == 204


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"container_port": 0}, "container_port"),
        ({"container_port": 65536}, "container_port"),
        ({"container_port": 80, "host_port": -1}, "host_port"),
        ({"container_port": 80, "protocol": "sctp"}, "protocol"),
        ({"container_port": 80, "range": 2}, "kernel chooses"),
        ({"container_port": 80, "host_port": 65535, "range": 2}, "above 65535"),
        ({"container_port": 65535, "host_port": 80, "range": 2}, "above 65535"),
        ({"container_port": 80, "host_ip": "localhost"}, "not an IP address"),
        ({"container_port": 80, "host_ip": "::g"}, "not an IP address"),
        ({"container_port": 80, "host_ip": "[::1]"}, "without brackets"),
        ({"container_port": 80, "host_ip": "fe80::1%lo"}, "zone"),
        ({"container_port": 80, "container_ip": "fe80::1%tap0"}, "zone"),
        ({"container_port": 80.5}, "container_port"),
        ({"container_port": 80, "state": "listening"}, "unknown key 'state'"),
    ],
)
async def test_port_refused(socket_path: Path, netns_pid: int, body: Any, says: str) -> None:
    await attached(socket_path, netns_pid, name="web")
    document = is_problem(await call(socket_path, "POST", "/v1/networks/web/ports", body), 422, "invalid_spec")
    assert says in document["detail"]


async def test_ports_on_ipv6(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    ports = [{"container_port": 80, "host_ip": "::1"}]
    network = await attached(socket_path, netns_pid, name="web", cidr6="fd00:1::/64", ports=ports)
    assert network["ports"][0]["host_ip"] == "::1"
    with socket.create_connection(("::1", network["ports"][0]["host_port"])):
        pass
    base = "/v1/networks/web/ports"
    for body, host_ip, container_ip in (
        ({"host_ip": "0:0:0:0:0:0:0:1", "container_ip": "FD00:1::0:5"}, "::1", "fd00:1::5"),
        ({"host_ip": "::", "container_ip": "10.0.2.100"}, "::", "10.0.2.100"),
        ({"host_ip": "::ffff:127.0.0.1", "container_ip": "fd00:1::5"}, "127.0.0.1", "fd00:1::5"),
    ):
        answer = await call(socket_path, "POST", base, {"container_port": 81, "protocol": "udp", **body})
        assert answer.status == 201, answer.body
        assert (answer.json["host_ip"], answer.json["container_ip"]) == (host_ip, container_ip)
    specs = [forward.spec for forward in daemon.network("web").forwards()]
    assert [(spec.host_ip, spec.container_ip) for spec in specs][1] == ("::1", "fd00:1::5")
    await attached(socket_path, netns_pid, name="four", ipv6=False)
    answer = await call(
        socket_path, "POST", "/v1/networks/four/ports", {"container_port": 80, "container_ip": "fd00:1::5"}
    )
    assert "network four has none" in is_problem(answer, 422, "invalid_spec")["detail"]


async def test_unknown_key_hint_and_pointer(socket_path: Path) -> None:
    answer = await call(socket_path, "POST", "/v1/networks", {"pid": 1, "a/b~c": 1})
    document = is_problem(answer, 422, "invalid_spec")
    assert document["errors"] == [{"pointer": "/a~1b~0c", "detail": "unknown key 'a/b~c'"}]
    assert "allow_host_loopback" in document["hint"]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"pid": NaN}x', b"\xff\xfe", b'{"pid":1,}', b"[" * 5000])
async def test_no_json(socket_path: Path, raw: bytes) -> None:
    is_problem(await call(socket_path, "POST", "/v1/networks", raw=raw), 400, "bad_json")


async def test_routes_that_are_not(socket_path: Path) -> None:
    assert (
        is_problem(await call(socket_path, "GET", "/v2/networks"), 404, "no_such_route")["instance"] == "/v2/networks"
    )
    answer = await call(socket_path, "PATCH", "/v1/networks")
    is_problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(",")) >= {"GET", "POST"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ShuttingDown("stopping"), 503),
        (LimitReached("100 networks"), 409),
        (TapUnavailable("no tun", "modprobe tun"), 500),
        (PortPrivileged("80 is below 1024"), 422),
        (NetdError("odd"), 500),
        (type("Newer", (LimitReached,), {"code": "newer"})("derived"), 409),
    ],
)
async def test_domain_errors(socket_path: Path, daemon: Daemon, netns_pid: int, error: NetdError, status: int) -> None:
    daemon.fails = error
    answer = await call(socket_path, "POST", "/v1/networks", {"pid": netns_pid})
    document = is_problem(answer, status, error.code)
    assert document["detail"] == str(error)
    assert document.get("hint", "") == error.hint
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_a_mistake_of_ours_stays_in_the_log(
    socket_path: Path, daemon: Daemon, netns_pid: int, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.fails = ZeroDivisionError("secret detail")
    answer = await call(socket_path, "POST", "/v1/networks", {"pid": netns_pid})
    is_problem(answer, 500, "internal")
    assert b"secret" not in answer.body
    assert "secret detail" in caplog.text


async def test_metrics(socket_path: Path, netns_pid: int) -> None:
    await attached(socket_path, netns_pid, name="web", ports=[{"container_port": 80}])
    await attached(socket_path, netns_pid, name="db")
    answer = await call(socket_path, "GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    sample = re.compile(r'([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*\})? -?[0-9.e+-]+')
    kinds, samples = {}, []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split()
            assert family not in kinds, "a family comes once"
            kinds[family] = kind
        elif not line.startswith("# HELP "):
            match = sample.fullmatch(line)
            assert match, line
            assert match[1] in kinds, "TYPE comes before the samples"
            assert (kinds[match[1]] == "counter") == match[1].endswith("_total"), line
            samples.append(line)
    assert len(samples) == len(set(s.rsplit(" ", 1)[0] for s in samples)), "no sample twice"
    assert "netd_networks 2" in samples
    assert f'netd_build_info{{version="{__version__}",api_version="1"}} 1' in samples
    assert 'netd_port_forwards{protocol="tcp",origin="run"} 1' in samples
    assert re.search(r'netd_network_transmit_bytes_total\{id="[0-9a-f]{12}",name="web"\} 7', text)
    assert re.search(r'netd_network_receive_bytes_total\{id="[0-9a-f]{12}",name="db"\} 5', text)
    assert re.search(r'netd_network_dropped_packets_total\{id="\w+",name="web",reason="short"\} 1', text)
