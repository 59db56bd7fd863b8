"""Bridge networks on pasta: one resident command in the rootless network namespace, for all of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine.machine import HOST, IMAGE, WORLD, Machine, until
from tests.podman.podman import PASTA, VERSION, Podman
from tests.podman.probes import HOST6, WORLD6

pytestmark = [PASTA, pytest.mark.usefixtures("world")]

HTTPD = ["--", "httpd", "-f", "-h", "/etc"]
OUT = ["wget", "-T5", "-qO-", f"http://{WORLD}/"]


@pytest.fixture
def bridge(podman: Podman) -> Iterator[str]:
    podman("network", "create", "net1")
    yield "--network=net1"
    podman("rm", "-fa", "-t0")
    podman("network", "rm", "-f", "net1", "net2")


def out(podman: Podman, name: str) -> str:
    """What the world says to the container."""
    return podman("exec", name, *OUT)


def pid_file(machine: Machine) -> Path:
    runtime = machine.root / str(machine.runtime_dir).lstrip("/")
    [file] = runtime.glob("containers/networks/rootless-netns/rootless-netns-conn.pid")
    return file


def test_three_containers_by_name(podman: Podman, bridge: str) -> None:
    """Out, to each other by name, a published port, and one resident command for all three."""
    podman.up("one", bridge, "--", "sleep", "600")
    podman.up("two", bridge, "-p", "9301:80", *HTTPD)
    podman.up("three", bridge, *HTTPD)
    for name in ("one", "two", "three"):
        assert out(podman, name).startswith(f"you are {HOST} ")
        assert WORLD in podman("exec", name, "nslookup", "l.test").split("Name:", 1)[1]
    assert podman("exec", "one", "wget", "-qO-", "http://two/passwd").startswith("root:")
    assert podman("exec", "one", "wget", "-qO-", "http://three/passwd").startswith("root:")
    for who, url in (("user", "127.0.0.1"), ("user", HOST), ("world", HOST)):
        assert podman.answers(f"http://{url}:9301/passwd", who).startswith("root:")
    [command] = podman.network_commands()
    assert "--pid" in command and "--config-net" in command
    assert podman("exec", "one", "wget", "-T3", "-qO-", "http://two:81/", status=1)


def test_the_namespace_is_as_podman_has_it(podman: Podman, machine: Machine, bridge: str) -> None:
    """The interface is named like the host's, and info.json says what Podman read from the namespace."""
    podman.up("one", bridge, "--", "sleep", "600")
    addresses = {
        link["ifname"]: [a["local"] for a in link["addr_info"] if a["scope"] == "global"]
        for link in json.loads(podman("unshare", "--rootless-netns", "ip", "-j", "addr"))
    }
    assert HOST in addresses["eth0"]
    assert (HOST6 if VERSION < (6, 1) else "fc00::3") in addresses["eth0"]
    assert podman("unshare", "--rootless-netns", "curl", "-s", f"http://{WORLD}/").startswith(f"you are {HOST} ")
    info = json.loads((pid_file(machine).parent / "info.json").read_text())
    assert info["IPAddresses"][0] == HOST and info["DnsForwardIps"] == ["169.254.1.1"]
    assert "169.254.1.2" in info["MapGuestIps"]
    said = podman("exec", "one", "cat", "/etc/hosts").splitlines()
    assert [line.split()[0] for line in said if "host.containers.internal" in line] == ["169.254.1.2"]
    assert len(podman.network_commands()) == 1


def test_the_host_by_its_name(podman: Podman, machine: Machine, bridge: str) -> None:
    """505: "pasta/bridge and host.containers.internal"."""
    server = machine.start(["python3", "-m", "http.server", "-d", "/etc/ssl", "9310", "-b", "0.0.0.0"])
    try:
        until(lambda: ":9310" in machine.run(["ss", "-Hltn"]), "server")
        page = ["wget", "-T5", "-qO-", "http://host.containers.internal:9310/"]
        assert "openssl.cnf" in podman.run(bridge, "--", *page)
        assert "openssl.cnf" in podman.run("--", *page)
    finally:
        server.end()
        server.communicate()


def test_a_published_port_over_restarts(podman: Podman, bridge: str) -> None:
    podman.up("web", bridge, "-p", "9320:80", "-p", "9321-9323:80-82", *HTTPD)
    assert podman.answers(f"http://{HOST}:9320/passwd", "world").startswith("root:")
    for _ in range(3):
        podman("restart", "-t0", "web")
        assert podman.answers("http://127.0.0.1:9321/passwd").startswith("root:")
    said = podman("run", "--rm", "-p", "9322:80", bridge, IMAGE, "true", status=126)
    assert "9322" in said and "ddress already in use" in said, said
    assert podman.answers("http://127.0.0.1:9320/passwd").startswith("root:")


def test_the_last_container_takes_the_namespace_with_it(podman: Podman, bridge: str) -> None:
    podman.up("one", bridge, "--", "sleep", "600")
    podman.up("two", bridge, "--", "sleep", "600")
    podman("rm", "-f", "-t0", "one")
    assert out(podman, "two").startswith(f"you are {HOST} ")
    podman("rm", "-f", "-t0", "two")
    until(lambda: not podman.network_commands(), "end of the network command")
    podman.up("three", bridge, "--", "sleep", "600")
    assert out(podman, "three").startswith(f"you are {HOST} ")


def test_reload_on_the_same_path(podman: Podman, bridge: str) -> None:
    podman.up("one", bridge, "-p", "9330:80", *HTTPD)
    for _ in range(3):
        podman("network", "reload", "one")
        assert out(podman, "one").startswith(f"you are {HOST} ")
        assert podman.answers("http://127.0.0.1:9330/passwd").startswith("root:")
    assert len(podman.network_commands()) == 1


def test_connect_and_disconnect(podman: Podman, bridge: str) -> None:
    """500: "network connect/disconnect with port forwarding". The resident command lives on."""
    podman("network", "create", "net2")
    podman.up("web", bridge, "-p", "9340:80", *HTTPD)
    [before] = podman.network_commands()
    for there, back in (("net2", "net1"), ("net1", "net2")):
        podman("network", "connect", there, "web")
        podman("network", "disconnect", back, "web")
        assert podman.answers("http://127.0.0.1:9340/passwd").startswith("root:")
        assert out(podman, "web").startswith(f"you are {HOST} ")
    assert podman.network_commands() == [before]


def test_the_pid_file_names_the_resident_process(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("one", bridge, "--", "sleep", "600")
    pid = pid_file(machine).read_text().strip()
    machine.run(["kill", "-0", pid])
    assert "pasta" in machine.run(["cat", f"/proc/{pid}/cmdline"])


def test_a_killed_command_is_started_again(podman: Podman, machine: Machine, bridge: str) -> None:
    """T4, T17: Podman probes the pid at the next set-up and runs the command again on the populated namespace."""
    podman.up("one", bridge, "--", "sleep", "600")
    pid = pid_file(machine).read_text().strip()
    machine.run(["kill", "-9", pid])
    until(lambda: not podman.network_commands(), "end of the network command")
    podman.up("two", bridge, "--", "sleep", "600")
    for name in ("one", "two"):
        assert out(podman, name).startswith(f"you are {HOST} ")
    assert pid_file(machine).read_text().strip() != pid
    assert len(podman.network_commands()) == 1


def test_ended_by_sigterm(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("one", bridge, "--", "sleep", "600")
    [(pid, _)] = [p for p in machine.processes("pasta", "--netns") if "podman" not in p[1][0].split("/")[-1]]
    os.kill(pid, signal.SIGTERM)
    until(lambda: not podman.network_commands(), "end of the network command", 3)


def test_a_false_pasta_and_recovery(podman: Podman, machine: Machine, bridge: str) -> None:
    """500: "podman unshare --rootless-netns with Pasta"."""
    home = machine.environment["HOME"]
    machine.run(["sh", "-c", "mkdir -p $HOME/false; ln -sf /usr/bin/false $HOME/false/pasta"])
    env = {"CONTAINERS_HELPER_BINARY_DIR": f"{home}/false"}
    said = podman("unshare", "--rootless-netns", "ip", "addr", status=125, env=env)
    assert "pasta failed with exit code 1" in said
    assert "eth0" in podman("unshare", "--rootless-netns", "ip", "addr")
    podman("run", "--rm", bridge, IMAGE, "true", status=126, env=env)
    assert podman.run(bridge, "--", *OUT).startswith(f"you are {HOST} ")


def test_a_narrow_path_is_enough(podman: Podman, bridge: str) -> None:
    assert podman.run(bridge, "--", "echo", "up", env={"PATH": "/usr/local/bin:/usr/bin"}) == "up"


def test_ipv6_of_a_bridge(podman: Podman) -> None:
    podman("network", "create", "--ipv6", "net6")
    try:
        podman.up("web", "--network=net6", "-p", "9350:80", "--", "httpd", "-f", "-h", "/etc", "-p", "[::]:80")
        said = podman("exec", "web", "wget", "-T5", "-qO-", f"http://[{WORLD6}]/")
        assert said.startswith(f"you are {HOST6} ")
        assert podman.answers("http://127.0.0.1:9350/passwd").startswith("root:")
    finally:
        podman("rm", "-fa", "-t0")
        podman("network", "rm", "-f", "net6")


def test_beside_a_container_without_a_bridge(podman: Podman, bridge: str) -> None:
    """The rootless namespace and a container's own have the same addresses and do not meet."""
    podman.up("one", bridge, "-p", "9360:80", *HTTPD)
    podman.up("two", "-p", "9361:80", *HTTPD)
    for port in (9360, 9361):
        assert podman.answers(f"http://{HOST}:{port}/passwd", "world").startswith("root:")
    podman("rm", "-f", "-t0", "two")
    assert out(podman, "one").startswith(f"you are {HOST} ")
    assert podman.answers(f"http://{HOST}:9360/passwd", "world").startswith("root:")


def test_a_symlinked_runtime_directory(podman: Podman, machine: Machine, bridge: str) -> None:
    """500: "rootless netns works when XDG_RUNTIME_DIR includes symlinks"."""
    machine.run(["sh", "-c", 'ln -sfn "$XDG_RUNTIME_DIR" "$HOME/run"'])
    env = {"XDG_RUNTIME_DIR": f"{machine.environment['HOME']}/run"}
    assert podman.run(bridge, "--", *OUT, env=env).startswith(f"you are {HOST} ")
    assert podman.run("--", *OUT, env=env).startswith(f"you are {HOST} ")
