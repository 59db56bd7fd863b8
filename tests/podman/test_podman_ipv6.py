"""IPv6 as Podman asks for it by default: --enable-ipv6, fd00::/64, the default route via fe80::2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netd.stack.addressing import Addressing
from tests.machine.machine import Machine, until
from tests.podman.podman import GENUINE, Podman

WORLD6, HOST6 = "fd77::1", "fd77::2"
USR = "-v=/usr:/usr:ro"  # lends the host's programs to the container
WITHOUT = "--network=slirp4netns:enable_ipv6=false"
OPEN = "--network=slirp4netns:allow_host_loopback=true"

pytestmark = pytest.mark.skipif(
    not GENUINE and not hasattr(Addressing, "gateway6"), reason="netd's stack has no IPv6 (Addressing.gateway6)"
)


@pytest.fixture(autouse=True)
def ipv6(machine: Machine) -> None:
    if not (machine.root / "proc/sys/net/ipv6").exists():
        pytest.skip("this kernel has no IPv6")


def test_the_address_is_there_at_the_first_instant(podman: Podman) -> None:
    """Podman's e2e tests look for ``inet6 fd00::`` in the first command's output; tentative would be of no use."""
    for _ in range(3):
        shown = podman.run("--", "ip", "-6", "-o", "addr", "show", "dev", "tap0", "scope", "global")
        assert "inet6 fd00::" in shown and "/64" in shown and "tentative" not in shown


def test_the_default_route_is_the_link_local_gateway(podman: Podman) -> None:
    assert "default via fe80::2 dev tap0" in podman.run("--", "ip", "-6", "route")


def test_accept_dad_is_as_it_was(podman: Podman) -> None:
    """Podman sets it to 0 while the command starts, and back."""
    assert podman.run("--", "cat", "/proc/sys/net/ipv6/conf/default/accept_dad") == "1"


def test_enable_ipv6_false_is_none_at_all(podman: Podman) -> None:
    shown = podman.run(WITHOUT, "--", "sh", "-c", "ip -6 addr show dev tap0; ip -6 route; ip -4 -o addr show dev tap0")
    assert "fd00::" not in shown and "default" not in shown and "inet 10.0.2.100/24" in shown


@pytest.mark.parametrize("to", ["fd00::2", "fd00::3"])
def test_ping_gateway(podman: Podman, to: str) -> None:
    ping = ["/usr/bin/ping", "-c3", "-i0.2", "-W2", to]
    assert " 3 received" in podman.run(USR, "--cap-add=net_raw", "--", *ping)


@pytest.fixture
def loopback_service(machine: Machine) -> Iterator[str]:
    """A port that only listens on the host's ::1 and serves /etc."""
    program = machine.start(["busybox", "httpd", "-f", "-p", "[::1]:9006", "-h", "/etc"])
    until(lambda: machine.run(["curl", "-s", "http://[::1]:9006/hosts"], status=None), "service on ::1")
    yield "http://[fd00::2]:9006/hosts"
    program.end()


def test_tcp_through_the_gateway(podman: Podman, loopback_service: str) -> None:
    said = podman.run(OPEN, USR, "--", "curl", "-s", "-m", "5", loopback_service)
    assert "netd-host" in said


def test_host_loopback_is_closed(podman: Podman, loopback_service: str) -> None:
    podman.run(USR, "--", "curl", "-s", "-m", "5", loopback_service, status=7)


@pytest.mark.usefixtures("world")
def test_tcp_and_udp_out(podman: Podman) -> None:
    assert podman.run(USR, "--", "curl", "-s", "-m", "5", f"http://[{WORLD6}]/").startswith(f"you are {HOST6} ")
    size = 3_000_000
    got = podman.run(USR, "--", "sh", "-c", f"curl -s -m 20 http://[{WORLD6}]/bytes/{size} | wc -c")
    assert int(got) == size
    who = "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(5)\n"
    who += f"s.sendto(b'who', ('{WORLD6}', 37)); print(s.recv(100).decode())"
    assert podman.run(USR, "--", "python3", "-c", who).startswith(f"{HOST6} ")


@pytest.mark.usefixtures("world")
def test_option_outbound_addr6(podman: Podman, machine: Machine) -> None:
    machine.run(["ip", "addr", "replace", "fd77::22/64", "dev", "eth0", "nodad"], "root")
    get = ["curl", "-s", "-m", "5", f"http://[{WORLD6}]/"]
    try:
        said = podman.run("--network=slirp4netns:outbound_addr6=fd77::22", USR, "--", *get)
        assert said.startswith("you are fd77::22 ")
    finally:
        machine.run(["ip", "addr", "del", "fd77::22/64", "dev", "eth0"], "root")


@pytest.mark.usefixtures("world")
def test_a_refused_connection_is_refused_at_once(podman: Podman) -> None:
    podman.run(USR, "--", "curl", "-s", "-m", "5", f"http://[{WORLD6}]:81/", status=7)
