"""A container's network through its lives: restarts, restart policies, ends of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine.machine import HOST, WORLD, Machine, until
from tests.podman.podman import Podman

OURS = "--network=slirp4netns:port_handler=slirp4netns"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("handler", ["rootlesskit", "slirp4netns"])
def test_twenty_restarts(podman: Podman, handler: str) -> None:
    network = f"--network=slirp4netns:port_handler={handler}"
    podman.up("web", network, "-p", "8081:80", "--", "httpd", "-f", "-h", "/etc")
    for _ in range(20):
        assert podman("restart", "-t0", "web")
        assert podman.answers("http://127.0.0.1:8081/passwd").startswith("root:")
    assert len(podman.network_commands()) <= 1


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("handler", "seconds"), [("rootlesskit", 1), ("slirp4netns", 0.1)])
def test_a_dying_process_keeps_its_network(podman: Podman, machine: Machine, handler: str, seconds: float) -> None:
    """--restart=always: Podman 4 runs the command again on the same namespace, some 70 ms after the old one's end.

    Each life fetches a page and looks at its address, one line each, and dies. Ten lives, ten good lines. The last
    one stays, so that the published port can be tried.
    """
    log = machine.root / machine.environment["HOME"].lstrip("/") / "lives"
    machine.run(["mkdir", "-m", "777", "-p", f"{machine.environment['HOME']}/lives"])
    (log / "log").unlink(missing_ok=True)
    life = f"""
        page=$(wget -qO- http://{WORLD}/); name=$(nslookup world 10.0.2.3 | grep -c {WORLD})
        echo "$page / $(ip -4 -o addr show dev tap0 | grep -o 'inet [^ ]*') / $name" >>/lives/log
        [ $(wc -l </lives/log) -lt 11 ] || exec httpd -f -h /etc
        sleep {seconds}; exit 1"""
    network = f"--network=slirp4netns:port_handler={handler}"
    volume = f"-v={machine.environment['HOME']}/lives:/lives"
    podman.up("dying", network, "-p", "8082:80", "--restart=always", volume, "--", "sh", "-c", life)

    def lines() -> list[str]:
        return (log / "log").read_text().splitlines() if (log / "log").exists() else []

    until(lambda: len(lines()) >= 11, "eleventh life", 90)
    for line in lines():
        page, address, name = line.split(" / ")
        assert page.startswith(f"you are {HOST} ") and address == "inet 10.0.2.100/24" and int(name) >= 1, line
    assert podman.answers("http://127.0.0.1:8082/passwd").startswith("root:")
    assert podman("inspect", "--format", "{{.RestartCount}}", "dying") == "10"
    assert len(podman.network_commands()) <= 1


def test_stop_and_start_again(podman: Podman) -> None:
    podman.up("web", OURS, "-p", "8083:80", "--", "httpd", "-f", "-h", "/etc")
    podman.answers("http://127.0.0.1:8083/passwd")
    for _ in range(3):
        podman("stop", "-t0", "web")
        until(lambda: not podman.network_commands(), "end of the network command")
        podman("start", "web")
        assert podman.answers("http://127.0.0.1:8083/passwd").startswith("root:")


@pytest.mark.parametrize("victim", ["process", "conmon"])
def test_a_killed_container_gives_its_network_back(podman: Podman, machine: Machine, victim: str) -> None:
    """What is left is asked by the fixture; Podman itself is not, when its conmon is dead."""
    podman.up("web", OURS, "-p", "8084:80", "--", "httpd", "-f", "-h", "/etc")
    podman.answers("http://127.0.0.1:8084/passwd")
    if victim == "process":
        podman("kill", "-s", "KILL", "web")
    else:
        [(conmon, _)] = machine.processes("/usr/bin/conmon", podman("inspect", "--format", "{{.Id}}", "web"))
        machine.run(["sh", "-c", f"kill -9 {inner_pid(conmon)}"])
    until(lambda: not podman.network_commands(), "end of the network command")
    until(lambda: "8084" not in machine.run(["ss", "-Hltn"]), "free port")
    podman("rm", "-fa", "-t0", status=None)  # Podman 5 complains of conmon's exit code, once


def inner_pid(pid: int) -> int:
    """The pid that a process of the machine's has in there."""
    [line] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("NSpid:")]
    return int(line.split()[-1])


@pytest.mark.usefixtures("netd_only")
def test_without_a_daemon_podman_says_so_at_once(podman: Podman) -> None:
    podman.daemon.stop()
    try:
        said = podman.run("--", "true", status=None, timeout=20)
        assert "netd" in said and said.count("\n") < 6, said
    finally:
        podman.daemon.start()
        podman.daemon.warm_up()
    assert podman.run("--", "echo", "again") == "again"


@pytest.mark.usefixtures("netd_only", "world")
def test_a_killed_shim_ends_the_network(podman: Podman, machine: Machine) -> None:
    """With port_handler=slirp4netns the network command's process is the handle of the network.

    A killed process leaves its socket file; the container's next start has the same path and is not put off by it.
    """
    podman.up("web", OURS, "-p", "8085:80", "--", "httpd", "-f", "-h", "/etc")
    podman.answers("http://127.0.0.1:8085/passwd")
    [(shim, _)] = machine.processes("plugin/slirp4netns", "tap0")
    machine.run(["kill", "-KILL", str(inner_pid(shim))])
    until(lambda: not podman.daemon.networks(), "end of the network")
    assert podman.daemon.descriptors()["/dev/net/tun"] == 0
    podman("restart", "-t0", "web")
    assert podman.answers("http://127.0.0.1:8085/passwd").startswith("root:")
