"""``rootless_port_forwarder = "pasta"``: pasta forwards the ports of bridge networks, and Podman tells it by pesto."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.machine.machine import HOST, IMAGE, WORLD, Machine, until
from tests.podman.podman import GENUINE, PASTA, VERSION, Podman
from tests.podman.probes import HOST6, WORLD6, Answer, ask, ask_one, serve

pytestmark = [
    PASTA,
    pytest.mark.usefixtures("world"),
    pytest.mark.skipif(VERSION < (6, 1), reason=f"pesto needs Podman 6.1, this is {VERSION}"),
]

HTTPD = ["--", "httpd", "-f", "-h", "/etc"]


@pytest.fixture
def bridge(podman: Podman, machine: Machine) -> Iterator[str]:
    path = f"{machine.environment['HOME']}/pesto.conf"
    machine.run(["sh", "-c", 'cat >"$0"', path], stdin='[network]\nrootless_port_forwarder = "pasta"\n')
    podman.environment["CONTAINERS_CONF_OVERRIDE"] = path
    podman("network", "create", "--ipv6", "net1")
    yield "--network=net1"
    podman("rm", "-fa", "-t0")
    podman("network", "rm", "-f", "net1", "net2")
    assert not machine.processes("rootlessport")


def socket_of(podman: Podman, machine: Machine) -> str:
    """The control socket, as Podman's user sees it."""
    runtime = machine.root / str(machine.runtime_dir).lstrip("/")
    [file] = runtime.glob("containers/networks/rootless-netns/pasta.sock")
    return "/" + str(file.relative_to(machine.root))


def address(podman: Podman, name: str) -> str:
    networks = json.loads(podman("inspect", "--format", "{{json .NetworkSettings.Networks}}", name))
    return str(networks["net1"]["IPAddress"])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_source_is_kept_on_a_bridge(podman: Podman, machine: Machine, bridge: str, protocol: str) -> None:
    publish = [f"-p=9401:7001/{protocol}", f"-p=9402-9404:7002-7004/{protocol}", f"-p=127.0.0.1:9405:7001/{protocol}"]
    serve(podman, "who", [bridge, *publish], [7001, 7002, 7003, 7004])
    pairs = {9401: 7001, 9402: 7002, 9403: 7003, 9404: 7004}
    until(lambda: ask_one(machine, "world", protocol, HOST6, 9401), "end of the bridge's address detection")
    for family, host, source in ((4, HOST, WORLD), (6, HOST6, WORLD6)):
        answers = ask(machine, "world", [(protocol, host, outer, "x") for outer in pairs])
        assert answers == [Answer(family, source, inner, "x") for inner in pairs.values()]
    assert ask_one(machine, "world", protocol, HOST, 9405) is None
    for host in ("127.0.0.1", HOST):
        answer = ask_one(machine, "user", protocol, host, 9401)
        assert answer and answer.port == 7001 and not answer.source.startswith("127."), answer
    answer = ask_one(machine, "user", protocol, "127.0.0.1", 9405)
    assert answer and answer.port == 7001, answer


def test_no_forwarder_of_podmans_own(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("web", bridge, "-p", "9410:80", *HTTPD)
    assert podman.answers(f"http://{HOST}:9410/passwd", "world").startswith("root:")
    assert not machine.processes("rootlessport")
    [command] = podman.network_commands()
    assert command[command.index("-c") + 1].endswith("/pasta.sock")


def test_ports_come_and_go_with_their_containers(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("one", bridge, "-p", "9420:80", *HTTPD)
    podman.up("two", bridge, "-p", "9421:80", "-p", "9421:80/udp", *HTTPD)
    [before] = podman.network_commands()
    for port in (9420, 9421):
        assert podman.answers(f"http://{HOST}:{port}/passwd", "world").startswith("root:")
    podman("rm", "-f", "-t0", "two")
    assert ":9421" not in machine.run(["ss", "-Hltun"]), "free when podman rm is done"
    assert podman.answers(f"http://{HOST}:9420/passwd", "world").startswith("root:")
    podman.up("three", bridge, "-p", "9421:80", *HTTPD)
    assert podman.answers(f"http://{HOST}:9421/passwd", "world").startswith("root:")
    assert podman.network_commands() == [before]


def test_a_busy_port_is_refused_and_its_owner_goes_on(podman: Podman, machine: Machine, bridge: str) -> None:
    other = machine.start(["python3", "-m", "http.server", "9431"])
    try:
        podman.up("first", bridge, "-p", "9430:80", *HTTPD)
        until(lambda: ":9431" in machine.run(["ss", "-Hltn"]), "other server")
        for port, reason in ((9430, "conflict"), (9431, "ddress already in use"))[: 1 if GENUINE else 2]:
            said = podman("run", "--rm", bridge, "-p", f"{port}:80", IMAGE, "true", status=126)
            assert str(port) in said and reason in said, said
            assert podman.answers(f"http://{HOST}:9430/passwd", "world").startswith("root:")
    finally:
        other.end()
        other.communicate()
        podman("rm", "-fa", "-t0", status=None)  # netavark may find its rules busy
        podman("rm", "-fa", "-t0")
        # Podman 6.1 counts a container that pesto refused for ever: what its last one would have done.
        for pid, _ in machine.processes("pasta", "--netns", "--pid"):
            os.kill(pid, signal.SIGTERM)
        directory = f"{machine.runtime_dir}/containers/networks/rootless-netns"
        podman("unshare", "sh", "-c", f"umount {directory}/rootless-netns; rm -rf {directory}")


def test_restarts(podman: Podman, bridge: str) -> None:
    """500: "podman network after restart - pasta forwarder"."""
    podman.up("web", bridge, "-p", "9440:80", *HTTPD)
    for _ in range(10):
        podman("restart", "-t0", "web")
        assert podman.answers("http://127.0.0.1:9440/passwd").startswith("root:")


def test_reload(podman: Podman, bridge: str) -> None:
    podman.up("web", bridge, "-p", "9450:80", *HTTPD)
    for _ in range(3):
        podman("network", "reload", "web")
        assert podman.answers(f"http://{HOST}:9450/passwd", "world").startswith("root:")


def test_connect_and_disconnect(podman: Podman, bridge: str) -> None:
    """500: "network connect/disconnect with port forwarding - pasta forwarder": the forward is led anew."""
    podman("network", "create", "net2")
    podman.up("web", bridge, "-p", "9460:80", *HTTPD)
    for there, back in (("net2", "net1"), ("net1", "net2")):
        podman("network", "connect", there, "web")
        podman("network", "disconnect", back, "web")
        assert podman.answers(f"http://{HOST}:9460/passwd", "world").startswith("root:")


def test_by_hand(podman: Podman, machine: Machine, bridge: str) -> None:
    """pesto adds what is there already without complaint, deletes, and lists."""
    podman.up("web", bridge, *HTTPD)
    rule, path = f"0.0.0.0/9470:{address(podman, 'web')}/80", socket_of(podman, machine)
    for _ in range(1 if GENUINE else 2):  # which says "conflict", against what Podman's comment counts on
        podman("unshare", "pesto", "--add", "-t", rule, path)
    assert podman.answers(f"http://{HOST}:9470/passwd", "world").startswith("root:")
    assert "9470" in podman("unshare", "pesto", path)
    podman("unshare", "pesto", "--delete", "-t", rule, path)
    until(lambda: ":9470" not in machine.run(["ss", "-Hltn"]), "end of the forward")
    assert "9470" not in podman("unshare", "pesto", path)


def test_what_is_none(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("web", bridge, "-p", "9480:80", *HTTPD)
    path = socket_of(podman, machine)
    for words in (["--add", "-t", "0.0.0.0/99999", path], ["--add", "-t", "nonsense:", path], ["--nonsense", path]):
        assert podman("unshare", "pesto", *words, status=None if GENUINE else 1) or GENUINE
    assert podman("unshare", "pesto", f"{path}.not", status=1)
    assert podman.answers(f"http://{HOST}:9480/passwd", "world").startswith("root:")


def test_many_containers_at_once(podman: Podman, machine: Machine, bridge: str) -> None:
    """Podman's own lock orders them; each has its port."""
    script = f"seq 1 6 | xargs -P3 -I% podman run -d --name c% {bridge} -p 949%:80 {IMAGE} httpd -f -h /etc"
    machine.run(["sh", "-c", script], env=podman.environment)
    for i in range(1, 7):
        assert podman.answers(f"http://{HOST}:949{i}/passwd", "world").startswith("root:")
