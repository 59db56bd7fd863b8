"""Podman's port grammar: ``[[IP:][HOSTPORT]:]CONTAINERPORT[/PROTO]`` in, ``podman port`` lines out."""

from __future__ import annotations

from collections.abc import Iterable

from netd.cli.failure import Failure

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any


def parse_publish(spec: str) -> list[dict[str, Any]]:
    """The API's port objects for one ``-p``. Failure says what is wrong (podman's rules, its specgenutil/util.go).

    A range without host ports becomes one object per port: the kernel chooses each.
    """

    def refuse(why: str) -> Failure:
        return Failure(
            f"{spec!r} is not a port to publish: {why}", "the form is [[IP:][HOSTPORT]:]CONTAINERPORT[/PROTO]"
        )

    ports, slash, protocol = spec.partition("/")
    if slash and protocol not in ("tcp", "udp"):
        raise refuse(f"the protocol {protocol!r} is neither tcp nor udp")
    host_ip: str | None = None
    if ports.startswith("["):
        host_ip, bracket, ports = ports[1:].partition("]:")
        if not bracket:
            raise refuse("an IPv6 address is written [address]: and followed by the ports")
    parts = ports.split(":")
    if len(parts) + (host_ip is not None) > 3 or (host_ip is not None and len(parts) < 2):
        raise refuse("too many or too few colons (an IPv6 address needs brackets)")
    if len(parts) == 3:
        host_ip = parts.pop(0)
    if host_ip == "":
        raise refuse("the host address is empty")
    first, count = _range(parts[-1], "container port", refuse)
    port: dict[str, Any] = {"container_port": first, "protocol": protocol or "tcp"}
    if host_ip is not None:
        port["host_ip"] = host_ip
    if len(parts) == 1 or parts[0] == "":
        return [{**port, "container_port": number} for number in range(first, first + count)]
    host_first, host_count = _range(parts[0], "host port", refuse)
    if host_count != count:
        raise refuse(f"host and container port ranges have different lengths: {host_count} and {count}")
    return [{**port, "host_port": host_first, "range": count}]


def parse_all(specs: Iterable[str]) -> list[dict[str, Any]]:
    """``parse_publish`` of each, in order."""
    return [port for spec in specs for port in parse_publish(spec)]


def _range(text: str, what: str, refuse: Any) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = []
    for number in (first, last) if dash else (first,):
        if not (number.isascii() and number.isdecimal() and len(number) <= 5 and 1 <= int(number) <= 65535):
            raise refuse(f"the {what} {number!r} is not a number from 1 to 65535")
        numbers.append(int(number))
    if numbers[-1] < numbers[0]:
        raise refuse(f"the {what} range {text} ends before it begins")
    return numbers[0], numbers[-1] - numbers[0] + 1


def shown_host(host_ip: str) -> str:
    """The host's address as it stands before ``:PORT``. Podman's word for every address is 0.0.0.0."""
    return f"[{host_ip}]" if ":" in host_ip else host_ip or "0.0.0.0"


def podman_lines(ports: Iterable[dict[str, Any]], wanted: str = "") -> list[str]:
    """What ``podman port`` prints for ``ports``: ``80/tcp -> 0.0.0.0:8080``, or addresses alone for one wanted port.

    As libpod does, ports are grouped by host address and protocol and ordered by host port within (the order of the
    groups is random in podman, sorted here). Failure if ``wanted`` (``80`` or ``80/udp``) is not published.
    """
    number, _, protocol = wanted.partition("/")
    lines = []
    key = ("host_ip", "protocol", "host_port")
    for port in sorted(ports, key=lambda p: tuple(p[k] or "0.0.0.0" if k == "host_ip" else p[k] for k in key)):
        host = shown_host(port["host_ip"])
        for offset in range(port["range"]):
            inside, outside = port["container_port"] + offset, f"{host}:{port['host_port'] + offset}"
            if not wanted:
                lines.append(f"{inside}/{port['protocol']} -> {outside}")
            elif (str(inside), port["protocol"]) == (number, protocol or "tcp"):
                lines.append(outside)
    if wanted and not lines:
        raise Failure(f'failed to find published port "{wanted}"')
    return lines


def summary(ports: Iterable[dict[str, Any]]) -> str:
    """The PORTS column of ``podman ps``: ``0.0.0.0:8080->80/tcp, 127.0.0.1:3000-3002->4000-4002/tcp``."""

    def span(first: int, count: int) -> str:
        return str(first) if count == 1 else f"{first}-{first + count - 1}"

    return ", ".join(
        f"{shown_host(port['host_ip'])}:{span(port['host_port'], port['range'])}"
        f"->{span(port['container_port'], port['range'])}/{port['protocol']}"
        for port in ports
    )


def find_port(ports: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """The published port that ``text`` means: its id, or ``HOSTPORT[/PROTO]``, or ``FIRST-LAST[/PROTO]`` of a range."""
    place, _, protocol = text.partition("/")
    around = None
    found = []
    for port in ports:
        first, last = port["host_port"], port["host_port"] + port["range"] - 1
        right_protocol = protocol in ("", port["protocol"])
        if text == str(port["id"]) or (
            right_protocol and place == (str(first) if first == last else f"{first}-{last}")
        ):
            found.append(port)
        elif right_protocol and place.isdecimal() and first <= int(place) <= last:
            around = port
    if len(found) > 1:
        fitting = ", ".join(f"id {port['id']} ({summary([port])})" for port in found)
        raise Failure(f"{text} fits several ports: {fitting}", "write HOSTPORT/PROTO")
    if not found and around is not None:
        hint = f"remove the whole by its id {around['id']}"
        raise Failure(f"port {text} is a part of the range {summary([around])}", hint)
    if not found:
        raise Failure(f"no published port {text}", "`netd port ls` lists them", "no_such_port")
    return found[0]
