"""``podman build``: Buildah finds the command on $PATH, names the namespace by pid and ends it with SIGKILL."""

from __future__ import annotations

import pytest

from tests.machine.machine import HOST, IMAGE, WORLD, Machine, until
from tests.podman.podman import Podman


@pytest.mark.usefixtures("world")
def test_a_run_step_has_a_network(podman: Podman, machine: Machine) -> None:
    steps = f"""
        FROM {IMAGE}
        RUN ip -4 -o addr show tap0 && wget -qO- http://{WORLD}/
        RUN nslookup world 10.0.2.3 && wget -qO /page http://{WORLD}/bytes/1000000
        CMD md5sum /page"""
    home = machine.environment["HOME"]
    machine.run(["sh", "-c", f"mkdir -p {home}/context; cat >{home}/context/Containerfile"], stdin=steps)
    said = podman("build", "--no-cache", "--layers=false", "-t", "localhost/built", f"{home}/context")
    assert "inet 10.0.2.100/24" in said and f"you are {HOST} " in said and WORLD in said, said
    until(lambda: not podman.network_commands(), "end of the network command")
    assert len(podman("run", "--rm", "localhost/built").split()[0]) == 32
    podman("rmi", "localhost/built")


@pytest.mark.usefixtures("world")
def test_a_failing_step_leaves_nothing(podman: Podman, machine: Machine) -> None:
    home = machine.environment["HOME"]
    steps = f"FROM {IMAGE}\nRUN wget -qO- http://{WORLD}/ && exit 7\n"
    machine.run(["sh", "-c", f"mkdir -p {home}/context; cat >{home}/context/Containerfile"], stdin=steps)
    assert f"you are {HOST} " in podman("build", "--no-cache", f"{home}/context", status=7)
    until(lambda: not podman.network_commands(), "end of the network command")
