"""A restart in good order: the next daemon has the networks, forwards and lifelines of the one before."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netd import store
from netd.daemon import Daemon
from netd.errors import PortInUse
from netd.sdnotify import Notifier
from netd.settings import Settings
from netd.specs import ForwardSpec, Lifeline, NetworkSpec
from tests.lab import HOST, OUTSIDE, World, aside, connected, no_link, open_fds, refusal, until

from .restarts import Start, answers, works
from .service_manager import ServiceManager


async def test_everything_comes_back(world: World, manager: ServiceManager, start: Start) -> None:
    guest = world.guest()
    daemon = await start()
    reading, writing = os.pipe()
    spec = NetworkSpec(name="web", origin="slirp4netns", mtu=1500)
    network = await daemon.attach(spec, os.dup(guest.fd), Lifeline("exit_fd", reading))
    network.add_forward(ForwardSpec("tcp", 0, 80), "run")
    gone = network.add_forward(ForwardSpec("tcp", 0, 81), "api")
    network.add_forward(ForwardSpec("udp", 0, 53), "api")
    network.remove_forward(gone.id)
    daemon.changed(network)
    before = network.status()
    index = guest.run("ip", "-o", "link", "show", "tap0").split(":")[0]

    for _ in range(3):
        heard: list[tuple[str, str]] = []
        daemon = await start()
        daemon.observers.append(lambda event, network, heard=heard: heard.append((event, network.name)))
        daemon.announce()
        assert heard == [("attached", "web")]
        network = daemon.network("web")
        after = network.status()
        assert (after.id, after.spec, after.lifeline, after.netns_inode) == (
            before.id, before.spec, before.lifeline, before.netns_inode,
        )  # fmt: skip
        assert (after.created, after.mac, after.offload) == (before.created, before.mac, before.offload)
        assert after.forwards == before.forwards and [f.id for f in after.forwards] == [1, 3]
        assert guest.run("ip", "-o", "link", "show", "tap0").split(":")[0] == index  # the very same device
        await works(world, guest)
        await answers(world, guest, network, 1)
        with guest.datagrams(port=53) as server, world.outside.datagrams(OUTSIDE) as client:
            client.sendto(b"question", (HOST, network.forward(3).spec.host_port))
            assert await aside(server.recv, 100) == b"question"
    assert network.add_forward(ForwardSpec("tcp", 0, 80), "api").id == 4
    os.close(writing)
    await until(lambda: daemon.networks == {} and manager.names() == ["state"])
    await no_link(guest)


async def test_a_connection_of_before_is_reset_at_both_ends(world: World, start: Start) -> None:
    """Also one that says nothing: a guest that only listens would never hear of it otherwise."""
    guest = world.guest()
    daemon = await start()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    port = network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    daemon.changed(network)
    with world.outside.listener(OUTSIDE) as listener, guest.socket() as out:
        with guest.listener(port=80) as published, world.outside.socket() as into:
            with (
                await connected(out, listener.getsockname(), listener) as at_server,
                await connected(into, (HOST, port), published) as at_guest,
            ):
                await start()
                for sock in (at_server, out, at_guest, into):
                    with pytest.raises(ConnectionResetError):
                        await aside(sock.recv, 100)


@pytest.mark.parametrize("kind", ["exit_fd", "shim", "pidfd", "path", "held", "tap"])
async def test_what_ended_meanwhile_is_let_go_of(
    world: World, manager: ServiceManager, start: Start, tmp_path: Path, kind: str
) -> None:
    daemon = await start()
    guest, other = world.guest(), world.guest()
    await daemon.attach(NetworkSpec(name="other"), os.dup(other.fd), Lifeline("explicit"))
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(["sleep", "60"])
    path = tmp_path / "n"
    path.write_text("")
    make: dict[str, Callable[[], Lifeline]] = {
        "exit_fd": lambda: Lifeline("exit_fd", os.dup(reading)),
        "shim": lambda: Lifeline("shim", os.dup(ours.fileno())),
        "held": lambda: Lifeline("shim", os.dup(ours.fileno())),
        "pidfd": lambda: Lifeline("pidfd", os.pidfd_open(process.pid)),
        "path": lambda: Lifeline("path", path=str(path)),
        "tap": lambda: Lifeline("explicit"),
    }
    lifeline, held = make[kind](), {"exit_fd": os.dup(reading)} if kind == "held" else {}
    network = await daemon.attach(NetworkSpec(name="ends"), os.dup(guest.fd), lifeline, held)
    port = network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    daemon.changed(network)
    os.close(reading)
    ours.close()
    stop = start.stop  # type: ignore[attr-defined]
    await stop()
    if kind == "tap":
        guest.run("ip", "link", "delete", "tap0")
    if kind not in ("tap", "path", "shim", "pidfd"):
        os.close(writing)
    if kind == "shim":
        theirs.close()
    if kind == "path":
        path.unlink()
    if kind == "pidfd":
        process.kill()
    daemon = await start()
    await until(lambda: list(daemon.networks.values()) == [daemon.network("other")])
    await until(lambda: all(not name.startswith(network.id) for name in manager.names()))
    await no_link(guest)
    with world.outside.socket() as client:
        assert (await aside(refusal, client, (HOST, port)))[0] == errno.ECONNREFUSED
    await works(world, other)
    if kind in ("tap", "path", "shim", "pidfd"):
        os.close(writing)
    theirs.close()
    process.kill()
    process.wait()


async def test_a_network_of_just_now_comes_back(world: World, start: Start) -> None:
    """It is not stored before whoever waits for it has gone on, but before the end."""
    guest = world.guest()
    daemon = await start()
    await daemon.attach(NetworkSpec(name="web"), os.dup(guest.fd), Lifeline("explicit"))
    daemon = await start()
    assert list(daemon.networks.values()) == [daemon.network("web")]
    await works(world, guest)


async def test_ports_that_came_with_the_network_are_stored_later(
    world: World, manager: ServiceManager, start: Start
) -> None:
    """A container that does not live that long costs the service manager nothing for its ports."""
    daemon = await start()
    names = []
    for _ in range(2):
        network = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), Lifeline("explicit"))
        network.add_forward(ForwardSpec("tcp", 0, 80), "pasta")
        daemon.changed_soon(network)
        names.append(f"{network.id}.port-1")
        await until(lambda tap=f"{network.id}.tap": tap in manager.names())
        assert names[-1] not in manager.ever
        if len(names) == 1:
            await daemon.detach(network)
    await until(lambda: names[1] in manager.names())
    assert names[0] not in manager.ever
    await daemon.detach(network)


async def test_a_network_that_ends_at_once_is_never_stored(world: World, manager: ServiceManager, start: Start) -> None:
    daemon = await start()
    network = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), Lifeline("explicit"))
    await daemon.detach(network)
    await asyncio.sleep(2 * store.SOON)
    assert manager.ever == set() and not daemon._store._late and not daemon._store._portless


async def test_the_store_follows(world: World, manager: ServiceManager, start: Start) -> None:
    daemon = await start()
    guest = world.guest()
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held = {"exit_fd": reading}
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("shim", ours.detach()), held)
    i = network.id
    assert not manager.names()  # whoever waits for the network comes first
    await until(manager.names)
    assert manager.names() == [f"{i}.held-exit_fd", f"{i}.life", f"{i}.tap", "state"]
    network.add_forward(ForwardSpec("tcp", free_range(world), 8000, range=3), "api")
    daemon.changed(network)
    network.add_forward(ForwardSpec("udp", 0, 53), "api")
    daemon.changed(network)
    assert [name for name in manager.names() if "port" in name] == [f"{i}.port-1"] * 6 + [f"{i}.port-2"] * 2
    network.remove_forward(1)
    daemon.changed(network)
    assert [name for name in manager.names() if "port" in name] == [f"{i}.port-2"] * 2
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # any abstract name
    listener.listen()
    network.held["slirp_api"] = listener.detach()
    daemon.changed(network)
    assert f"{i}.held-slirp_api" in manager.names()
    os.close(network.held.pop("slirp_api"))
    daemon.changed(network)
    assert f"{i}.held-slirp_api" not in manager.names()
    assert manager.duplicates == 0
    await until(lambda: any(line.startswith("STATUS=1 network") for line in manager.lines))
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    daemon.changed(network)
    await daemon.detach(network)
    assert manager.names() == [f"{i}.port-3"] * 2 + ["state"]  # a TCP listener is shut down, a UDP port must be closed
    await until(lambda: manager.names() == ["state"])
    theirs.close()
    os.close(writing)


def free_range(world: World) -> int:
    with world.host.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        return sock.getsockname()[1]  # type: ignore[no-any-return]


async def test_what_the_store_lost_is_bound_anew(world: World, manager: ServiceManager, start: Start) -> None:
    daemon = await start()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    first = 20000
    network.add_forward(ForwardSpec("tcp", first, 8000, range=5), "api")
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    daemon.changed(network)
    for survivors in (3, 0):
        await start.stop()  # type: ignore[attr-defined]
        manager.settle()
        ports = [entry for entry in manager.store if entry[0].endswith("port-1")]
        manager._drop(ports[survivors:])  # FileDescriptorStoreMax= was reached
        manager._drop([entry for entry in manager.store if entry[0].endswith("port-2")])
        network = (await start()).network(network.id)
        restored = network.forward(1).spec
        assert (restored.host_port, restored.range) == (first, 5)
        for port in range(8000, 8005):
            with guest.listener(port=port) as listener, world.outside.socket() as client:
                (await connected(client, (HOST, first + port - 8000), listener)).close()
        await answers(world, guest, network, 2)
        assert len([name for name in manager.names() if "port" in name]) == 12


async def test_a_port_taken_meanwhile_is_given_up_and_nothing_else(
    world: World, manager: ServiceManager, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = await start()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    port = network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    daemon.changed(network)
    await start.stop()  # type: ignore[attr-defined]
    manager.settle()
    manager._drop([entry for entry in manager.store if entry[0].endswith("port-1")])
    with world.host.listener("0.0.0.0", port):
        network = (await start()).network(network.id)
        assert [f.id for f in network.forwards()] == [2]
        assert str(port) in caplog.text and "in use" in caplog.text
        await answers(world, guest, network, 2)
    assert network.add_forward(ForwardSpec("tcp", port, 80), "api").id == 3


async def test_descriptors_of_a_strange_kind_or_too_many(world: World, manager: ServiceManager, start: Start) -> None:
    daemon = await start()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    network.add_forward(ForwardSpec("udp", 0, 80), "api")
    daemon.changed(network)
    await start.stop()  # type: ignore[attr-defined]
    i = network.id
    unix = socket.socket(socket.AF_UNIX)
    datagram = socket.socket(type=socket.SOCK_DGRAM)
    for name in (f"{i}.tap", f"{i}.port-1", f"{i}.port-2", f"{i}.port-7", "state", "other", "x.y.z", ""):
        manager.store[:0] = [  # to the end, when they are handed over
            (name, os.open("/dev/null", os.O_RDONLY)),
            (name, os.dup(unix.fileno())),
            (name, os.dup(datagram.fileno())),
        ]
    unix.close()
    datagram.close()
    network = (await start()).network(i)
    assert [f.id for f in network.forwards()] == [1, 2]
    await answers(world, guest, network, 1)
    await works(world, guest)


async def test_a_tap_that_is_none_is_let_go_of(world: World, manager: ServiceManager, start: Start) -> None:
    daemon = await start()
    network = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), Lifeline("explicit"))
    await start.stop()  # type: ignore[attr-defined]
    manager.settle()
    manager._drop([entry for entry in manager.store if entry[0].endswith(".tap")])
    manager.store.append((f"{network.id}.tap", os.open("/dev/null", os.O_RDONLY)))
    daemon = await start()
    assert daemon.networks == {} and manager.names() == ["state"]


# -- without, and with trouble --------------------------------------------------------------------------------------


async def test_without_a_service_manager_they_end_with_the_process(world: World, settings: Settings) -> None:
    guest = world.guest()
    before = open_fds()
    daemon = Daemon(settings)
    await daemon.start()
    reading, writing = os.pipe()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", reading))
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    await daemon.stop()
    await no_link(guest)
    os.close(writing)
    assert open_fds() == before


async def test_a_service_manager_that_goes_away(
    world: World, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = ServiceManager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    notifier = Notifier()
    daemon = Daemon(settings, notifier)
    await daemon.start()
    manager.close()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    await until(lambda: "would not survive a restart" in caplog.text)
    await works(world, guest)
    await daemon.detach(network)
    await daemon.stop()
    notifier.close()


async def test_a_container_that_restarts_while_the_store_still_has_its_tap(
    world: World, manager: ServiceManager, start: Start
) -> None:
    """The TAP lives until the service manager has let go of it, too; the attach waits for that."""
    guest = world.guest()
    daemon = await start()
    reading, writing = os.pipe()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", reading))
    port = network.add_forward(ForwardSpec("tcp", 0, 80), "run").spec.host_port
    daemon.changed(network)
    for _ in range(20):
        os.close(writing)
        reading, writing = os.pipe()
        network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("exit_fd", reading))
        network.add_forward(ForwardSpec("tcp", port, 80), "run")
        daemon.changed(network)
    await works(world, guest)
    await answers(world, guest, network, 1)
    os.close(writing)
    await until(lambda: daemon.networks == {} and manager.names() == ["state"])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_port_is_free_as_soon_as_it_is_removed(
    world: World, manager: ServiceManager, start: Start, protocol: str
) -> None:
    """Though the service manager holds a duplicate of its socket until it has read the message."""
    daemon = await start()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(), os.dup(guest.fd), Lifeline("explicit"))
    status = network.add_forward(ForwardSpec(protocol, 0, 80), "api")
    daemon.changed(network)
    manager.settle()
    for _ in range(20):
        network.remove_forward(status.id)
        status = network.add_forward(ForwardSpec(protocol, status.spec.host_port, 80), "api")
        daemon.changed(network)
        with pytest.raises(PortInUse):
            network.add_forward(ForwardSpec(protocol, status.spec.host_port, 81), "api")
    if protocol == "udp":
        with guest.datagrams(port=80) as server, world.outside.datagrams(OUTSIDE) as client:
            client.sendto(b"to the new one", (HOST, status.spec.host_port))
            assert await aside(server.recv, 100) == b"to the new one"
    assert [name for name in manager.names() if "port" in name] == [f"{network.id}.port-{status.id}"] * 2


async def test_a_thousand_forwards_in_two_seconds_with_a_record_of_each(
    world: World, manager: ServiceManager, start: Start
) -> None:
    daemon = await start()
    network = await daemon.attach(NetworkSpec(), os.dup(world.guest().fd), Lifeline("explicit"))
    begin = time.monotonic()
    for number in range(1000):
        network.add_forward(ForwardSpec("tcp", 0, 1 + number), "api")
        daemon.changed(network)
        await asyncio.sleep(0)
    took = time.monotonic() - begin
    assert len([name for name in manager.names() if "port" in name]) == 2000
    daemon = await start()
    assert len(daemon.network(network.id).forwards()) == 1000
    assert took < 2, took
