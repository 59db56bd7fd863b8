"""What is left when all is over, counted. (After every other test the fixture asks the same.)"""

from __future__ import annotations

import pytest

from tests.machine.machine import IMAGE, WORLD, Machine, until
from tests.podman.podman import VERSION, Podman

OURS = "--network=slirp4netns:port_handler=slirp4netns"


@pytest.mark.usefixtures("world")
def test_five_of_every_kind_leave_nothing(podman: Podman, machine: Machine) -> None:
    """Containers, ports, own user namespaces, bridge networks, builds: processes, descriptors, TAPs, files, sockets."""
    before, descriptors, processes = podman.left(), podman.daemon.descriptors(), len(machine.processes())
    home = machine.environment["HOME"]
    steps = f"FROM {IMAGE}\nRUN wget -qO- http://{WORLD}/\n"
    machine.run(["sh", "-c", f"mkdir -p {home}/context; cat >{home}/context/Containerfile"], stdin=steps)
    for i in range(5):
        podman("network", "create", f"net{i}")
        podman.up(f"ports{i}", OURS, "-p", f"910{i}:80", "-p", f"910{i}:80/udp", "--", "sleep", "100")
        podman.up(f"bridge{i}", f"--network=net{i}", "-p", f"920{i}:80", "--", "sleep", "100")
        podman.run("--userns=keep-id", "--", "true")
        podman.run("--", "wget", "-qO", "/dev/null", f"http://{WORLD}/bytes/100000")
    podman("build", "--no-cache", f"{home}/context")
    assert podman.left()["network commands"] == 6 and podman.left()["namespace files"] == (11 if VERSION < (5,) else 12)
    podman("rm", "-fa", "-t0")
    podman("network", "prune", "-f")
    until(lambda: podman.left() == before, "clean end: network commands, namespace files, sockets, TAPs")
    until(lambda: podman.daemon.descriptors() <= descriptors, "descriptors closed")
    until(lambda: len(machine.processes()) <= processes, "processes ended")
    print(before, podman.left(), podman.daemon.descriptors(), len(machine.processes()))
