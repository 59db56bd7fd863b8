"""One container: its address, and what it reaches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from netd import network
from tests.machine.machine import HOST, REFUSING, SILENT, WORLD, Machine, until
from tests.podman.podman import GENUINE, Podman

USR = "-v=/usr:/usr:ro"  # lends the host's programs to the container


@pytest.mark.skipif(GENUINE, reason="no daemon")
def test_the_daemon_is_the_one_of_this_interpreter(podman: Podman) -> None:
    """Compiled where these tests are to be of an installation (tests/machine/as-installed)."""
    info = json.loads(podman.daemon.command("info", "--format", "json"))
    assert info["compiled"] is not str(network.__file__).endswith(".py")


def test_tap0_has_the_address_podman_counts_on(podman: Podman) -> None:
    shown = podman.run("--", "sh", "-c", "ip -4 addr show tap0; ip route; cat /etc/resolv.conf")
    assert "inet 10.0.2.100/24" in shown and "mtu 65520" in shown
    assert "default via 10.0.2.2 dev tap0" in shown
    assert "nameserver 10.0.2.3" in shown.split("default via")[1].splitlines()[2]


def test_the_address_is_there_before_the_first_instruction(podman: Podman) -> None:
    for _ in range(5):
        assert "10.0.2.100" in podman.run("--", "ip", "-4", "-o", "addr", "show", "tap0")


@pytest.mark.parametrize("to", ["10.0.2.2", "10.0.2.3"])
def test_ping_gateway(podman: Podman, to: str) -> None:
    assert "3 packets received" in podman.run("--cap-add=net_raw", "--", "ping", "-c3", "-i0.1", "-W2", to)


@pytest.mark.usefixtures("world")
def test_ping_world(podman: Podman) -> None:
    assert "3 packets received" in podman.run(
        "--cap-add=net_raw", "--", "ping", "-c3", "-i0.1", "-W2", "-s", "1200", WORLD
    )


@pytest.mark.usefixtures("world")
def test_name_resolves_over_udp(podman: Podman) -> None:
    assert WORLD in podman.run("--", "nslookup", "world").split("Name:")[1]
    assert "NXDOMAIN" in podman.run("--", "nslookup", "nobody.invalid", status=1)


@pytest.mark.usefixtures("world")
def test_name_resolves_over_tcp(podman: Podman) -> None:
    assert podman.run(USR, "--", "dig", "+tcp", "+short", "@10.0.2.3", "world") == WORLD


@pytest.mark.usefixtures("world")
def test_a_truncated_answer_is_asked_for_again_over_tcp(podman: Podman) -> None:
    answer = podman.run(USR, "--", "dig", "@10.0.2.3", "big.test", "TXT", "+noedns")
    assert "retrying in TCP mode" in answer and "ANSWER: 20" in answer


@pytest.fixture
def resolv_conf(machine: Machine, world: None) -> Iterator[Path]:
    """The host's file, put back afterwards."""
    path = machine.root / "etc/resolv.conf"
    before = path.read_text()
    yield path
    path.write_text(before)


@pytest.mark.usefixtures("netd_only")
@pytest.mark.parametrize("dead", [REFUSING, SILENT])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_a_dead_name_server_is_passed_over(podman: Podman, resolv_conf: Path, dead: str, transport: str) -> None:
    resolv_conf.write_text(f"nameserver {dead}\nnameserver {WORLD}\n")
    dig = ["dig", transport, "+short", "+time=8", "+tries=1", "@10.0.2.3", "world"]
    assert podman.run(USR, "--", *dig) == WORLD


def test_another_name_server_is_noticed(podman: Podman, resolv_conf: Path) -> None:
    resolv_conf.write_text(f"nameserver {SILENT}\n")
    podman.up("resolver", USR, "--", "sleep", "60")
    dig = ["exec", "resolver", "dig", "+short", "+time=1", "+tries=1", "@10.0.2.3", "world"]
    # The daemon looks at the file once a second at most.
    assert until(lambda: WORLD not in podman(*dig, status=None).splitlines(), "end of the answers")
    resolv_conf.write_text(f"nameserver {WORLD}\n")
    assert until(lambda: podman(*dig, status=None) == WORLD, "answer from the new name server")


@pytest.mark.usefixtures("world")
def test_tcp_out(podman: Podman) -> None:
    assert podman.run("--", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
    size = 10_000_000
    body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    got = podman.run("--", "sh", "-c", f"wget -qO- http://{WORLD}/bytes/{size} | md5sum")
    assert got.split()[0] == hashlib.md5(body).hexdigest()


@pytest.mark.usefixtures("world")
def test_tcp_both_ways_and_half_close(podman: Podman) -> None:
    """All of 3 MB comes back, and the end with it, after the container's side has said its own end."""
    pump = f"head -c 3000000 /dev/zero | tr '\\0' x >/tmp/f; nc {WORLD} 7 </tmp/f | cmp - /tmp/f && echo same"
    assert podman.run("--", "sh", "-c", pump) == "same"


@pytest.mark.usefixtures("world")
def test_tcp_refused_is_refused_at_once(podman: Podman) -> None:
    assert "refused" in podman.run("--", "nc", "-w", "5", WORLD, "81", status=1, timeout=4)


@pytest.mark.usefixtures("world")
def test_udp_out(podman: Podman) -> None:
    exchange = """if True:
        import socket, sys
        for port, size in ((37, 1), (7, 1), (7, 1472), (7, 8000)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.settimeout(5); s.connect((sys.argv[1], port))
                data = bytes(i % 251 for i in range(size)); s.send(data)
                got = s.recv(65535); print(got.decode() if port == 37 else got == data)
        """
    who, *same = podman.run(USR, "--", "python3", "-c", exchange, WORLD).split("\n")
    assert who.startswith(f"{HOST} ")
    assert same[-3:] == ["True"] * 3, "8000 bytes: one piece on the TAP, fragments on the wire"


@pytest.fixture
def loopback_service(machine: Machine) -> Iterator[str]:
    """A port that only listens on the host's 127.0.0.1 and serves /etc."""
    program = machine.start(["busybox", "httpd", "-f", "-p", "127.0.0.1:9000", "-h", "/etc"])
    until(lambda: machine.run(["curl", "-s", "http://127.0.0.1:9000/hosts"], status=None), "service on loopback")
    yield "9000"
    program.end()


def test_host_loopback_is_closed(podman: Podman, loopback_service: str) -> None:
    for address in ("10.0.2.2", "127.0.0.1"):  # the gateway, and the container's own
        podman.run(USR, "--", "curl", "-s", "-m", "5", f"http://{address}:{loopback_service}/hosts", status=7)


def test_options_cidr_mtu_and_host_loopback(podman: Podman, loopback_service: str) -> None:
    network = "--network=slirp4netns:cidr=10.9.8.0/24,mtu=9000,allow_host_loopback=true"
    look = f"ip addr show tap0; cat /etc/resolv.conf; ping -c1 -W2 10.9.8.2; wget -qO- http://10.9.8.2:{loopback_service}/hosts"
    shown = podman.run(network, "--cap-add=net_raw", "--", "sh", "-c", look)
    assert "inet 10.9.8.100/24" in shown and "mtu 9000" in shown
    assert "nameserver 10.9.8.3" in shown and "1 packets received" in shown
    assert shown.endswith("netd-host")


@pytest.mark.usefixtures("world")
def test_option_outbound_addr(podman: Podman, machine: Machine) -> None:
    machine.run(["ip", "addr", "replace", "10.77.0.22/24", "dev", "eth0"], "root")
    get = ["wget", "-qO-", f"http://{WORLD}/"]
    assert podman.run("--network=slirp4netns:outbound_addr=10.77.0.22", "--", *get).startswith("you are 10.77.0.22 ")
    assert podman.run("--", *get).startswith(f"you are {HOST} ")


@pytest.mark.usefixtures("world")
def test_the_hosts_own_address_is_reachable(podman: Podman, machine: Machine) -> None:
    """host.containers.internal is the host's LAN address in this mode."""
    program = machine.start(["busybox", "httpd", "-f", "-p", f"{HOST}:9001", "-h", "/etc"])
    podman.answers(f"http://{HOST}:9001/hosts")
    shown = podman.run("--", "wget", "-qO-", "http://host.containers.internal:9001/hosts")
    program.end()
    assert shown.endswith("netd-host")


@pytest.mark.usefixtures("world")
def test_a_container_with_its_own_user_namespace(podman: Podman) -> None:
    """--userns=keep-id: Podman 4 names the namespace by pid."""
    look = f"id -u; ip -4 addr show tap0; wget -qO- http://{WORLD}/; nslookup world"
    shown = podman.run("--userns=keep-id", "--", "sh", "-c", look)
    assert not shown.startswith("0\n") and "inet 10.0.2.100/24" in shown and f"you are {HOST}" in shown


@pytest.mark.usefixtures("world")
def test_a_pod_shares_one_network(podman: Podman) -> None:
    podman(
        "pod", "create", "--name", "pod", "--infra-command", "/bin/sleep 1000", "--infra-image", "localhost/netd-test"
    )
    podman.up("one", "--pod=pod", "--", "httpd", "-f", "-p", "127.0.0.1:8000", "-h", "/etc")
    podman.up("two", "--pod=pod", "--", "sleep", "60")
    get = ["exec", "two", "wget", "-qO-"]
    assert until(lambda: podman(*get, "http://127.0.0.1:8000/passwd", status=None).startswith("root:"), "neighbour")
    assert podman(*get, f"http://{WORLD}/").startswith(f"you are {HOST} ")
    assert len(podman.network_commands()) <= 1


@pytest.mark.usefixtures("world")
def test_eight_containers_at_once(podman: Podman) -> None:
    for i in range(8):
        podman.up(f"c{i}", "--", "sleep", "60")
    for i in range(8):
        assert podman("exec", f"c{i}", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
        assert f"c{i}" != podman("exec", f"c{i}", "hostname")
