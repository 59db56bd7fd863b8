"""Options that reach pasta through ``--network pasta:…`` and containers.conf, and what must not be open without them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.machine.machine import HOST, IMAGE, WORLD, Machine, Program, until
from tests.podman.podman import GENUINE, PASTA, VERSION, Podman
from tests.podman.probes import PYTHON, USR, WHO, Answer, ask_one, serve

pytestmark = [PASTA, pytest.mark.usefixtures("world")]

# Two servers on the host: 9201 on its loopback addresses, 9202 on all; a page that says which.
PAGES = """
import socket, sys, threading
def serve(s, page):
    while True:
        c, _ = s.accept()
        c.recv(4096); c.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + page); c.close()
for host, port, page in (("127.0.0.1", 9201, b"loopback"), ("::1", 9201, b"loopback6"), ("0.0.0.0", 9202, b"any")):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET); s.setsockopt(1, 2, 1)
    s.bind((host, port)); s.listen()
    threading.Thread(target=serve, args=(s, page)).start()
"""


@pytest.fixture
def pages(machine: Machine) -> Iterator[Program]:
    program = machine.start([*PYTHON, PAGES])
    until(lambda: "9202" in machine.run(["ss", "-Hltn"]), "servers on the host")
    yield program
    program.end()
    program.communicate()


def fetched(podman: Podman, options: list[str], *urls: str) -> list[str]:
    """What a container with these options gets from each URL; "" where it gets nothing."""
    each = " ".join(urls)
    said = podman.run(
        *options, "--", "sh", "-c", f'for u in {each}; do echo "$(wget -T3 -qO- http://$u/ 2>/dev/null)"; done'
    )
    return said.split("\n")


def with_conf(machine: Machine, text: str) -> dict[str, str]:
    """The environment in which Podman also reads this containers.conf."""
    path = f"{machine.environment['HOME']}/over.conf"
    machine.run(["sh", "-c", 'cat >"$0"', path], stdin=text)
    return {"CONTAINERS_CONF_OVERRIDE": path}


def test_options_from_containers_conf(podman: Podman, machine: Machine) -> None:
    """505: "Use options from containers.conf". The last one counts."""
    env = with_conf(machine, '[network]\npasta_options = ["-I", "myname", "--ns-mac-addr", "aa:bb:cc:dd:ee:ff"]\n')
    said = podman.run("--", "ip", "-o", "link", env=env)
    assert "myname" in said and "aa:bb:cc:dd:ee:ff" in said
    said = podman.run("--network=pasta:-I,mynewname,-m,1400", "--", "ip", "-o", "link", env=env)
    assert "mynewname" in said and "aa:bb:cc:dd:ee:ff" in said and "mtu 1400" in said


@pytest.mark.usefixtures("pages")
def test_the_hosts_loopback_is_closed(podman: Podman) -> None:
    """What listens on all of the host's addresses is reached at host.containers.internal, the rest nowhere."""
    urls = ["169.254.1.2:9201", f"{WORLD}:9201", f"{HOST}:9201", "127.0.0.1:9201", "[::1]:9201", "169.254.1.2:9202"]
    assert fetched(podman, [], *urls) == ["", "", "", "", "", "any"]
    assert fetched(podman, [], "host.containers.internal:9202") == ["any"]


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize(
    ("option", "url"),
    [
        ("--map-gw", WORLD),
        ("--map-host-loopback,192.0.2.7", "192.0.2.7"),
        ("--map-host-loopback,2001:db8::7", "[2001:db8::7]"),
        ("-T,9201", "127.0.0.1"),
        ("-T,9201", "[::1]"),
        ("-T,auto", "127.0.0.1"),
    ],
)
def test_the_hosts_loopback_where_it_is_asked_for(podman: Podman, option: str, url: str) -> None:
    expected = "loopback6" if "[" in url else "loopback"
    script = f"for i in 1 2 3 4 5 6; do wget -T3 -qO- http://{url}:9201/ && exit; sleep .5; done"
    assert podman.run(f"--network=pasta:{option}", "--", "sh", "-c", script).splitlines()[-1] == expected


@pytest.mark.usefixtures("pages")
def test_another_address_for_the_host(podman: Podman) -> None:
    option = "--network=pasta:--map-guest-addr,192.0.2.9"
    assert fetched(podman, [option], "192.0.2.9:9202", "host.containers.internal:9202") == ["any", "any"]
    hosts = podman.run(option, "--", "cat", "/etc/hosts").splitlines()
    assert [line.split()[0] for line in hosts if "host.containers.internal" in line] == ["192.0.2.9"]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_ports_that_follow_the_container(podman: Podman, machine: Machine, protocol: str) -> None:
    """``-t auto``, ``-u auto``: a listener in the container is on the host within some seconds, and gone like that."""
    podman.up("auto", USR, f"--network=pasta:-{protocol[0]},auto", "--", "sleep", "600")
    assert ask_one(machine, "user", protocol, "127.0.0.1", 9210) is None
    late = "import os, sys, threading; sys.argv = ['', '9210']; threading.Timer(8, os._exit, (0,)).start()\n"
    serving = machine.start(["podman", "exec", "auto", *PYTHON, late + WHO])
    answer = until(lambda: ask_one(machine, "world", protocol, HOST, 9210), "published port")
    assert answer == Answer(4, WORLD, 9210, "hello")
    serving.communicate(timeout=30)
    until(lambda: ":9210" not in machine.run(["ss", "-Hltun"]), "end of the published port")


def test_forwards_of_pastas_own_grammar(podman: Podman, machine: Machine) -> None:
    spec = f'"-t", "{HOST}/9221-9224:7001-7004,~9223", "-u", "9221:7001"'
    env = with_conf(machine, f"[network]\npasta_options = [{spec}]\n")
    serve(podman, "who", [], [7001, 7002, 7003, 7004], env=env)
    expected = {9221: 7001, 9222: 7002, 9223: None, 9224: 7004}
    for outer, inner in expected.items():
        answer = ask_one(machine, "world", "tcp", HOST, outer)
        assert (answer and answer.port) == inner
    answer = ask_one(machine, "world", "udp", HOST, 9221)
    assert answer and answer.port == 7001


def test_an_option_that_is_none(podman: Podman) -> None:
    """The reason reaches the user, on the spot; Podman's exit status is 126."""
    said = podman("run", "--rm", "--network=pasta:--no-such-option", IMAGE, "true", status=126, timeout=20)
    assert "pasta failed with exit code 1" in said and "--no-such-option" in said
    said = podman("run", "--rm", "--network=pasta:-a,not-an-address", IMAGE, "true", status=126, timeout=20)
    assert "not-an-address" in said
    assert podman.run("--", "echo", "goes on") == "goes on"


def test_a_protocol_that_podman_refuses(podman: Podman) -> None:
    """505: "Unsupported protocol"."""
    said = podman("run", "--rm", "-p", "9230:80/sctp", IMAGE, "true", status=126)
    assert "can't forward protocol: sctp" in said


def test_log_file_and_capture(podman: Podman, machine: Machine) -> None:
    """Podman's own tests give ``--trace,--log-file``; the files are the user's, in the user's place."""
    home = machine.environment["HOME"]
    machine.run(["sh", "-c", f"rm -f {home}/pasta.log {home}/pasta.pcap"])
    options = f"--network=pasta:--trace,--log-file,{home}/pasta.log,--pcap,{home}/pasta.pcap"
    assert podman.run(options, "--", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
    assert machine.run(["cat", f"{home}/pasta.log"]).startswith("pasta ")
    head = (machine.root / f"{home}/pasta.pcap".lstrip("/")).read_bytes()[:4]
    assert head in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d")
    assert machine.run(["sh", "-c", f"stat -c %U {home}/pasta.log {home}/pasta.pcap"]).split() == [machine.user] * 2


def test_info_shows_the_program(podman: Podman) -> None:
    """005-info.bats: a path without capitals, ``--version`` that ends with 0."""
    info = json.loads(podman("info", "--format", "json"))["host"]
    assert info["rootlessNetworkCmd"] == "pasta"
    assert all(c.islower() or c.isdigit() or c in "/.-" for c in info["pasta"]["executable"])
    assert ("netd" in info["pasta"]["version"]) or GENUINE
    if VERSION >= (6,):
        assert info["rootlessPortForwarder"] in ("rootlessport", "pasta")


def test_stats_find_the_interface(podman: Podman) -> None:
    podman.up("busy", "--", "sh", "-c", f"wget -qO /dev/null http://{WORLD}/bytes/1000000; sleep 60")
    until(lambda: "MB" in podman("stats", "--no-stream", "--format", "{{.NetIO}}", "busy", status=None), "a megabyte")
