"""Each kind of lifeline on a whole network: TAP gone, descriptors back, observers told, the rest untouched."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from netd.daemon import Daemon
from netd.errors import PortInUse
from netd.specs import ForwardSpec, Lifeline, NetworkSpec
from tests.lab import World, connected, no_link, open_fds, until

Make = Callable[[Path], tuple[Lifeline, dict[str, int], Callable[[], object]]]


def exit_fd(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    reading, writing = os.pipe()
    os.write(writing, b"not yet")
    return Lifeline("exit_fd", reading), {}, lambda: os.close(writing)


def held_exit_fd(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Lifeline("shim", ours.detach()), {"exit_fd": reading}, lambda: (os.close(writing), theirs.close())


def shim(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Lifeline("shim", ours.detach()), {}, theirs.close


def shim_with_exit_fd(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Lifeline("shim", ours.detach()), {"exit_fd": reading}, lambda: (theirs.close(), os.close(writing))


def pidfd(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    process = subprocess.Popen(["sleep", "60"])
    return Lifeline("pidfd", os.pidfd_open(process.pid)), {}, lambda: (process.kill(), process.wait())


def path(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    file = tmp_path / "netns-1"
    file.write_text("")
    return Lifeline("path", path=str(file)), {}, file.unlink


def path_with_exit_fd(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    reading, writing = os.pipe()
    lifeline, _, unlink = path(tmp_path)
    return lifeline, {"exit_fd": reading}, lambda: (os.close(writing), unlink())


def shim_with_path(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    lifeline, _, end = shim(tmp_path)
    _, _, unlink = path(tmp_path)
    return Lifeline("shim", lifeline.fd, str(tmp_path / "netns-1")), {}, lambda: (unlink(), end())


def shim_with_pidfd(tmp_path: Path) -> tuple[Lifeline, dict[str, int], Callable[[], object]]:
    lifeline, _, end = shim(tmp_path)
    process, _, kill = pidfd(tmp_path)
    return lifeline, {"pidfd": process.fd}, lambda: (kill(), end())


LIFELINES = [exit_fd, held_exit_fd, shim, shim_with_exit_fd, shim_with_path, shim_with_pidfd, pidfd, path]


@pytest.mark.parametrize("make", [*LIFELINES, path_with_exit_fd])
async def test_it_ends_the_network_and_nothing_else_does(
    world: World, daemon: Daemon, tmp_path: Path, make: Make
) -> None:
    guest, other = world.guest(), world.guest()
    neighbour = await daemon.attach(NetworkSpec(), os.dup(other.fd), Lifeline("explicit"))
    before = open_fds()
    heard: list[str] = []
    daemon.observers.append(lambda event, network: heard.append(event))
    lifeline, held, end = make(tmp_path)
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), lifeline, held)
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    with world.outside.listener("198.51.100.2") as listener, guest.socket() as client:
        with await connected(client, listener.getsockname(), listener):
            await asyncio.sleep(0.02)  # turns of the loop in which a false alarm would go off
            assert network.id in daemon.networks and heard == ["attached"]
            end()
            await until(lambda: network.id not in daemon.networks)
    assert heard == ["attached", "detached"]
    await no_link(guest)
    assert list(daemon.networks) == [neighbour.id] and other.has_link("tap0")
    assert open_fds() == before


async def test_explicit_ends_by_nothing_but_detach(world: World, daemon: Daemon) -> None:
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    guest.process.kill()  # type: ignore[union-attr]
    guest.process.wait()  # type: ignore[union-attr]
    await asyncio.sleep(0.02)
    assert network.id in daemon.networks


async def test_a_restart_on_the_same_namespace_fifty_times(world: World, daemon: Daemon) -> None:
    """Podman 4.3's restart policy: hang-up, and the next attach on the same namespace at once."""
    guest = world.guest()
    before = open_fds()
    reading, writing = os.pipe()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", reading))
    with world.outside.listener("198.51.100.2") as listener:
        for turn in range(50):
            os.close(writing)  # no turn of the loop between this and the attach
            if turn % 2:
                await asyncio.sleep(0)
            reading, writing = os.pipe()
            following = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", reading))
            assert list(daemon.networks) == [following.id] != [network.id]
            network = following
            if turn % 10 == 9:
                with guest.socket() as client:
                    (await connected(client, listener.getsockname(), listener)).close()
    os.close(writing)
    await until(lambda: daemon.networks == {})
    assert open_fds() == before


async def test_a_name_and_a_port_are_free_again_at_once(world: World, daemon: Daemon) -> None:
    reading, writing = os.pipe()
    first = await daemon.attach(NetworkSpec(name="web"), os.dup(world.guest().fd), Lifeline("exit_fd", reading))
    port = first.add_forward(ForwardSpec("tcp", 0, 80), "run").spec.host_port
    os.close(writing)
    second = await daemon.attach(NetworkSpec(name="web"), os.dup(world.guest().fd), Lifeline("explicit"))
    second.add_forward(ForwardSpec("tcp", port, 80), "run")
    assert daemon.network("web") is second


@pytest.mark.parametrize("make", [shim_with_path, shim_with_pidfd, pidfd, path])
async def test_a_dead_networks_port_is_taken_over_in_the_same_turn(
    world: World, daemon: Daemon, tmp_path: Path, make: Make
) -> None:
    """podman.md, T11: ``podman restart`` publishes again before anybody has looked at the old namespace's end."""
    lifeline, held, end = make(tmp_path)
    first = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), lifeline, held)
    second = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), Lifeline("explicit"))
    spec = ForwardSpec("tcp", first.add_forward(ForwardSpec("tcp", 0, 80), "pasta").spec.host_port, 80)
    with pytest.raises(PortInUse, match="Address already in use"):
        second.add_forward(spec, "pasta")
    end()
    assert second.add_forward(spec, "pasta").spec == spec
    assert list(daemon.networks) == [second.id]


@pytest.mark.parametrize("case", ["deserted", "alive", "young", "of a user's own"])
async def test_a_killed_containers_port_is_taken_over_though_podman_has_not_heard_of_it(
    world: World, daemon: Daemon, tmp_path: Path, case: str
) -> None:
    """A unit without ExecStop kills its cgroup, conmon with it: the namespace's path stays."""
    path = tmp_path / "netns" / ("mine" if case == "of a user's own" else f"netns-{uuid.UUID(int=7)}")
    path.parent.mkdir()
    path.write_text("")
    guest = world.guest()
    first = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("path", path=str(path)))
    second = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), Lifeline("explicit"))
    spec = ForwardSpec("tcp", first.add_forward(ForwardSpec("tcp", 0, 80), "pasta").spec.host_port, 80)
    if case != "alive":
        assert guest.process is not None
        guest.process.kill()
        guest.process.wait()
    if case != "young":
        first.created -= 3600
    if case == "deserted":
        assert second.add_forward(spec, "pasta").spec == spec
        assert list(daemon.networks) == [second.id]
    else:
        with pytest.raises(PortInUse, match=f"held by network {first.name}"):
            second.add_forward(spec, "pasta")
        assert list(daemon.networks) == [first.id, second.id]


async def test_attach_and_detach_are_quick(world: World, daemon: Daemon) -> None:
    """≤ 50 ms once the daemon is warm (issue 2); twice that here, where two cores run everything."""
    guest = world.guest()
    times = []
    for _ in range(10):
        start = time.monotonic()
        network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
        times.append(time.monotonic() - start)
        await daemon.detach(network)
    assert sorted(times)[5] < 0.1, times
