"""``podman build`` on pasta: the namespace is named by a procfs path, and nobody says when it is over."""

from __future__ import annotations

import pytest

from tests.machine.machine import HOST, IMAGE, WORLD, Machine, until
from tests.podman.podman import PASTA, Podman

pytestmark = [PASTA, pytest.mark.usefixtures("world")]


def build(podman: Podman, machine: Machine, steps: str, *options: str, status: int = 0) -> str:
    home = machine.environment["HOME"]
    machine.run(["sh", "-c", f"mkdir -p {home}/context; cat >{home}/context/Containerfile"], stdin=steps)
    said = podman("build", "--no-cache", "--layers=false", *options, f"{home}/context", status=status)
    until(lambda: not podman.network_commands(), "end of the network command")
    return said


def test_a_run_step_has_a_network(podman: Podman, machine: Machine) -> None:
    steps = f"""
        FROM {IMAGE}
        RUN ip -4 -o addr show eth0 && wget -qO- http://{WORLD}/
        RUN nslookup world 169.254.1.1 && wget -qO /page http://{WORLD}/bytes/1000000
        CMD md5sum /page"""
    said = build(podman, machine, steps, "-t", "localhost/built")
    assert f"inet {HOST}/24" in said and f"you are {HOST} " in said and WORLD in said, said
    assert len(podman("run", "--rm", "localhost/built").split()[0]) == 32
    podman("rmi", "localhost/built")


def test_a_failing_step_leaves_nothing(podman: Podman, machine: Machine) -> None:
    said = build(podman, machine, f"FROM {IMAGE}\nRUN wget -qO- http://{WORLD}/ && exit 7\n", status=7)
    assert f"you are {HOST} " in said


def test_options_of_a_build(podman: Podman, machine: Machine) -> None:
    steps = f"FROM {IMAGE}\nRUN ip -o addr show inside && grep nameserver /etc/resolv.conf\n"
    said = build(podman, machine, steps, "--network=pasta:-I,inside,-a,192.0.2.5,--dns-forward,198.51.100.1")
    assert "inet 192.0.2.5" in said and "nameserver 198.51.100.1" in said, said
