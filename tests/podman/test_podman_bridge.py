"""Bridge networks: one resident network command for all of them, in the rootless network namespace."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine.machine import HOST, WORLD, Machine, until
from tests.podman.podman import VERSION, Podman


@pytest.fixture
def bridge(podman: Podman, machine: Machine) -> Iterator[str]:
    podman("network", "create", "net1")
    yield "--network=net1"
    podman("rm", "-fa", "-t0")
    podman("network", "rm", "-f", "net1")
    end_rootless_netns(podman, machine)


def end_rootless_netns(podman: Podman, machine: Machine) -> None:
    """Podman 4 leaves the namespace after ``unshare --rootless-netns``: what its last container would have done."""
    for pid, _ in machine.processes("slirp4netns", "/netns/rootless-netns-", "tap0"):
        os.kill(pid, signal.SIGTERM)
    runtime = machine.root / str(machine.runtime_dir).lstrip("/")
    for file in runtime.glob("netns/rootless-netns-*"):
        inner = "/" + str(file.relative_to(machine.root))
        podman("unshare", "sh", "-c", f"umount {inner} 2>/dev/null; rm -f {inner}")
    until(lambda: not podman.network_commands(), "end of the network command on SIGTERM")


@pytest.mark.usefixtures("world")
def test_two_containers_reach_the_outside_and_each_other(podman: Podman, bridge: str) -> None:
    for name in ("one", "two"):
        podman.up(name, bridge, "--", "httpd", "-f", "-h", "/etc")
    for name in ("one", "two"):
        assert podman("exec", name, "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
        assert WORLD in podman("exec", name, "nslookup", "world", "10.0.2.3").split("Name:")[1]
    [(address)] = podman(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "two"
    ).split()
    assert podman("exec", "one", "wget", "-qO-", f"http://{address}/passwd").startswith("root:")
    [command] = podman.network_commands()
    assert "-e" not in command and "--netns-type=path" in command, "one resident command, without an exit fd"


@pytest.mark.usefixtures("world")
def test_tap0_is_in_the_rootless_namespace(podman: Podman, machine: Machine) -> None:
    shown = podman("unshare", "--rootless-netns", "ip", "addr", "show", "tap0")
    assert "inet 10.0.2.100/24" in shown and "mtu 65520" in shown
    try:
        assert podman("unshare", "--rootless-netns", "curl", "-s", f"http://{WORLD}/").startswith(f"you are {HOST} ")
        assert len(podman.network_commands()) == (1 if VERSION < (5,) else 0), "Podman 5 ends it with its last user"
    finally:
        end_rootless_netns(podman, machine)


@pytest.mark.usefixtures("world")
def test_a_published_port_of_a_bridge_container(podman: Podman, bridge: str) -> None:
    podman.up("web", bridge, "-p", "8090:80", "--", "httpd", "-f", "-h", "/etc")
    assert podman.answers(f"http://{HOST}:8090/passwd", "world").startswith("root:")
    for _ in range(3):
        podman("restart", "-t0", "web")
        assert podman.answers("http://127.0.0.1:8090/passwd").startswith("root:")


@pytest.mark.usefixtures("world")
def test_the_last_container_takes_the_namespace_with_it(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("one", bridge, "--", "sleep", "60")
    podman.up("two", bridge, "--", "sleep", "60")
    podman("rm", "-f", "-t0", "one")
    assert podman("exec", "two", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
    podman("rm", "-f", "-t0", "two")
    until(lambda: not podman.network_commands(), "end of the network command")
    runtime = machine.root / str(machine.runtime_dir).lstrip("/")
    assert not list(runtime.glob("netns/*"))
    podman.up("three", bridge, "--", "sleep", "60")
    assert podman("exec", "three", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")


@pytest.mark.usefixtures("world")
def test_reload_on_the_same_path(podman: Podman, bridge: str) -> None:
    """``network reload`` ends the command and starts another 20 ms later: same path, another namespace."""
    podman.up("one", bridge, "--", "sleep", "60")
    for _ in range(3):
        podman("network", "reload", "one")
        assert podman("exec", "one", "wget", "-qO-", f"http://{WORLD}/").startswith(f"you are {HOST} ")
    assert len(podman.network_commands()) == 1


@pytest.mark.usefixtures("world")
def test_connect_and_disconnect(podman: Podman, bridge: str) -> None:
    """The resident command lives on, and so does the published port."""
    podman("network", "create", "net2")
    try:
        podman.up("web", bridge, "-p", "8091:80", "--", "httpd", "-f", "-h", "/etc")
        [before] = podman.network_commands()
        for _ in range(2):
            podman("network", "connect", "net2", "web")
            podman("network", "disconnect", "net1", "web")
            assert podman.answers("http://127.0.0.1:8091/passwd").startswith("root:")
            podman("network", "connect", "net1", "web")
            podman("network", "disconnect", "net2", "web")
        assert podman.answers("http://127.0.0.1:8091/passwd").startswith("root:")
        assert podman("unshare", "--rootless-netns", "curl", "-s", f"http://{WORLD}/").startswith(f"you are {HOST} ")
        assert podman.network_commands() == [before]
    finally:
        podman("rm", "-fa", "-t0")
        podman("network", "rm", "-f", "net2")


def test_a_narrow_path_is_enough(podman: Podman, bridge: str) -> None:
    """500-networking.bats: "rootless cni adds /usr/sbin to $PATH"."""
    said = podman.run(bridge, "--", "echo", "up", env={"PATH": "/usr/local/bin:/usr/bin"})
    assert said == "up"


def test_the_pid_file_names_the_resident_process(podman: Podman, machine: Machine, bridge: str) -> None:
    podman.up("one", bridge, "--", "sleep", "60")
    runtime = machine.root / str(machine.runtime_dir).lstrip("/")
    [file] = runtime.glob("**/rootless-netns-*.pid")  # Podman 4 and 5 have it at different places
    machine.run(["kill", "-0", file.read_text()])
    [(pid, _)] = machine.processes("slirp4netns", "rootless-netns", "tap0")
    assert f"\t{file.read_text()}\n" in Path(f"/proc/{pid}/status").read_text()
