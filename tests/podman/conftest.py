"""Rootless Podman on a machine of its own, its network command netd's shim, and what must be gone after each test.

``NETD_PODMAN_CMD=genuine`` runs the suite against the packaged slirp4netns and pasta instead: that is how the tests
themselves are checked. Tests of what those never had are skipped then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine.machine import Machine, Unavailable, until
from tests.podman.podman import GENUINE, VERSION, Daemon, Podman


def pytest_report_header() -> str:
    version = ".".join(map(str, VERSION))
    return f"podman {version}, its network command: " + ("the packaged one" if GENUINE else "netd")


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    command = getattr(request, "param", "slirp4netns")
    if VERSION > (0,) and command == "pasta" and VERSION < (5,):
        pytest.skip(f"pasta needs Podman 5, this is {VERSION}")
    if command == "slirp4netns" and VERSION >= (6,):
        pytest.skip("Podman 6 has no slirp4netns")
    try:
        machine = Machine(shim=not GENUINE, command=command)
    except Unavailable as e:
        pytest.skip(f"no rootless Podman here: {e}")
    with machine:
        machine.import_image()
        yield machine


@pytest.fixture(scope="session")
def daemon(machine: Machine) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as own:
        daemon = Daemon(machine, Path(own) / "log")
        if not GENUINE:
            daemon.start()
            daemon.warm_up()
        yield daemon
        if not GENUINE:
            assert daemon.stop() == 0, daemon.log.read_text()


@pytest.fixture
def podman(machine: Machine, daemon: Daemon) -> Iterator[Podman]:
    podman = Podman(machine, daemon)
    written = len(daemon.log.read_text()) if daemon.log.exists() else 0
    open_before, before = daemon.descriptors(), podman.left()
    yield podman
    podman.clear()
    if daemon.log.exists():
        print("netd serve:", daemon.log.read_text()[written:])
    left: dict[str, int] = {}
    open_ever: set[str] = set()

    def gone() -> bool:
        left.update({what: count - before[what] for what, count in podman.left().items()})
        more = daemon.descriptors() - open_before  # one kind less does not pay for another more
        left.update({f"descriptors of the daemon's: {kind}": more[kind] for kind in {*more, *open_ever}})
        open_ever.update(more)
        return not any(count > 0 for count in left.values())

    try:
        until(gone, "clean end")
    except AssertionError:
        pytest.fail(f"left behind after podman rm: { {k: v for k, v in left.items() if v > 0} }")


@pytest.fixture
def netd_only() -> None:
    if GENUINE:
        pytest.skip("the packaged program has it not")


@pytest.fixture
def world(machine: Machine) -> None:
    if not machine.has_world:
        pytest.skip("needs root: no outside host, and the network here is not ours to change")
