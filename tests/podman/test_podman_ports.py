"""Published ports: by Podman's own forwarder, by ours through the api socket, and by ``netd port`` while it runs."""

from __future__ import annotations

import json

import pytest

from tests.machine.machine import HOST, WORLD, Machine, until
from tests.podman.podman import GENUINE, Podman

USR = "-v=/usr:/usr:ro"
OURS = "--network=slirp4netns:port_handler=slirp4netns"

# On each given port, TCP and UDP: answers with who asked, as the container sees it, and what it was told.
WHO = """
import socket, sys, threading
def tcp(s):
    while True:
        c, peer = s.accept()
        c.sendall(f"{peer[0]} {s.getsockname()[1]} ".encode() + c.recv(100)); c.close()
def udp(s):
    while True:
        data, peer = s.recvfrom(2000)
        s.sendto(f"{peer[0]} {s.getsockname()[1]} ".encode() + data, peer)
for port in sys.argv[1:]:
    for kind, serve in ((socket.SOCK_STREAM, tcp), (socket.SOCK_DGRAM, udp)):
        s = socket.socket(socket.AF_INET, kind); s.bind(("0.0.0.0", int(port)))
        if kind == socket.SOCK_STREAM: s.listen(64)
        threading.Thread(target=serve, args=(s,)).start()
print("up", flush=True)
"""

# Says hello and prints the answer; nothing where it is refused or not answered within two seconds.
ASK = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
with socket.socket(socket.AF_INET, kind) as s:
    s.settimeout(2)
    try:
        s.connect((sys.argv[2], int(sys.argv[3]))); s.sendall(b"hello")
        while data := s.recv(2000):
            print(data.decode(), end="")
            if kind == socket.SOCK_DGRAM: break
    except OSError: pass
"""


def ask(machine: Machine, who: str, protocol: str, address: str, port: int) -> str:
    """What the container's server says, or "" when it is not reached."""
    return machine.run(["/usr/bin/python3", "-IS", "-c", ASK, protocol, address, str(port)], who)


def serve(podman: Podman, name: str, options: list[str], ports: list[int]) -> None:
    """Starts WHO in a container and waits until it listens."""
    podman.up(name, USR, *options, "--", "python3", "-c", WHO, *map(str, ports))
    until(lambda: podman("logs", name) == "up", "server in the container")


@pytest.mark.usefixtures("world")
def test_a_page_through_a_published_port(podman: Podman) -> None:
    podman.up("web", "-p", "8080:80", "--", "httpd", "-f", "-h", "/etc")
    assert podman.answers("http://127.0.0.1:8080/passwd").startswith("root:")
    assert podman.answers(f"http://{HOST}:8080/passwd").startswith("root:")
    assert podman.answers(f"http://{HOST}:8080/passwd", "world").startswith("root:")


@pytest.mark.usefixtures("world")
def test_a_range_of_tcp_and_udp_ports_with_the_real_source(podman: Podman, machine: Machine) -> None:
    publish = ["-p", "9001-9003:7001-7003/tcp", "-p", "9001-9003:7001-7003/udp"]
    serve(podman, "who", [OURS, *publish], [7001, 7002, 7003])
    for i in (1, 2, 3):
        for protocol in ("tcp", "udp"):
            assert ask(machine, "world", protocol, HOST, 9000 + i) == f"{WORLD} {7000 + i} hello"
        assert ask(machine, "user", "tcp", "127.0.0.1", 9000 + i) == f"10.0.2.2 {7000 + i} hello"
        assert ask(machine, "user", "tcp", HOST, 9000 + i).split()[1:] == [str(7000 + i), "hello"]
        if not GENUINE:  # which refuses the container's answer to a client on loopback
            assert ask(machine, "user", "udp", "127.0.0.1", 9000 + i) == f"10.0.2.2 {7000 + i} hello"
    for port in (9000, 9004):
        assert ask(machine, "world", "tcp", HOST, port) == ""


@pytest.mark.usefixtures("world")
def test_only_the_named_host_address_listens(podman: Podman, machine: Machine) -> None:
    serve(podman, "who", [OURS, "-p", "127.0.0.1:9010:7001", "-p", "127.0.0.1:9010:7001/udp"], [7001])
    assert ask(machine, "user", "tcp", "127.0.0.1", 9010) == "10.0.2.2 7001 hello"
    for protocol in ("tcp", "udp"):
        assert ask(machine, "world", protocol, HOST, 9010) == ""


@pytest.mark.usefixtures("world")
def test_a_busy_port_is_refused_and_its_owner_goes_on(podman: Podman, machine: Machine) -> None:
    serve(podman, "first", [OURS, "-p", "9020:7001"], [7001])
    said = podman("run", "--name", "second", OURS, "-p", "9020:7001", "localhost/netd-test", "true", status=126)
    assert "add_hostfwd" in said, said
    assert ask(machine, "world", "tcp", HOST, 9020) == f"{WORLD} 7001 hello"
    podman("rm", "-f", "-t0", "first", "second")
    serve(podman, "third", [OURS, "-p", "9020:7001"], [7001])
    assert ask(machine, "world", "tcp", HOST, 9020) == f"{WORLD} 7001 hello"


@pytest.mark.usefixtures("world")
def test_many_clients_at_once_and_large_answers(podman: Podman, machine: Machine) -> None:
    """16 downloads of 2 MB in parallel through one published port, all whole."""
    make = "head -c 2000000 /dev/urandom >/www/f; md5sum </www/f; exec httpd -f -h /www"
    podman.up("web", OURS, "-p", "9030:80", "--", "sh", "-c", make)
    whole = until(lambda: podman("logs", "web").split(), "file to fetch")[0]
    until(
        lambda: "1" in machine.run(["sh", "-c", f"curl -sf http://{HOST}:9030/f >/dev/null && echo 1"], status=None),
        "server",
    )
    fetch = f"seq 16 | xargs -P16 -I% sh -c 'curl -sf -m 20 http://{HOST}:9030/f | md5sum'"
    assert [line.split()[0] for line in machine.world(["sh", "-c", fetch]).splitlines()] == [whole] * 16


@pytest.mark.usefixtures("world", "netd_only")
def test_a_forward_is_added_and_removed_while_it_runs(podman: Podman, machine: Machine) -> None:
    serve(podman, "who", [], [7001])
    [network] = podman.daemon.networks()
    podman.daemon.command("port", "add", network["id"], "9040:7001")
    [forward] = json.loads(podman.daemon.command("port", "ls", network["id"], "--format", "json"))
    assert forward["host_port"] == 9040 and forward["container_port"] == 7001
    assert ask(machine, "world", "tcp", HOST, 9040) == f"{WORLD} 7001 hello"
    assert ask(machine, "user", "tcp", "127.0.0.1", 9040) == "10.0.2.2 7001 hello"
    podman.daemon.command("port", "rm", network["id"], str(forward["id"]))
    assert ask(machine, "world", "tcp", HOST, 9040) == ""
    assert podman.daemon.command("port", "rm", network["id"], str(forward["id"]), status=125)


@pytest.mark.usefixtures("world", "netd_only")
def test_a_port_of_ours_names_its_holder(podman: Podman) -> None:
    serve(podman, "first", [OURS, "-p", "9050:7001"], [7001])
    [first] = podman.daemon.networks()
    podman.up("second", "--", "sleep", "60")
    [second] = [n for n in podman.daemon.networks() if n["id"] != first["id"]]
    said = podman.daemon.command("port", "add", second["id"], "9050:7001", status=125)
    assert "9050" in said and (first["name"] in said or first["id"] in said), said
