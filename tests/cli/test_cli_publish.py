"""Podman's port grammar and ``podman port``'s bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.cli.failure import Failure
from netd.cli.publish import find_port, parse_publish, podman_lines, summary


@pytest.mark.parametrize(
    ("spec", "ports"),
    [
        ("80", [{"container_port": 80, "protocol": "tcp"}]),
        (":80", [{"container_port": 80, "protocol": "tcp"}]),
        ("80/udp", [{"container_port": 80, "protocol": "udp"}]),
        ("8080:80", [{"host_port": 8080, "container_port": 80, "protocol": "tcp", "range": 1}]),
        ("127.0.0.1::80", [{"host_ip": "127.0.0.1", "container_port": 80, "protocol": "tcp"}]),
        ("0.0.0.0:1:2/udp",
         [{"host_ip": "0.0.0.0", "host_port": 1, "container_port": 2, "protocol": "udp", "range": 1}]),
        ("3000-3010:4000-4010", [{"host_port": 3000, "container_port": 4000, "protocol": "tcp", "range": 11}]),
        ("65535:65535", [{"host_port": 65535, "container_port": 65535, "protocol": "tcp", "range": 1}]),
        ("80-81", [{"container_port": 80, "protocol": "tcp"}, {"container_port": 81, "protocol": "tcp"}]),
        ("[::1]:8080:80",
         [{"host_ip": "::1", "host_port": 8080, "container_port": 80, "protocol": "tcp", "range": 1}]),
        ("[::1]::80", [{"host_ip": "::1", "container_port": 80, "protocol": "tcp"}]),
    ],
)  # fmt: skip
def test_specs(spec: str, ports: list[dict[str, Any]]) -> None:
    assert parse_publish(spec) == ports


@pytest.mark.parametrize(
    "spec",
    ["", ":", "0", "65536", "-1", "80-", "-80", "81-80", "80/", "80/sctp", "80/tcp/udp", "a", "1:2:3:4", ":1:2",
     "::1:1", "8080-8081:80", "80:80-81", "[::1]:80", "[::1", "[::1]8080:80", "８０", "8 0", "+80", "80:", "1-2-3"],
)  # fmt: skip
def test_no_specs(spec: str) -> None:
    with pytest.raises(Failure, match="is not a port to publish"):
        parse_publish(spec)


@given(st.text(alphabet="0123456789:/-[].tcpu", max_size=30))
def test_any_text(spec: str) -> None:
    try:
        ports = parse_publish(spec)
    except Failure:
        return
    for port in ports:
        for key in ("host_port", "container_port"):
            assert port.get(key, 1) >= 1 and port.get(key, 1) + port.get("range", 1) - 1 <= 65535


def port(host: int, container: int, protocol: str = "tcp", ip: str = "", count: int = 1, id: int = 1) -> dict[str, Any]:
    return {
        "id": id,
        "host_ip": ip,
        "host_port": host,
        "container_port": container,
        "protocol": protocol,
        "range": count,
    }


# What podman 4.3.1 printed for `run -p 18080:80 -p 127.0.0.1:13000-13002:4000-4002 -p 15353:53/udp -p 1081:81/udp
# -p 18080:80/udp -p 90` (37897 was chosen for it); its groups come in random order.
PORTS = [
    port(18080, 80),
    port(13000, 4000, ip="127.0.0.1", count=3),
    port(15353, 53, "udp"),
    port(1081, 81, "udp"),
    port(18080, 80, "udp"),
    port(37897, 90),
]
PODMAN_PORT = """\
80/tcp -> 0.0.0.0:18080
90/tcp -> 0.0.0.0:37897
81/udp -> 0.0.0.0:1081
53/udp -> 0.0.0.0:15353
80/udp -> 0.0.0.0:18080
4000/tcp -> 127.0.0.1:13000
4001/tcp -> 127.0.0.1:13001
4002/tcp -> 127.0.0.1:13002
"""
PODMAN_PS = (
    "0.0.0.0:18080->80/tcp, 0.0.0.0:37897->90/tcp, 0.0.0.0:1081->81/udp, 0.0.0.0:15353->53/udp, "
    "0.0.0.0:18080->80/udp, 127.0.0.1:13000-13002->4000-4002/tcp"
)


def test_podman_port() -> None:
    assert "".join(line + "\n" for line in podman_lines(PORTS)) == PODMAN_PORT
    assert podman_lines(PORTS, "53/udp") == ["0.0.0.0:15353"]
    assert podman_lines(PORTS, "80") == ["0.0.0.0:18080"]
    assert podman_lines(PORTS, "4001") == ["127.0.0.1:13001"]
    with pytest.raises(Failure) as failure:
        podman_lines(PORTS, "99")
    assert str(failure.value) == 'failed to find published port "99"'


def test_summary() -> None:
    order = [PORTS[0], PORTS[5], PORTS[3], PORTS[2], PORTS[4], PORTS[1]]
    assert summary(order) == PODMAN_PS


def test_ipv6_hosts_have_brackets() -> None:
    ports = [port(8080, 80, ip="::1"), port(3000, 4000, ip="::", count=2)]
    assert summary(ports) == "[::1]:8080->80/tcp, [::]:3000-3001->4000-4001/tcp"
    assert podman_lines(ports) == [
        "4000/tcp -> [::]:3000", "4001/tcp -> [::]:3001", "80/tcp -> [::1]:8080",
    ]  # fmt: skip
    assert podman_lines(ports, "80") == ["[::1]:8080"]


def test_find_port() -> None:
    ports = [
        port(8080, 80, id=1),
        port(5353, 53, "udp", id=2),
        port(3000, 3000, count=3, id=3),
        port(8080, 1, "udp", id=4),
    ]
    ports += [port(3, 3, id=5)]
    for text, id in (
        ("1", 1),
        ("8080/tcp", 1),
        ("8080/udp", 4),
        ("5353", 2),
        ("2", 2),
        ("3000-3002", 3),
        ("3000-3002/tcp", 3),
    ):
        assert find_port(ports, text)["id"] == id, text
    for text, says in (
        ("8080", "fits several"),
        ("3", "fits several"),
        ("3001", "a part of the range"),
        ("5353/tcp", "no published port"),
        ("99", "no published port"),
        ("x", "no published port"),
    ):
        with pytest.raises(Failure, match=says):
            find_port(ports, text)
